"""The time table: samples of two counters over the last seconds, from which the moving-window rates come.

`fooproxy.stats.sampling` calls `TimeTable.sample` every `INTERVAL`; the hot path never reads a clock.  Between two
samples the counters are taken to have grown evenly.  That is what makes the rates right after the event loop was
blocked: what piled up in the meantime is counted in one go, yet belongs to the whole gap.

Clocks are passed in and monotonic.  The table knows no Twisted and nothing of what it counts.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

INTERVAL = 0.05
"""Seconds between two samples, and so the exactness of the windows."""

FRAME = 10
"""Seconds that the table reaches back: the longest window."""


class Sample(NamedTuple):
    """The counters at one instant (seconds on the table's clock)."""

    time: float
    requests: float
    responses: float


class TimeTable:
    """Remembers `FRAME` seconds of two growing counters.

    `read` gives both counters as they stand now, `clock` the monotonic time in seconds.
    """

    def __init__(self, clock: Callable[[], float], read: Callable[[], tuple[int, int]]) -> None:
        self._clock = clock
        self._read = read
        self._samples: deque[Sample] = deque([self._now()])
        self._passed_over = False

    def sample(self) -> None:
        """Remember the counters as they are now and forget what fell out of the frame.

        A sample that comes late (the loop was blocked) is passed over once: what arrived during the gap has not been
        read yet, and a sample now would say that nothing had come.
        """
        now = self._now()
        late = now.time - self._samples[-1].time > 2 * INTERVAL
        self._passed_over = late and not self._passed_over
        if not self._passed_over:
            self._append(now)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing was counted for a second, so that samples say nothing until `resume` is called.

        After a sample that was passed over, nobody knows yet.
        """
        return not self._passed_over and self.rates(1) == (0.0, 0.0)

    def resume(self) -> None:
        """Go on after a pause in which nothing was counted: what is counted from now on came from now on."""
        self._append(self._samples[-1]._replace(time=self._clock()))

    def rates(self, window: float) -> tuple[float, float]:
        """Give requests and responses per second over the last `window` seconds (at most `FRAME`)."""
        now = self._now()
        then = self._at(now.time - window, now)
        return (now.requests - then.requests) / window, (now.responses - then.responses) / window

    def seconds(self) -> tuple[list[int], list[int]]:
        """Give requests and responses in each of the last `FRAME` seconds, the oldest first.

        The sums add up to what the whole frame holds: each edge is rounded, not each second.
        """
        now = self._now()
        edges = [self._at(now.time - age, now) for age in range(FRAME, 0, -1)] + [now]
        pairs = list(pairwise(edges))
        return (
            [round(b.requests) - round(a.requests) for a, b in pairs],
            [round(b.responses) - round(a.responses) for a, b in pairs],
        )

    def restore(self, requests: Sequence[int], responses: Sequence[int], age: float) -> None:
        """Take `seconds` of an earlier process back in, `age` seconds after they were saved.

        The counters must have been restored before.  Seconds that lie outside the frame by now fall out of themselves.
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
        # One sample beyond the frame stays: the frame's edge lies between it and the next.
        while len(samples) > 1 and samples[1].time <= sample.time - FRAME:
            samples.popleft()

    def _now(self) -> Sample:
        return Sample(self._clock(), *self._read())

    def _at(self, time: float, now: Sample) -> Sample:
        """Give the counters at `time`, evenly between the samples around it; before the first, as in the first."""
        later = now
        for sample in reversed(self._samples):
            if sample.time <= time:
                share = (time - sample.time) / (later.time - sample.time) if later.time > sample.time else 0.0
                return Sample(
                    time,
                    sample.requests + share * (later.requests - sample.requests),
                    sample.responses + share * (later.responses - sample.responses),
                )
            later = sample
        return later
