"""Endpoints for TCP and unix sockets whose connections have our own transports, polled by a `Poller`.

Twisted's ports accept the connections.  Connecting takes no turn of the event loop if the kernel connects at once, as
on loopback.

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
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from fooproxy.net import unixport
from fooproxy.net.inherited import adopted
from fooproxy.net.private import Listening, secured
from fooproxy.net.sockets import meets_itself, reset_on_close
from fooproxy.net.transport import Transport, kept

if TYPE_CHECKING:
    from twisted.internet.interfaces import IListeningPort, IProtocol, IProtocolFactory
    from twisted.python.failure import Failure

    from fooproxy.net.poller import Poller
    from fooproxy.net.trail import Trail
    from fooproxy.net.transport import Address


_STREAM = socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0)
"""The type of a socket that does not block from the start; all systems with epoll have it."""


def _accepted(
    skt: socket.SocketType, protocol: IProtocol, peer: Any, port: Any, number: int, poller: Poller
) -> Transport:
    """Make the transport of a connection that a port has accepted from `peer`."""
    skt.setblocking(False)
    transport = Transport(skt, protocol, kept(peer), poller)
    transport.options_set_for = getattr(port, "options_set_for", None)
    return transport


class Port(tcp.Port):
    """A listening TCP socket whose connections have our transports."""

    transport = staticmethod(_accepted)  # type: ignore[assignment]


class Listener:
    """Takes the place of `reactor` when one of Twisted's server endpoints listens on a unix or an inherited socket.

    With a `poller`, connections have our transports.
    """

    def __init__(self, reactor: Any, poller: Poller | None) -> None:
        self._reactor = reactor
        self._poller = poller

    def __getattr__(self, name: str) -> Any:
        """Leave everything else to the reactor."""
        return getattr(self._reactor, name)

    def listenTCP(self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = "") -> IListeningPort:
        """Listen on a TCP port."""
        if self._poller is not None:
            return _listening(Port(port, factory, backlog, interface, self._poller))
        plain: IListeningPort = self._reactor.listenTCP(port, factory, backlog, interface)
        return plain

    def listenSSL(
        self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> IListeningPort:
        """Listen for TLS on a TCP port, in a layer above our transports."""
        return self.listenTCP(port, secured(TLSMemoryBIOFactory(contextFactory, False, factory)), backlog, interface)

    def listenUNIX(
        self, address: str, factory: IProtocolFactory, backlog: int = 50, mode: int = 0o666, wantPID: bool = False
    ) -> IListeningPort:
        """Listen on a unix socket; without `wantPID` (``lockfile=0``), there is no lock, and nothing is replaced.

        :raises CannotListenError: the socket cannot be created; the error says why.
        """
        port: Any = unixport.Port(address, factory, backlog, mode, self._poller or self._reactor, wantPID)
        if self._poller is not None:
            port.transport = _accepted
        return _listening(port)

    def adoptStreamPort(self, fd: int, family: int, factory: IProtocolFactory) -> IListeningPort:
        """Accept from `fd`; its real family counts, whatever the description says.

        The port is made by the reactor, the public way to adopt a socket, and moved to the poller before it accepts.

        :raises CannotListenError: `fd` does not listen; the error says what it is.
        """
        port: Any = adopted(self._reactor, fd, factory)
        if self._poller is not None:
            port.stopReading()
            port.reactor = self._poller
            port.transport = _accepted
            _accept_cheaply(port)
            port.startReading()
        inherited: IListeningPort = port
        return inherited


def _listening(port: Any) -> IListeningPort:
    port.startListening()
    _accept_cheaply(port)
    listening: IListeningPort = port
    return listening


def _accept_cheaply(port: Any) -> None:
    port.socket = Listening(port.socket)
    port.fileno = port.socket.fileno


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
        return _listening(Port(number, factory, backlog, interface, poller))


@implementer(IStreamClientEndpoint)
class ClientEndpoint:
    """Connects to `address`, of the address family `family`, and notes each connection in `trail`.

    `zone` names the network interface of a link-local IPv6 address (``fe80::77%eth0``).
    """

    def __init__(
        self,
        poller: Poller,
        trail: Trail | None,
        family: socket.AddressFamily,
        address: Any,
        zone: str = "",
    ) -> None:
        self._poller = poller
        self._trail = trail
        self._family = family
        self._address = address
        self._peer = kept(address)
        self._zone = zone

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect; fires at once if the kernel connects at once, as on loopback and to a unix socket."""
        try:
            if self._zone:
                # Look it up each time: an interface that was removed and added again has another number.
                self._address = self._peer = (*self._address[:3], _scope(self._zone))
            skt = socket.SocketType(self._family, _STREAM)
        except OSError as error:
            return fail(error)
        # The second call returns the result of the first, which on loopback is known by then.
        problem = skt.connect_ex(self._address) and skt.connect_ex(self._address)
        if self._trail is not None and self._trail.leads_here(self._address):
            self._trail.note(skt, self._address)
        if problem in (errno.EALREADY, errno.EINPROGRESS):
            return _Attempt(self._poller, skt, self._address, self._peer, factory).result
        problem = _outcome(skt, problem, self._address)
        if not problem:
            return succeed(_connected(self._poller, skt, self._peer, factory))
        skt.close()
        return fail(_refusal(problem))


def tcp_client(poller: Poller, trail: Trail | None, port: int, host: str) -> ClientEndpoint:
    """Connect to `port` of `host`, an IPv4 or IPv6 address, which may have a zone."""
    if ":" in host:
        host, _, zone = host.partition("%")
        return ClientEndpoint(poller, trail, socket.AF_INET6, (host, port, 0, 0), zone)
    return ClientEndpoint(poller, trail, socket.AF_INET, (host, port))


def unix_client(poller: Poller, trail: Trail | None, path: str) -> ClientEndpoint:
    """Connect to the unix socket at `path`."""
    return ClientEndpoint(poller, trail, socket.AF_UNIX, path)


class _Attempt:
    """A connection attempt in progress."""

    disconnecting = False

    def __init__(
        self, poller: Poller, skt: socket.SocketType, address: Any, peer: Address, factory: IProtocolFactory
    ) -> None:
        self._poller = poller
        self._skt = skt
        self._address = address
        self._peer = peer
        self._factory = factory
        self.fileno = skt.fileno
        self.result: Deferred[IProtocol] = Deferred(lambda _: self._forget().close())
        poller.addWriter(self)

    def doWrite(self) -> None:
        """Finish: the attempt has succeeded or failed."""
        skt = self._forget()
        problem = _outcome(skt, skt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), self._address)
        if problem:
            skt.close()
            self.result.errback(_refusal(problem))
        else:
            self.result.callback(_connected(self._poller, skt, self._peer, self._factory))

    def connectionLost(self, reason: Failure) -> None:
        """Give up, since the reactor stops."""
        self._forget().close()
        self.result.errback(reason)

    def _forget(self) -> socket.SocketType:
        self._poller.removeWriter(self)
        return self._skt


def _connected(poller: Poller, skt: socket.SocketType, peer: Address, factory: IProtocolFactory) -> Any:
    protocol: Any = factory.buildProtocol(None)  # type: ignore[arg-type]
    protocol.makeConnection(Transport(skt, protocol, peer, poller))
    return protocol


def _outcome(skt: socket.SocketType, problem: int, address: Any) -> int:
    """Return the error number of a connect to `address` that returned `problem`; 0 if the connection can be used.

    A socket that connected to itself counts as refused, since no server listens there.  It is closed with a reset;
    otherwise it would keep the server from binding its port for a minute.
    """
    if problem not in (0, errno.EISCONN):
        return problem
    # Comparing the ports first avoids a system call in nearly all cases; a unix socket cannot connect to itself.
    if not isinstance(address, tuple) or skt.getsockname()[1] != address[1] or not meets_itself(skt):
        return 0
    reset_on_close(skt)
    return errno.ECONNREFUSED


def _scope(zone: str) -> int:
    """Return the number of the network interface that `zone`, a name or a number, stands for."""
    if zone.isdecimal():
        return int(zone)
    try:
        return socket.if_nametoindex(zone)
    except OSError as error:
        raise OSError(errno.ENODEV, f"no network interface is called {zone}") from error


def _refusal(problem: int) -> Exception:
    refusal: Exception = getConnectError((problem, os.strerror(problem)))
    return refusal
