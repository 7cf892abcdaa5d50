"""The analyzer: turns the bytes of one leg into counts of messages (sans-IO).

A line is counted when its newline is seen: by its type if it matches the grammar, as invalid otherwise.  From an
unfinished line an analyzer keeps only the shortest line at the same place in the grammar: at most seven bytes, however
long the line is.

Incoming chunks are queued and counted in batches across all sessions, as soon as there are a few dozen of them or a
counter is read.  They are still in the processor's caches then, and the counting code is loaded into the caches once
per batch.  Whole lines need no Python step per line: one search finds the first newline without a usual head behind it,
"usual" meaning usual on this kind of leg.  If there is none, every line is a message, and counting messages means
counting heads.  Only the heads of long lines are examined.

This module does not know about sockets, clocks or Twisted.  The interceptor feeds it chunks with their arrival times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fooproxy.foo.grammar import LONG, NO_REPLY, NO_REQUEST, TYPES, canonical, heads_of
from fooproxy.foo.latency import LONGEST, bucket
from fooproxy.foo.numbers import Block, Number
from fooproxy.foo.pairing import Pairs

if TYPE_CHECKING:
    from fooproxy.foo.latency import Exchange, Latency

    _Fed = tuple["Analyzer", bytes, int]

_NEWLINE, _A = b"\nA"

_ENOUGH = 32
"""The smallest number of chunks that is worth counting as a batch."""


class Counts(Block):
    """Cumulative, additive counts of one leg.

    `bytes` counts bytes; `req`, `ack` and `nak` count messages by type; `invalid` counts lines that are not messages.
    """

    __slots__ = ()

    bytes = Number()
    req = Number()
    ack = Number()
    nak = Number()
    invalid = Number()

    @property
    def lines(self) -> int:
        """All complete lines so far."""
        return self.req + self.ack + self.nak + self.invalid

    @property
    def replies(self) -> int:
        """ACK and NAK together."""
        return self.ack + self.nak


_BYTES, _REQ, _ACK = Counts.bytes.place, Counts.req.place, Counts.ack.place
_NAK, _INVALID = Counts.nak.place, Counts.invalid.place


class Derived:
    """The figures that are computed from those of an `Analyzer`, for both twins."""

    __slots__ = ()

    analysis: Analysis
    exchange: Exchange
    head: bytes
    nak: int
    is_muted: bool

    if TYPE_CHECKING:

        @property
        def ack(self) -> int:
            """ACK messages received on this leg."""

        def take_back(self, size: int) -> None:
            """Forget the unfinished line, of which `size` bytes have been fed."""

    def state(self) -> list[Any]:
        """Return everything about this leg as plain data, the arguments of `restore`; see `Waiting.state`."""
        self.analysis.catch_up()
        return [*(getattr(self, name) for name in Counts.names), self.head, self.is_muted]

    @property
    def replies(self) -> int:
        """ACK and NAK together."""
        return self.ack + self.nak

    @property
    def counts(self) -> Counts:
        """The counts of everything fed so far."""
        self.analysis.catch_up()
        counts = Counts()
        for name in Counts.names:
            setattr(counts, name, getattr(self, name))
        return counts

    @property
    def mid_line(self) -> bool:
        """Whether the last line is unfinished: its newline has not arrived yet."""
        self.analysis.catch_up()
        return self.head != b""

    def finish(self, time: int) -> None:
        """Record that nothing follows after `time`; an unfinished last line is a request, as servers answer it."""
        if self.mid_line:
            self.take_back(0)
            self.exchange.cut_short(time)


class Analyzer(Derived):
    """Counts one leg of one session, and reports its requests or replies to the session's `exchange`.

    Feed it every chunk of the leg in order; how the stream is cut makes no difference.  No input raises, and memory use
    does not depend on the input.  Its figures have the names of `Counts` and cover what its `analysis` has processed so
    far.  Figures that follow from the exchange are not stored again: a client's REQs are the exchange's requests less
    all other lines, and the upstream's ACKs are the exchange's replies less the NAKs.
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
    """The most chunks that may wait to be counted."""

    large = 4096
    """Bytes; a chunk larger than this is counted at once, and on its own."""

    def __init__(self, analysis: Analysis, exchange: Exchange) -> None:
        self.analysis = analysis
        self.waiting = analysis.waiting
        self.exchange = exchange
        self.bytes = self.nak = self.invalid = 0
        self._stray = 0
        """ACKs from a client, or REQs from the upstream."""
        self.outlet = self.room = -1
        """Two numbers for the feeder's own use, kept here so that it needs no object of its own."""
        self.head = b""
        """The shortest beginning of a line that counts the same as the unfinished line; empty between lines."""
        self.apart = False
        """Whether the next chunk must be counted on its own."""
        self.is_muted = False
        """Whether further chunks are dropped without being counted."""

    def feed(self, chunk: bytes, time: int) -> None:
        """Accept `chunk`, the next bytes of the leg, which arrived at `time` (microseconds)."""
        waiting = self.waiting
        if chunk and not self.is_muted:
            waiting.append((self, chunk, time))
        if len(waiting) > self.many or len(chunk) > self.large:
            self.analysis.catch_up()

    def tally(self, ended: int, req: int, ack: int, nak: int) -> None:
        """Count `ended` complete lines, among them messages of each type; the exchange has been notified already."""
        self._stray += ack if self.analysis.requests else req
        self.nak += nak
        self.invalid += ended - req - ack - nak

    def place(self, head: bytes) -> None:
        """Make `head` the beginning of the unfinished line."""
        self.exchange.unfinished += (head != b"") - (self.head != b"")
        self.head = head

    def restore(self, size: int, req: int, ack: int, nak: int, invalid: int, head: bytes, is_muted: bool) -> None:
        """Take over the `state` of another analyzer; the exchange must have taken over the state of its exchange."""
        self.bytes, self.nak, self.invalid, self.is_muted = size, nak, invalid, is_muted
        self._stray = ack if self.analysis.requests else req
        self.place(head)
        self.apart = head != b""

    def move(self, analysis: Analysis) -> None:
        """Count for another `analysis` of the same kind of leg from now on; all fed chunks must have been counted."""
        self.analysis = analysis
        self.waiting = analysis.waiting

    def take_back(self, size: int) -> None:
        """Forget the unfinished line, of which `size` bytes were fed since the last newline; they are not relayed."""
        self.place(b"")
        if self.exchange.pairs is not None:
            self.exchange.pairs.take_back(self.analysis.requests)
        self.bytes -= size
        self.analysis.total.bytes -= size

    @property
    def req(self) -> int:
        """REQ messages received on this leg."""
        if self.analysis.requests:
            return self.exchange.requests - self._stray - self.nak - self.invalid
        return self._stray

    @property
    def ack(self) -> int:
        """ACK messages received on this leg."""
        return self._stray if self.analysis.requests else self.exchange.replies - self.nak


class Analysis:
    """Counts the chunks of all analyzers of one kind of leg; adds the counts to `total`, and requests to `latency`.

    `requests` selects the fast path: for requests if true, for replies otherwise.  The queue of the analysis `before`
    is counted first, so that the requests are known before their replies are matched.
    """

    defers = True
    """Whether chunks wait to be counted together, so that `digest` has something to do."""

    def __init__(
        self, latency: Latency, requests: bool, before: Analysis | None = None, total: Counts | None = None
    ) -> None:
        self._latency = latency
        self.total = Counts() if total is None else total
        self.waiting: list[_Fed] = []
        """Chunks that have not been counted yet, each with its analyzer and its time."""
        self.requests = requests
        self._before = before
        self.settled: list[Exchange] = [] if before is None else before.settled
        """The watched exchanges that have become settled, for the watcher to remove; one may be here twice."""
        self._watched: set[Exchange] = set() if before is None else before._watched
        self._paired: list[bool] = [False] if before is None else before._paired
        """Whether the seqs of any exchange are compared; in a list, since all analyses share it."""
        self._slip = (NO_REQUEST if requests else NO_REPLY).search

    def watch(self, exchange: Exchange, is_watched: bool = True) -> None:
        """Add `exchange` to `settled` whenever it has become settled, until a call with `is_watched` false."""
        (self._watched.add if is_watched else self._watched.discard)(exchange)

    def pair(self, exchange: Exchange) -> None:
        """Compare the seqs of the replies of `exchange` with those of its requests from now on."""
        exchange.pairs = exchange.pairs or Pairs()
        self._paired[0] = True

    def digest(self) -> None:
        """Catch up if enough chunks wait to make it worthwhile."""
        waiting = self.waiting
        if len(waiting) >= _ENOUGH or (waiting and len(waiting[-1][1]) > Analyzer.large):
            self.catch_up()

    def catch_up(self) -> None:
        """Count all waiting chunks."""
        if self._before is not None:
            self._before.catch_up()
        if not self.waiting:
            return
        whole = self.waiting[:]
        self._latency.seen = max(self._latency.seen, whole[-1][2])
        rest: list[_Fed] = []
        self.waiting.clear()
        if self._paired[0]:
            for analyzer, chunk, _ in whole:
                if analyzer.exchange.pairs is not None:
                    analyzer.exchange.pairs.feed(self.requests, chunk)
        chunks = [chunk for analyzer, chunk, _ in whole if chunk[-1] == _NEWLINE and not analyzer.apart]
        if len(chunks) < len(whole) or len(chunks[-1]) > Analyzer.large:
            whole, rest = _divide(whole)
            chunks = [chunk for _, chunk, _ in whole]
        lines = b"\n" + b"".join(chunks)
        if not self._are_usual(lines):
            # Counting each chunk on its own shows which one is unusual.
            whole, rest = [], whole + rest
        if whole:
            count = self._count_requests if self.requests else self._count_replies
            count(whole, lines)
        for analyzer, chunk, time in rest:
            self._count(analyzer, chunk, time)
        if self._watched:
            fed = (analyzer.exchange for analyzer, _, _ in whole + rest)
            self.settled += (exchange for exchange in fed if exchange in self._watched and exchange.settled)

    def _are_usual(self, lines: bytes) -> bool:
        """Return whether all of `lines`, each preceded by a newline, are usual messages on this kind of leg."""
        slip = self._slip(lines)
        # Nothing follows the last newline, so it is the one that must be found.
        return slip is not None and slip.start() == len(lines) - 1

    def _count_requests(self, whole: list[_Fed], lines: bytes) -> None:
        ended, req = 1, len(whole)
        alone = _are_alone(whole) and lines.count(b"\nREQ ") == req
        if not alone:
            req = 0
        for analyzer, chunk, time in whole:
            if not alone:
                # This pattern is found faster than a newline on its own.
                ended = chunk.count(b"\nREQ ") + 1
                req += ended
            analyzer.bytes += len(chunk)
            exchange = analyzer.exchange
            if exchange.open:
                exchange.request(time, ended)
            else:
                # The same as `Exchange.request`, without the cost of a call.
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
        # All chunks of a batch have the same time, and so did most of their requests.
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
            # The same as `Exchange.reply`, without the cost of the calls.
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
        latency.replied = time
        numbers, start = self.total.numbers, self.total.start
        numbers[start + _BYTES] += len(lines) - 1
        numbers[start + _ACK] += replies - naks
        numbers[start + _NAK] += naks

    def _count(self, analyzer: Analyzer, chunk: bytes, time: int) -> None:
        """Count `chunk` on its own, whatever it contains."""
        head = analyzer.head
        end = chunk.rfind(b"\n") + 1
        tail = chunk[end:] if end else head + chunk
        analyzer.place(canonical(tail) if tail else b"")
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
        if not self.requests:
            analyzer.exchange.reply(time, ack + nak)
        elif ended:
            analyzer.exchange.request(time, ended)
            self._latency.ask(ended)
        else:
            analyzer.exchange.last = time
        analyzer.bytes += len(chunk)
        analyzer.tally(ended, req, ack, nak)
        numbers, start = self.total.numbers, self.total.start
        numbers[start + _BYTES] += len(chunk)
        numbers[start + _REQ] += req
        numbers[start + _ACK] += ack
        numbers[start + _NAK] += nak
        numbers[start + _INVALID] += ended - req - ack - nak


def _are_alone(whole: list[_Fed]) -> bool:
    """Guess from the first chunk whether each chunk is exactly one line."""
    first = whole[0][1]
    return first.find(b"\n") == len(first) - 1


def _divide(waiting: list[_Fed]) -> tuple[list[_Fed], list[_Fed]]:
    """Separate the chunks of whole lines from those that must be counted on their own."""
    whole, rest = [], []
    for entry in waiting:
        analyzer, chunk, _ = entry
        if analyzer.apart or chunk[-1] != _NEWLINE or len(chunk) > Analyzer.large:
            # If the analyzer's next chunk waits here too, it must be counted after this one.
            analyzer.apart = True
            rest.append(entry)
        else:
            whole.append(entry)
    return whole, rest
