"""A session: ties a client's connection (one leg) to one of our own to the upstream (the other), and sees to its end.

The rules::

    connecting   The client is not read until its upstream leg is connected, so nothing is held for it here.  Whether
                 it is still there is looked up once in a while.
    open         Each chunk is written to the other leg in the turn it was read in.  Each leg is the other's producer:
                 one that cannot write pauses the reading of the other, so at most a buffer a direction is held.
    half-closed  A FIN is passed on after what came before it.  After the client's, the session ends when its
                 observer calls it settled (servers may keep their side open for ever), after the upstream's when the
                 client closes too; in both cases at the latest when the upstream has been silent for too long.
    closing      What was received is still delivered, as long as its peer takes it.
    draining     The session closes as soon as it is settled.  A client between two requests is not read any more.

When the upstream is lost, or a drained client may have sent more than was read or has replies still to take, the client
gets all there is for it and a FIN, and what it still sends is read and dropped until it closes, for a while: closing
with data unread, or before data comes, would send a reset, which may overtake the replies.

It knows nothing of messages, counting, HTTP or files.  The bridge makes it; an `Observer` answers for the traffic, and
a `fooproxy.relay.sweep.Sweep` tells of sessions that are idle and of peers that do not read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionRefusedError, DNSLookupError, TimeoutError
from twisted.internet.protocol import ClientFactory

from fooproxy.net.sockets import unacknowledged
from fooproxy.relay.leg import Leg

if TYPE_CHECKING:
    import typing
    from collections.abc import Callable, Iterator

    from twisted.internet.interfaces import IAddress
    from twisted.python.failure import Failure

    from fooproxy.net.deadlines import Deadlines
    from fooproxy.relay.timeouts import Timeouts

    class Host(typing.Protocol):
        """What a session needs of the bridge that made it."""

        timeouts: Timeouts
        deadlines: Deadlines[Session]
        sessions: set[Session]
        """The sessions that are open."""

        @property
        def connect(self) -> Callable[[ClientFactory], Deferred[Any]]:
            """What connects a factory to the upstream."""

        def session_ended(self) -> None:
            """Tell that the session has left `sessions`."""

    class Observer(typing.Protocol):
        """What a session asks and tells about its traffic, which it does not understand itself."""

        @property
        def settled(self) -> bool:
            """Whether the client waits for nothing, and no message is half-way through."""

        @property
        def idle(self) -> float:
            """Seconds since something came, from either leg."""

        @property
        def between_requests(self) -> bool:
            """Whether the client has sent whole requests only."""

        def accepted(self, address: str) -> None:
            """Tell the address of the client."""

        def finished(self) -> None:
            """Tell that the client sends nothing more."""

        def paused(self, leg: str) -> None:
            """Tell that a leg, ``client`` or ``upstream``, is not read for now, since the other cannot write."""

        def ignored(self, leg: str) -> None:
            """Tell that nothing is relayed any more of what is received from a leg, ``client`` or ``upstream``."""

        def ended(self, reason: str) -> None:
            """Tell that both legs are gone, and why."""


_CONNECT_FAILURES = (
    (ConnectionRefusedError, "upstream_refused"),
    (DNSLookupError, "upstream_unresolved"),
    (TimeoutError, "connect_timeout"),
)

LOOK_INTERVAL = 1.0
"""Seconds between two looks at whether a client that waits for its upstream leg is still there."""

FIN_TIMEOUT = 10.0
"""Seconds that a client has to say what it has to say, or to close, when its upstream has closed."""

LINGER_TIMEOUT = 1.0
"""Seconds that a drained client has to close after our FIN, if it may have sent requests that were not read."""

TAKEN_INTERVAL = 0.05
"""Seconds between two looks at whether a drained client has taken all its replies."""


class Session:
    """A client's connection, and ours to the upstream on its behalf."""

    def __init__(self, host: Host, observer: Observer) -> None:
        self._host = host
        self.observer = observer
        self.client = Leg(self)
        self.upstream: Leg | None = None
        self.ending = False
        """Whether each chunk may be the last, so that `proceed` is to be called after it."""
        self.pauses = 0
        """How often a leg was not read for a while, since the other could not write."""
        self.stirred = float("-inf")
        """When something last passed that `Observer.idle` knows nothing of; the sweep's to set."""
        self._closing = False
        self._draining = False
        self._connecting: Deferred[Any] | None = None
        self._reason: str | None = None

    def connected(self, leg: Leg) -> None:
        """Go on: from the client to the upstream, from there to relaying."""
        if leg is self.client:
            self.observer.accepted(leg.peer)
            self._host.sessions.add(self)
            connecting = self._host.connect(UpstreamFactory(self))
            if self.upstream is None:
                leg.transport.pauseProducing()
                self._connecting = connecting
                self._expect(LOOK_INTERVAL, self._look_after_client)
                connecting.addErrback(self._connect_failed)
        elif self.client.lost or self._closing:
            leg.transport.abortConnection()
        else:
            self.upstream = leg
            if self._connecting is not None:
                self._connecting = None
                self._host.deadlines.clear(self)
            self.client.transport.registerProducer(leg, True)
            leg.transport.registerProducer(self.client, True)
            self.client.relay(leg)
            leg.relay(self.client)
            self.client.transport.resumeProducing()

    def _look_after_client(self) -> None:
        how = self.client.departed
        if how is None:
            self._expect(LOOK_INTERVAL, self._look_after_client)
        else:
            self._because(f"client_{how}")
            self.close()

    def _connect_failed(self, failure: Failure) -> None:
        if not self._closing:
            how = self.client.departed
            kinds = (kind for error, kind in _CONNECT_FAILURES if failure.check(error))
            # Nobody was let down if nobody is there any more.
            self._because(f"client_{how}" if how else next(kinds, "upstream_unreachable"))
            self.close()

    def finished(self, leg: Leg) -> None:
        """Pass the FIN of `leg` on, or end the session when it is the last that was waited for."""
        self._because("client_closed" if leg is self.client else "upstream_closed")
        if leg is self.client:
            self.observer.finished()
        other = self._other(leg)
        if self._closing or other is None or other.finished or (leg is self.client and self.observer.settled):
            self.close()
        else:
            other.half_close()
            self._end_soon()
            self._await_upstream()

    def proceed(self, leg: Leg) -> None:
        """See, while the session is ending, whether what `leg` just did ends it."""
        if self.observer.settled and (self.client.finished or self._draining):
            self._because("drained")
            if self.client.paused:
                # It may have sent more than was read.
                self._dismiss_client(LINGER_TIMEOUT, self._close_when_taken)
            elif unacknowledged(self.client.transport):
                self._dismiss_client(TAKEN_INTERVAL, self._close_when_taken)
            else:
                self.close()
        elif leg is not self.client:
            if self in self._host.deadlines:
                self._await_upstream()
        elif self._draining and self.observer.between_requests and not leg.paused:
            leg.pause()

    def lost(self, leg: Leg, reason: Failure) -> None:
        """See to the leg that is left."""
        how = "closed" if reason.check(ConnectionDone) else "reset"
        self._because(f"{self._name(leg)}_{how}")
        if not self._closing:
            if leg is self.client:
                self.close()
            else:
                self._dismiss_client(FIN_TIMEOUT, self.close)
        if self.client.lost and (self.upstream is None or self.upstream.lost):
            self._ended()

    def unheard(self, leg: Leg) -> None:
        """See that `leg` need not send any more: the other one takes nothing, though it may not be lost yet."""
        if self._closing:
            return
        other = self._other(leg)
        # One that is gone tells in a moment how.
        if other is not None and not other.is_gone:
            self._because(f"{self._name(other)}_reset")
        if leg is self.client:
            # What the upstream sent before it went is still to be read.
            leg.ignore()
            self._end_soon()
            self._await_upstream()
            leg.resumeProducing()
        else:
            self.close()

    def unread(self, leg: Leg) -> None:
        """Give `leg` up: its peer has taken nothing for too long."""
        self._reason = "send_timeout"
        leg.transport.abortConnection()

    def expire(self) -> None:
        """End a session in which nothing has passed for too long."""
        self._because("idle_timeout")
        self.close()

    def drain(self) -> None:
        """Close as soon as nothing is under way; a session still connecting has nothing under way."""
        self._draining = True
        if self.upstream is None:
            self._because("drained")
            self.close()
        elif not self._closing:
            self._end_soon()
            self.proceed(self.client)

    def _end_soon(self) -> None:
        self.ending = True
        for leg in self._left():
            leg.watch()

    def close(self) -> None:
        """Close both legs once they have delivered what was received."""
        self._begin_to_close()
        for leg in self._left():
            leg.close()

    def abort(self) -> None:
        """Be gone at once; what was not delivered is dropped, unless the kernel has all of it and can go on alone."""
        is_served = self._closing and self._reason == "drained" and self.client.can_let_go
        if self._reason in (None, "drained") and not is_served:
            self._reason = "aborted"
        self._begin_to_close()
        for leg in self._left():
            if is_served and leg is self.client:
                leg.let_go()
            else:
                leg.transport.abortConnection()

    def _dismiss_client(self, timeout: float, then: Callable[[], None]) -> None:
        """Let the client read all there is for it, then our FIN, and wait for its own for `timeout` seconds; `then`."""
        if self.client.finished or not self.client.can_half_close:
            self.close()
            return
        self._begin_to_close()
        self._expect(timeout, then)
        if self.upstream is not None and not self.upstream.lost:
            self.upstream.close()
        self.client.ignore()
        self.client.half_close()
        self.client.resumeProducing()

    def _close_when_taken(self) -> None:
        """Close, once the kernel has no reply left for the client: if that still sends, what is left would be lost."""
        if unacknowledged(self.client.transport):
            self._expect(TAKEN_INTERVAL, self._close_when_taken)
        else:
            self.close()

    def _because(self, reason: str) -> None:
        """Remember why the session ends, if it is not known yet."""
        if self._reason is None:
            self._reason = reason

    def _begin_to_close(self) -> None:
        self._closing = True
        self.ending = False
        self._host.deadlines.clear(self)
        if self._connecting is not None:
            self._connecting.cancel()

    def _expect(self, timeout: float, then: Callable[[], None]) -> None:
        """Wait for whatever is due for `timeout` seconds from now on, and do `then` if it has not come."""
        self._host.deadlines.set(self, timeout, then)

    def _await_upstream(self) -> None:
        """Wait for the upstream to say something, but not for ever."""
        timeout = self._host.timeouts.client_fin if self.client.finished else FIN_TIMEOUT
        self._expect(timeout, self._upstream_is_silent)

    def _upstream_is_silent(self) -> None:
        if self.upstream is not None and self.upstream.paused and not self.upstream.finished:
            # It is not: its replies wait for a client that reads slowly.
            self._await_upstream()
        else:
            if self.client.finished:
                self._reason = "half_close_timeout"
            self.close()

    def _ended(self) -> None:
        if self not in self._host.sessions:
            # Closing one leg may lose it at once, and both that and what led to it come here.
            return
        self._host.deadlines.clear(self)
        self._host.sessions.discard(self)
        if self.client.has_proxy_header:
            self.observer.accepted(self.client.peer)
        self.observer.ended(self._reason or "aborted")
        self._host.session_ended()
        # Nothing is left to the garbage collector, whose runs would hold everybody up.
        del self.client.session
        if self.upstream is not None:
            del self.upstream.session

    @property
    def state(self) -> str:
        """What the session is at, in a word for operators."""
        if self._closing:
            return "closing"
        if self.upstream is None:
            return "connecting"
        if self._draining:
            return "draining"
        return "half-closed" if self.client.finished or self.upstream.finished else "open"

    @property
    def paused(self) -> list[str]:
        """The legs that are not read for now, since the other cannot write."""
        legs = {"client": self.client, "upstream": self.upstream}
        return [name for name, leg in legs.items() if leg is not None and leg.paused]

    def note_pause(self, leg: Leg) -> None:
        """Take notice that `leg` is not read for now."""
        self.pauses += 1
        self.observer.paused(self._name(leg))

    def note_ignored(self, leg: Leg) -> None:
        """Take notice that what `leg` still receives is dropped."""
        self.observer.ignored(self._name(leg))

    def _name(self, leg: Leg) -> str:
        return "client" if leg is self.client else "upstream"

    def _left(self) -> Iterator[Leg]:
        """Give the legs that are there and not lost, as they are when their turn comes."""
        for leg in (self.client, self.upstream):
            if leg is not None and not leg.lost:
                yield leg

    def _other(self, leg: Leg) -> Leg | None:
        return self.upstream if leg is self.client else self.client


class UpstreamFactory(ClientFactory):
    """Builds the upstream leg of one session."""

    noisy = False

    def __init__(self, session: Session) -> None:
        self.session = session

    def buildProtocol(self, addr: IAddress | None) -> Leg:
        """Build the leg."""
        return Leg(self.session)
