r"""Turns the bytes of one leg into counts of messages: sans-IO, and the only place that knows the grammar.

The rules, for each line (whatever stands between two ``\n``)::

    Type <one or more spaces or tabs> Seq [<one or more spaces or tabs> Data]

with Type ``REQ``, ``ACK`` or ``NAK``, Seq decimal digits with an optional sign, Data any bytes, and one CR tolerated
at the end.  A line that matches counts by its Type when its newline is seen; any other counts as invalid.

The theory.  Whether a line is a message is decided by its head alone, and all that can still matter of an
unfinished line is where in the grammar its head stands.  So an analyzer carries no bytes of it from chunk to chunk
but the shortest line that stands at the same place (see `canonical`): at most seven bytes, however long the line is.

The practice.  Small chunks are only put by when they come, and counted together when there are some kilobytes of
them, when somebody asks, or when the time table's next sample is due: a message that is one of dozens costs a fifth of
one that is looked at alone.  Whole lines are counted without a step per line in Python.  One search finds the first
newline that is not followed by a head as it is usual on this leg; when there is none, all lines are messages, and
counting them is counting newlines.  Of long lines only the heads are looked at, once the newlines are found.

It knows no sockets, no clocks, no Twisted.  The interceptor feeds it.
"""

from __future__ import annotations

import re
import sys

_HEAD = rb"(REQ|ACK|NAK)[ \t]+[+-]?[0-9]+"
_TYPES = re.compile(rb"^" + _HEAD + rb"(?:[ \t].*|\r?)$", re.MULTILINE)

# What is usual on a leg: these types, a space, up to twenty digits, a space or the end.  Anything else may be a message
# all the same, and is looked at more closely.  Python 3.11 need not remember where it could take digits back.
_DIGITS = rb"[0-9]{1,20}" + (b"+" if sys.version_info >= (3, 11) else b"")
_NO_REQUEST = re.compile(rb"\n(?!REQ " + _DIGITS + rb"[ \n])")
_NO_REPLY = re.compile(rb"\n(?!ACK " + _DIGITS + rb"[ \n]|NAK " + _DIGITS + rb"[ \n])")

_IN_DATA = re.compile(_HEAD + rb"[ \t]")
_IN_SEQ = re.compile(_HEAD + rb"(\r?)")
_IN_GAP = re.compile(rb"(REQ|ACK|NAK)[ \t]+([+-]?)")
_IN_TYPE = frozenset(word[:length] for word in (b"REQ", b"ACK", b"NAK") for length in range(4))
_HOPELESS = b"!"
_DECIDED = frozenset({b"REQ 0 ", b"ACK 0 ", b"NAK 0 ", _HOPELESS})

_ENOUGH = 2048
"""Bytes, roughly, that are put by before they are counted."""

_MOST = 64
"""Chunks that are put by at most, whatever they hold."""

_LONG = 256
"""Bytes of a first line from which on it pays to find each newline, and to look at the heads alone."""

_HEAD_SIZE = 32
"""Bytes that hold a newline and any usual head."""


def canonical(head: bytes) -> bytes:
    """Give the shortest beginning of a line that every continuation turns into the same count as `head`."""
    if match := _IN_DATA.match(head):
        return match[1] + b" 0 "
    if match := _IN_SEQ.fullmatch(head):
        return match[1] + b" 0" + match[2]
    if match := _IN_GAP.fullmatch(head):
        return match[1] + b" " + match[2]
    return head if head in _IN_TYPE else _HOPELESS


class Counts:
    """What passed on one leg: cumulative, additive, plain integers.

    `bytes` counts bytes; `req`, `ack` and `nak` messages of each type; `invalid` lines that are no message.
    """

    __slots__ = ("ack", "bytes", "invalid", "nak", "req")

    def __init__(self) -> None:
        self.bytes = self.req = self.ack = self.nak = self.invalid = 0

    def add(self, size: int, req: int, ack: int, nak: int, invalid: int) -> None:
        """Count so many bytes, messages and lines more."""
        self.bytes += size
        self.req += req
        self.ack += ack
        self.nak += nak
        self.invalid += invalid

    @property
    def lines(self) -> int:
        """All lines that ended so far."""
        return self.req + self.ack + self.nak + self.invalid

    @property
    def replies(self) -> int:
        """ACK and NAK together."""
        return self.ack + self.nak


class Analyzer:
    """Counts one leg of one session, and adds the same to `total`, that leg's sum over all sessions.

    Feed it every chunk of the leg in order; how the stream is cut makes no difference.  No input raises, and the
    memory held does not depend on the input.  An analyzer that has put chunks by stands in `behind`; whoever reads
    `total` has those catch up first.  One that expects `requests` is quick with those, else with replies.
    """

    __slots__ = ("_behind", "_counts", "_head", "_most", "_put_by", "_requests", "_total")

    def __init__(self, total: Counts, behind: list[Analyzer], requests: bool) -> None:
        self._counts = Counts()
        self._total = total
        self._behind = behind
        self._requests = requests
        self._head = b""
        self._put_by: list[bytes] = []
        self._most = 1

    @property
    def counts(self) -> Counts:
        """What was counted of all that was fed."""
        self.catch_up()
        return self._counts

    @property
    def mid_line(self) -> bool:
        """Whether a line has begun whose newline has not been seen."""
        self.catch_up()
        return self._head != b""

    def feed(self, chunk: bytes) -> None:
        """Take `chunk`, the next bytes of the leg."""
        put_by = self._put_by
        if not put_by:
            self._behind.append(self)
        put_by.append(chunk)
        if len(put_by) >= self._most or len(chunk) > _ENOUGH:
            self.catch_up()

    def catch_up(self) -> None:
        """Count what was put by."""
        put_by = self._put_by
        if put_by:
            chunk = b"".join(put_by) if len(put_by) > 1 else put_by[0]
            # As many chunks like these as are enough; at first one alone, until it is seen what they are like.
            self._most = min(_ENOUGH * len(put_by) // (len(chunk) + 1) + 1, _MOST)
            put_by.clear()
            self._analyze(chunk)

    def _analyze(self, chunk: bytes) -> None:
        head = self._head
        end = chunk.rfind(b"\n") + 1
        if end:
            counted = self._count(head, chunk, end)
            tail = chunk[end:]
            self._head = canonical(tail) if tail else b""
        else:
            counted = (0, 0, 0, 0)
            if head not in _DECIDED:
                self._head = canonical(head + chunk)
        self._counts.add(len(chunk), *counted)
        self._total.add(len(chunk), *counted)

    def _count(self, head: bytes, chunk: bytes, end: int) -> tuple[int, int, int, int]:
        """Give how many REQ, ACK, NAK and invalid lines there are in `head` and `chunk` up to its last newline."""
        lines = _heads(head, chunk, end) if chunk.find(b"\n", 0, _LONG) < 0 else None
        if lines is None:
            lines = b"".join((b"\n", head, memoryview(chunk)[:end]))
        ended = lines.count(b"\n") - 1
        slip = (_NO_REQUEST if self._requests else _NO_REPLY).search(lines)
        # The last newline has nothing after it, and so is the one that must be found.
        if slip is not None and slip.start() == len(lines) - 1:
            if self._requests:
                return ended, 0, 0, 0
            nak = lines.count(b"\nNAK ")
            return 0, ended - nak, nak, 0
        types = _TYPES.findall(head + chunk[:end])
        req, ack, nak = map(types.count, (b"REQ", b"ACK", b"NAK"))
        return req, ack, nak, ended - req - ack - nak


def _heads(head: bytes, chunk: bytes, end: int) -> bytes | None:
    r"""Give a ``\n`` and the lines of `head` and `chunk` up to `end`, each cut to its head and ended by a ``\n``.

    `None` when the lines are not long after all, so that they are better looked at all at once.
    """
    find = chunk.find
    here = find(b"\n")
    heads = [b"\n", (head + chunk[: min(here, _HEAD_SIZE)])[:_HEAD_SIZE]]
    for _ in range(end // _LONG + 1):
        if here == end - 1:
            heads.append(b"\n")
            return b"".join(heads)
        following = find(b"\n", here + 1)
        heads.append(chunk[here : min(following, here + _HEAD_SIZE)])
        here = following
    return None
