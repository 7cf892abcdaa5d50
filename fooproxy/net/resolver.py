"""A client endpoint for a host name that is not looked up for every connection.

The name is looked up for the first connection; the address that took it is used for the next ones too, without any
detour.  It is given up when a connection fails or hangs, so that the next one looks the name up again, and when the
name no longer has it, which is seen to in the background.

It uses the reactor's resolver, for which `look_up_apart` puts one that cannot hold up the end of the process, and knows
nothing of what it connects.
"""

from __future__ import annotations

import socket
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ConnectingCancelledError, DNSLookupError
from twisted.internet.interfaces import (
    IHostnameResolver,
    IHostResolution,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory
    from twisted.python.failure import Failure

FRESH = 30.0
"""Seconds after which a name is looked up again in the background."""

_PATIENCE = 1.0
"""Seconds that an address may take before the name's next one is tried, or before an attempt that is taken back is held
against it."""

_LOOK_UPS = 10
"""Names that are looked up at one time; the others wait."""

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

    Twisted has one too, in a private module; after any error but `gaierror` it never answers.  Without descriptors
    `getaddrinfo` raises a plain `OSError`, for an empty or too long label a `UnicodeError`.
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
            # No thread can be started.
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


@implementer(IStreamClientEndpoint)
class NamedEndpoint:
    """Connects to `host`, a name, by the endpoint that `to_address` makes of an address (IPv4 or IPv6, as text)."""

    def __init__(self, reactor: Any, host: str, to_address: Callable[[str], IStreamClientEndpoint]) -> None:
        self._reactor = reactor
        self._host = host
        self._to_address = to_address
        self._address = ""
        self._endpoint: IStreamClientEndpoint | None = None
        self._asked_at = 0.0
        self._asking = False
        self._waiting: dict[Deferred[list[str]], None] = {}

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect; fails with `DNSLookupError`, or with what the name's last address said."""
        endpoint = self._endpoint
        if endpoint is None:
            return Deferred.fromCoroutine(self._connect_anew(factory))
        if self._reactor.seconds() - self._asked_at > FRESH:
            self._asked_at = self._reactor.seconds()
            # When the resolver is in trouble, the address that works is good enough.
            Deferred.fromCoroutine(self._check()).addErrback(lambda _: None)
        return endpoint.connect(factory).addErrback(self._forget, self._reactor.seconds())

    def _forget(self, failure: Failure, began: float) -> Failure:
        """Give the address up, unless it was only not waited for."""
        hung = self._reactor.seconds() - began >= _PATIENCE
        if hung or not failure.check(CancelledError, ConnectingCancelledError):
            self._endpoint = None
        return failure

    async def _connect_anew(self, factory: IProtocolFactory) -> IProtocol:
        addresses = await self._look_up()
        problem: Exception = DNSLookupError(f"no address found for {self._host}")
        for address in addresses:
            endpoint = self._to_address(address)
            connecting = endpoint.connect(factory)
            if address is not addresses[-1]:
                connecting.addTimeout(_PATIENCE, self._reactor)
            try:
                protocol = await connecting
            except DeferredTimeout:
                continue
            except (CancelledError, ConnectingCancelledError):
                raise
            except Exception as error:
                problem = error
            else:
                self._address, self._endpoint = address, endpoint
                self._asked_at = self._reactor.seconds()
                return protocol
        raise problem

    async def _check(self) -> None:
        if self._address not in await self._look_up():
            self._endpoint = None

    def _look_up(self) -> Deferred[list[str]]:
        """Give the name's addresses; all who ask at one time wait for one answer."""
        waiting: Deferred[list[str]] = Deferred(lambda mine: self._waiting.pop(mine, None))
        self._waiting[waiting] = None
        if not self._asking:
            self._asking = True
            answer = _Answer(self._answered)
            self._reactor.nameResolver.resolveHostName(answer, self._host, 0, [IPv4Address, IPv6Address])
        return waiting

    def _answered(self, hosts: list[str]) -> None:
        self._asking = False
        waiting, self._waiting = self._waiting, {}
        for one in waiting:
            # An earlier one may have had it cancelled.
            if not one.called:
                one.callback(hosts)


@implementer(IResolutionReceiver)
class _Answer:
    """Collects the addresses of a name, for `done`."""

    def __init__(self, done: Callable[[list[str]], None]) -> None:
        self._hosts: list[str] = []
        self._done = done

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """Take notice of nothing."""

    def addressResolved(self, address: IAddress) -> None:
        """Take an address."""
        if isinstance(address, (IPv4Address, IPv6Address)):
            self._hosts.append(address.host)

    def resolutionComplete(self) -> None:
        """Take the end of the answer."""
        self._done(self._hosts)
