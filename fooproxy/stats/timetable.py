"""The time table: samples of two counters over the last ten seconds, from which it computes moving-window rates.

`fooproxy.stats.sampling` calls `TimeTable.sample` every `INTERVAL`; the hot path never reads a clock.  The counters are
assumed to have grown evenly between two samples.  This keeps the rates right when the event loop was blocked: the
backlog is counted all at once, but belongs to the whole gap.

The clock is passed in and must be monotonic.  The table does not know about Twisted, nor what it counts.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

INTERVAL = 0.05
"""Seconds between two samples, and therefore the precision of the windows."""

FRAME = 10
"""Seconds that the table covers: the longest window."""


class Sample(NamedTuple):
    """The counters at one instant; `time` is in seconds on the table's clock."""

    time: float
    requests: float
    responses: float


class TimeTable:
    """The last `FRAME` seconds of two growing counters.

    `read` returns the current values of both counters, `clock` the monotonic time in seconds, and `seen` the time at
    which the last counted data was read.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        read: Callable[[], tuple[int, int]],
        seen: Callable[[], float] = lambda: float("-inf"),
    ) -> None:
        self._clock = clock
        self._read = read
        self._seen = seen
        self._samples: deque[Sample] = deque([self._now()])
        self._passed_over = False

    def sample(self) -> None:
        """Add a sample of the counters, and drop samples that are older than the frame.

        The first late sample (after the event loop was blocked) is skipped: data that arrived during the gap has not
        been read yet, so this sample would show no traffic.  What was read before the gap belongs to the time before.
        """
        now = self._now()
        late = now.time - self._samples[-1].time > 2 * INTERVAL
        self._passed_over = late and not self._passed_over
        if late and now.time - self._seen() > INTERVAL:
            self.mark()
        if not self._passed_over:
            self._append(now)

    def mark(self) -> None:
        """Add a sample for the time at which the last data was read, if that is after the last sample.

        Call this after a silence, before anything more is read: the event loop may have been blocked in between.
        """
        counters = self._read()
        seen = min(self._seen(), self._clock())
        if seen > self._samples[-1].time:
            self._append(Sample(seen, *counters))

    @property
    def is_quiet(self) -> bool:
        """Whether nothing was counted for a second, so that no samples are needed until `resume` is called.

        False after a skipped sample, because traffic may be waiting to be read.
        """
        return not self._passed_over and self.rates(1) == (0.0, 0.0)

    def resume(self) -> None:
        """Continue after a pause without traffic: whatever is counted next arrived after this call."""
        self._append(self._samples[-1]._replace(time=self._clock()))

    def rates(self, window: float) -> tuple[float, float]:
        """Return requests and responses per second over the last `window` seconds (at most `FRAME`)."""
        now = self._now()
        then = self._at(now.time - window, now)
        return (now.requests - then.requests) / window, (now.responses - then.responses) / window

    def seconds(self) -> tuple[list[int], list[int]]:
        """Return requests and responses in each of the last `FRAME` seconds, the oldest first.

        The seconds add up to the total of the frame, because the totals at their edges are rounded, not the seconds.
        """
        now = self._now()
        edges = [self._at(now.time - age, now) for age in range(FRAME, 0, -1)] + [now]
        pairs = list(pairwise(edges))
        return (
            [round(b.requests) - round(a.requests) for a, b in pairs],
            [round(b.responses) - round(a.responses) for a, b in pairs],
        )

    def restore(self, requests: Sequence[int], responses: Sequence[int], age: float) -> None:
        """Restore the `seconds` of an earlier process, `age` seconds after they were saved.

        Restore the counters first.  Seconds that are outside the frame by now are dropped.
        """
        now = self._now()
        saved_at = now.time - age
        earlier = [Sample(saved_at, now.requests, now.responses)]
        for request, response in zip(reversed(requests), reversed(responses), strict=True):
            last = earlier[-1]
            earlier.append(Sample(last.time - 1, last.requests - request, last.responses - response))
        self._samples.clear()
        for sample in (*reversed(earlier), now):
            self._append(sample)

    def _append(self, sample: Sample) -> None:
        samples = self._samples
        samples.append(sample)
        # Keep one sample beyond the frame: the edge of the frame lies between it and the next.
        while len(samples) > 1 and samples[1].time <= sample.time - FRAME:
            samples.popleft()

    def _now(self) -> Sample:
        return Sample(self._clock(), *self._read())

    def _at(self, time: float, now: Sample) -> Sample:
        """Return the counters at `time`, before `now`, interpolated between samples, or those of the first."""
        later = now
        for sample in reversed(self._samples):
            if sample.time <= time:
                share = (time - sample.time) / (later.time - sample.time)
                return Sample(
                    time,
                    sample.requests + share * (later.requests - sample.requests),
                    sample.responses + share * (later.responses - sample.responses),
                )
            later = sample
        return later
