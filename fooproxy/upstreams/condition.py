"""The condition of a server: whether it may get clients, according to connection attempts, checks, sessions, operators.

A failed attempt keeps clients away until one succeeds.  A server that fails the clients it serves is taken out until a
trial succeeds.  One whose checks fail, or which the name servers no longer list, gets clients only if no other can.
One that an operator holds gets none.  A server that comes back gets only a part of its share at first.

The state that operators see changes less often, and is kept by `fooproxy.upstreams.standing`.  This module neither
connects nor decides what a failure is.  Each `fooproxy.upstreams.server` has one condition.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING
from typing import Protocol as Interface

from twisted.internet import error

from fooproxy.net.failures import counted_as, kind, words
from fooproxy.text import one_line
from fooproxy.upstreams.standing import Standing

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping
    from typing import Any

    from twisted.internet.interfaces import IReactorTime

_RELAPSE = 60.0
"""Seconds, or twice the rest: a server that is taken out again this soon after its return rests for longer."""

_FIRST_REST = 2.0
"""Seconds that a server is left alone when it is taken out because of its requests."""

_LONGEST_REST = 60.0
"""The maximum of this time, which doubles whenever the server is taken out again soon after it came back."""

_WARM_UP = 10.0
"""Seconds in which the share of a server that comes back grows from `_COLD` of it to all of it."""

_COLD = 0.1
"""The fraction of its share with which a server that comes back begins."""


class Counts(Interface):
    """The counts of a server that are kept elsewhere."""

    @property
    def connect_failures(self) -> MutableMapping[str, int]:
        """Failed attempts, by reason."""

    @property
    def checks(self) -> MutableMapping[str, int]:
        """Checks, by result."""

    ejections: int
    """How often the server was taken out for its requests."""

    @property
    def load(self) -> int:
        """Open sessions and requests in flight together."""

    @property
    def in_flight(self) -> int:
        """Requests in flight."""

    @property
    def stuck(self) -> int:
        """1 if requests wait and the server answers none of them, else 0."""


class Condition:
    """The condition of the server that log lines call `name`; `weight` is its share of the clients."""

    def __init__(self, name: str, clock: IReactorTime, weight: int) -> None:
        self.name = one_line(name)
        self.weight = weight
        self._clock = clock
        self.counts: Counts | None = None
        self._standing = Standing(self.name, clock)
        self.patience = 1
        """The number of failures in a row after which the server counts as down."""
        self.when_failed: Callable[[], object] = lambda: None
        """Called after each failure."""
        self.when_opened: Callable[[], object] = lambda: None
        """Called when the server can be used again."""
        self.failing = False
        """Whether the last attempt failed, so that no client should be the next to try."""
        self.failures = 0
        """Failures to connect in a row."""
        self.last: Exception = error.TimeoutError()
        """Why the last failed attempt failed."""
        self.failed_at = float("-inf")
        self._heard_at = float("-inf")
        self.ejected = False
        """Whether the server is taken out because it failed its clients, and has not passed a trial since."""
        self.rest = 0.0
        """Seconds that the server is left alone when it is taken out."""
        self._returned_at = float("-inf")
        self._warmed_at = float("-inf")
        self.doubted = False
        """Whether the server's checks fail, so that clients get other servers, if there are any."""
        self.gone = False
        """Whether the name servers no longer list the server, so that it gets no new sessions."""
        self.held: str | None = None
        """``paused`` or ``draining`` while an operator keeps clients away from the server."""
        self.held_by = ""
        """The operator who holds the server."""
        self._held_at = 0.0
        self._holds: dict[str, tuple[str, float]] = {}

    def counted_by(self, counts: Counts) -> None:
        """Count failures in `counts`, and read the server's load from there."""
        self.counts = counts

    # Queries

    @property
    def state(self) -> str:
        """``up`` or ``down``; ``unknown`` before the first success; ``paused`` or ``draining`` if an operator says so.

        A server is also ``draining`` while it still has sessions, but the name servers no longer list it.
        """
        if self.held is not None:
            return self.held
        if self.gone:
            return "draining"
        return self._standing.state

    @property
    def since(self) -> float:
        """Seconds that the state has lasted."""
        return self._clock.seconds() - (self._standing.since if self.held is None else self._held_at)

    @property
    def error(self) -> str | None:
        """Why the server is down, in words; `None` if it is not."""
        return self._standing.error

    @property
    def reason(self) -> str | None:
        """Why the server is down, as the reason by which failed sessions are counted."""
        return self._standing.reason

    @property
    def is_usable(self) -> bool:
        """Whether the server may get a client, if it has room."""
        return not self.failing and self.held is None

    @property
    def reluctance(self) -> int:
        """How strongly other servers are preferred to this one: 1 if its checks fail, 2 if it is gone, else 0."""
        return 2 if self.gone else int(self.doubted)

    @property
    def is_proven(self) -> bool:
        """Whether an attempt has succeeded, and none has failed since."""
        return self._standing.has_worked and not self.failing

    @property
    def silence(self) -> float:
        """Seconds since the last attempt succeeded or failed; infinite before the first."""
        return self._clock.seconds() - self._heard_at

    def unreachable(self, within: float) -> str | None:
        """Return why the server is down, if an attempt failed at most `within` seconds ago; otherwise `None`."""
        return self.error if self._clock.seconds() - self.failed_at <= within else None

    @property
    def share(self) -> float:
        """The weight, less while the server warms up after it was down."""
        warm = (self._clock.seconds() - self._warmed_at) / _WARM_UP
        return self.weight if warm >= 1 else self.weight * (_COLD + (1 - _COLD) * warm)

    @property
    def is_stuck(self) -> bool:
        """Whether the server was taken out and still answers none of the waiting requests."""
        return self.ejected and self.counts is not None and bool(self.counts.stuck)

    # Events

    def checked(self, result: str) -> None:
        """Count a check."""
        if self.counts is not None:
            self.counts.checks[result] += 1

    def doubt(self, why: str) -> None:
        """Prefer other servers from now on, since checks fail; `why` is for the log."""
        self.doubted = True
        self._standing.fall(why, "upstream_check", "upstream {upstream} fails its checks: {error}")

    def trust(self) -> None:
        """Use the server like others again, since checks pass."""
        if self.doubted:
            self.doubted = False
            if not self.failing:
                self._warmed_at = self._clock.seconds()
                self._standing.rise()
                self.when_opened()

    def failed(self, reason: Any, is_counted: bool = True) -> None:
        """Record that an attempt failed for `reason`, an exception; a check is not counted."""
        self.failed_at = self._heard_at = self._clock.seconds()
        self.last = reason
        self.failing = True
        self.failures += 1
        if self.counts is not None and is_counted:
            self.counts.connect_failures[kind(reason)] += 1
        if self.failures >= self.patience or self.error is not None:
            line = "cannot connect to upstream {upstream}: {error}"
            self._standing.fall(one_line(words(reason)), counted_as(reason), line)
        self.when_failed()

    def eject(self, why: str, reason: str) -> None:
        """Take the server out because it failed its clients; `why` is text for the log, `reason` a word."""
        now = self._clock.seconds()
        is_relapse = now - self._returned_at <= max(_RELAPSE, 2 * self.rest)
        self.rest = min(2 * self.rest, _LONGEST_REST) if is_relapse else _FIRST_REST
        self.failed_at = now
        self.failing = self.ejected = True
        if self.counts is not None:
            self.counts.ejections += 1
        self._standing.fall(why, reason, "taking out upstream {upstream}: {error}")
        self.when_failed()

    def succeeded(self, is_trial: bool = False) -> None:
        """Record that an attempt succeeded; only a trial (`is_trial`) brings back a server that was taken out."""
        self._heard_at = self._clock.seconds()
        if not self._standing.has_worked:
            self._standing.work()
        if self.failing and (is_trial or not self.ejected):
            if self.ejected:
                self._returned_at = self._heard_at
            self.failing = self.ejected = False
            self.failures = 0
            if self.error is not None and not self.doubted:
                self._warmed_at = self._heard_at
                self._standing.rise_soon()
            self.when_opened()

    def hold(self, how: str, who: str) -> None:
        """Make the server ``paused`` or ``draining`` for `who`: it gets no new clients, and keeps its sessions."""
        self._holds.setdefault(how, (who, self._clock.seconds()))
        self._find_hold()

    def release(self, how: str) -> None:
        """End the hold `how`, if it is in force."""
        if self._holds.pop(how, None) is not None:
            self._find_hold()
            if self.held is None:
                # Other servers have had its clients meanwhile.
                self._warmed_at = self._clock.seconds()
                self._standing.change()

    def _find_hold(self) -> None:
        self.held = next((how for how in ("paused", "draining") if how in self._holds), None)
        self.held_by, self._held_at = ("", 0.0) if self.held is None else self._holds[self.held]

    def is_back(self, is_back: bool) -> None:
        """Record whether the name servers list the server."""
        if self.gone is is_back:
            self.gone = not is_back
            self._standing.change()

    def close(self) -> None:
        """Log and count nothing more."""
        self._standing.clear()
        self.counts = None
        self.patience = sys.maxsize
