"""The history: one row for each of the last 900 seconds, in fixed memory.

`fooproxy.stats.sampling` calls `History.record` every second; the page and the recovery file read the rows.  The
history also remembers the latency histograms of the last ten seconds, from which it computes the latencies of that
window.  It does not know about files or HTTP, and its clock is passed in.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from fooproxy.foo.latency import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LENGTH = 900
"""The number of seconds kept."""

_RECENT = 10

_LATELY = 60.0
"""Seconds after the last NAK in which it still says something about the upstream."""


class Second(NamedTuple):
    """One second: messages counted, latencies in microseconds (`None` without replies), sessions open at the end."""

    requests: int
    responses: int
    naks: int
    p50: int | None
    p99: int | None
    sessions: int


_NOTHING = Second(0, 0, 0, None, None, 0)


class Totals(NamedTuple):
    """All messages counted so far, and the number of open sessions."""

    requests: int
    responses: int
    naks: int
    sessions: int
    upstream_acks: int
    upstream_naks: int


class History:
    """The recorded seconds, the newest last; `last` is the number of the newest, counted from 1.

    `clock` returns monotonic seconds; `totals` and `latencies` return the counts so far.
    """

    def __init__(
        self, clock: Callable[[], float], totals: Callable[[], Totals], latencies: Callable[[], Histogram]
    ) -> None:
        self._clock = clock
        self._totals = totals
        self._answered = latencies
        self._seconds: deque[Second] = deque(maxlen=LENGTH)
        self._texts: deque[str] = deque(maxlen=LENGTH)
        self._latencies = deque([Histogram()], maxlen=_RECENT + 1)
        self._replies = deque([(0, 0)], maxlen=_RECENT + 1)
        self._counted = Totals(0, 0, 0, 0, 0, 0)
        self._naks_at_ack = 0
        """The NAKs counted when an ACK was last seen."""
        self._nak_seen_at = float("-inf")
        self._began: float | None = None
        self._recorded = 0
        self.last = 0

    def begin(self) -> None:
        """Begin now; earlier counts are not attributed to any second."""
        self._counted = self._totals()
        self._latencies.clear()
        self._latencies.append(self._answered())
        self._replies.clear()
        self._replies.append(self._counted[-2:])
        self._naks_at_ack = self._counted.upstream_naks
        self._began, self._recorded = self._clock(), 0

    def record(self) -> None:
        """Add the second that has just passed, after empty ones for seconds in which nobody called this.

        A call that comes too early does nothing; its counts go to the next second.
        """
        if self._began is None:
            self.begin()
            return
        passed = round(self._clock() - self._began) - self._recorded
        if passed < 1:
            return
        self._recorded += passed
        missed = passed - 1
        self.skip(missed)
        before, self._counted = self._counted, self._totals()
        if self._counted.upstream_acks != before.upstream_acks:
            self._naks_at_ack = self._counted.upstream_naks
        elif self._counted.upstream_naks != before.upstream_naks:
            self._nak_seen_at = self._clock()
        answered = self._answered()
        p50, p99 = _microseconds(answered.since(self._latencies[-1]))
        requests, responses, naks, *_ = (now - then for now, then in zip(self._counted, before, strict=True))
        for _ in range(min(missed, _RECENT)):
            self._latencies.append(self._latencies[-1])
            self._replies.append(self._replies[-1])
        self._latencies.append(answered)
        self._replies.append(self._counted[-2:])
        self._append(Second(requests, responses, naks, p50, p99, self._counted.sessions))

    def skip(self, seconds: float) -> None:
        """Add `seconds` (rounded) empty seconds."""
        for _ in range(min(round(seconds), LENGTH)):
            self._append(_NOTHING)

    def recent(self) -> Histogram:
        """Return the latencies of the last ten seconds."""
        return self._answered().since(self._latencies[0])

    def rejections(self) -> int:
        """Return how many NAKs the upstream has sent since its last ACK; 0 if that was just now, or the NAKs long ago.

        So few requests must not look better than many.
        """
        acks, naks = self._replies[0]
        now = self._totals()
        lately = now.upstream_naks != naks or self._clock() - self._nak_seen_at <= _LATELY
        return now.upstream_naks - self._naks_at_ack if lately and now.upstream_acks == acks else 0

    def report(self, since: int, time: float) -> dict[str, Any]:
        """Return all seconds after number `since`, as columns; `time` is the current wall clock time."""
        new = LENGTH if since > self.last else self.last - since
        seconds = list(islice(self._seconds, max(len(self._seconds) - new, 0), None))
        columns = zip(*seconds, strict=True) if seconds else ((),) * len(Second._fields)
        report: dict[str, Any] = dict(zip(Second._fields, map(list, columns), strict=True))
        for name in ("p50", "p99"):
            report[name] = [value if value is None else value / 1e6 for value in report[name]]
        return {"last": self.last, "time": time, **report}

    def state(self) -> str:
        """Return all seconds as text, which is cheap to produce: it is saved every second."""
        return ";".join(self._texts)

    def restore(self, seconds: Sequence[Second], age: float) -> None:
        """Restore seconds that were saved `age` seconds ago."""
        for second in seconds:
            self._append(second)
        self.skip(age)

    def _append(self, second: Second) -> None:
        self.last += 1
        self._seconds.append(second)
        self._texts.append(",".join("" if value is None else str(value) for value in second))


def parse(text: str) -> list[Second]:
    """Parse the output of `History.state`.

    :raises ValueError: the text is something else.
    """
    seconds = []
    for entry in text.split(";") if text else ():
        requests, responses, naks, p50, p99, sessions = [_number(value) for value in entry.split(",")]
        if None in (requests, responses, naks, sessions):
            raise ValueError("a count is missing")
        seconds.append(Second(requests or 0, responses or 0, naks or 0, p50, p99, sessions or 0))
    return seconds[-LENGTH:]


def _number(text: str) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        raise ValueError("a count must be 1 to 20 decimal digits")
    return int(text)


def _microseconds(latencies: Histogram) -> tuple[int | None, int | None]:
    p50, p99 = (latencies.quantile(share) for share in (0.5, 0.99))
    return (None, None) if p50 is None or p99 is None else (round(p50 * 1e6), round(p99 * 1e6))
