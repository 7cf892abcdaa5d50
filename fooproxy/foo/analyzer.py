"""Turns the bytes of one leg into counts of messages: sans-IO.

A line that matches the grammar counts by its type when its newline is seen; any other counts as invalid.  Of a line
that is not finished an analyzer carries no bytes from chunk to chunk but the shortest line that stands at the same
place in the grammar: at most seven bytes, however long the line is.

Chunks are only put by when they come, and counted together, those of all sessions, when there are some
dozens of them or when somebody asks: that is soon enough for them to be in the processor's caches still, and the code
that counts them is fetched into those once for all of them.  Whole lines are counted without a step per line in Python.
One search finds the first newline that is not followed by a head as it is usual on this kind of leg; when there is
none, all lines are messages, and counting them is counting heads.  Of long lines only the heads are looked at.

It knows no sockets, no clocks, no Twisted.  The interceptor feeds it, and says when each chunk came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fooproxy.foo.grammar import LONG, NO_REPLY, NO_REQUEST, TYPES, canonical, heads_of
from fooproxy.foo.latency import LONGEST, bucket
from fooproxy.foo.numbers import Block, Number

if TYPE_CHECKING:
    from fooproxy.foo.latency import Exchange, Latency

    _Fed = tuple["Analyzer", bytes, int]

_NEWLINE, _A = b"\nA"

_ENOUGH = 32
"""Chunks from which on it pays to count them."""


_BYTES, _REQ, _ACK, _NAK, _INVALID = range(5)


class Counts(Block):
    """What passed on one leg: cumulative and additive.

    `bytes` counts bytes; `req`, `ack` and `nak` messages of each type; `invalid` lines that are not messages.
    """

    __slots__ = ()

    names = ("bytes", "req", "ack", "nak", "invalid")
    bytes, req, ack, nak, invalid = map(Number, range(5))

    @property
    def lines(self) -> int:
        """All lines that ended so far."""
        return self.req + self.ack + self.nak + self.invalid

    @property
    def replies(self) -> int:
        """ACK and NAK together."""
        return self.ack + self.nak


class Analyzer:
    """Counts one leg of one session, and tells the session's `exchange` of its requests or replies.

    Feed it every chunk of the leg in order; how the stream is cut makes no difference.  No input raises, and the memory
    held does not depend on the input.  Its figures, those of a `Counts`, are of what its `analysis` has looked at so
    far.  What the exchange knows already is not counted twice here: a client's lines are its requests, and the
    upstream's ACKs are its replies but for the NAKs.
    """

    __slots__ = (
        "_stray",
        "analysis",
        "apart",
        "bytes",
        "exchange",
        "head",
        "invalid",
        "is_muted",
        "nak",
        "outlet",
        "room",
        "waiting",
    )

    many = 64
    """Chunks that may wait for being counted."""

    large = 4096
    """Bytes of a chunk from which on it is counted alone, and at once."""

    def __init__(self, analysis: Analysis, exchange: Exchange) -> None:
        self.analysis = analysis
        self.waiting = analysis.waiting
        self.exchange = exchange
        self.bytes = self.nak = self.invalid = 0
        self._stray = 0
        """ACKs from a client, or REQs from the upstream."""
        self.outlet = self.room = -1
        """Whoever feeds it may keep two numbers here, and so has one object less to look at."""
        self.head = b""
        """The shortest line that counts as the one that has begun."""
        self.apart = False
        """Whether its next chunk is to be counted alone."""
        self.is_muted = False
        """Whether what it is fed from now on does not count."""

    def feed(self, chunk: bytes, time: int) -> None:
        """Take `chunk`, the next bytes of the leg, and when it came, in microseconds."""
        waiting = self.waiting
        if chunk and not self.is_muted:
            waiting.append((self, chunk, time))
        if len(waiting) > self.many or len(chunk) > self.large:
            self.analysis.catch_up()

    def tally(self, ended: int, req: int, ack: int, nak: int) -> None:
        """Count so many lines that have ended, of which so many are messages of each type; the exchange has them."""
        self._stray += ack if self.analysis.requests else req
        self.nak += nak
        self.invalid += ended - req - ack - nak

    @property
    def req(self) -> int:
        """REQ that came here."""
        if self.analysis.requests:
            return self.exchange.requests - self._stray - self.nak - self.invalid
        return self._stray

    @property
    def ack(self) -> int:
        """ACK that came here."""
        return self._stray if self.analysis.requests else self.exchange.replies - self.nak

    @property
    def replies(self) -> int:
        """ACK and NAK together."""
        return self.ack + self.nak

    @property
    def counts(self) -> Counts:
        """What was counted of all that was fed."""
        self.analysis.catch_up()
        counts = Counts()
        for name in Counts.names:
            setattr(counts, name, getattr(self, name))
        return counts

    @property
    def mid_line(self) -> bool:
        """Whether a line has begun whose newline has not been seen."""
        self.analysis.catch_up()
        return self.head != b""


class Analysis:
    """Counts what all analyzers of one kind of leg were fed, and adds it up in `total`, and requests in `latency`.

    It is quick with requests if it expects `requests`, else with replies.  What waits at the analysis `before` is
    counted first: replies are matched with requests that are known already.
    """

    def __init__(
        self, latency: Latency, requests: bool, before: Analysis | None = None, total: Counts | None = None
    ) -> None:
        self._latency = latency
        self.total = Counts() if total is None else total
        self.waiting: list[_Fed] = []
        """Chunks that were fed and not looked at, each with its analyzer."""
        self.requests = requests
        self._before = before
        self._slip = (NO_REQUEST if requests else NO_REPLY).search

    def digest(self) -> None:
        """Catch up if it is worth it."""
        waiting = self.waiting
        if len(waiting) >= _ENOUGH or (waiting and len(waiting[-1][1]) > Analyzer.large):
            self.catch_up()

    def catch_up(self) -> None:
        """Count what waits."""
        if self._before is not None:
            self._before.catch_up()
        if not self.waiting:
            return
        whole = self.waiting[:]
        rest: list[_Fed] = []
        self.waiting.clear()
        chunks = [chunk for analyzer, chunk, _ in whole if chunk[-1] == _NEWLINE and not analyzer.apart]
        if len(chunks) < len(whole) or len(chunks[-1]) > Analyzer.large:
            whole, rest = _divide(whole)
            chunks = [chunk for _, chunk, _ in whole]
        lines = b"\n" + b"".join(chunks)
        if not self._are_usual(lines):
            # Whose fault it is shows when each is looked at alone.
            whole, rest = [], whole + rest
        if whole:
            count = self._count_requests if self.requests else self._count_replies
            count(whole, lines)
        for analyzer, chunk, time in rest:
            self._count(analyzer, chunk, time)

    def _are_usual(self, lines: bytes) -> bool:
        """Tell whether all of `lines`, each after a newline, are messages as usual on this kind of leg."""
        slip = self._slip(lines)
        # The last newline has nothing after it, and so is the one that must be found.
        return slip is not None and slip.start() == len(lines) - 1

    def _count_requests(self, whole: list[_Fed], lines: bytes) -> None:
        ended, req = 1, len(whole)
        alone = _are_alone(whole) and lines.count(b"\nREQ ") == req
        if not alone:
            req = 0
        for analyzer, chunk, time in whole:
            if not alone:
                # This pattern is found faster than a newline alone.
                ended = chunk.count(b"\nREQ ") + 1
                req += ended
            analyzer.bytes += len(chunk)
            exchange = analyzer.exchange
            if exchange.open:
                exchange.request(time, ended)
            else:
                # As `request` does it, only without the call.
                exchange.asked = time
                exchange.open = ended
        numbers, start = self.total.numbers, self.total.start
        numbers[start + _BYTES] += len(lines) - 1
        numbers[start + _REQ] += req
        self._latency.ask(req)

    def _count_replies(self, whole: list[_Fed], lines: bytes) -> None:
        ended, replies, naks = 1, len(whole), 0
        alone = _are_alone(whole) and lines.count(b"\nACK ") + lines.count(b"\nNAK ") == replies
        if not alone:
            replies = 0
        # The chunks of a batch have one time, and mostly so had their requests.
        latency, span, number, same = self._latency, 0, 0, 0
        for analyzer, chunk, time in whole:
            if not alone:
                ack = chunk.count(b"\nACK ")
                nak = chunk.count(b"\nNAK ")
                if chunk[0] == _A:
                    ack += 1
                else:
                    nak += 1
                analyzer.nak += nak
                naks += nak
                ended = ack + nak
                replies += ended
            elif chunk[0] != _A:
                analyzer.nak += 1
                naks += 1
            analyzer.bytes += len(chunk)
            exchange = analyzer.exchange
            if exchange.open != ended or exchange.asked >= time:
                exchange.reply(time, ended)
                continue
            # As `reply` does it, only without the calls.
            if time - exchange.asked != span:
                latency.add(span, same)
                span, same = time - exchange.asked, 0
                number = bucket(min(span, LONGEST))
            same += ended
            try:
                exchange.buckets[number] += ended
            except KeyError:
                exchange.answered(number, ended)
            exchange.last = time
            exchange.open = 0
            if exchange.later:
                exchange.done(0)
        latency.add(span, same)
        numbers, start = self.total.numbers, self.total.start
        numbers[start + _BYTES] += len(lines) - 1
        numbers[start + _ACK] += replies - naks
        numbers[start + _NAK] += naks

    def _count(self, analyzer: Analyzer, chunk: bytes, time: int) -> None:
        """Count `chunk`, whatever it is."""
        head = analyzer.head
        end = chunk.rfind(b"\n") + 1
        tail = chunk[end:] if end else head + chunk
        analyzer.head = canonical(tail) if tail else b""
        lines = heads_of(head, chunk, end) if chunk.find(b"\n", 0, LONG) < 0 else None
        if lines is None:
            lines = b"".join((b"\n", head, memoryview(chunk)[:end]))
        ended = lines.count(b"\n") - 1
        req = ack = nak = 0
        usual = self._are_usual(lines)
        if not usual:
            types = TYPES.findall(head + chunk[:end])
            req, ack, nak = map(types.count, (b"REQ", b"ACK", b"NAK"))
        elif self.requests:
            req = ended
        else:
            nak = lines.count(b"\nNAK ")
            ack = ended - nak
        analyzer.apart = analyzer.head != b"" or not usual
        analyzer.exchange.last = time
        if self.requests:
            if ended:
                analyzer.exchange.request(time, ended)
                self._latency.ask(ended)
        else:
            analyzer.exchange.reply(time, ack + nak)
        analyzer.bytes += len(chunk)
        analyzer.tally(ended, req, ack, nak)
        numbers, start = self.total.numbers, self.total.start
        numbers[start + _BYTES] += len(chunk)
        numbers[start + _REQ] += req
        numbers[start + _ACK] += ack
        numbers[start + _NAK] += nak
        numbers[start + _INVALID] += ended - req - ack - nak


def _are_alone(whole: list[_Fed]) -> bool:
    """Guess, by the first, whether each chunk is a line of its own."""
    first = whole[0][1]
    return first.find(b"\n") == len(first) - 1


def _divide(waiting: list[_Fed]) -> tuple[list[_Fed], list[_Fed]]:
    """Tell the chunks that are whole lines from those that are to be counted alone."""
    whole, rest = [], []
    for entry in waiting:
        analyzer, chunk, _ = entry
        if analyzer.apart or chunk[-1] != _NEWLINE or len(chunk) > Analyzer.large:
            # So that its next one, if that waits here too, comes after it.
            analyzer.apart = True
            rest.append(entry)
        else:
            whole.append(entry)
    return whole, rest
