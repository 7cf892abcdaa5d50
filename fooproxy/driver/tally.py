"""The counts of a client run: replies by kind, their latencies, and how long the run took.

No sockets and no clock: callers pass times in seconds of a monotonic clock.  Memory does not grow with the number of
replies, because latencies are counted in buckets 1 % wide.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from fooproxy.driver.figures import counted, duration_text, rate_text

if TYPE_CHECKING:
    from collections.abc import Iterable

_BUCKET = math.log(1.01)
# Seconds.  Shorter latencies, including zero, count as this; sockets are far slower.
_SHORTEST = 1e-7


class Latencies:
    """Counts durations in seconds; percentiles are accurate to 1 %."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()

    @classmethod
    def merged(cls, parts: Iterable[Latencies]) -> Latencies:
        """Combine the latencies of several runs."""
        whole = cls()
        for part in parts:
            whole._buckets.update(part._buckets)
        return whole

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self._buckets[math.floor(math.log(max(seconds, _SHORTEST)) / _BUCKET)] += 1

    def percentile(self, percent: float) -> float:
        """Return the duration that `percent` of all durations do not exceed; 0.0 if there are none."""
        rank = self._buckets.total() * percent / 100
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return math.exp((bucket + 0.5) * _BUCKET)
        return 0.0


class Tally:
    """The counts of one run, over all of its connections."""

    def __init__(self) -> None:
        self.sent = 0
        self.acks = 0
        self.naks = 0
        self.latencies = Latencies()
        self._first: float | None = None
        self._last = 0.0

    @property
    def answered(self) -> int:
        """Number of requests that have been answered."""
        return self.acks + self.naks

    @property
    def seconds(self) -> float:
        """Seconds from the first request to the last reply."""
        return 0.0 if self._first is None else max(self._last - self._first, 0.0)

    @property
    def rate(self) -> float:
        """Replies per second."""
        return self.answered / self.seconds if self.seconds else 0.0

    def count_sent(self, now: float) -> None:
        """Count a request that was sent at `now`."""
        if self._first is None:
            self._first = now
        self.sent += 1

    def count_answer(self, acknowledged: bool, sent_at: float, now: float) -> None:
        """Count a correct reply, read at `now`, to a request sent at `sent_at`."""
        if acknowledged:
            self.acks += 1
        else:
            self.naks += 1
        self.latencies.add(now - sent_at)
        self._last = now

    def latency_text(self) -> str:
        """Return the median and the 99th percentile of the latencies, as text."""
        median, nearly_all = self.latencies.percentile(50), self.latencies.percentile(99)
        return f"latency p50 {duration_text(median)}, p99 {duration_text(nearly_all)}"

    def summary(self) -> str:
        """Return one line that sums up the run."""
        return (
            f"{counted(self.answered, 'request')}, {self.acks} ACK, {self.naks} NAK in {duration_text(self.seconds)}: "
            f"{rate_text(self.rate)} requests/s, {self.latency_text()}"
        )
