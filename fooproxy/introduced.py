"""Connections that a load balancer introduces by a PROXY header, taken with care: anybody may write such a header.

Twisted's parser raises, with what it was sent in the traceback, where a number or a text is none, and takes any text
for an address.  Here a header that cannot be read ends the connection without a word, and an address that is none is
not believed.

`fooproxy.addresses` wraps ``haproxy:`` endpoints in it.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.protocols.haproxy._wrapper import HAProxyProtocolWrapper, HAProxyWrappingFactory
from zope.interface import implementer

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory


class Introduced(HAProxyProtocolWrapper):
    """Takes the header, and lets the protocol have what follows."""

    transport: Any

    def dataReceived(self, data: bytes) -> None:
        """Take a piece of the header, or what comes after it."""
        if self._proxyInfo is not None:
            self.wrappedProtocol.dataReceived(data)
            return
        try:
            super().dataReceived(data)
        except ValueError:
            self.loseConnection()

    def getPeer(self) -> IAddress:
        """Give the address of who was introduced; if that is none, of who did it."""
        peer = super().getPeer()
        if isinstance(peer, (IPv4Address, IPv6Address)) and _is_address(peer.host):
            return peer
        introducer: IAddress = self.transport.getPeer()
        return introducer


class IntroducedFactory(HAProxyWrappingFactory):
    """Makes them."""

    protocol = Introduced  # type: ignore[assignment]


@implementer(IStreamServerEndpoint)
class IntroducedEndpoint:
    """Listens at `endpoint` for those who introduce others."""

    def __init__(self, endpoint: IStreamServerEndpoint) -> None:
        self._endpoint = endpoint

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen."""
        return self._endpoint.listen(IntroducedFactory(factory))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    # What follows a percent sign is a zone, and any text.
    return "%" not in text
