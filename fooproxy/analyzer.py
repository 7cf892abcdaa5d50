r"""Turns the bytes of one leg into counts of messages: sans-IO, and the only place that knows the grammar.

The rules, for each line (whatever stands between two ``\n``)::

    Type <one or more spaces or tabs> Seq [<one or more spaces or tabs> Data]

with Type ``REQ``, ``ACK`` or ``NAK``, Seq decimal digits with an optional sign, Data any bytes, and one CR tolerated
at the end.  A line that matches counts by its Type when its newline is seen; any other counts as invalid.

The theory.  Whether a line is a message is decided by its head alone, and all that can still matter of an
unfinished line is where in the grammar its head stands.  So an analyzer carries no bytes of it from chunk to chunk
but the shortest line that stands at the same place (see `canonical`): at most seven bytes, however long the line is.

The practice.  Small chunks are only put by when they come, and counted together when somebody asks or the time
table's next sample is due: a message that is one of hundreds costs a tenth of one that is looked at alone.  Whole
lines are counted without a step per line in Python.  One search finds the first newline that no well-formed head
follows; when there is none, all lines are messages, and counting the types is counting substrings.  Of long lines
only the heads are looked at, once the newlines are found.

It knows no sockets, no clocks, no Twisted.  The interceptor feeds it.
"""

from __future__ import annotations

import re

_HEAD = rb"(REQ|ACK|NAK)[ \t]+[+-]?[0-9]+"
_TYPES = re.compile(rb"^" + _HEAD + rb"(?:[ \t].*|\r?)$", re.MULTILINE)

# The common spelling: what is not spelled so may be a message all the same, and is looked at more closely.
_SLIP = re.compile(rb"\n.{4}(?![0-9]{1,20}(?:[ \n]|\Z))", re.DOTALL)
_SPELLINGS = (b"\nREQ ", b"\nACK ", b"\nNAK ")

_IN_DATA = re.compile(_HEAD + rb"[ \t]")
_IN_SEQ = re.compile(_HEAD + rb"(\r?)")
_IN_GAP = re.compile(rb"(REQ|ACK|NAK)[ \t]+([+-]?)")
_IN_TYPE = frozenset(word[:length] for word in (b"REQ", b"ACK", b"NAK") for length in range(4))
_HOPELESS = b"!"
_DECIDED = frozenset({b"REQ 0 ", b"ACK 0 ", b"NAK 0 ", _HOPELESS})

_SMALL = 2048
"""Bytes up to which a chunk is put by.  What is put by is bounded by what arrives between two samples."""

_LONG = 256
"""Bytes of a first line from which on it pays to find each newline, and to look at the heads alone."""

_HEAD_SIZE = 32
"""Bytes that hold a newline and any head in the common spelling, which has twenty digits at most."""


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
    `total` has those catch up first.
    """

    __slots__ = ("_behind", "_counts", "_head", "_put_by", "_total")

    def __init__(self, total: Counts, behind: list[Analyzer]) -> None:
        self._counts = Counts()
        self._total = total
        self._behind = behind
        self._head = b""
        self._put_by: list[bytes] = []

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
        if len(chunk) > _SMALL:
            self.catch_up()

    def catch_up(self) -> None:
        """Count what was put by."""
        put_by = self._put_by
        if put_by:
            chunk = b"".join(put_by) if len(put_by) > 1 else put_by[0]
            put_by.clear()
            self._analyze(chunk)

    def _analyze(self, chunk: bytes) -> None:
        head = self._head
        end = chunk.rfind(b"\n")
        if end < 0:
            if head not in _DECIDED:
                self._head = canonical(head + chunk)
            counted = (0, 0, 0, 0)
        else:
            counted = _count(head, chunk, end)
            tail = chunk[end + 1 :]
            self._head = canonical(tail) if tail else b""
        self._counts.add(len(chunk), *counted)
        self._total.add(len(chunk), *counted)


def _count(head: bytes, chunk: bytes, end: int) -> tuple[int, int, int, int]:
    """Give how many REQ, ACK, NAK and invalid lines there are in `head` and `chunk` up to the newline at `end`."""
    long = chunk.find(b"\n", 0, _LONG) < 0
    # Each line with the newline before it, the last without the one after it.
    lines = _heads(head, chunk, end) if long else b"".join((b"\n", head, memoryview(chunk)[:end]))
    ended = lines.count(b"\n")
    req, ack, nak = map(lines.count, _SPELLINGS)
    if req + ack + nak < ended or _SLIP.search(lines):
        types = _TYPES.findall(head + chunk[: end + 1])
        req, ack, nak = map(types.count, (b"REQ", b"ACK", b"NAK"))
    return req, ack, nak, ended - req - ack - nak


def _heads(head: bytes, chunk: bytes, end: int) -> bytes:
    """Give the lines of `head` and `chunk` up to the newline at `end`, each cut to its head."""
    find = chunk.find
    here = find(b"\n")
    heads = [b"\n", (head + chunk[: min(here, _HEAD_SIZE)])[:_HEAD_SIZE]]
    while here < end:
        following = find(b"\n", here + 1)
        heads.append(chunk[here : min(following, here + _HEAD_SIZE)])
        here = following
    return b"".join(heads)
