"""The private names of Twisted, and one of Python, that this project uses; no other module uses private names.

Each entry of `USED` says what a name is for, and why no public way does.  A test fails with those words when a release
of Twisted no longer has the name; another one fails when a private name is used elsewhere.

Nothing here is called per chunk or per write; the functions run when a session ends or is swept.
`fooproxy.net.transport` overrides public methods to track the state that the hot path needs: whether data is unsent,
whether a FIN is due.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.internet import endpoints, tcp
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory

if TYPE_CHECKING:
    from twisted.internet.abstract import FileDescriptor
    from twisted.python.failure import Failure


class Use(NamedTuple):
    """A private name, and why it is needed."""

    owner: str
    """The class or module that has the name, in full."""
    name: str
    purpose: str
    """What the name is used for; completes "uses for …"."""
    why: str
    """Why no public name does."""


_NO_PUBLIC_COUNT = (
    "dataBuffer and offset are public, but a write goes to a second buffer first, which has only private names; "
    "producerPaused is only set above bufferSize bytes, and a reactor's getWriters() builds a list of everything "
    "that writes at each call"
)

USED = (
    Use(
        "twisted.internet.abstract.FileDescriptor",
        "_tempDataLen",
        "unsent() and drop_unsent(): the number of bytes to send",
        _NO_PUBLIC_COUNT,
    ),
    Use(
        "twisted.internet.abstract.FileDescriptor",
        "_tempDataBuffer",
        "drop_unsent(): the data to send when the peer is gone, while we still read what it sent; and Connection",
        "closing the connection drops the buffers, but also what the peer sent and we have not read; and each "
        "connection has a list for them, though most never need one",
    ),
    Use(
        "twisted.internet.epollreactor.EPollReactor",
        "_poller",
        "epoll_of(): waiting for the reactor's own events",
        "getReaders() and getWriters() list its selectables, but nothing says when these lists change",
    ),
    Use(
        "twisted.internet.tcp",
        "_reservedFD",
        "reserve_descriptor(): a file descriptor to accept and close clients with when there are no others",
        "only Port.startListening() reserves it, and for unix sockets that method also binds",
    ),
    Use(
        "socket.socket",
        "_accept",
        "Listening: accepting connections with a third of the CPU time",
        "accept() asks for the family, the type and the time limit of the listening socket each time",
    ),
    Use(
        "twisted.protocols.tls.TLSMemoryBIOProtocol",
        "_appSendBuffer",
        "unsent_cleartext(): the bytes that wait for a TLS handshake",
        "IHandshakeListener and getHandle() say whether the handshake is done, but not whether data waits for it",
    ),
    Use(
        "twisted.protocols.tls.TLSMemoryBIOProtocol",
        "_tlsShutdownFinished",
        "Secured: connections over TLS that leave no garbage to collect",
        "Twisted keeps a failure in a variable, in a cycle with the failure's traceback, out of public reach",
    ),
    Use(
        "twisted.internet.endpoints._WrapperEndpoint",
        "_wrapperFactory",
        "connect_by(): TLS with `Secured` for connections to an upstream",
        "wrapClientTLS() makes the factory itself",
    ),
    Use(
        "twisted.internet.endpoints._WrapperEndpoint",
        "_wrappedEndpoint",
        "connect_by(): TLS over our own connections, which remember the addresses of a name",
        "wrapClientTLS() takes any endpoint, but only clientFromString() makes its options from a description",
    ),
    Use(
        "twisted.internet.endpoints._SystemdParser",
        "_SystemdParser",
        "passed_sockets(): whether systemd has passed sockets that no option uses",
        "ListenFDs.fromEnvironment() finds none: Twisted has called it before, which removes the variables",
    ),
    Use(
        "twisted.internet.endpoints._SystemdParser",
        "_sddaemon",
        "passed_sockets(): the sockets that Twisted has found",
        "the parser of systemd: keeps the sockets that Twisted found in private attributes only",
    ),
)


def unsent(transport: FileDescriptor) -> int:
    """Return how many bytes wait in `transport` to be sent."""
    return len(transport.dataBuffer) - transport.offset + transport._tempDataLen


def drop_unsent(transport: FileDescriptor) -> None:
    """Drop all bytes that wait in `transport` to be sent."""
    transport.dataBuffer, transport.offset = b"", 0
    transport._tempDataBuffer, transport._tempDataLen = [], 0


class Connection(tcp.Connection):
    """A connection on a non-blocking socket, which creates the list for unsent data only when there is some."""

    def __init__(self, reactor: Any) -> None:
        # The base classes would create the list, and make a system call to set the socket to non-blocking.
        self.reactor = reactor

    def write(self, data: bytes) -> None:
        """Keep some data until the socket is writable."""
        _make_buffer(self)
        super().write(data)


_NO_BUFFER: Any = ()
Connection._tempDataBuffer, Connection._tempDataLen = _NO_BUFFER, 0


def _make_buffer(transport: FileDescriptor) -> None:
    if not transport._tempDataBuffer:
        transport._tempDataBuffer = []


class Listening(socket.socket):
    """A non-blocking listening socket, which takes over the descriptor of `plain`."""

    def __init__(self, plain: socket.socket) -> None:
        self._kind = (int(plain.family), int(plain.type), plain.proto)
        super().__init__(*self._kind, fileno=plain.detach())
        self.setblocking(False)

    def accept(self) -> tuple[Any, Any]:
        """Accept a connection, as a plain system socket; it may be blocking, and lacks what `socket.socket` adds."""
        fd, address = self._accept()  # type: ignore[attr-defined]
        return socket.SocketType(*self._kind, fileno=fd), address


class Secured(BufferingTLSTransport):
    """Twisted's TLS transport, without the reference cycles that each reset would leave to the garbage collector."""

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        if reason is not None and reason.value is not None:
            reason.value.__traceback__ = reason.tb = None
        super()._tlsShutdownFinished(reason)


def secured(factory: TLSMemoryBIOFactory) -> TLSMemoryBIOFactory:
    """Make the connections of `factory` use `Secured`, and return `factory`."""
    factory.protocol = Secured
    return factory


def reserve_descriptor() -> None:
    """Reserve a file descriptor for when they run out, as Twisted does before it listens."""
    tcp._reservedFD.reserve()


def passed_sockets() -> int:
    """Return how many sockets systemd, or a program with the same protocol, has passed to this process."""
    return len(endpoints._SystemdParser._sddaemon.inheritedDescriptors())


def epoll_of(reactor: Any) -> Any:
    """Return the epoll on which `reactor` waits; `None` for another kind of reactor."""
    epoll = getattr(reactor, "_poller", None)
    # The poll reactor's attribute of that name is not an epoll.
    return epoll if hasattr(epoll, "fileno") else None


def unsent_cleartext(transport: Any) -> int:
    """Return how many bytes wait in the TLS layer of `transport`; 0 if it has none."""
    return sum(map(len, getattr(transport, "_appSendBuffer", ())))


def connect_by(endpoint: Any, inner: Any) -> Any:
    """Make a TLS endpoint use the endpoint `inner` for its connections, and return it."""
    secure = endpoint._wrapperFactory
    endpoint._wrappedEndpoint = inner
    endpoint._wrapperFactory = lambda factory: secured(secure(factory))
    return endpoint
