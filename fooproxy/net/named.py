"""A client endpoint that does not look its host name up for every connection.

The first connection looks the name up, and the addresses are kept for the next ones.  They are tried one after the
other, as in RFC 8305: the next one when the previous one has failed, or has not answered for `_DELAY`; the first
connection made is used.  The results are remembered: next time, the address that worked is tried first, and those that
failed or did not answer are tried last.  So if a caller gives up before a good address is reached, the next connection
gets further.

The name is looked up again when no address accepted a connection, or the caller gave up after `_PATIENCE`.  If there is
no answer, the known addresses are tried again, since a server may come back before the name service does.  The name is
also looked up in the background every `FRESH` seconds, and at the next connection if the address that worked has
failed.

`fooproxy.net.addresses` makes these endpoints; they use the reactor's resolver.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import IResolutionReceiver, IStreamClientEndpoint
from zope.interface import implementer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from twisted.internet.interfaces import (
        IAddress,
        IDelayedCall,
        IHostResolution,
        IProtocol,
        IProtocolFactory,
        IReactorTime,
    )
    from twisted.python.failure import Failure

FRESH = 30.0
"""Seconds until a name is looked up again in the background."""

_DELAY = 0.25
"""Seconds without an answer after which the next address is tried too, and this one counts as failed for next time."""

_PATIENCE = 1.0
"""Seconds after which a cancelled attempt counts against all addresses, so that the name is looked up again; also the
seconds to wait for that answer before the known addresses are tried once more."""


@implementer(IStreamClientEndpoint)
class NamedEndpoint:
    """Connects to `host`, a name; `to_address` makes an endpoint from an IPv4 or IPv6 address as text."""

    def __init__(self, reactor: Any, host: str, to_address: Callable[[str], IStreamClientEndpoint]) -> None:
        self._reactor = reactor
        self._host = host
        self._to_address = to_address
        self._addresses: list[str] = []
        """The known addresses, in the order in which to try them."""
        self._is_stale = True
        """Whether the name must be looked up before the next connection."""
        self._endpoints: dict[str, IStreamClientEndpoint] = {}
        self._worked = ""
        """The address of the last successful connection."""
        self._failed: dict[str, None] = {}
        """The addresses that have failed or not answered since they last worked; the latest last."""
        self._asked_at = float("-inf")
        self._asking = False
        self._waiting: dict[Deferred[list[str]], None] = {}

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect; fails with `DNSLookupError`, or with the error of the address that failed last."""
        if self._is_stale:
            return Deferred.fromCoroutine(self._connect_anew(factory))
        connecting = _Race(self, self._addresses, factory, self._reactor).result
        if self._reactor.seconds() - self._asked_at > FRESH:
            self._asked_at = self._reactor.seconds()
            self._look_up().addCallback(self._renew)
        return connecting

    async def _connect_anew(self, factory: IProtocolFactory) -> IProtocol:
        answer = self._look_up().addCallback(self._renew)
        await (self._for_a_while(answer) if self._addresses else answer)
        if not self._addresses:
            raise DNSLookupError(f"no address found for {self._host}")
        self._asked_at = self._reactor.seconds()
        return await _Race(self, self._addresses, factory, self._reactor).result

    def _for_a_while(self, answer: Deferred[None]) -> Deferred[None]:
        """Wait for `answer`, at most `_PATIENCE`, and do not cancel it: the known addresses may still work."""
        waiting: Deferred[None] = Deferred(lambda _: timer.active() and timer.cancel())
        timer = self._reactor.callLater(_PATIENCE, waiting.callback, None)

        def answered(_: Any) -> None:
            if timer.active():
                timer.cancel()
                waiting.callback(None)

        answer.addCallback(answered)
        return waiting

    def _renew(self, addresses: list[str]) -> None:
        """Use the addresses from a look-up; if there are none, keep the known ones, which may still work."""
        if addresses:
            self._is_stale = False
            self._addresses = interleaved(list(dict.fromkeys(addresses)))
            self._endpoints = {address: self._to_address(address) for address in self._addresses}
            self._failed = {address: None for address in self._failed if address in self._endpoints}
            self._sort()

    def _sort(self) -> None:
        ranks = {address: rank for rank, address in enumerate(self._failed)}
        self._addresses = sorted(self._addresses, key=lambda address: (address != self._worked, ranks.get(address, -1)))

    def attempt(self, address: str, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect to one of the addresses."""
        return (self._endpoints.get(address) or self._to_address(address)).connect(factory)

    def works(self, address: str, silent: Collection[str]) -> None:
        """Remember that `address` accepted a connection, and that those in `silent` had not answered for `_DELAY`."""
        if self._worked != address or address in self._failed or silent:
            self._failed.pop(address, None)
            self._worked = address
            for other in silent:
                self.fails(other)
            self._sort()

    def fails(self, address: str) -> None:
        """Remember that an address has failed or not answered; if it was the one that worked, look the name up soon."""
        self._failed.pop(address, None)
        self._failed[address] = None
        if self._worked == address:
            self._worked = ""
            self._asked_at = float("-inf")
        self._sort()

    def forget(self) -> None:
        """Look the name up before the next connection; without an answer, the known addresses are tried again."""
        self._is_stale = True

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
            # An earlier callback may have cancelled this one.
            if not one.called:
                one.callback(hosts)


class _Race:
    """One connection: tries `addresses` until one accepts it; its `result` fires with the protocol."""

    def __init__(
        self, endpoint: NamedEndpoint, addresses: list[str], factory: IProtocolFactory, clock: IReactorTime
    ) -> None:
        self._endpoint = endpoint
        self._left = addresses[::-1]
        self._factory = factory
        self._clock = clock
        self._began = clock.seconds()
        self._trying: dict[str, tuple[Deferred[Any], float]] = {}
        self._timer: IDelayedCall | None = None
        self.result: Deferred[IProtocol] = Deferred(self._cancelled)
        self._next()

    def _next(self) -> None:
        """Try one more address."""
        self._timer = None
        address = self._left.pop()
        attempt = self._endpoint.attempt(address, self._factory)
        self._trying[address] = attempt, self._clock.seconds()
        attempt.addCallbacks(self._made, self._not_made, callbackArgs=(address,), errbackArgs=(address,))
        if self._left and self._timer is None and not self.result.called:
            self._timer = self._clock.callLater(_DELAY, self._next)

    def _made(self, protocol: Any, address: str) -> None:
        self._trying.pop(address)
        self._endpoint.works(address, self._end())
        self.result.callback(protocol)

    def _not_made(self, failure: Failure, address: str) -> None:
        # `_end` has cancelled the attempts that are missing here.
        if self._trying.pop(address, None) is None:
            return
        self._endpoint.fails(address)
        if self._left:
            self._stop_timer()
            self._next()
        elif not self._trying:
            self._endpoint.forget()
            self.result.errback(failure)

    def _cancelled(self, _: Deferred[Any]) -> None:
        for address in self._end():
            self._endpoint.fails(address)
        if self._clock.seconds() - self._began >= _PATIENCE:
            self._endpoint.forget()

    def _end(self) -> list[str]:
        """Cancel the attempts in progress, and return the addresses that have not answered for `_DELAY`."""
        self._stop_timer()
        trying, self._trying = self._trying, {}
        for attempt, _ in trying.values():
            attempt.cancel()
        now = self._clock.seconds()
        return [address for address, (_, since) in trying.items() if now - since >= _DELAY]

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def interleaved(addresses: list[str]) -> list[str]:
    """Return addresses with IPv4 and IPv6 taking turns, so that a family that does not work costs less time."""
    first = ":" in addresses[0]
    families = [[address for address in addresses if (":" in address) is (first is same)] for same in (True, False)]
    pairs = zip_longest(*families)
    return [address for pair in pairs for address in pair if address is not None]


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
            scope = address.scopeID if isinstance(address, IPv6Address) else 0
            self._hosts.append(f"{address.host}%{scope}" if scope and "%" not in address.host else address.host)

    def resolutionComplete(self) -> None:
        """Call `done`."""
        self._done(self._hosts)
