"""A client endpoint around one of Twisted's, which delivers connections only when they are usable.

Twisted regards a TLS connection as made before its handshake has begun, so a peer that never answers, or is not
trusted, looks like a server that was reached and then reset the connection.  Here the handshake is part of connecting.
A TCP connection to a closed port of this machine can also connect to itself, if the kernel picks that port as the
client's; here that counts as refused, as with any other closed port.

`fooproxy.net.addresses` puts it around all client endpoints that are not ours.  An upstream may set `rejected`.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, UNIXClientEndpoint
from twisted.internet.error import ConnectError, ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IHandshakeListener,
    ISSLTransport,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from fooproxy.net.failures import HandshakeCancelled, HandshakeError, is_tls, words
from fooproxy.net.sockets import bottom_of, meets_itself

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IAddress, IConnector, IProtocol, IProtocolFactory

    from fooproxy.net.trail import Trail

_PLAIN = (TCP4ClientEndpoint, TCP6ClientEndpoint, HostnameEndpoint, UNIXClientEndpoint)
"""The endpoints whose connections cannot have a TLS handshake."""

_SILENT = "the peer closed the connection"


class Noting:
    """Takes the place of `reactor` when one of Twisted's endpoints connects; notes each TCP connection in `trail`.

    A connection is noted when the kernel has given it a local address, up to a turn before it is made.
    """

    def __init__(self, reactor: Any, trail: Trail) -> None:
        self._reactor = reactor
        self._trail = trail

    def __getattr__(self, name: str) -> Any:
        """Leave everything else to the reactor."""
        return getattr(self._reactor, name)

    def connectTCP(self, *arguments: Any, **more: Any) -> IConnector:
        """Connect, as the reactor does."""
        connector: Any = self._reactor.connectTCP(*arguments, **more)
        client = connector.transport
        skt = getattr(client, "socket", None)

        def connect_and_note() -> None:
            # Twisted calls `doConnect` again until the connection is made.  Without this, `client` would refer to
            # itself.
            del client.doConnect
            client.doConnect()
            self._trail.note(skt, client.realAddress)

        if skt is not None:
            client.doConnect = connect_and_note
        made: IConnector = connector
        return made


@implementer(IStreamClientEndpoint)
class ArrivalEndpoint:
    """Connects by `endpoint`; the Deferred fires when the connection can be used, after any TLS handshake.

    Connections to unix sockets are noted in `trail` as soon as they are made; `Noting` notes others.
    """

    def __init__(self, endpoint: IStreamClientEndpoint, trail: Trail | None = None) -> None:
        self.endpoint = endpoint
        self.trail = trail
        self.is_plain = isinstance(endpoint, _PLAIN)
        self.rejected: Callable[[Exception], object] = lambda reason: None
        """Called if the peer rejects a handshake that was complete on our side, as with our certificate in TLS 1.3.

        It is not called for connections on which data was received."""

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect; fails with `HandshakeError` if the connection was made but its TLS handshake failed."""
        arrivals = _Arrivals(factory, self)
        attempt = self.endpoint.connect(arrivals)
        result: Deferred[IProtocol] = Deferred(lambda _: arrivals.cancel(attempt))
        arrivals.result = result
        attempt.addCallbacks(arrivals.begun, arrivals.failed)
        return result


class _Arrivals(Factory):
    """Builds the protocol of one connection, and tracks the outcome of the attempt."""

    noisy = False
    result: Deferred[Any]

    def __init__(self, factory: IProtocolFactory, endpoint: ArrivalEndpoint) -> None:
        self.factory = factory
        self.endpoint = endpoint
        self.is_open = True
        """Whether the attempt has no outcome yet."""
        self._outcome: Any = None
        self._begun = False
        self._arrival: _Arrival | None = None

    def buildProtocol(self, addr: IAddress | None) -> _Arrival:
        """Build a protocol that waits until the connection can be used."""
        self._arrival = (_Arrival if self.endpoint.is_plain else _TLSArrival)(self, addr)
        return self._arrival

    def begun(self, _: Any) -> None:
        """Continue, now that the endpoint has made its connection."""
        self._begun = True
        self._fire()

    def failed(self, failure: Failure) -> None:
        """Fail the attempt, since the endpoint has failed."""
        self._begun = True
        cause: Any = failure.value
        is_unix = isinstance(self.endpoint.endpoint, UNIXClientEndpoint)
        if is_unix and type(cause) is ConnectError and not cause.osError:
            # The kernel returned EAGAIN; Twisted takes it for "later", and then finds a socket that is not connected.
            failure = Failure(ConnectError(errno.EAGAIN, os.strerror(errno.EAGAIN)))
        self.done(failure)

    def done(self, outcome: Any) -> None:
        """End the attempt, with the protocol or a failure; the first outcome counts."""
        if self.is_open:
            self.is_open = False
            self._outcome = outcome
            self._fire()

    def _fire(self) -> None:
        # The endpoint may get this far before it has returned its Deferred.
        if self._begun and not self.is_open:
            # Keep no reference to a finished attempt.
            outcome, self._outcome, self._arrival = self._outcome, None, None
            if not self.result.called:
                self.result.callback(outcome)

    def cancel(self, attempt: Deferred[Any]) -> None:
        """Give up; `result` fails with the step that the attempt was waiting for."""
        arrival = self._arrival
        if self._begun and arrival is not None:
            self.done(Failure(HandshakeCancelled(arrival.address)))
            arrival.transport.abortConnection()
        else:
            attempt.cancel()


@implementer(IHalfCloseableProtocol)
class _Arrival(Protocol):
    """Connects the real protocol once the connection can be used, and passes everything on to it."""

    transport: Any
    _protocol: Any = None
    _heard = False

    def __init__(self, arrivals: _Arrivals, address: IAddress | None) -> None:
        self._arrivals = arrivals
        self.address: Any = address

    def connectionMade(self) -> None:
        """Check that the connection is not to itself, and wait for the handshake, if there is one."""
        skt = getattr(bottom_of(self.transport), "socket", None)
        trail = self._arrivals.endpoint.trail
        if trail is not None and skt is not None and skt.family == socket.AF_UNIX:
            trail.note(skt)
        if meets_itself(skt):
            self._arrivals.done(Failure(ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))))
            self.transport.abortConnection()
        elif not ISSLTransport.providedBy(self.transport):
            self._arrive()

    def _arrive(self) -> None:
        """Connect the real protocol."""
        protocol: Any = self._arrivals.factory.buildProtocol(self.address)
        self._protocol = protocol
        protocol.makeConnection(self.transport)
        self._arrivals.done(protocol)

    def dataReceived(self, data: bytes) -> None:
        """Pass a chunk on."""
        self._heard = True
        self._protocol.dataReceived(data)

    def readConnectionLost(self) -> None:
        """Pass the FIN on; a protocol that cannot be half-closed loses the connection."""
        if IHalfCloseableProtocol.providedBy(self._protocol):
            self._protocol.readConnectionLost()
        else:
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Pass on that our own FIN was sent."""
        if IHalfCloseableProtocol.providedBy(self._protocol):
            self._protocol.writeConnectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Pass the end on; before the connection was usable, it means a failed handshake."""
        error: Any = reason.value
        if self._protocol is None:
            closed = isinstance(error, (ConnectionDone, ConnectionLost))
            self._arrivals.done(Failure(HandshakeError(_SILENT if closed else words(error))))
            return
        if not self._heard and is_tls(error):
            self._arrivals.endpoint.rejected(HandshakeError(words(error)))
        self._protocol.connectionLost(reason)


@implementer(IHandshakeListener)
class _TLSArrival(_Arrival):
    """Waits for a handshake.

    This is a separate class because the wrapper in Twisted's endpoints provides only one of the two interfaces.
    """

    def handshakeCompleted(self) -> None:
        """Continue, now that the peer has proved its identity."""
        if self._arrivals.is_open:
            self._arrive()
