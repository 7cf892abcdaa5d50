"""Marks the protocols that a factory builds, so that a wrapper of the factory learns of each connection made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.protocol import Factory

if TYPE_CHECKING:
    from twisted.internet.interfaces import IProtocolFactory


class Marking(Factory):
    """Builds the protocols of `factory`, and sets `attributes` of each before it is connected."""

    noisy = False

    def __init__(self, factory: IProtocolFactory, **attributes: Any) -> None:
        self._factory = factory
        self._attributes = attributes

    def buildProtocol(self, addr: Any) -> Any:
        """Build a protocol."""
        protocol: Any = self._factory.buildProtocol(addr)
        for name, value in self._attributes.items():
            setattr(protocol, name, value)
        return protocol
