"""A session whose upstream leg is a link of a pool: how it gets the link, and how it leaves it for others.

A client that has sent nothing has no link.  Once it sends something, it is not read until a link is there, as with any
session.  From then on, the session follows the rules in `fooproxy.relay.session`, with these exceptions::

    a client's FIN   Between two lines, it is not passed on, since the link is for other clients too.  In the middle of
                     a line, it is passed on, since servers then answer the half line; the link is spent.
    the end          A clean link is given back, any other one is closed.  If replies are outstanding when the client is
                     gone, they are read, counted and dropped, for `Timeouts.client_fin` at most; then the link is
                     clean.
    a dead link      If a link ends before anything was sent on it, the session continues with the next one.

The observer decides whether a link is clean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fooproxy.net.sockets import is_writing
from fooproxy.relay.opening import Opening
from fooproxy.relay.session import Seen, Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twisted.python.failure import Failure

    from fooproxy.relay.leg import Leg, Lender
    from fooproxy.relay.session import Host

_THEIRS = ("idle_timeout", "reply_timeout", "half_close_timeout")
"""Reasons for which the proxy ends a session because its server sends nothing; no further replies are expected."""


class OnDemand(Opening):
    """An opening that takes no link before the client's first request."""

    __slots__ = ()

    session: PooledSession[Any]

    def connect(self) -> None:
        """Wait for the client's first byte, without a link."""
        self.session.rest()


class PooledSession(Session[Seen]):
    """One client's connection, and the link that is lent to it."""

    __slots__ = ("_abandoned", "_heard")

    opening: type[Opening] = OnDemand

    def __init__(self, host: Host[Seen], observer: Seen) -> None:
        super().__init__(host, observer)
        self._abandoned: Leg | None = None
        """The upstream leg, while its replies are read and dropped."""
        self._heard = 0
        """The bytes that had passed when the link was lent; -1 if held bytes are sent on it at once."""
        observer.pair()

    def connected(self, leg: Leg) -> None:
        """Continue with the link that was lent."""
        if leg is self.client:
            super().connected(leg)
            return
        self.observer.got_link()
        was_held = self.client.holds and not self.is_connecting
        if self.client.holds:
            # The server gets the held bytes only now.
            self.observer.forwarded()
        self._heard = -1 if self.client.holds else self.observer.passed
        super().connected(leg)
        if was_held and not (self.closing or self.client.lost or self.client.paused):
            self.client.transport.resumeProducing()

    def finished(self, leg: Leg) -> None:
        """Handle the FIN of `leg`: continue with another link if this one is dead, or as any session does."""
        if self._is_dead(leg):
            self._replace(leg)
        elif leg is self._abandoned:
            self._give_up_dropping()
        else:
            super().finished(leg)

    def _passes_on_fin(self, leg: Leg) -> bool:
        """Return whether the other leg gets a FIN: a link gets one only if it cannot be used again anyway."""
        return leg is not self.client or not self.observer.is_regular

    def lost(self, leg: Leg, reason: Failure) -> None:
        """Continue with another link if this one is dead."""
        if self._is_dead(leg):
            self._replace(leg)
        else:
            super().lost(leg, reason)

    def _is_dead(self, leg: Leg) -> bool:
        """Return whether the server has ended a used link before it received anything from this client."""
        is_used = leg is self.upstream and leg.link is not None and leg.link.is_used
        is_needed = not (self.closing or self.draining or self.client.finished)
        return is_used and is_needed and self.observer.passed == self._heard

    def _replace(self, leg: Leg) -> None:
        was_lost = leg.lost
        self._leave(leg)
        if leg.link is not None and not was_lost:
            leg.link.drop()
        self.rest()

    def rest(self) -> None:
        """Wait for the client's next byte, without a link."""
        self.ending = False
        self._opening = None
        self.client.await_data()
        if self.client.paused:
            self.client.resumeProducing()

    def addressed(self) -> None:
        """Take a link, since the client has sent something."""
        self.observer.needs_link()
        self._opening = opening = Opening(self, self.host.connect)
        opening.connect()

    def _leave(self, leg: Leg) -> None:
        """Detach the session from its link."""
        self.upstream = None
        self.observer.released()
        self.client.stop_relaying()
        leg.leave()

    def close(self) -> None:
        """Close the client's leg; give back the link, now or after all replies, or close it too."""
        leg = self.upstream
        if leg is not None and not leg.lost and leg is not self._abandoned:
            if self._is_clean(leg):
                self._give_back(leg)
            elif self._is_worth_waiting_for(leg):
                self._abandon(leg)
        super().close()

    def _is_clean(self, leg: Leg) -> bool:
        observer = self.observer
        is_open = not (leg.finished or leg.lost or leg.is_gone or is_writing(leg.transport))
        return is_open and observer.settled and observer.is_regular and observer.is_paired

    def _give_back(self, leg: Leg) -> None:
        self._leave(leg)
        if leg.link is not None:
            leg.link.take_back()

    def _is_worth_waiting_for(self, leg: Leg) -> bool:
        """Return whether all replies are likely to arrive and leave the link clean."""
        reason, observer = self.reason or "aborted", self.observer
        if reason in _THEIRS or reason.startswith("upstream_") or self.draining or reason == "aborted":
            return False
        is_open = not (leg.finished or leg.is_gone)
        return is_open and observer.between_requests and observer.is_regular and not observer.settled

    def _abandon(self, leg: Leg) -> None:
        """Read and drop the outstanding replies."""
        self._abandoned = leg
        self.ending = False
        self.observer.abandoned()
        if leg.link is not None:
            leg.link.drain()
        leg.read_replies(self._drop_reply)
        self.host.deadlines.set(leg, self.host.timeouts.client_fin, self._give_up_dropping)

    def _drop_reply(self, data: bytes) -> None:
        leg = self._abandoned
        if leg is None or not self.observer.settled:
            return
        if self._is_clean(leg):
            self._forget_abandoned()
            self._give_back(leg)
            if self.client.lost:
                self._ended()
        else:
            self._give_up_dropping()

    def _give_up_dropping(self) -> None:
        self._forget_abandoned()
        super().close()

    def _forget_abandoned(self) -> None:
        if self._abandoned is not None:
            self.host.deadlines.clear(self._abandoned)
            self._abandoned = None

    @property
    def holds_up(self) -> bool:
        """Whether the client has a link that the server cannot work on until the client sends or reads more."""
        leg = self.upstream
        if leg is None or self.closing:
            return False
        return leg.paused or not self.observer.between_requests

    def hold_no_longer(self) -> None:
        """Close the session, since others need the link."""
        self.because("hold_timeout")
        self.close()

    def abort(self) -> None:
        """End the session and its link now."""
        self._forget_abandoned()
        super().abort()

    def _left(self) -> Iterator[Leg]:
        """Yield each leg that exists, is not lost, and is not kept for outstanding replies."""
        return (leg for leg in super()._left() if leg is not self._abandoned)

    def _ended(self) -> None:
        self._forget_abandoned()
        super()._ended()

    @property
    def state(self) -> str:
        """The state of the session, as shown to operators."""
        is_idle = self.upstream is None and not (self.closing or self.is_connecting)
        return "idle" if is_idle else super().state


class BurstSession(PooledSession[Seen]):
    """A pooled session whose client has a link only from the first byte of a request until nothing is outstanding.

    The client keeps the link while its line is unfinished, replies are outstanding, or it does not read them.  A client
    that has sent anything but requests keeps its link until it leaves, since the server's answers are unpredictable.
    """

    __slots__ = ("_link",)

    def __init__(self, host: Host[Seen], observer: Seen) -> None:
        super().__init__(host, observer)
        self._link: Lender | None = None
        """The link, while it lingers and others can take it."""

    def connected(self, leg: Leg) -> None:
        """Continue with the link that was lent, until the session is settled."""
        super().connected(leg)
        if leg is self.client or self.upstream is not leg or self.closing:
            return
        if self.client.is_pumped:
            self.observer.when_settled(self.settle)
        else:
            self.end_soon()

    def proceed(self, leg: Leg) -> None:
        """Check after each chunk whether the link is still needed; sessions that the pump relays use `when_settled`."""
        if self.client.finished or self.draining or self.upstream is None:
            super().proceed(leg)
        else:
            self.settle()

    def note_resume(self, leg: Leg) -> None:
        """Record that `leg` is read again, and check whether the link is still needed."""
        super().note_resume(leg)
        if leg is self.upstream:
            self.settle()

    def settle(self) -> None:
        """Let others have the link if nothing is outstanding."""
        if self._link is not None:
            # Whether the link is clean is checked when another session needs it.
            if not self._link.linger(self._let_go_of_link):
                self._let_go_of_link()
        elif self._is_ready:
            link = self.upstream.link if self.upstream is not None and self.client.is_pumped else None
            if link is not None and link.linger(self._let_go_of_link):
                self._link = link
            else:
                self._let_go_of_link()

    @property
    def _is_ready(self) -> bool:
        """Whether the link can be given back now."""
        leg = self.upstream
        is_leaving = self.closing or self.draining or self.client.finished
        return leg is not None and not is_leaving and not leg.paused and self._is_clean(leg)

    def _let_go_of_link(self) -> bool:
        """Give the link back if it is still clean."""
        self._link = None
        leg = self.upstream
        if leg is None or not self._is_ready:
            return False
        self._give_back(leg)
        self.rest()
        return True

    def _is_dead(self, leg: Leg) -> bool:
        """Return whether the server has ended a link on which nothing was outstanding."""
        if super()._is_dead(leg):
            return True
        is_leaving = self.closing or self.draining or self.client.finished
        is_lent = leg is self.upstream and leg.link is not None
        return is_lent and not is_leaving and self.observer.settled and self.observer.is_regular

    def _leave(self, leg: Leg) -> None:
        self._link = None
        self.observer.when_settled(None)
        super()._leave(leg)

    @property
    def holds_up(self) -> bool:
        """As in `PooledSession`, or whether the client keeps the link having sent something other than requests."""
        if self.upstream is None or self.closing or self._link is not None:
            return super().holds_up
        return super().holds_up or self.observer.settled

    @property
    def state(self) -> str:
        """The state of the session, as shown to operators."""
        found = super().state
        return "idle" if found == "open" and self._link is not None and self.observer.settled else found

    def drain(self) -> None:
        """Close as soon as the session is settled; if it has no link, once the client has read everything."""
        if self.upstream is None and not (self.closing or self.is_connecting) and self.observer.passed:
            self.draining = True
            self.proceed(self.client)
        else:
            super().drain()
