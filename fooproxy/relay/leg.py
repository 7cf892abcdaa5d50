"""A leg: the protocol of one of a session's two connections.

It hands each chunk on and tells the session of everything else; what is to become of the other leg is the session's
business.  It knows nothing of messages.  The bridge makes two of them for each session.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any
from typing import Protocol as Interface

from twisted.internet import tcp
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IPushProducer,
    ISSLTransport,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from fooproxy.net.addresses import shown
from fooproxy.net.proxy_header import ProxyHeaderProtocol
from fooproxy.net.sockets import bottom_of, is_writing
from fooproxy.net.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Callable

    class Owner(Interface):
        """What a leg tells of itself: the session that it is a leg of."""

        ending: bool
        """Whether each chunk may be the last, so that `proceed` is to be called after it."""

        def connected(self, leg: Leg) -> None:
            """Take notice that the connection is made."""

        def proceed(self, leg: Leg) -> None:
            """See whether what `leg` just did ends the session."""

        def finished(self, leg: Leg) -> None:
            """Take the FIN of its peer."""

        def lost(self, leg: Leg, reason: Failure) -> None:
            """Take the end of its connection."""

        def unheard(self, leg: Leg) -> None:
            """Take notice that the other leg takes nothing more."""

        def note_pause(self, leg: Leg) -> None:
            """Take notice that it is not read for now."""

        def note_ignored(self, leg: Leg) -> None:
            """Take notice that what it still receives is dropped."""


def _drop(data: bytes) -> None:
    """Stand in for the transport of a leg that is gone."""


@implementer(IHalfCloseableProtocol, IPushProducer)
class Leg(Protocol):
    """One leg of a session: hands each chunk on and tells the session of everything else."""

    # A slot, since CPython finds what hides a method of the class only slowly.
    __slots__ = ("dataReceived",)

    transport: Any
    dataReceived: Callable[[bytes], None]  # type: ignore[assignment]
    """What takes a chunk: `forward` itself, or `_hand_on`."""
    forward: Callable[[bytes], None] = staticmethod(_drop)
    paused = False
    finished = False
    """Whether the peer has sent its FIN, or is gone."""
    lost = False
    _half_closed = False

    def __init__(self, session: Owner) -> None:
        self.session = session
        self.dataReceived = self._hand_on

    def connectionMade(self) -> None:
        """Send small messages at once and notice peers that vanished."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
            self.transport.setTcpKeepAlive(True)
        self.session.connected(self)

    def relay(self, other: Leg) -> None:
        """Hand each chunk to `other`, which is all there is to do until `watch` is called."""
        self.forward = self.dataReceived = other.transport.write
        if isinstance(self.transport, Transport) and isinstance(other.transport, Transport):
            self.transport.pump(other.transport)

    def watch(self) -> None:
        """Tell the session of each chunk from now on, after it was handed on."""
        self._receive(self._hand_on)

    def _receive(self, take: Callable[[bytes], None]) -> None:
        self.dataReceived = take
        if isinstance(self.transport, Transport):
            self.transport.stop_pumping()

    def _hand_on(self, data: bytes) -> None:
        """Hand a chunk on and tell the session."""
        # Taken before, since the session may end in this very call.
        session = self.session
        self.forward(data)
        if session.ending:
            session.proceed(self)

    def readConnectionLost(self) -> None:
        """Take the peer's FIN."""
        self.finished = True
        self.session.finished(self)

    def writeConnectionLost(self) -> None:
        """Take notice that our own FIN is out; there is nothing to do."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Take the end of the connection, whoever caused it."""
        self.lost = self.finished = True
        self.ignore()
        self.session.lost(self, reason)

    def pauseProducing(self) -> None:
        """Read no more: the other leg cannot write."""
        self.session.note_pause(self)
        self.pause()

    def pause(self) -> None:
        """Read no more for now."""
        self.paused = True
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read on."""
        self.paused = False
        session = self.session
        self.transport.resumeProducing()
        if session.ending:
            session.proceed(self)

    def stopProducing(self) -> None:
        """Take notice that the other leg takes nothing more."""
        self.session.unheard(self)

    @property
    def peer(self) -> str:
        """The address of the other end."""
        return shown(self.transport.getPeer())

    @property
    def departed(self) -> str | None:
        """How the peer left while it was not read: ``closed``, without a word, or ``reset``; `None` if it is there.

        One that has sent something may wait for the replies, whether or not a FIN came after it.
        """
        if not isinstance(self.transport, tcp.Connection):
            # TLS and the PROXY protocol do not show what they have received until it is read.
            return None
        try:
            head = self.transport.getHandle().recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError:
            return "reset"
        return None if head else "closed"

    @property
    def has_proxy_header(self) -> bool:
        """Whether a PROXY header names the peer, so that `peer` is right only once that has been read."""
        return isinstance(self.transport, ProxyHeaderProtocol)

    @property
    def is_gone(self) -> bool:
        """Whether the connection has ended; `connectionLost` may be about to come."""
        bottom = bottom_of(self.transport)
        return bottom is not None and bool(bottom.disconnected)

    @property
    def can_half_close(self) -> bool:
        """Whether the transport has a FIN of its own; TLS has not."""
        return not ISSLTransport.providedBy(self.transport)

    @property
    def can_let_go(self) -> bool:
        """Whether the kernel has all that was written, and needs nobody to go on delivering it."""
        return not self.lost and isinstance(self.transport, tcp.Connection) and not is_writing(self.transport)

    def let_go(self) -> None:
        """Close at once, and leave the rest to the kernel; waiting for the socket to be writable may take for ever."""
        self.transport.connectionLost(Failure(ConnectionDone()))

    def half_close(self) -> None:
        """Send a FIN after what is written so far, if possible."""
        self.transport.unregisterProducer()
        # Twisted takes a second FIN for a failed write, and so the connection for lost.
        if self.can_half_close and not self._half_closed:
            self._half_closed = True
            self.transport.loseWriteConnection()

    def ignore(self) -> None:
        """Drop what the peer sends from now on."""
        self.session.note_ignored(self)
        self.forward = _drop
        self._receive(_drop)

    def close(self) -> None:
        """Close after what is written so far."""
        self.ignore()
        if not self.can_half_close:
            # TLS is over when the peer has said so too, which must be read.
            self.transport.resumeProducing()
        # A paused producer that is still registered would keep Twisted from ever closing.
        self.transport.unregisterProducer()
        self.transport.loseConnection()
