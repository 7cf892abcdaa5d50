"""Latency: how long requests wait for their replies, from chunk times to percentiles.

Foo servers answer in order, so each reply belongs to the oldest request of its session that has none; seqs are not
looked at, since servers send replies that carry no request's seq (``NAK 0 …``).  A line that is no message counts as a
request here: servers answer those too.  All requests of a chunk came at one time, and so did all replies of one, which
makes the cost a chunk's and not a message's.

The analysis tells an `Exchange` what passed, in order; nothing here reads a clock, a socket or a message.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fooproxy.foo.numbers import Block, Number

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LONGEST = (1 << 27) - 1
"""Microseconds from which on all latencies are one: 134 seconds."""

_MOST_OPEN = 256
"""Chunks of open requests that are told apart in a session; more are taken to be as old as the last of these."""

_ROUNDING = 1e-6
"""Less than any count, and more than what floats get wrong."""

_NONE: dict[int, int] = {}
"""The buckets of a session that has no latencies; one for all, so never written."""

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


def bucket(microseconds: int) -> int:
    """Give the number of the bucket for a latency: below 32 each has its own, from there on 16 share a power of two."""
    shift = max(microseconds.bit_length() - 5, 0)
    return (shift << 4) + (microseconds >> shift)


def bounds(number: int) -> tuple[int, int]:
    """Give the microseconds from which on latencies fall into a bucket, and from which on they do not any more."""
    shift = max((number >> 4) - 1, 0)
    lower = (number - (shift << 4)) << shift
    return lower, lower + (1 << shift)


_BUCKETS = bucket(LONGEST) + 1
"""The number of buckets."""

BUCKETS = frozenset(map(str, range(_BUCKETS)))
"""The numbers of all buckets, as `Histogram.state` writes them."""

_SUM, _LONGEST, _FIRST = 3, 4, 5
"""Where in a `Latency` the sum and the longest stand, and the first bucket."""


def quantile(buckets: Mapping[int, int], share: float, longest: int) -> float | None:
    """Give the seconds that this share of the latencies in `buckets` does not exceed; `None` when there are none.

    None of them was longer than `longest`, in microseconds.
    """
    # From above, since what is asked for is mostly near the top.
    beyond = (1 - share) * sum(buckets.values())
    for number in sorted(buckets, reverse=True):
        beyond -= buckets[number]
        if beyond < -_ROUNDING:
            lower, upper = bounds(number)
            return min((lower + upper - 1) / 2, longest) / 1e6
    return None


@dataclass(frozen=True)
class Histogram:
    """How many latencies were how long at one instant.

    `buckets` maps the number of each bucket that is not empty to a count; a latency that is read from them is at most
    half a bucket off, 3.2 %.  `sum` and `longest` are exact, in microseconds.
    """

    buckets: Mapping[int, int] = field(default_factory=dict)
    sum: int = 0
    longest: int = 0

    @property
    def count(self) -> int:
        """The number of all latencies."""
        return sum(self.buckets.values())

    def since(self, earlier: Histogram) -> Histogram:
        """Return what was added after `earlier`; its longest latency is exact to a bucket only."""
        before = earlier.buckets
        buckets = {
            number: count - before.get(number, 0)
            for number, count in self.buckets.items()
            if count != before.get(number, 0)
        }
        longest = min(bounds(max(buckets))[1] - 1, self.longest) if buckets else 0
        return Histogram(buckets, self.sum - earlier.sum, longest)

    def quantile(self, share: float) -> float | None:
        """Return the seconds that this share of all latencies does not exceed; `None` when there are none."""
        return quantile(self.buckets, share, self.longest)

    def summary(self) -> dict[str, float | int | None]:
        """Return the usual percentiles, the longest and the mean, in seconds, and the count of all."""
        count = self.count
        if not count:
            return {**dict.fromkeys((*QUANTILES, "max", "mean")), "count": 0}
        found = {name: quantile(self.buckets, share, self.longest) for name, share in QUANTILES.items()}
        return {**found, "max": self.longest / 1e6, "mean": self.sum / count / 1e6, "count": count}

    def upper_bounds(self) -> Iterator[tuple[float, int]]:
        """Yield the upper bound, in seconds, and the count of each bucket that is not empty, in order."""
        for number, count in sorted(self.buckets.items()):
            yield bounds(number)[1] / 1e6, count

    def state(self) -> dict[str, int | dict[str, int]]:
        """Return all of it in a form that JSON can hold."""
        return {"sum": self.sum, "longest": self.longest, "buckets": {str(key): n for key, n in self.buckets.items()}}


class Latency(Block):
    """The requests of all sessions together, and how long their replies took.

    `asked` counts all requests, `given_up` those that were open when their session ended, and `unmatched` the replies
    that came while no request was open.  `sum` and `longest` are those of the latencies, in microseconds; behind them
    stand the buckets.  All but `longest` adds up.
    """

    __slots__ = ()

    names = ("asked", "given_up", "unmatched", "sum", "longest", *(f"bucket_{number}" for number in range(_BUCKETS)))
    asked, given_up, unmatched, sum, longest = map(Number, range(5))

    def ask(self, count: int) -> None:
        """Count so many requests."""
        self.numbers[self.start] += count

    def add(self, microseconds: int, count: int) -> int:
        """Add so many latencies of one length; return the number of their bucket."""
        numbers, start = self.numbers, self.start
        if microseconds > numbers[start + _LONGEST]:
            microseconds = numbers[start + _LONGEST] = min(microseconds, LONGEST)
        number = bucket(microseconds)
        numbers[start + _FIRST + number] += count
        numbers[start + _SUM] += microseconds * count
        return number

    @property
    def answered(self) -> Histogram:
        """The latencies so far."""
        first = self.start + _FIRST
        counts = self.numbers[first : first + _BUCKETS]
        return Histogram({number: count for number, count in enumerate(counts) if count}, self.sum, self.longest)

    @property
    def in_flight(self) -> int:
        """Requests, in sessions that are open, that were not answered yet."""
        first = self.start + _FIRST
        return self.asked - self.given_up - sum(self.numbers[first : first + _BUCKETS])

    def restore(self, answered: Histogram) -> None:
        """Take over the latencies of an earlier process; none of its requests is open."""
        first = self.start + _FIRST
        for number in range(_BUCKETS):
            self.numbers[first + number] = answered.buckets.get(number, 0)
        self.sum, self.longest = answered.sum, min(answered.longest, LONGEST)
        self.asked, self.given_up = answered.count, 0


class Exchange:
    """The open requests of one session, and the latencies of those that were answered; adds the same to `total`.

    Times are whole microseconds on one clock.  A request is sent on only after all that came at its time was read, so
    no reply of that time is its own.  There are many of these; `Analysis` does the commonest steps of `request` and
    `reply` itself, since they run once a chunk.
    """

    __slots__ = ("_cut_short", "_total", "_unmatched", "asked", "buckets", "last", "later", "open")

    def __init__(self, total: Latency) -> None:
        self.open = 0
        """Requests of the oldest chunk that are open."""
        self.asked = 0
        """When they came; the time of an earlier chunk when none is open."""
        self.later: list[list[int]] | None = None
        """The chunks after that one: when each came, and its requests."""
        self.buckets = _NONE
        """How many latencies fell into each bucket."""
        self.last = 0
        """When anything came last, but for whole requests that have a time of their own here."""
        self._unmatched = 0
        self._cut_short = 0
        self._total = total

    @property
    def in_flight(self) -> int:
        """Requests that are open."""
        return self.open + sum(count for _, count in self.later or ())

    @property
    def requests(self) -> int:
        """All lines of the client that ended."""
        return sum(self.buckets.values()) + self.in_flight - self._cut_short

    @property
    def replies(self) -> int:
        """All replies of the upstream."""
        return sum(self.buckets.values()) + self._unmatched

    @property
    def last_request(self) -> int:
        """When the last request came."""
        return self.later[-1][0] if self.later else self.asked

    def quantile(self, share: float) -> float | None:
        """Give the seconds that this share of the session's latencies does not exceed; `None` when there are none."""
        return quantile(self.buckets, share, LONGEST)

    def request(self, time: int, count: int) -> None:
        """Take notice of so many requests more; who calls this adds them to the total's `asked`."""
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
        """Take notice of a last request that has no newline."""
        self._cut_short = 1
        self._total.ask(1)
        self.request(time, 1)

    def reply(self, time: int, count: int) -> None:
        """Match so many replies with the oldest open requests."""
        self.last = time
        while count:
            if not self.open or self.asked >= time:
                self._unmatched += count
                self._total.unmatched += count
                return
            matched = min(count, self.open)
            count -= matched
            self.answered(self._total.add(time - self.asked, matched), matched)
            self.done(matched)

    def answered(self, number: int, count: int) -> None:
        """Add so many latencies to the session's own, in the bucket of this number."""
        if self.buckets is _NONE:
            self.buckets = {}
        self.buckets[number] = self.buckets.get(number, 0) + count

    def done(self, count: int) -> None:
        """Take so many requests of the oldest chunk as answered."""
        self.open -= count
        if not self.open and self.later:
            self.asked, self.open = self.later.pop(0)

    def end(self) -> None:
        """Give up the requests that are still open: none of them is in flight in any session any more."""
        self._total.given_up += self.in_flight
