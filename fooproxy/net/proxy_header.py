"""PROXY headers: a load balancer sends one at the start of each connection, to name the client behind it.

Anyone who can connect can write such a header, so it is parsed strictly: a header that does not match the
specification in every field closes the connection, and its contents are never logged.  A header may name no client, or
one that did not connect by TCP; the peer is then the load balancer.  Data after the addresses in a version 2 header is
skipped, as the specification allows.

Twisted has a parser too, in private modules.  Its public `proxyEndpoint` raises if a port is not a number or an address
is not text, with the header in the traceback; it accepts any text as an address, and does not pass on a FIN.

`fooproxy.net.addresses` wraps ``haproxy:`` endpoints in `ProxyHeaderEndpoint`, or in `BelowTls` if clients use TLS: the
load balancer sends its header before the TLS handshake.
The specification: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt
"""

from __future__ import annotations

import ipaddress
import re
import struct
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IHalfCloseableProtocol, IStreamServerEndpoint
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from fooproxy.net.private import secured

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory
    from twisted.python.failure import Failure

Address: TypeAlias = "IPv4Address | IPv6Address"

_IP: dict[bytes, type[ipaddress.IPv4Address | ipaddress.IPv6Address]] = {
    b"4": ipaddress.IPv4Address,
    b"6": ipaddress.IPv6Address,
}

_START_V1 = b"PROXY "
_LONGEST_V1 = 107
"""Maximum bytes of a version 1 header, with its line end."""
_LINE_V1 = re.compile(
    rb"PROXY (?:UNKNOWN(?: .*)?|TCP(?P<family>[46]) (?P<source>[0-9A-Fa-f:.]+) (?P<destination>[0-9A-Fa-f:.]+) "
    rb"(?P<port>0|[1-9][0-9]{0,4}) (?P<to_port>0|[1-9][0-9]{0,4}))",
    re.DOTALL,
)
_LAST_PORT = 65535

_START_V2 = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED_V2 = struct.Struct("!12sBBH")
"""The fixed part: signature, version and command, family and protocol, and the number of bytes that follow."""
_LOCAL, _PROXY = 0x20, 0x21
_IPV4, _IPV6, _UNIX = 0x10, 0x20, 0x30
_UNSPECIFIED, _STREAM, _DATAGRAM = range(3)
_ADDRESSES_V2 = {
    _UNSPECIFIED: struct.Struct("!"),
    _IPV4: struct.Struct("!4s4sHH"),
    _IPV6: struct.Struct("!16s16sHH"),
    _UNIX: struct.Struct("!108s108s"),
}
"""Source and destination by family: addresses, and ports if it has any."""


class Header(NamedTuple):
    """A complete header."""

    size: int
    """The header's length in bytes; all data after it belongs to the client."""
    source: Address | None
    """The client's address, or `None` if the header names no client that came by TCP."""


def read_header(begun: bytes) -> Header | None:
    """Parse the header at the start of a stream; `None` means that it is not complete.

    :raises ValueError: whatever follows, this is not the start of a header.
    """
    if _START_V1.startswith(begun[: len(_START_V1)]):
        return _read_v1(begun)
    if _START_V2.startswith(begun[: len(_START_V2)]):
        return _read_v2(begun)
    raise ValueError("not a PROXY header")


def _read_v1(begun: bytes) -> Header | None:
    line, end, _ = begun[:_LONGEST_V1].partition(b"\r\n")
    if b"\n" in line:
        raise ValueError("a version 1 header that ends with a line feed alone")
    if not end:
        if len(begun) >= _LONGEST_V1:
            raise ValueError("a version 1 header without an end")
        return None
    match = _LINE_V1.fullmatch(line)
    if match is None:
        raise ValueError("a malformed version 1 header")
    source = None
    if match["family"]:
        source = _address_v1(match, "source", "port")
        _address_v1(match, "destination", "to_port")
    return Header(len(line) + len(end), source)


def _address_v1(match: re.Match[bytes], host: str, port: str) -> Address:
    """Return one of the addresses in a version 1 header; `ipaddress` rejects leading zeros and other oddities."""
    try:
        found = _IP[match["family"]](match[host].decode())
    except ValueError:
        raise ValueError("a version 1 header with an address that is not of its family") from None
    if int(match[port]) > _LAST_PORT:
        raise ValueError("a version 1 header with an invalid port")
    return _address(found, int(match[port]))


def _read_v2(begun: bytes) -> Header | None:
    if len(begun) < _FIXED_V2.size:
        return None
    _, command, kind, length = _FIXED_V2.unpack_from(begun)
    family, protocol = kind & 0xF0, kind & 0x0F
    if command not in (_LOCAL, _PROXY):
        raise ValueError("a version 2 header with an unknown version or command")
    if command == _LOCAL:
        # The rest of such a header has no meaning.
        family = protocol = _UNSPECIFIED
    if family not in _ADDRESSES_V2 or protocol > _DATAGRAM:
        raise ValueError("a version 2 header with an unknown address family or protocol")
    layout = _ADDRESSES_V2[family if protocol else _UNSPECIFIED]
    if length < layout.size:
        raise ValueError("a version 2 header that is too short for its addresses")
    size = _FIXED_V2.size + length
    if len(begun) < size:
        return None
    if protocol != _STREAM or family not in (_IPV4, _IPV6):
        return Header(size, None)
    source, _, port, _ = layout.unpack_from(begun, _FIXED_V2.size)
    return Header(size, _address(ipaddress.ip_address(source), port))


def _address(host: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> Address:
    return (IPv4Address if host.version == 4 else IPv6Address)("TCP", str(host), port)


def _nobody(is_known: bool) -> None:
    """Ignore the outcome of the header: the default of `tell`."""


class ProxyHeaderProtocol(ProtocolWrapper):
    """Reads the header, then passes the rest of the stream to the wrapped protocol, as its transport.

    Until the header has been read, the peer is the load balancer.  `tell` is called once: with true as soon as the
    header has been read, or with false if the data is not a header.
    """

    transport: Any
    tell: Callable[[bool], None] = staticmethod(_nobody)
    _header: Header | None = None

    def __init__(self, factory: Any, wrappedProtocol: Any) -> None:
        super().__init__(factory, wrappedProtocol)
        self._begun = b""

    @property
    def is_awaited(self) -> bool:
        """Whether the header has not been read yet, and `tell` has been set."""
        return self.tell is not _nobody

    def dataReceived(self, data: bytes) -> None:
        """Read the header, or pass on the data after it."""
        if self._header is not None:
            self.wrappedProtocol.dataReceived(data)
            return
        if self.disconnecting:
            return
        self._begun += data
        try:
            self._header = read_header(self._begun)
        except ValueError:
            self._refuse()
            self.loseConnection()
            return
        if self._header is not None:
            rest, self._begun = self._begun[self._header.size :], b""
            self._told(True)
            if rest:
                self.wrappedProtocol.dataReceived(rest)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Pass on that the connection ended."""
        self._end()
        self.tell = _nobody
        super().connectionLost(reason)

    def _end(self) -> None:
        """Refuse a stream that ends within its header; a connection without a byte is only a health check."""
        if self._begun:
            self._refuse()

    def _refuse(self) -> None:
        self._begun = b""
        self._told(False)

    def _told(self, is_known: bool) -> None:
        tell, self.tell = self.tell, _nobody
        tell(is_known)

    def getPeer(self) -> IAddress:
        """Return the address of the client that the header names, or else the load balancer's."""
        peer: IAddress | None = self._header and self._header.source
        return peer or self.transport.getPeer()


@implementer(IHalfCloseableProtocol)
class HalfCloseable(ProxyHeaderProtocol):
    """Reads the header for a protocol that can be half-closed; TLS cannot."""

    def readConnectionLost(self) -> None:
        """Pass the FIN on."""
        self._end()
        self.wrappedProtocol.readConnectionLost()  # type: ignore[attr-defined]

    def writeConnectionLost(self) -> None:
        """Pass on that our own FIN was sent."""
        self.wrappedProtocol.writeConnectionLost()  # type: ignore[attr-defined]


def header_below(transport: Any) -> ProxyHeaderProtocol | None:
    """Return the layer of `transport` that reads a header; `None` if it has none."""
    while transport is not None and not isinstance(transport, ProxyHeaderProtocol):
        transport = getattr(transport, "transport", None)
    header: ProxyHeaderProtocol | None = transport
    return header


class ProxyHeaderFactory(WrappingFactory):
    """Builds protocols that read a header first."""

    noisy = False
    protocol: type[ProxyHeaderProtocol] = HalfCloseable


class _TlsFactory(ProxyHeaderFactory):
    protocol = ProxyHeaderProtocol


class BelowTls:
    """Takes the place of `reactor` when a TLS endpoint listens for load balancers that pass on their clients' TLS."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def listenSSL(self, port: int, factory: Any, contextFactory: Any, backlog: int, interface: str) -> IListeningPort:
        """Listen for connections that start with a header and continue with TLS."""
        inside = secured(TLSMemoryBIOFactory(contextFactory, False, factory))
        listening: IListeningPort = self._reactor.listenTCP(port, _TlsFactory(inside), backlog, interface)
        return listening


@implementer(IStreamServerEndpoint)
class ProxyHeaderEndpoint:
    """Listens at `endpoint` for load balancers that send a header."""

    def __init__(self, endpoint: IStreamServerEndpoint) -> None:
        self._endpoint = endpoint

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen; see `IStreamServerEndpoint`."""
        return self._endpoint.listen(ProxyHeaderFactory(factory))
