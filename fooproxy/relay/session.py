"""A session: connects a client (one leg) to the upstream (the other leg), and decides when and how both end.

The rules::

    shaking      A load balancer has `HANDSHAKE_TIMEOUT` for its PROXY header, and a client over TLS for its handshake.
                 There is no upstream leg before.
    connecting   The client is not read until its upstream leg is connected, so the proxy buffers nothing for it but
                 what came in one read with the end of a header or a handshake.
                 Every `LOOK_INTERVAL` the session checks whether the client is still there.
    open         Each chunk is written to the other leg in the reactor turn in which it was read.  Each leg is the
                 other's producer: when one cannot write, the other is not read.  At most one buffer per direction is
                 held.
    half-closed  A FIN is passed on after the data before it.  After the client's FIN, the session ends when its
                 observer calls it settled (a server may keep its side open forever); after the upstream's FIN, when
                 the client closes too.  In both cases it ends at the latest when the upstream has sent nothing for too
                 long.
    closing      Data already received is still delivered, as long as the peer reads it.  A peer over TLS that has all
                 of it, but does not answer our close_notify, is let go after a while.  But if the session ends while
                 a line of the client is unfinished, and not by the client's own FIN, the upstream gets a reset: after a
                 FIN, servers would execute the half of a request that they have.
    draining     The session closes as soon as it is settled.  A client between two requests is not read any more; what
                 a chunk holds beyond the last whole request is dropped.

The client is not closed directly if the upstream connection is lost, or if a drained client may have sent more than
was read or has not acknowledged all replies.  It then gets the remaining data and a FIN, and whatever it sends is read
and dropped until it closes or a deadline passes.  Closing its socket while data is unread, or before more data arrives,
would send a reset, which may overtake the replies.

A session knows nothing about messages, counting, HTTP or files.  The bridge creates it.  Its `Opening` has the states
before there is an upstream leg.  An `Observer` answers questions about the traffic, and `fooproxy.relay.sweep.Sweep`
reports idle sessions and stalled peers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from twisted.internet.error import ConnectionDone, TimeoutError
from twisted.logger import Logger

from fooproxy.net.failures import is_tls, words
from fooproxy.net.sockets import unacknowledged
from fooproxy.relay.leg import Leg
from fooproxy.relay.opening import Opening
from fooproxy.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    from fooproxy.net.deadlines import Deadlines
    from fooproxy.relay.observer import Observer
    from fooproxy.relay.opening import UpstreamFactory
    from fooproxy.relay.timeouts import Timeouts

    Seen = TypeVar("Seen", bound=Observer)

    class Host(Protocol[Seen]):
        """What a session needs from the bridge that created it."""

        timeouts: Timeouts
        deadlines: Deadlines[Any]
        sessions: set[Session[Seen]]
        """The open sessions."""

        @property
        def connect(self) -> Callable[[UpstreamFactory], Deferred[Any]]:
            """The function that connects a factory to the upstream."""

        def session_ended(self) -> None:
            """Check whether that was the last one, after a session ended and left `sessions`."""

else:
    Seen = TypeVar("Seen")


FIN_TIMEOUT = 10.0
"""Seconds that a client has to finish and close after its upstream closed."""

LINGER_TIMEOUT = 1.0
"""Seconds that a drained client has to close after our FIN, if it may have sent requests that were not read."""

TAKEN_INTERVAL = 0.05
"""Seconds between two checks whether a drained client has received all its replies."""


_NEVER = float("-inf")


class Session(Generic[Seen]):
    """One client's connection and the upstream connection made for it."""

    log = Logger()
    opening: type[Opening] = Opening
    """The class of the session's opening."""

    __slots__ = (
        *("client", "closing", "draining", "ending", "host", "observer", "pauses", "reason", "stirred", "upstream"),
        "_opening",
    )

    def __init__(self, host: Host[Seen], observer: Seen) -> None:
        self.host = host
        self.observer = observer
        self.client = Leg(self, "client")
        self.upstream: Leg | None = None
        self.ending = False
        """Whether any chunk may be the last one; legs must then call `proceed` after each."""
        self.pauses = 0
        """How often reading from a leg was paused because the other leg could not write."""
        self.stirred = _NEVER
        """When the sweep last saw data waiting for a peer, which `Observer.idle` does not cover."""
        self.closing = False
        """Whether the legs are being closed."""
        self.draining = False
        """Whether the session closes as soon as it is settled."""
        self._opening: Opening | None = None
        """The opening, until there is an upstream leg."""
        self.reason: str | None = None
        """Why the session ends, once that is known."""

    def connected(self, leg: Leg) -> None:
        """Continue once `leg` is connected: the client leg starts connecting, the upstream leg starts relaying."""
        leg.set_options(self.host.timeouts.send)
        if leg is self.client:
            self.observer.accepted(leg.peer)
            self.host.sessions.add(self)
            self._opening = self.opening(self, self.host.connect)
            self._opening.begin()
        elif self.closing:
            leg.transport.abortConnection()
        elif self.client.lost:
            self.upstream, self._opening = leg, None
            self.client.relay(leg)
            self.close()
        else:
            self.upstream = leg
            is_held, self._opening = self.is_connecting, None
            self.client.transport.registerProducer(leg, True)
            leg.transport.registerProducer(self.client, True)
            self.client.relay(leg)
            leg.relay(self.client)
            if is_held:
                self.host.deadlines.clear(self)
                if not self.client.paused:
                    self.client.transport.resumeProducing()

    def shaken(self) -> None:
        """Continue once the client's TLS handshake and PROXY header, if expected, are complete."""
        if self._opening is not None and not self.closing:
            self.host.deadlines.clear(self)
            self._opening.connect()

    def addressed(self) -> None:
        """Do nothing: only a `PooledSession` has legs that await data without reading it."""

    def connect_failed(self, reason: str) -> None:
        """End the session, since there is no upstream leg, for `reason`."""
        if not self.closing:
            how = self.client.departed
            # If the client has left already, that is the reason, not the failed connect.
            self.because(f"client_{how}" if how else reason)
            self.close()
        if self.client.lost:
            self._ended()

    def identified(self, leg: Leg) -> None:
        """Record the client that the PROXY header names, and continue, unless a TLS handshake must follow."""
        self.observer.accepted(leg.peer)
        if not leg.over_tls:
            self.shaken()

    def unidentified(self, leg: Leg) -> None:
        """Record why the session ends: the connection of `leg` does not start with a PROXY header."""
        self.because("proxy_header")

    def finished(self, leg: Leg) -> None:
        """Pass on the FIN of `leg`, or end the session if nothing else is outstanding."""
        self.because("client_closed" if leg is self.client else "upstream_closed")
        if leg is self.client:
            self.observer.finished()
        other = self._other(leg)
        if self.closing or other is None or other.finished or (leg is self.client and self.observer.settled):
            self.close()
        elif leg is not self.client and other.over_tls:
            # Otherwise a client over TLS would learn only later that nothing more will come.
            self.close()
        else:
            if self._passes_on_fin(leg):
                other.half_close()
            self.end_soon()
            self._await_upstream()

    def _passes_on_fin(self, leg: Leg) -> bool:
        """Return whether the other leg gets a FIN, now that `leg` has sent one."""
        return True

    def proceed(self, leg: Leg) -> None:
        """Check whether an ending session waits for nothing more, after an event of `leg`."""
        if self.observer.settled and (self.client.finished or self.draining):
            self.because("drained")
            if self.client.paused:
                # The client may have sent more than was read.
                self._dismiss_client(LINGER_TIMEOUT, self._close_when_taken)
            elif unacknowledged(self.client.transport):
                self._dismiss_client(TAKEN_INTERVAL, self._close_when_taken)
            else:
                self.close()
        elif leg is not self.client:
            if self in self.host.deadlines:
                self._await_upstream()
        elif self.draining and self.observer.between_requests and not (leg.paused or leg.is_ignored):
            leg.pause()

    def lost(self, leg: Leg, reason: Failure) -> None:
        """Handle the loss of `leg`: close the other leg, or let the client read the rest first."""
        why = reason.value
        how = "closed" if isinstance(why, ConnectionDone) else "tls" if is_tls(why) else "reset"
        if how == "tls" and leg is self.client:
            self.log.info(
                "TLS with {client} failed: {error}",
                client=leg.peer,
                error=one_line(words(why)),
                limited="TLS failures of clients",
            )
        if self.reason is None:
            self.reason = "send_timeout" if isinstance(why, TimeoutError) else f"{leg.name}_{how}"
        if not self.closing:
            if leg is self.client and leg.holds and how == "closed" and self.is_connecting:
                # The client has left, but the data it sent is still to be forwarded.
                return
            if leg is self.client:
                if how == "closed":
                    # In TLS, which has no half-close, this is the client's FIN.
                    self.observer.finished()
                self.close()
            else:
                self._dismiss_client(FIN_TIMEOUT, self.close)
        if self.client.lost and (self.upstream is None or self.upstream.lost):
            self._ended()

    def unheard(self, leg: Leg) -> None:
        """Handle the case that the other leg accepts no more data from `leg`, though it may not be lost yet."""
        other = self._other(leg)
        # If the other leg is gone, `lost` follows at once and knows how it ended.
        if self.closing or other is None or other.is_gone:
            return
        if other.timed_out:
            self.because("send_timeout")
        elif other is self.client or not other.over_tls:
            # From an upstream over TLS, an alert with the cause may still be read; otherwise `lost` sees the reset.
            self.because(f"{other.name}_reset")
        if leg is self.client:
            # Data that the upstream sent before it went away can still be read.
            leg.ignore()
            self.end_soon()
            self._await_upstream()
            leg.resumeProducing()
        else:
            self.close()

    def unread(self, leg: Leg) -> None:
        """Abort the connection of `leg`, whose peer has read nothing for too long."""
        self.reason = "send_timeout"
        leg.transport.abortConnection()

    def expire(self) -> None:
        """Close the session because it was idle for too long."""
        self.because("idle_timeout")
        self.close()

    def give_up_replies(self) -> None:
        """Close the session because a request has waited for too long."""
        self.because("reply_timeout")
        self.close()

    def drain(self) -> None:
        """Close as soon as the session is settled; one that is still connecting closes now."""
        self.draining = True
        if self.upstream is None:
            self.because("drained")
            self.close()
        elif not self.closing:
            self.end_soon()
            if not self.client.is_ignored:
                self.client.take(self._take_last_request)
            self.proceed(self.client)

    def _take_last_request(self, chunk: bytes) -> None:
        """Forward the last chunk of a draining client up to the end of its last whole request, and read no more."""
        whole, forward = self.observer.stop_after(chunk), self.client.forward
        if whole:
            # Do this before the write: if that fails, `unheard` resumes reading, to the client's end.
            self.client.ignore()
            self.client.pause()
        forward(chunk[:whole] if whole else chunk)
        if self.ending:
            self.proceed(self.client)

    def end_soon(self) -> None:
        """Check after each chunk from now on whether it was the last one."""
        self.ending = True
        for leg in self._left():
            leg.watch()

    def close(self) -> None:
        """Close both legs after they delivered the data received; reset the upstream if a request is cut short."""
        is_cut_short = not self.observer.between_requests
        self._begin_to_close()
        for leg in self._left():
            if is_cut_short and leg is self.upstream:
                leg.transport.abortConnection()
            else:
                leg.close()
        self._let_go_soon()

    def _let_go_soon(self) -> None:
        upstream_over_tls = self.upstream is not None and self.upstream.over_tls
        if (self.client.over_tls or upstream_over_tls) and any(leg.over_tls for leg in self._left()):
            self.expect(LINGER_TIMEOUT if self.draining else FIN_TIMEOUT, self._let_go)

    def _let_go(self) -> None:
        """Wait no longer for peers over TLS to answer our close_notify; many never do, or not before they read."""
        for leg in self._left():
            if leg.awaits_close_notify:
                leg.let_go()
        self._let_go_soon()

    def abort(self) -> None:
        """End now and drop what was not delivered, unless the kernel has all of it and can deliver it alone."""
        is_served = self.closing and self.reason in ("drained", "closed_by_operator") and self.client.can_let_go
        if self.reason in (None, "drained") and not is_served:
            self.reason = "aborted"
        self._begin_to_close()
        for leg in self._left():
            if is_served and leg is self.client:
                leg.let_go()
            else:
                leg.transport.abortConnection()

    @property
    def is_connecting(self) -> bool:
        """Whether the client waits for its upstream leg."""
        return self._opening is not None and self._opening.is_connecting

    def _dismiss_client(self, timeout: float, then: Callable[[], None]) -> None:
        """Let the client read what remains and our FIN, drop what it sends, and call `then` after `timeout` seconds.

        If the client closes first, the session ends without that call.
        """
        if self.client.finished or self.client.over_tls:
            self.close()
            return
        self._begin_to_close()
        self.expect(timeout, then)
        if self.upstream is not None and not self.upstream.lost:
            self.upstream.close()
        self.client.ignore()
        self.client.half_close()
        self.client.resumeProducing()

    def _close_when_taken(self) -> None:
        """Close once the client has acknowledged all replies: before, data that it still sends could cause a reset."""
        if unacknowledged(self.client.transport):
            self.expect(TAKEN_INTERVAL, self._close_when_taken)
        else:
            self.close()

    def because(self, reason: str) -> None:
        """Record why the session ends; the first reason wins."""
        if self.reason is None:
            self.reason = reason

    def _begin_to_close(self) -> None:
        self.closing = True
        self.ending = False
        self.host.deadlines.clear(self)
        if self._opening is not None:
            self._opening.cancel()

    def expect(self, timeout: float, then: Callable[[], None]) -> None:
        """Call `then` in `timeout` seconds, in place of any earlier deadline of this session."""
        self.host.deadlines.set(self, timeout, then)

    def _await_upstream(self) -> None:
        """Set or renew the deadline for the upstream to send something."""
        timeout = self.host.timeouts.client_fin if self.client.finished else FIN_TIMEOUT
        self.expect(timeout, self._upstream_is_silent)

    def _upstream_is_silent(self) -> None:
        if self.upstream is not None and self.upstream.paused and not self.upstream.finished:
            # The upstream is not silent: the proxy has paused it for a client that reads slowly.
            self._await_upstream()
        else:
            if self.client.finished:
                self.reason = "half_close_timeout"
            self.close()

    def _ended(self) -> None:
        if self not in self.host.sessions:
            # Called twice if closing a leg loses it at once: `lost` is then called from within `lost`.
            return
        self.host.deadlines.clear(self)
        self.host.sessions.discard(self)
        self.observer.ended(self.reason or "aborted")
        self.host.session_ended()
        self._opening = None
        # Break the reference cycles here: garbage collector runs would delay all sessions.
        del self.client.session
        if self.upstream is not None:
            del self.upstream.session

    @property
    def state(self) -> str:
        """The state of the session, as shown to operators."""
        if self.closing:
            return "closing"
        if self.upstream is None:
            return "waiting" if self._opening is not None and self._opening.is_waiting else "connecting"
        if self.draining:
            return "draining"
        return "half-closed" if self.client.finished or self.upstream.finished else "open"

    @property
    def paused(self) -> list[str]:
        """The names of the legs that are not read for now, because the other leg cannot write."""
        legs = {"client": self.client, "upstream": self.upstream}
        return [name for name, leg in legs.items() if leg is not None and leg.paused]

    def note_pause(self, leg: Leg) -> None:
        """Record that `leg` is not read for now."""
        self.pauses += 1
        self.observer.paused(leg.name)

    def note_resume(self, leg: Leg) -> None:
        """Record that `leg` is read again."""
        self.observer.resumed(leg.name)

    def _left(self) -> Iterator[Leg]:
        """Yield each leg that exists and is not lost, checked at the moment it is yielded."""
        for leg in (self.client, self.upstream):
            if leg is not None and not leg.lost:
                yield leg

    def _other(self, leg: Leg) -> Leg | None:
        return self.upstream if leg is self.client else self.client
