"""A client endpoint that does not look its host name up for every connection, and a resolver that delays no stop.

The first connection looks the name up; the next ones go straight to the address that accepted it.  The address is
dropped when a connection fails or hangs, so that the next connection looks the name up again, and when a check in the
background finds that the name no longer has it.

`NamedEndpoint` uses the reactor's resolver; the service calls `look_up_apart` to install ours.
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

from fooproxy.net.deadlines import Deadlines, Limit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory
    from twisted.python.failure import Failure

FRESH = 30.0
"""Seconds until a name is looked up again in the background."""

_PATIENCE = 1.0
"""Seconds until the name's next address is tried; an attempt cancelled after as long counts against its address."""

_LOOK_UPS = 10
"""Maximum look-ups at one time; others are queued."""

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
    """Connects to `host`, a name; `to_address` makes an endpoint from an IPv4 or IPv6 address as text."""

    def __init__(self, reactor: Any, host: str, to_address: Callable[[str], IStreamClientEndpoint]) -> None:
        self._reactor = reactor
        self._host = host
        self._to_address = to_address
        self._address = ""
        self._endpoint: IStreamClientEndpoint | None = None
        self._asked_at = 0.0
        self._asking = False
        self._waiting: dict[Deferred[list[str]], None] = {}
        self._deadlines: Deadlines[Limit] = Deadlines(reactor)

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect; fails with `DNSLookupError`, or with the error of the name's last address."""
        endpoint = self._endpoint
        if endpoint is None:
            return Deferred.fromCoroutine(self._connect_anew(factory))
        if self._reactor.seconds() - self._asked_at > FRESH:
            self._asked_at = self._reactor.seconds()
            # If the look-up fails, the address still works.
            Deferred.fromCoroutine(self._check()).addErrback(lambda _: None)
        return endpoint.connect(factory).addErrback(self._forget, self._reactor.seconds())

    def _forget(self, failure: Failure, began: float) -> Failure:
        """Drop the address, unless the caller cancelled the attempt early."""
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
                connecting.addTimeout(_PATIENCE, Limit(self._deadlines))  # type: ignore[arg-type]
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
        """Look the name up; callers that wait at the same time share one look-up."""
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
            # An earlier callback may have cancelled it.
            if not one.called:
                one.callback(hosts)


@implementer(IResolutionReceiver)
class _Answer:
    """Collects the addresses of a name and calls `done` with them."""

    def __init__(self, done: Callable[[list[str]], None]) -> None:
        self._hosts: list[str] = []
        self._done = done

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """Do nothing; the interface requires it."""

    def addressResolved(self, address: IAddress) -> None:
        """Collect an address."""
        if isinstance(address, (IPv4Address, IPv6Address)):
            self._hosts.append(address.host)

    def resolutionComplete(self) -> None:
        """Call `done`."""
        self._done(self._hosts)
