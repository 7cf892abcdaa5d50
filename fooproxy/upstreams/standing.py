"""The standing of a server: whether operators see it as up or down, since when, and why.

The standing changes less often than the outcome of attempts.  An *episode*, in which the server is down, begins with
the failure that reaches the threshold.  It ends after a success and a while without failures; the while is longer if
the server relapsed soon after the last episode.  So a server with which every other attempt fails, such as one with a
full backlog, has one episode, with one log line at its start and one at its end.

This module decides nothing: `fooproxy.upstreams.condition` knows what failed, and whether clients may have the server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.logger import Logger

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

_PROBATION = 2.0
"""Seconds without a failure after which a server that accepts connections again counts as up."""

_LONGEST_PROBATION = 30.0
"""The maximum of this time, which doubles whenever the server fails again within `_RELAPSE`."""

_RELAPSE = 60.0
"""Seconds after the end of an episode within which a failure makes the next one longer."""


class Standing:
    """The standing of the server that log lines call `name`."""

    log = Logger()

    def __init__(self, name: str, clock: IReactorTime) -> None:
        self._name = name
        self._clock = clock
        self.has_worked = False
        self.since = clock.seconds()
        """When the standing last changed."""
        self.error: str | None = None
        """Why the server is down, in words; `None` if it is not."""
        self.reason: str | None = None
        """Why the server is down, as the reason by which failed sessions are counted."""
        self._recovering: IDelayedCall | None = None
        """Ends the episode, unless an attempt fails before."""
        self._probation = _PROBATION
        self._recovered_at = float("-inf")

    @property
    def state(self) -> str:
        """``up`` or ``down``; ``unknown`` before the first success."""
        if self.error is not None:
            return "down"
        return "up" if self.has_worked else "unknown"

    def change(self) -> None:
        """Record that the state that operators see has just changed for another reason, such as an operator's hold."""
        self.since = self._clock.seconds()

    def work(self) -> None:
        """Record the first success."""
        self.has_worked = True
        if self.error is None:
            self.change()

    def fail(self) -> None:
        """Record a failure: an episode that was about to end continues."""
        if self._recovering is not None:
            self._recovering.cancel()
            self._recovering = None

    def fall(self, why: str, reason: str, line: str) -> None:
        """Record that the server is down: `why` as text, `reason` as a word; log `line` if an episode begins."""
        self.fail()
        began = self.error is None
        self.error, self.reason = why, reason
        if began:
            self.change()
            is_relapse = self.since - self._recovered_at <= _RELAPSE
            self._probation = min(2 * self._probation, _LONGEST_PROBATION) if is_relapse else _PROBATION
            self.log.warn(line, upstream=self._name, reason=self.reason, error=self.error)

    def rise_soon(self) -> None:
        """Record that the server can be used again: the episode ends if nothing fails for a while."""
        self._recovering = self._clock.callLater(self._probation, self.rise)

    def rise(self) -> None:
        """End the episode."""
        self._recovering = None
        self.change()
        self._recovered_at = self.since
        self.error = self.reason = None
        self.log.info("connected to upstream {upstream} again", upstream=self._name)

    def clear(self) -> None:
        """Forget the episode, without a log line."""
        self.fail()
        self.error = None
