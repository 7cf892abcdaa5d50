"""Latency: how long requests wait for their replies, from chunk times to percentiles.

Foo servers answer in order, so each reply belongs to the oldest unanswered request of its session.  Seqs are ignored,
since servers send replies that carry no request's seq (``NAK 0 …``).  An invalid line from a client counts as a request
here, because servers answer it too.  All messages of a chunk share its arrival time, so the cost is per chunk and not
per message.

The analysis reports requests and replies to an `Exchange`, in order; nothing here reads a clock, a socket or a message.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fooproxy.foo.numbers import Block, Number

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fooproxy.foo.pairing import Pairs

LONGEST = (1 << 27) - 1
"""Microseconds (134 s); longer latencies count as this long."""

_MOST_OPEN = 256
"""Chunks of open requests that a session keeps apart; the requests of further chunks join the last of these."""

_LATE = 1 << 62
"""Stands for the arrival time of requests whose replies will be late: after any time."""

_ROUNDING = 1e-6
"""Smaller than any count, larger than any rounding error of floats."""

_NONE: dict[int, int] = {}
"""The buckets of a session without latencies; shared by all such sessions, so never written to."""

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


def bucket(microseconds: int) -> int:
    """Return the bucket number of a latency: one bucket per microsecond below 32, then 16 for each power of two."""
    shift = max(microseconds.bit_length() - 5, 0)
    return (shift << 4) + (microseconds >> shift)


def bounds(number: int) -> tuple[int, int]:
    """Return the bounds of a bucket in microseconds: the first latency inside it, and the first one above it."""
    shift = max((number >> 4) - 1, 0)
    lower = (number - (shift << 4)) << shift
    return lower, lower + (1 << shift)


BUCKETS = bucket(LONGEST) + 1
"""The number of buckets."""

BUCKET_NAMES = frozenset(map(str, range(BUCKETS)))
"""All bucket numbers, as text: the keys in `Histogram.state`."""


def quantile(buckets: Mapping[int, int], share: float, longest: int) -> float | None:
    """Return the latency in seconds that `share` of the latencies in `buckets` do not exceed; `None` without any.

    `longest` (microseconds) caps the result: no latency was longer.
    """
    # From the top down, since most quantiles asked for are high ones.
    beyond = (1 - share) * sum(buckets.values())
    for number in sorted(buckets, reverse=True):
        beyond -= buckets[number]
        if beyond < -_ROUNDING:
            lower, upper = bounds(number)
            return min((lower + upper - 1) / 2, longest) / 1e6
    return None


@dataclass(frozen=True)
class Histogram:
    """The distribution of latencies at one instant.

    `buckets` maps the number of each non-empty bucket to its count; a latency read from them is off by at most half a
    bucket, 3.2 %.  `sum` and `longest` are exact, in microseconds.
    """

    buckets: Mapping[int, int] = field(default_factory=dict)
    sum: int = 0
    longest: int = 0

    @property
    def count(self) -> int:
        """The number of all latencies."""
        return sum(self.buckets.values())

    def since(self, earlier: Histogram) -> Histogram:
        """Return the latencies added since `earlier`; the longest one is only as exact as its bucket."""
        before = earlier.buckets
        buckets = {
            number: count - before.get(number, 0)
            for number, count in self.buckets.items()
            if count != before.get(number, 0)
        }
        longest = min(bounds(max(buckets))[1] - 1, self.longest) if buckets else 0
        return Histogram(buckets, self.sum - earlier.sum, longest)

    def quantile(self, share: float) -> float | None:
        """Return the latency in seconds that `share` of all latencies do not exceed; `None` without any."""
        return quantile(self.buckets, share, self.longest)

    def summary(self) -> dict[str, float | int | None]:
        """Return the usual percentiles, the maximum and the mean, in seconds, and the number of latencies."""
        count = self.count
        if not count:
            return {**dict.fromkeys((*QUANTILES, "max", "mean")), "count": 0}
        found = {name: quantile(self.buckets, share, self.longest) for name, share in QUANTILES.items()}
        return {**found, "max": self.longest / 1e6, "mean": self.sum / count / 1e6, "count": count}

    def upper_bounds(self) -> Iterator[tuple[float, int]]:
        """Yield the upper bound (seconds) and the count of each non-empty bucket, in ascending order."""
        for number, count in sorted(self.buckets.items()):
            yield bounds(number)[1] / 1e6, count

    def state(self) -> dict[str, int | dict[str, int]]:
        """Return the histogram in a form that JSON can represent."""
        return {"sum": self.sum, "longest": self.longest, "buckets": {str(key): n for key, n in self.buckets.items()}}


class Latency(Block):
    """The requests of all sessions together, and the latencies of their replies.

    `asked` counts all requests, `given_up` those still open when their session ended, `unmatched` the replies that
    arrived while no request was open, and `late` those whose latency is not the server's (see `Exchange.resumed`).
    `sum` and `longest` describe the latencies, in microseconds.  `replied` is the time of the last reply read from an
    upstream, `seen` the time of the last counted data from either leg; both in microseconds, 0 if never.  The buckets
    follow.  All numbers up to `sum` are additive, and so are the buckets.
    """

    __slots__ = ()

    asked = Number()
    given_up = Number()
    unmatched = Number()
    late = Number()
    sum = Number()
    longest = Number()
    replied = Number()
    seen = Number()
    more = tuple(f"bucket_{number}" for number in range(BUCKETS))
    largest = ("longest", "replied", "seen")

    def ask(self, count: int) -> None:
        """Add `count` requests."""
        self.numbers[self.start + _ASKED] += count

    def add(self, microseconds: int, count: int) -> int:
        """Add `count` latencies of this length; return the number of their bucket."""
        numbers, start = self.numbers, self.start
        if microseconds > numbers[start + _LONGEST]:
            microseconds = numbers[start + _LONGEST] = min(microseconds, LONGEST)
        number = bucket(microseconds)
        numbers[start + FIRST + number] += count
        numbers[start + _SUM] += microseconds * count
        return number

    @property
    def answered(self) -> Histogram:
        """The latencies of all requests answered so far."""
        first = self.start + FIRST
        counts = self.numbers[first : first + BUCKETS]
        return Histogram({number: count for number, count in enumerate(counts) if count}, self.sum, self.longest)

    @property
    def in_flight(self) -> int:
        """Unanswered requests of open sessions."""
        first = self.start + FIRST
        return self.asked - self.given_up - self.late - sum(self.numbers[first : first + BUCKETS])

    def restore(self, answered: Histogram) -> None:
        """Take over the latencies of an earlier process; none of its requests is still open."""
        first = self.start + FIRST
        for number in range(BUCKETS):
            self.numbers[first + number] = answered.buckets.get(number, 0)
        self.sum, self.longest = answered.sum, min(answered.longest, LONGEST)
        self.asked, self.given_up = answered.count + self.late, 0


_ASKED, _SUM, _LONGEST = Latency.asked.place, Latency.sum.place, Latency.longest.place
FIRST = Latency.seen.place + 1
"""The place of the first bucket."""


class Waiting:
    """The figures that are computed from those of an `Exchange`, for both twins."""

    __slots__ = ()

    open: int
    asked: int
    last: int
    late: int
    unmatched: int
    cut: int
    later: list[list[int]] | None
    buckets: dict[int, int]

    def state(self) -> list[Any]:
        """Return everything about the session's requests and replies as plain data, the arguments of `restore`.

        The state includes neither the numbers in the array nor the sums in `Pairs`.  The analysis must have caught up.
        """
        opened = [[self.asked, self.open], *(self.later or ())] if self.open else []
        return [opened, self.last, self.late, self.unmatched, self.cut, dict(self.buckets)]

    @property
    def waiting_since(self) -> int:
        """When the oldest open request arrived, or, if its reply will be late, when data last arrived."""
        return self.last if self.asked == _LATE else self.asked

    def quantile(self, share: float) -> float | None:
        """Return the latency in seconds that `share` of the session's latencies do not exceed; `None` without any."""
        return quantile(self.buckets, share, LONGEST)


class Exchange(Waiting):
    """The open requests of one session, and the latencies of those answered; adds both to `total` as well.

    Times are whole microseconds on one clock.  A request is forwarded only after everything with its arrival time has
    been read, so a reply with the same time cannot be its reply.  `Analysis` repeats the most common steps of `request`
    and `reply` inline, since they run once per chunk.
    """

    __slots__ = (
        *("_total", "asked", "buckets", "cut", "last", "late", "later", "open", "pairs", "unfinished", "unmatched"),
    )

    def __init__(self, total: Latency) -> None:
        self.open = 0
        """Open requests of the oldest chunk that has any."""
        self.asked = 0
        """When these requests arrived; if none is open, the time of an earlier chunk; `_LATE` for late replies."""
        self.later: list[list[int]] | None = None
        """The later chunks with open requests: the arrival time and the number of requests of each."""
        self.buckets = _NONE
        """The number of latencies in each bucket."""
        self.last = 0
        """When data last arrived, except for whole requests, whose times are kept above."""
        self.late = 0
        """The number of late replies."""
        self.unmatched = 0
        """The number of replies that arrived while no request was open."""
        self.cut = 0
        """The number of requests without a newline: 1 if the client's FIN ended the last one, else 0."""
        self.unfinished = 0
        """How many legs are in the middle of a line."""
        self.pairs: Pairs | None = None
        """Compares the seqs of replies with those of requests, if requested."""
        self._total = total

    @property
    def in_flight(self) -> int:
        """The number of open requests."""
        return self.open + sum(count for _, count in self.later or ())

    @property
    def settled(self) -> bool:
        """Whether every line from the client has its reply, and no line is unfinished on either leg."""
        return not (self.open or self.unfinished)

    @property
    def unpaired(self) -> int:
        """Once each request has its reply: 0 if the replies had the seqs of the requests; see `Pairs`."""
        return 0 if self.pairs is None else self.pairs.unpaired

    @property
    def requests(self) -> int:
        """All complete lines from the client."""
        return sum(self.buckets.values()) + self.late + self.in_flight - self.cut

    @property
    def replies(self) -> int:
        """All replies from the upstream."""
        return sum(self.buckets.values()) + self.late + self.unmatched

    @property
    def last_request(self) -> int:
        """When the last request arrived; 0 if `last` has that already."""
        if self.later:
            return self.later[-1][0]
        return 0 if self.asked == _LATE else self.asked

    def restore(
        self, opened: list[list[int]], last: int, late: int, unmatched: int, cut: int, buckets: dict[int, int]
    ) -> None:
        """Take over the `state` of another exchange, without adding its numbers to the array again."""
        self.open, self.later, self.asked = 0, None, 0
        for time, count in opened:
            self.request(time, count)
        self.last, self.late, self.unmatched, self.cut = last, late, unmatched, cut
        self.buckets = dict(buckets) or _NONE

    def move(self, total: Latency) -> None:
        """Add to `total` from now on, including the requests in flight."""
        in_flight = self.in_flight
        self._total.asked -= in_flight
        total.asked += in_flight
        self._total = total

    def resumed(self) -> None:
        """Mark the replies of the open requests as late: the upstream was not read, so their latency will be unknown.

        Their replies may have been waiting in the kernel for a client that reads slowly; they count as late.
        """
        if self.open:
            self.last = max(self.last, self.last_request)
            self.open, self.later, self.asked = self.in_flight, None, _LATE

    def request(self, time: int, count: int) -> None:
        """Record `count` new requests; the caller adds them to `asked` of the total."""
        if not self.open:
            self.asked, self.open = time, count
            return
        if self.later is None:
            self.later = []
        if len(self.later) < _MOST_OPEN:
            self.later.append([time, count])
        else:
            self.later[-1][1] += count
            self.last = time

    def cut_short(self, time: int) -> None:
        """Record a last request that has no newline."""
        self.cut += 1
        self._total.ask(1)
        self.request(time, 1)

    def reply(self, time: int, count: int) -> None:
        """Match `count` replies with the oldest open requests."""
        self.last = time
        if count:
            self._total.replied = time
        while count:
            if not self.open or time <= self.asked != _LATE:
                self.unmatched += count
                self._total.unmatched += count
                return
            matched = min(count, self.open)
            count -= matched
            if self.asked == _LATE:
                self.late += matched
                self._total.late += matched
            else:
                self.answered(self._total.add(time - self.asked, matched), matched)
            self.done(matched)

    def answered(self, number: int, count: int) -> None:
        """Add `count` latencies to bucket `number` of this session."""
        if self.buckets is _NONE:
            self.buckets = {}
        self.buckets[number] = self.buckets.get(number, 0) + count

    def done(self, count: int) -> None:
        """Mark `count` requests of the oldest chunk as answered."""
        self.open -= count
        if not self.open and self.later:
            self.asked, self.open = self.later.pop(0)

    def end(self) -> None:
        """Give up the requests that are still open: with the session ended, they are no longer in flight."""
        self._total.given_up += self.in_flight
