"""Connections that a load balancer introduces by a PROXY header, taken with care: anybody may write such a header.

Twisted's parser raises, with what it was sent in the traceback, where a number or a text is none, and takes any text
for an address.  Here a header that cannot be read ends the connection without a word, and an address that is none is
not believed.

`fooproxy.net.addresses` wraps ``haproxy:`` endpoints in it.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IHalfCloseableProtocol, IStreamServerEndpoint
from twisted.protocols.haproxy._v2parser import V2Parser
from twisted.protocols.haproxy._wrapper import HAProxyProtocolWrapper, HAProxyWrappingFactory
from zope.interface import implementer

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory


_UNKNOWN = b"PROXY UNKNOWN"

_LONGEST_V1, _SHORTEST_V2 = 107, 16
"""Bytes of a header: of the first version, whole, and of the second, of its fixed part."""


@implementer(IHalfCloseableProtocol)
class Introduced(HAProxyProtocolWrapper):
    """Takes the header, and lets the protocol have what follows."""

    transport: Any
    _begun = b""

    def dataReceived(self, data: bytes) -> None:
        """Take a piece of the header, or what comes after it."""
        if self._proxyInfo is not None:
            self.wrappedProtocol.dataReceived(data)
            return
        if self._parser is None:
            self._begun += data
            if _may_become_a_header(self._begun):
                return
            data, self._begun = self._begun, b""
            if data.startswith(_UNKNOWN + b"\r\n"):
                # Twisted takes it with something after it only.
                data = data.replace(_UNKNOWN, _UNKNOWN + b" ", 1)
        try:
            super().dataReceived(data)
        except ValueError:
            self.loseConnection()

    def readConnectionLost(self) -> None:
        """Let the FIN through."""
        self.wrappedProtocol.readConnectionLost()  # type: ignore[attr-defined]

    def writeConnectionLost(self) -> None:
        """Let it through."""
        self.wrappedProtocol.writeConnectionLost()  # type: ignore[attr-defined]

    def getPeer(self) -> IAddress:
        """Give the address of who was introduced; if that is none, of who did it."""
        peer = super().getPeer()
        if isinstance(peer, (IPv4Address, IPv6Address)) and _is_address(peer.host):
            return peer
        introducer: IAddress = self.transport.getPeer()
        return introducer


class IntroducedFactory(HAProxyWrappingFactory):
    """Makes them."""

    noisy = False
    protocol = Introduced  # type: ignore[assignment]


@implementer(IStreamServerEndpoint)
class IntroducedEndpoint:
    """Listens at `endpoint` for those who introduce others."""

    def __init__(self, endpoint: IStreamServerEndpoint) -> None:
        self._endpoint = endpoint

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen."""
        return self._endpoint.listen(IntroducedFactory(factory))


def _may_become_a_header(begun: bytes) -> bool:
    """Tell whether it is too short yet for Twisted's parsers, which want to see as much at once."""
    if b"PROXY ".startswith(begun[:6]):
        return b"\r\n" not in begun and len(begun) < _LONGEST_V1
    return V2Parser.PREFIX.startswith(begun[: len(V2Parser.PREFIX)]) and len(begun) < _SHORTEST_V2


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    # What follows a percent sign is a zone, and any text.
    return "%" not in text
