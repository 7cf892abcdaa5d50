"""A leg: the Twisted protocol of one of a session's two connections.

It forwards each chunk to the other leg and reports everything else (connection made, FIN, loss, pauses) to its
session, which decides what this means for the other leg.  It knows nothing about messages.  `session` creates two legs
for each session.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any
from typing import Protocol as Interface

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IHandshakeListener,
    IProtocol,
    IPushProducer,
    ISSLTransport,
)
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from fooproxy.net.peers import shown_peer
from fooproxy.net.proxy_header import header_below
from fooproxy.net.sockets import bottom_of, is_delivered, is_writing, set_options
from fooproxy.net.transport import Transport, relays

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import ITransport

    from fooproxy.relay.observer import Observer

    class Owner(Interface):
        """What a leg needs from the session it belongs to."""

        ending: bool
        """Whether any chunk may be the last one; the leg must then call `proceed` after each."""

        @property
        def observer(self) -> Observer:
            """The observer, whose taps see the chunks of both legs."""

        def connected(self, leg: Leg) -> None:
            """Continue, now that `leg` is connected; a client leg may still await a PROXY header or a handshake."""

        def shaken(self) -> None:
            """Continue, now that the client's TLS handshake is done."""

        def addressed(self) -> None:
            """Continue, now that the client has sent something, after `Leg.await_data`."""

        def proceed(self, leg: Leg) -> None:
            """Check whether the session ends with the last event of `leg`."""

        def finished(self, leg: Leg) -> None:
            """Handle the FIN from the peer of `leg`."""

        def lost(self, leg: Leg, reason: Failure) -> None:
            """Handle the end of the connection of `leg`."""

        def unheard(self, leg: Leg) -> None:
            """Handle the case that the other leg accepts no more data from `leg`."""

        def identified(self, leg: Leg) -> None:
            """Continue, now that a PROXY header has named the peer of `leg`."""

        def unidentified(self, leg: Leg) -> None:
            """Handle the case that the connection of `leg` does not start with a PROXY header as it should."""

        def note_pause(self, leg: Leg) -> None:
            """Record that `leg` is not read for now, because the other leg cannot write."""

        def note_resume(self, leg: Leg) -> None:
            """Record that `leg` is read again after a pause."""

    class Lender(Interface):
        """The pool's link that is lent to a session, and returns to the pool."""

        is_used: bool
        """Whether the link was lent before."""

        def take_back(self) -> None:
            """Take the connection back; the session has left it clean."""

        def linger(self, let_go: Callable[[], bool]) -> bool:
            """Leave the connection with the session until others need it; false if that is impossible."""

        def drop(self) -> None:
            """Take the connection back and close it, since its server has ended it."""

        def drain(self) -> None:
            """Record that the session's client is gone while replies are outstanding."""


def _drop(data: bytes) -> None:
    """Discard `data`: the `forward` of a leg with no other leg to write to."""


@implementer(IProtocol, IHalfCloseableProtocol, IHandshakeListener, IPushProducer)
class Leg:
    """One leg of a session: forwards each chunk and reports everything else to the session."""

    # Not Twisted's `Protocol`: it has nothing of use here, and would give each leg a dictionary.
    __slots__ = (
        *("dataReceived", "finished", "forward", "link", "lost", "name", "over_tls", "paused", "session", "transport"),
        *("_half_closed", "_held"),
    )

    transport: Any

    def __init__(self, session: Owner, name: str) -> None:
        self.session = session
        self.name = name
        """``client`` or ``upstream``."""
        self.dataReceived: Callable[[bytes], None] = self._hand_on
        """Called with each chunk: `forward` itself, `_hand_on`, `_drop`, or a function of the session's."""
        self.forward: Callable[[bytes], None] = _drop
        self.paused = False
        self.finished = False
        """Whether the peer sent its FIN or the connection ended."""
        self.lost = False
        self.over_tls = False
        """Whether the connection is usable only after a TLS handshake, and cannot close one direction only."""
        self.link: Lender | None = None
        """The link of the pool, if the connection is lent by one."""
        self._half_closed = False
        self._held: list[bytes] | None = None

    def makeConnection(self, transport: ITransport) -> None:
        """Begin on `transport`."""
        self.transport = transport
        self.connectionMade()

    def connectionMade(self) -> None:
        """Tell the session, now and when a PROXY header has named the peer."""
        if not isinstance(self.transport, Transport):
            self.over_tls = bool(ISSLTransport.providedBy(self.transport))
            header = header_below(self.transport)
            if header is not None:
                header.tell = self._identify
        self.session.connected(self)

    @property
    def awaits_header(self) -> bool:
        """Whether a PROXY header is still to come."""
        header = None if isinstance(self.transport, Transport) else header_below(self.transport)
        return header is not None and header.is_awaited

    def _identify(self, is_known: bool) -> None:
        """Tell the session whether the PROXY header names its peer."""
        (self.session.identified if is_known else self.session.unidentified)(self)

    def handshakeCompleted(self) -> None:
        """Tell the session that the client's TLS handshake is done; upstream legs connect after theirs."""
        self.session.shaken()

    def hold(self) -> None:
        """Stop reading; data that still arrives, at most the rest of one read, is kept for `relay`.

        Data that was read together with the end of a TLS handshake arrives even on a paused leg.
        """
        if self._held is None:
            self._held = []
            self.forward = self._held.append
        self.transport.pauseProducing()

    def await_data(self) -> None:
        """Tell the session once the peer has sent something; with our own transports, it is not read before `relay`."""
        if isinstance(self.transport, Transport):
            self.transport.await_data()
        else:
            relays(self.transport)
            self.forward, self.dataReceived = self._keep, self._hand_on

    def dataWaits(self) -> None:
        """Tell the session that the peer has sent something."""
        self.session.addressed()

    def _keep(self, data: bytes) -> None:
        """Hold a chunk that has been read already, and tell the session that the peer has sent something."""
        self.hold()
        self.forward(data)
        self.session.addressed()

    @property
    def holds(self) -> bool:
        """Whether anything is held."""
        return bool(self._held)

    def relay(self, other: Leg) -> None:
        """Forward held data, and then each chunk straight to `other`, without telling the session until `watch`."""
        held, self._held = self._held, None
        for data in held or ():
            other.transport.write(data)
        self.forward = self.dataReceived = other.transport.write
        if isinstance(self.transport, Transport) and isinstance(other.transport, Transport):
            self.transport.pump(other.transport)
            return
        relays(self.transport)
        if isinstance(self.transport, Transport):
            # The transport may still await data without reading it.
            self.transport.stop_pumping()

    @property
    def is_pumped(self) -> bool:
        """Whether the pump relays the data read, without calling this leg."""
        return isinstance(self.transport, Transport) and self.transport.is_pumped

    def watch(self) -> None:
        """Call the session after each further chunk that was forwarded."""
        self.take(self._hand_on)

    def take(self, take: Callable[[bytes], None]) -> None:
        """Call `take` with each further chunk instead of forwarding it."""
        self.dataReceived = take
        if isinstance(self.transport, Transport):
            self.transport.stop_pumping()

    def _hand_on(self, data: bytes) -> None:
        """Forward a chunk and tell the session."""
        # Kept in a variable: the attribute is deleted if the session ends during this call.
        session = self.session
        self.forward(data)
        if session.ending:
            session.proceed(self)

    def readConnectionLost(self) -> None:
        """Handle the peer's FIN."""
        self.finished = True
        self.session.finished(self)

    def writeConnectionLost(self) -> None:
        """Do nothing when our own FIN was sent."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Handle the end of the connection, whichever side caused it."""
        self.lost = self.finished = True
        if self.dataReceived is not _drop:
            self.ignore()
        self.session.lost(self, reason)

    def pauseProducing(self) -> None:
        """Stop reading because the other leg cannot write."""
        self.session.note_pause(self)
        self.pause()

    def pause(self) -> None:
        """Stop reading for now."""
        self.paused = True
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Resume reading."""
        session = self.session
        if self.paused:
            self.paused = False
            session.note_resume(self)
        self.transport.resumeProducing()
        if session.ending:
            session.proceed(self)

    def stopProducing(self) -> None:
        """Tell the session that the other leg accepts no more data."""
        self.session.unheard(self)

    @property
    def is_ignored(self) -> bool:
        """Whether data from the peer is dropped."""
        return self.forward is _drop

    @property
    def peer(self) -> str:
        """The address of the other end."""
        return shown_peer(self.transport)

    @property
    def departed(self) -> str | None:
        """How the peer left while this leg was not reading: ``closed`` (a FIN and no data), ``reset``, or `None`.

        A peer that has sent data counts as present, because it may wait for replies even after its FIN; over TLS, a
        close_notify counts as data, since it cannot be told apart before it is read.
        """
        bottom = bottom_of(self.transport)
        if bottom is None or bottom.disconnected:
            return None
        try:
            head = bottom.getHandle().recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError:
            return "reset"
        if head or self.holds:
            return None
        return "reset" if self.over_tls else "closed"

    @property
    def is_gone(self) -> bool:
        """Whether the connection has ended, even if `connectionLost` has not been called yet."""
        bottom = bottom_of(self.transport)
        return bottom is not None and bool(bottom.disconnected)

    def set_options(self, within: float) -> None:
        """Send small messages at once; detect a peer that vanishes, or takes nothing for `within` seconds."""
        set_options(self.transport, within)

    @property
    def timed_out(self) -> bool:
        """Whether a write failed because the peer took nothing for too long; always false with Twisted's transports."""
        bottom = bottom_of(self.transport)
        return isinstance(bottom, Transport) and bottom.timed_out

    @property
    def can_let_go(self) -> bool:
        """Whether the kernel has everything that was written, and can deliver it without this process."""
        return not self.lost and not self.over_tls and not is_writing(self.transport)

    @property
    def awaits_close_notify(self) -> bool:
        """Whether only the peer's close_notify is missing, after `close`, and the peer has everything else."""
        return self.over_tls and is_delivered(self.transport)

    def let_go(self) -> None:
        """Close now and let the kernel deliver the rest; waiting for the socket or the peer might never end."""
        bottom_of(self.transport).connectionLost(Failure(ConnectionDone()))

    def half_close(self) -> None:
        """Send a FIN after everything written so far, if the transport can."""
        self.transport.unregisterProducer()
        # Twisted treats a second FIN as a failed write, and drops the connection.
        if not (self.over_tls or self._half_closed):
            self._half_closed = True
            self.transport.loseWriteConnection()

    def ignore(self) -> None:
        """Drop whatever the peer sends from now on."""
        self.session.observer.ignored(self.name)
        self.forward = _drop
        self.take(_drop)

    def stop_relaying(self) -> None:
        """Stop forwarding to the other leg, and drop further chunks."""
        self.forward = _drop
        self.take(_drop)
        self.transport.unregisterProducer()

    def leave(self) -> None:
        """Detach this leg from its connection, which stays open."""
        self.stop_relaying()
        self.lost = self.finished = True
        if self.paused:
            self.transport.resumeProducing()

    def read_replies(self, take: Callable[[bytes], None]) -> None:
        """Read the replies for a client that is gone: call `take` with each chunk instead of forwarding it."""
        self.stop_relaying()
        self.dataReceived = take
        if self.paused:
            self.resumeProducing()

    def close(self) -> None:
        """Close after everything written so far was sent."""
        self.ignore()
        if self.over_tls:
            # TLS closes after the peer's close_notify, which must be read.
            self.transport.resumeProducing()
        # With a paused producer still registered, Twisted would never close.
        self.transport.unregisterProducer()
        self.transport.loseConnection()
