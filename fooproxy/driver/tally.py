"""What a client run counts: answers by kind, their latencies, and how long it all took.

No sockets and no clock: the conversations tell it seconds on a monotonic clock.  Memory does not grow with the number
of replies: a latency is kept as the number of the 1 % wide bucket it falls into.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from fooproxy.driver.figures import counted, duration_text, rate_text

if TYPE_CHECKING:
    from collections.abc import Iterable

_BUCKET = math.log(1.01)
# Stands for every shorter latency, zero included; far below what a socket can do.
_SHORTEST = 1e-7


class Latencies:
    """Durations in seconds, of which any percentile can be told to 1 %."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()

    @classmethod
    def merged(cls, parts: Iterable[Latencies]) -> Latencies:
        """Make the latencies of several runs together."""
        whole = cls()
        for part in parts:
            whole._buckets.update(part._buckets)
        return whole

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self._buckets[math.floor(math.log(max(seconds, _SHORTEST)) / _BUCKET)] += 1

    def percentile(self, percent: float) -> float:
        """Give the duration that `percent` of all did not exceed; 0.0 when there is none."""
        rank = self._buckets.total() * percent / 100
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return math.exp((bucket + 0.5) * _BUCKET)
        return 0.0


class Tally:
    """Counts of one run over all its connections."""

    def __init__(self) -> None:
        self.sent = 0
        self.acks = 0
        self.naks = 0
        self.latencies = Latencies()
        self._first: float | None = None
        self._last = 0.0

    @property
    def answered(self) -> int:
        """Requests that have had their reply."""
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
        """Count a right reply at `now` to a request that was sent at `sent_at`."""
        if acknowledged:
            self.acks += 1
        else:
            self.naks += 1
        self.latencies.add(now - sent_at)
        self._last = now

    def latency_text(self) -> str:
        """Say what half and what nearly all of the requests waited."""
        median, nearly_all = self.latencies.percentile(50), self.latencies.percentile(99)
        return f"latency p50 {duration_text(median)}, p99 {duration_text(nearly_all)}"

    def summary(self) -> str:
        """Sum the run up in one line."""
        return (
            f"{counted(self.answered, 'request')}, {self.acks} ACK, {self.naks} NAK in {duration_text(self.seconds)}: "
            f"{rate_text(self.rate)} requests/s, {self.latency_text()}"
        )
