"""The pool: links to servers that outlive the sessions they are lent to, so that later clients need not connect.

A link is lent to one session at a time.  A session gives it back only if it is clean: no request open, no line
unfinished on either leg, and nothing unsolicited received.  Any byte, FIN or reset from the server ends an idle link,
even if it is only found when the link is taken; a link also ends when it is too old or was idle for too long.  The link
that was given back last is taken first, so that links that are not needed expire.

This module knows nothing about messages: the session decides whether a link is clean.  `fooproxy.upstreams.server`
takes links from here, and makes new ones.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, NamedTuple

from fooproxy.net.deadlines import Deadlines
from fooproxy.upstreams.marking import Marking

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping
    from typing import Protocol

    from twisted.internet.interfaces import IDelayedCall, IProtocolFactory, IReactorTime

    class Stats(Protocol):
        """The counts of all links together."""

        links_taken: int
        links_reused: int

        @property
        def links_discarded(self) -> MutableMapping[str, int]:
            """Links that were closed, by reason."""

    class Link(Protocol):
        """A connection that can be lent; see `fooproxy.relay.link`."""

        expires: float
        """The time from which the link is too old."""
        idle_since: float
        seen: int
        """The value of `Links.ticks` when the link last began to linger."""

        @property
        def is_quiet(self) -> bool:
            """Whether no data and no end of the connection has arrived, as far as the kernel and TLS can tell."""

        def lend(self, factory: Any) -> None:
            """Connect the leg of a session."""

        def rest(self) -> None:
            """Wait for the next session."""

        def close(self, why: str, at_once: bool = False) -> None:
            """Close the link and count `why`; `at_once` must not be set in a call from the link's own connection."""

        def abort(self) -> None:
            """Close with a reset."""


_JITTER = 0.2
"""The fraction by which a link's maximum age may be shortened, so that links made together do not end together."""

_LOOK = 1.0
"""Maximum seconds between two checks for idle links that have expired."""

_MOMENT = 0.005
"""Seconds between two checks for links that have lingered; each lingers for one or two of these."""

_MOST_IDLE = 1024
"""Maximum number of idle links to one server; one more closes the link that has been idle for longest."""

_LET_GO = 10.0
"""Seconds that a server has to answer our close_notify."""


class Limits(NamedTuple):
    """How long a link is kept."""

    age: float = 3600.0
    """Seconds after which a link is closed instead of being given back."""
    idle: float = 60.0
    """Seconds that a link may be idle."""


class Links:
    """The links to one server; keeps the idle ones, and counts in `stats` how links are used and why they end."""

    def __init__(self, clock: IReactorTime, limits: Limits, stats: Stats) -> None:
        self.idle: list[Link] = []
        """The idle links; the one that was given back last comes last."""
        self.open: set[Link] = set()
        """All links."""
        self.lingering: dict[Link, Callable[[], bool]] = {}
        """Links that a session keeps for its next request, though it could do without; each with a way to give it back.

        Most clients that send one request after the other find their link still there, which saves the work of giving
        it back and taking it.  Some of these links may be in use again."""
        self.ticks = 0
        """The number of checks for lingering links so far."""
        self.draining: set[Link] = set()
        """Links whose session has ended while replies to it are outstanding."""
        self._clock = clock
        self._limits = limits
        self._stats = stats
        self.when_free: Callable[[], object] = lambda: None
        """Called when a link has become idle."""
        self.are_needed: Callable[[], bool] = lambda: False
        """Returns whether other sessions need links, or the server is not usable; then no link may linger."""
        self._timer: IDelayedCall | None = None
        self._ticking: IDelayedCall | None = None
        self._deadlines: Deadlines[Any] = Deadlines(clock)
        self._is_closing = False
        self._is_held = False

    @property
    def lent(self) -> int:
        """How many links are in use, or draining after use."""
        return len(self.open) - len(self.idle) - len(self.lingering)

    @property
    def states(self) -> dict[str, int]:
        """How many links are in which state."""
        idle, draining = len(self.idle), len(self.draining)
        return {"idle": idle, "in_use": len(self.open) - idle - draining, "draining": draining}

    @property
    def has_any(self) -> bool:
        """Whether a link is idle; takes back a lingering one if none is."""
        while not self.idle and self.lingering:
            self.lingering.popitem()[1]()
        return bool(self.idle)

    def linger(self, link: Link, let_go: Callable[[], bool]) -> bool:
        """Leave a settled link with its session for a moment; return false if others need it at once."""
        if self._is_closing or self.are_needed():
            self.lingering.pop(link, None)
            return False
        link.seen = self.ticks
        self.lingering[link] = let_go
        if self._ticking is None:
            self._ticking = self._clock.callLater(_MOMENT, self._tick)
        return True

    def end_lingering(self) -> None:
        """Take back all lingering links."""
        while self.lingering:
            self.lingering.popitem()[1]()

    def hold(self, is_held: bool) -> None:
        """Keep no links while an operator holds the server, so that it can be stopped."""
        self._is_held = is_held
        if is_held:
            self.end_lingering()
            self._empty("held")

    def _tick(self) -> None:
        """Take back the links that have lingered since before the last check, or are too old."""
        self._ticking = None
        self.ticks += 1
        now = self._clock.seconds()
        for link, let_go in list(self.lingering.items()):
            if link.seen < self.ticks - 1 or now >= link.expires:
                self.lingering.pop(link, None)
                let_go()
        if self.lingering:
            self._ticking = self._clock.callLater(_MOMENT, self._tick)

    def take(self) -> Link | None:
        """Return an idle link that can be lent, if there is one."""
        now = self._clock.seconds()
        while self.has_any:
            link = self.idle[-1]
            why = self._has_expired(link, now)
            if not why and not link.is_quiet:
                why = "closed"
            self.idle.pop()
            if why:
                # At once, since a new link may need its slot.
                link.close(why, at_once=True)
                continue
            self._stats.links_taken += 1
            self._stats.links_reused += 1
            return link
        return None

    def making(self, factory: IProtocolFactory) -> Marking:
        """Wrap `factory`, so that a link it builds belongs to this pool."""
        # This has no effect if the factory builds no link.
        return Marking(factory, links=self)

    def made(self, link: Link) -> None:
        """Register a new link, which a session uses already."""
        age = self._limits.age * random.uniform(1 - _JITTER, 1)
        link.expires = self._clock.seconds() + age
        self.open.add(link)
        self._stats.links_taken += 1

    def drains(self, link: Link) -> None:
        """Record that the session of `link` has ended while replies to it are outstanding."""
        self.lingering.pop(link, None)
        self.draining.add(link)

    def give_back(self, link: Link) -> None:
        """Keep a clean link for the next session, unless it is too old."""
        self.draining.discard(link)
        self.lingering.pop(link, None)
        now = self._clock.seconds()
        link.rest()
        if now >= link.expires or self._is_closing or self._is_held:
            link.close("stopped" if self._is_closing else "held" if self._is_held else "age")
            return
        link.idle_since = now
        self.idle.append(link)
        if len(self.idle) > _MOST_IDLE:
            self.discard(self.idle[0], "surplus")
        if self._timer is None:
            self._timer = self._clock.callLater(min(self._limits.idle, _LOOK), self._look)
        self.when_free()

    def discard(self, link: Link, why: str) -> None:
        """Close an idle link and count `why`; called twice if the server sends something and then closes."""
        if link in self.idle:
            self.idle.remove(link)
        link.close(why)

    def lost(self, link: Link, why: str) -> None:
        """Forget a link that has ended, and count why."""
        self._deadlines.clear(link)
        self.open.discard(link)
        self.draining.discard(link)
        self.lingering.pop(link, None)
        if link in self.idle:
            self.idle.remove(link)
        self._stats.links_discarded[why] += 1

    def let_go_of(self, link: Link) -> None:
        """Abort `link` unless its connection ends within `_LET_GO` seconds."""
        self._deadlines.set(link, _LET_GO, link.abort)

    def close(self) -> None:
        """Close all idle links now, and each of the others when it is given back."""
        self._is_closing = True
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._empty("stopped")

    def _empty(self, why: str) -> None:
        while self.idle:
            self.discard(self.idle[-1], why)

    def _has_expired(self, link: Link, now: float) -> str:
        if now >= link.expires:
            return "age"
        return "idle" if now - link.idle_since >= self._limits.idle else ""

    def _look(self) -> None:
        """Close the links that have expired."""
        self._timer = None
        now = self._clock.seconds()
        for link in self.idle[:]:
            if why := self._has_expired(link, now):
                self.discard(link, why)
        if self.idle:
            self._timer = self._clock.callLater(min(self._limits.idle, _LOOK), self._look)
