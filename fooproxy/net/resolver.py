"""A resolver that does not delay a stop, and that always answers.

The service calls `look_up_apart` to install it in the reactor; `fooproxy.net.named` uses the reactor's resolver.
"""

from __future__ import annotations

import socket
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import (
    IHostnameResolver,
    IHostResolution,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
)
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twisted.internet.interfaces import IAddress

_LOOK_UPS = 10
"""Maximum number of look-ups at a time; others are queued."""

_KINDS: dict[int, type[IPv4Address | IPv6Address]] = {socket.AF_INET: IPv4Address, socket.AF_INET6: IPv6Address}


def look_up_apart(reactor: Any) -> None:
    """Make `reactor` look names up in daemon threads.

    A stop waits for the reactor's own threads, so a name service that hangs would keep the process from ending.
    """
    if IReactorPluggableNameResolver.providedBy(reactor):
        threads = ThreadPool(0, _LOOK_UPS, "names")
        threads.threadFactory = partial(Thread, daemon=True)  # type: ignore[assignment]
        threads.start()
        reactor.installNameResolver(Resolver(reactor, threads))


@implementer(IHostnameResolver)
class Resolver:
    """Looks names up with `socket.getaddrinfo` in `threads`; a look-up that fails for any reason finds no address.

    Twisted's own, in a private module, never answers after any error but `gaierror`.  But `getaddrinfo` raises a plain
    `OSError` when descriptors run out, and a `UnicodeError` for a label that is empty or too long.
    """

    def __init__(self, reactor: Any, threads: ThreadPool) -> None:
        self._reactor = reactor
        self._threads = threads

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """Look `hostName` up; see `IHostnameResolver`."""
        resolution = _Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        wanted = [family for family, kind in _KINDS.items() if addressTypes is None or kind in addressTypes]
        family = wanted[0] if len(wanted) == 1 else socket.AF_UNSPEC
        over: Literal["TCP", "UDP"] = "UDP" if transportSemantics == "UDP" else "TCP"
        socket_type = socket.SOCK_DGRAM if over == "UDP" else socket.SOCK_STREAM

        def answer(succeeded: bool, found: Any) -> None:
            addresses = [
                _KINDS[family](over, *address)
                for family, _, _, _, address in (found if succeeded else ())
                if family in _KINDS
            ]
            self._reactor.callFromThread(_deliver, resolutionReceiver, addresses)

        try:
            self._threads.callInThreadWithCallback(
                answer, socket.getaddrinfo, hostName, portNumber, family, socket_type
            )
        except RuntimeError:
            # No thread could be started.
            answer(False, None)
        return resolution


@implementer(IHostResolution)
class _Resolution:
    """A look-up in progress."""

    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        """Refuse: a thread in `getaddrinfo` cannot be stopped."""
        raise NotImplementedError


def _deliver(receiver: IResolutionReceiver, addresses: list[IPv4Address | IPv6Address]) -> None:
    for address in addresses:
        receiver.addressResolved(address)
    receiver.resolutionComplete()
