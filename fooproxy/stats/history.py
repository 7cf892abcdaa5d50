"""The history: one row for each of the last 900 seconds, in fixed memory.

`fooproxy.stats.sampling` calls `History.record` every second; the page and the recovery file read the rows.  The
history also remembers the latency histograms of the last ten seconds, from which it computes the latencies of that
window.  It does not know about files or HTTP, and its clock is passed in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from fooproxy.foo.latency import Histogram
from fooproxy.stats.reasons import FAILURES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LENGTH = 900
"""The number of seconds kept."""

_RECENT = 10

_LATELY = 60.0
"""Seconds after the last NAK within which the NAKs still indicate trouble with the upstream."""


class Second(NamedTuple):
    """One second: messages counted, latencies in microseconds (`None` without replies), sessions open at the end.

    It also has the new sessions, the bytes, and the failed sessions by reason.
    """

    requests: int
    responses: int
    naks: int
    p50: int | None
    p99: int | None
    sessions: int
    opened: int = 0
    bytes_from_clients: int = 0
    bytes_from_upstream: int = 0
    failures: Mapping[str, int] = MappingProxyType({})


_NOTHING = Second(0, 0, 0, None, None, 0)

_OLDER = 6
"""The number of fields that earlier versions saved for each second."""


class Totals(NamedTuple):
    """All counts so far, the number of open sessions, and the failed sessions in the order of `FAILURES`."""

    requests: int
    responses: int
    naks: int
    sessions: int
    upstream_acks: int
    upstream_naks: int
    opened: int
    bytes_from_clients: int
    bytes_from_upstream: int
    failures: tuple[int, ...]

    @property
    def answers(self) -> tuple[int, int]:
        """The ACKs and NAKs of the upstream."""
        return self.upstream_acks, self.upstream_naks


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
        self._counted = Totals(*(0,) * 9, (0,) * len(FAILURES))
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
        self._replies.append(self._counted.answers)
        self._naks_at_ack = self._counted.upstream_naks
        self._began, self._recorded = self._clock(), 0

    def record(self) -> None:
        """Add the second that has just passed, after empty ones for the seconds without a call.

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
        for _ in range(min(missed, _RECENT)):
            self._latencies.append(self._latencies[-1])
            self._replies.append(self._replies[-1])
        self._latencies.append(answered)
        self._replies.append(self._counted.answers)
        self._append(_second(before, self._counted, p50, p99))

    def skip(self, seconds: float) -> None:
        """Add `seconds` (rounded) empty seconds."""
        for _ in range(min(round(seconds), LENGTH)):
            self._append(_NOTHING)

    def recent(self) -> Histogram:
        """Return the latencies of the last ten seconds."""
        return self._answered().since(self._latencies[0])

    def rejections(self) -> int:
        """Return how many NAKs the upstream has sent since its last ACK; 0 if it sent an ACK within 10 s.

        NAKs count for `_LATELY` seconds, so that an upstream with few requests is judged like one with many.
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
        failures = report["failures"]
        seen = [reason for reason in FAILURES if any(reason in second for second in failures)]
        report["failures"] = {reason: [second.get(reason, 0) for second in failures] for reason in seen}
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
        failures = " ".join(f"{reason}:{count}" for reason, count in second.failures.items())
        new = (second.opened, second.bytes_from_clients, second.bytes_from_upstream)
        # New counts are mostly 0, which is left out, since all of this is saved every second.
        numbers = [*("" if value is None else str(value) for value in second[:_OLDER]), *(str(n or "") for n in new)]
        self._texts.append(",".join([*numbers, failures]))


def parse(text: str) -> list[Second]:
    """Parse the output of `History.state`.

    :raises ValueError: the text is something else.
    """
    seconds = []
    for entry in text.split(";") if text else ():
        fields = entry.split(",")
        requests, responses, naks, p50, p99, sessions = [_number(value) for value in fields[:_OLDER]]
        if None in (requests, responses, naks, sessions):
            raise ValueError("a count is missing")
        older = Second(requests or 0, responses or 0, naks or 0, p50, p99, sessions or 0)
        seconds.append(older if len(fields) == _OLDER else _newer(older, *fields[_OLDER:]))
    return seconds[-LENGTH:]


def _newer(older: Second, *fields: str) -> Second:
    """Return `older` with the further fields, which early versions did not save."""
    if len(fields) != len(Second._fields) - _OLDER:
        raise ValueError("the number of fields is wrong")
    opened, from_clients, from_upstream = [_number(field) or 0 for field in fields[:-1]]
    failures: dict[str, int] = {}
    for entry in fields[-1].split():
        reason, _, count = entry.partition(":")
        number = _number(count)
        if reason not in FAILURES or not number:
            raise ValueError("a failure must be a reason and a count")
        failures[reason] = number
    return older._replace(
        opened=opened, bytes_from_clients=from_clients, bytes_from_upstream=from_upstream, failures=failures
    )


def _second(before: Totals, now: Totals, p50: int | None, p99: int | None) -> Second:
    """Return the second in which the totals have grown from `before` to `now`."""
    failed = zip(FAILURES, now.failures, before.failures, strict=True)
    return Second(
        requests=now.requests - before.requests,
        responses=now.responses - before.responses,
        naks=now.naks - before.naks,
        p50=p50,
        p99=p99,
        sessions=now.sessions,
        opened=now.opened - before.opened,
        bytes_from_clients=now.bytes_from_clients - before.bytes_from_clients,
        bytes_from_upstream=now.bytes_from_upstream - before.bytes_from_upstream,
        failures={reason: count - earlier for reason, count, earlier in failed if count != earlier},
    )


def _number(text: str) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 20:
        raise ValueError("a count must be 1 to 20 decimal digits")
    return int(text)


def _microseconds(latencies: Histogram) -> tuple[int | None, int | None]:
    p50, p99 = (latencies.quantile(share) for share in (0.5, 0.99))
    return (None, None) if p50 is None or p99 is None else (round(p50 * 1e6), round(p99 * 1e6))
