"""The standing of a server: whether it is up as operators see it, since when, and why not.

It changes less often than the outcome of attempts: a server is down from the failure that exhausts the patience with it
until there has been a success and no failure for a while, which is longer if it failed again soon after the last time.
So a server of which every other attempt fails, like one with a full backlog, has one such episode, with one line at its
begin and one at its end.

It decides nothing: `fooproxy.upstreams.server` knows what failed, and whether clients may have the server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.logger import Logger

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall, IReactorTime

_PROBATION = 2.0
"""Seconds without a failure after which a server to which connections succeed again is called up."""

_LONGEST_PROBATION = 30.0
"""Seconds of that at most; it doubles each time that the server fails again within `_RELAPSE`."""

_RELAPSE = 60.0
"""Seconds after the end of an episode within which a failure makes the next one longer."""


class Standing:
    """That of the server that log lines call `name`."""

    log = Logger()

    def __init__(self, name: str, clock: IReactorTime) -> None:
        self._name = name
        self._clock = clock
        self.has_worked = False
        self.since = clock.seconds()
        """When it last changed."""
        self.error: str | None = None
        """Why the server is down, in words; `None` if it is not."""
        self.reason: str | None = None
        """The same in a word, by which the sessions that fail for it are counted."""
        self._recovering: IDelayedCall | None = None
        """The end of the episode, if nothing fails until then."""
        self._probation = _PROBATION
        self._recovered_at = float("-inf")

    @property
    def state(self) -> str:
        """``up`` or ``down``; ``unknown`` before the first success."""
        if self.error is not None:
            return "down"
        return "up" if self.has_worked else "unknown"

    def change(self) -> None:
        """Note that something else about the server has changed just now, which operators see in its place."""
        self.since = self._clock.seconds()

    def work(self) -> None:
        """Note the first success."""
        self.has_worked = True
        if self.error is None:
            self.change()

    def fail(self) -> None:
        """Note a failure: an episode that was about to end goes on."""
        if self._recovering is not None:
            self._recovering.cancel()
            self._recovering = None

    def fall(self, why: str, reason: str, line: str) -> None:
        """Note that the server is down: words, a word, and the log line if an episode begins with it."""
        self.fail()
        began = self.error is None
        self.error, self.reason = why, reason
        if began:
            self.change()
            is_relapse = self.since - self._recovered_at <= _RELAPSE
            self._probation = min(2 * self._probation, _LONGEST_PROBATION) if is_relapse else _PROBATION
            self.log.warn(line, upstream=self._name, reason=self.reason, error=self.error)

    def rise_soon(self) -> None:
        """Note that the server can be used again: the episode ends if it does not fail for a while."""
        self._recovering = self._clock.callLater(self._probation, self.rise)

    def rise(self) -> None:
        """Note that the episode is over."""
        self._recovering = None
        self.change()
        self._recovered_at = self.since
        self.error = self.reason = None
        self.log.info("connected to upstream {upstream} again", upstream=self._name)

    def clear(self) -> None:
        """Say nothing more of an episode."""
        self.fail()
        self.error = None
