"""The limits: how many lines of one kind go to the log, however many there are.

Peers cause log lines, so without a limit they would decide how fast the disk fills.  Of each kind, `AT_ONCE` lines are
shown; then one line a minute counts the rest, until a minute brings no more than `AT_ONCE` again.  The first line for
each reason is always shown, so that a flood of one does not hide another.

This module knows no particular kinds and no sinks.  An event names its kind (see `fooproxy.logs`); otherwise its format
is its kind, so no line escapes the limit because its author forgot.  Events of other packages are limited by logger.
`logs.log` calls `Limits.admit` for every event, in the reactor's thread if the event is one of many.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger, LogLevel

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

AT_ONCE = 20
"""Lines of one kind that are shown before the others are only counted."""

INTERVAL = 60.0
"""Seconds between two lines that count the others."""

_MOST_REASONS = 30
"""Maximum number of reasons of one kind that are distinguished."""


class Limits:
    """Decides which lines are shown; `clock` is monotonic."""

    log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._periods: dict[str, _Period] = {}

    def admit(self, event: dict[str, Any]) -> bool:
        """Return whether to show the event; otherwise it is counted."""
        kind = event.get("limited")
        if kind is None:
            namespace = event.get("log_namespace", "")
            template = event.get("log_format") if namespace.partition(".")[0] == "fooproxy" else None
            kind = f"lines like {template!r}" if template else f"lines of {namespace}"
        if not kind:
            return True
        reason = event.get("reason")
        if reason is None and "log_failure" in event:
            reason = event["log_failure"].type.__name__
        return self.admits(kind, str(reason or ""), event["log_level"])

    def admits(self, kind: str, reason: str = "", level: Any = LogLevel.info) -> bool:
        """Return whether to show one more line.

        A caller that would otherwise build an expensive line in vain asks this first, and then logs the line without a
        limit.
        """
        now = self._clock.seconds()
        period = self._periods.get(kind)
        if period is not None and now - period.began >= INTERVAL:
            self._end(kind)
            period = self._periods.get(kind)
        if period is None:
            period = self._periods[kind] = _Period(now, AT_ONCE, set())
        if reason not in period.reasons:
            if len(period.reasons) < _MOST_REASONS:
                period.reasons.add(reason)
                period.left -= 1
                return True
            reason = "others"
        if period.left > 0:
            period.left -= 1
            return True
        period.hidden[reason] += 1
        period.level = max(period.level, level)
        if period.timer is None:
            period.timer = self._clock.callLater(period.began + INTERVAL - now, self._end, kind)
        return False

    def finish(self) -> None:
        """Log the counts of the lines left out so far, since the process ends."""
        for kind in list(self._periods):
            self._end(kind)
        for period in self._periods.values():
            period.cancel()
        self._periods.clear()

    def _end(self, kind: str) -> None:
        """End the period of a kind, and begin another one without lines if this one had more than enough."""
        period = self._periods.pop(kind)
        period.cancel()
        count = period.hidden.total()
        if not count:
            return
        now = self._clock.seconds()
        if count > AT_ONCE:
            self._periods[kind] = _Period(now, 0, period.reasons)
        reasons = ", ".join(f"{number} {reason}" for reason, number in period.hidden.most_common() if reason)
        self.log.emit(
            period.level,
            "not logged in the last {seconds:.0f} s: {count} {kind}" + (" ({reasons})" if reasons else ""),
            seconds=now - period.began,
            count=count,
            kind=kind,
            reasons=reasons,
            limited="",
        )


class _Period:
    """The lines of one kind in the interval since `began`: how many may still be shown, and counts of the others."""

    def __init__(self, began: float, left: int, reasons: set[str]) -> None:
        self.began = began
        self.left = left
        self.reasons = reasons
        """The reasons that have been shown, in this period or earlier in the same flood."""
        self.hidden: Counter[str] = Counter()
        self.level: Any = LogLevel.debug
        self.timer: IDelayedCall | None = None

    def cancel(self) -> None:
        """Forget the timer."""
        if self.timer is not None and self.timer.active():
            self.timer.cancel()
        self.timer = None
