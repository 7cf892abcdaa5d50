"""TCP endpoints whose connections have our own transports, polled by a `Poller`.

`tcp.Port` accepts; connecting takes no turn of the event loop if the kernel connects at once, as on loopback.

`fooproxy.net.addresses` makes them on machines with epoll.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any

from twisted.internet import tcp
from twisted.internet.defer import Deferred, execute, fail, succeed
from twisted.internet.error import getConnectError
from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint
from zope.interface import implementer

from fooproxy.net.transport import Transport

if TYPE_CHECKING:
    from twisted.internet.interfaces import IListeningPort, IProtocol, IProtocolFactory
    from twisted.python.failure import Failure

    from fooproxy.net.poller import Poller
    from fooproxy.net.trail import Trail


class Port(tcp.Port):
    """A listening socket whose connections have our transports."""

    @staticmethod
    def transport(  # type: ignore[override]
        skt: socket.socket, protocol: IProtocol, peer: tuple[Any, ...], port: Any, number: int, poller: Poller
    ) -> Transport:
        """Make the transport of a connection accepted from `peer`."""
        return Transport(skt, protocol, peer, poller)


def adopt(reactor: Any, fd: int, factory: IProtocolFactory, poller: Poller) -> IListeningPort:
    """Accept from `fd`, an inherited socket that already listens; closing the port leaves `fd` open.

    The port is made by `reactor`, the public way to adopt a socket, and then moved to `poller` before it accepts.
    """
    with socket.socket(fileno=os.dup(fd)) as inherited:
        family = inherited.family
    port: Any = reactor.adoptStreamPort(fd, family, factory)
    port.stopReading()
    port.reactor = poller
    port.transport = Port.transport
    port.startReading()
    adopted: IListeningPort = port
    return adopted


@implementer(IStreamServerEndpoint)
class ServerEndpoint:
    """Listens on `port` of `interface`, an IP address (``""``: all of IPv4)."""

    def __init__(self, poller: Poller, port: int, backlog: int, interface: str) -> None:
        self._arguments = port, backlog, interface, poller

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen; fires at once with the port or `CannotListenError`."""
        return execute(self._listen, factory)

    def _listen(self, factory: IProtocolFactory) -> IListeningPort:
        number, backlog, interface, poller = self._arguments
        port = Port(number, factory, backlog, interface, poller)
        port.startListening()
        return port


@implementer(IStreamClientEndpoint)
class ClientEndpoint:
    """Connects to `port` of `host`, an IPv4 or IPv6 address, and notes each connection in `trail`."""

    def __init__(self, poller: Poller, trail: Trail | None, port: int, host: str) -> None:
        self._poller = poller
        self._trail = trail
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._address: tuple[Any, ...] = (host, port) if self._family == socket.AF_INET else (host, port, 0, 0)

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect; fires at once if the kernel connects at once, as on loopback."""
        try:
            skt = socket.socket(self._family, socket.SOCK_STREAM)
        except OSError as error:
            return fail(error)
        skt.setblocking(False)
        # The second call returns the result of the first, which on loopback is known by then.
        problem = skt.connect_ex(self._address) and skt.connect_ex(self._address)
        if self._trail is not None and self._trail.leads_here(self._address[1]):
            self._trail.note(skt, self._address)
        if problem in (errno.EALREADY, errno.EINPROGRESS):
            return _Attempt(self._poller, skt, self._address, factory).result
        if problem in (0, errno.EISCONN):
            return succeed(_connected(self._poller, skt, self._address, factory))
        skt.close()
        return fail(_refusal(problem))


class _Attempt:
    """A connection attempt in progress."""

    disconnecting = False

    def __init__(self, poller: Poller, skt: socket.socket, address: tuple[Any, ...], factory: IProtocolFactory) -> None:
        self._poller = poller
        self._skt = skt
        self._address = address
        self._factory = factory
        self.fileno = skt.fileno
        self.result: Deferred[IProtocol] = Deferred(lambda _: self._forget().close())
        poller.addWriter(self)

    def doWrite(self) -> None:
        """Finish: the attempt has succeeded or failed."""
        skt = self._forget()
        problem = skt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if problem:
            skt.close()
            self.result.errback(_refusal(problem))
        else:
            self.result.callback(_connected(self._poller, skt, self._address, self._factory))

    def connectionLost(self, reason: Failure) -> None:
        """Give up, since the reactor stops."""
        self._forget().close()
        self.result.errback(reason)

    def _forget(self) -> socket.socket:
        self._poller.removeWriter(self)
        return self._skt


def _connected(poller: Poller, skt: socket.socket, address: tuple[Any, ...], factory: IProtocolFactory) -> Any:
    protocol: Any = factory.buildProtocol(None)  # type: ignore[arg-type]
    protocol.makeConnection(Transport(skt, protocol, address, poller))
    return protocol


def _refusal(problem: int) -> Exception:
    refusal: Exception = getConnectError((problem, os.strerror(problem)))
    return refusal
