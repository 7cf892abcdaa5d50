r"""Turns the bytes of one leg into counts of messages: sans-IO, and the only place that knows the grammar.

The rules, for each line (whatever stands between two ``\n``)::

    Type <one or more spaces or tabs> Seq [<one or more spaces or tabs> Data]

with Type ``REQ``, ``ACK`` or ``NAK``, Seq decimal digits with an optional sign, Data any bytes, and one CR tolerated
at the end.  A line that matches counts by its Type when its newline is seen; any other counts as invalid.

The theory.  Whether a line is a message is decided by its head alone, and all that can still matter of an
unfinished line is where in the grammar its head stands.  So an analyzer carries no bytes of it from chunk to chunk
but the shortest line that stands at the same place (see `canonical`): at most seven bytes, however long the line
is.  A chunk then is that carried head, a run of whole lines, and a new unfinished one.  The run, which is where the
traffic is, costs no step per line in Python: one search finds the first newline that no good head follows.  When
there is none, all lines are messages, and counting the types is counting substrings.

It knows no sockets, no clocks, no Twisted.  The interceptor feeds it.
"""

from __future__ import annotations

import re

_HEAD = rb"(REQ|ACK|NAK)[ \t]+[+-]?[0-9]+"
_TYPES = re.compile(rb"^" + _HEAD + rb"(?:[ \t].*|\r?)$", re.MULTILINE)
_STARTS_WELL = re.compile(_HEAD + rb"(?:[ \t]|\r?\n)")
_SLIP = re.compile(rb"\n(?!" + _STARTS_WELL.pattern + rb"|\Z)")

_IN_DATA = re.compile(_HEAD + rb"[ \t]")
_IN_SEQ = re.compile(_HEAD + rb"(\r?)")
_IN_GAP = re.compile(rb"(REQ|ACK|NAK)[ \t]+([+-]?)")
_IN_TYPE = frozenset(word[:length] for word in (b"REQ", b"ACK", b"NAK") for length in range(4))
_HOPELESS = b"!"
_DECIDED = frozenset({b"REQ 0 ", b"ACK 0 ", b"NAK 0 ", _HOPELESS})


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

    @property
    def lines(self) -> int:
        """All lines that ended so far."""
        return self.req + self.ack + self.nak + self.invalid

    @property
    def replies(self) -> int:
        """ACK and NAK together."""
        return self.ack + self.nak


class Analyzer(Counts):
    """Counts one leg of one session, and adds the same to `total`, that leg's sum over all sessions.

    Feed it every chunk of the leg in order; how the stream is cut makes no difference.  No input raises, and the
    memory held does not depend on the input.
    """

    __slots__ = ("_head", "total")

    def __init__(self, total: Counts) -> None:
        super().__init__()
        self.total = total
        self._head = b""

    @property
    def mid_line(self) -> bool:
        """Whether a line has begun whose newline has not been seen."""
        return self._head != b""

    def feed(self, chunk: bytes) -> None:
        """Count `chunk`, the next bytes of the leg."""
        size = len(chunk)
        self.bytes += size
        self.total.bytes += size
        end = chunk.rfind(b"\n") + 1
        if not end:
            if self._head not in _DECIDED:
                self._head = canonical(self._head + chunk)
            return
        start = 0
        if self._head:
            start = chunk.index(b"\n") + 1
            self._count(self._head + chunk[:start])
        if start < end:
            self._count(chunk[start:end])
        self._head = canonical(chunk[end:]) if end < size else b""

    def _count(self, lines: bytes) -> None:
        """Count `lines`: one or more, each with its newline."""
        ended = lines.count(b"\n")
        if _STARTS_WELL.match(lines) and not _SLIP.search(lines):
            req = lines.startswith(b"R") + lines.count(b"\nR")
            nak = lines.startswith(b"N") + lines.count(b"\nN")
            ack = ended - req - nak
        else:
            types = _TYPES.findall(lines)
            req, ack, nak = types.count(b"REQ"), types.count(b"ACK"), types.count(b"NAK")
        invalid = ended - req - ack - nak
        for counts in (self, self.total):
            counts.req += req
            counts.ack += ack
            counts.nak += nak
            counts.invalid += invalid
