"""The queue: requests for a connection that wait for a server, in the order in which their clients came.

A request has two timeouts: one for the wait until a server has room, and one for connecting, which includes all
attempts and the wait for a server that can be reached.  Only one of them runs at a time.  A request that returns after
a failed attempt gets its old place.

This module only keeps the requests; `fooproxy.upstreams.servers` decides which of them wait for what, and which is
next.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from twisted.internet.interfaces import IProtocolFactory

    from fooproxy.upstreams.server import Client, Server

_TICKET = attrgetter("ticket")


class Connecting(Deferred[Any]):
    """A Deferred that fires when a request has its connection."""

    is_waiting = False
    """Whether the request is in the queue."""


class Request:
    """A request for a connection that was not made at once; `ticket` is its place in the order of all requests."""

    __slots__ = (
        *("attempt", "began", "client", "factory", "is_late", "is_queued", "result", "server", "ticket", "tried"),
        *("_since", "_to_connect", "_to_wait"),
    )

    def __init__(
        self, factory: IProtocolFactory, client: Client | None, ticket: int, now: float, times: tuple[float, float]
    ) -> None:
        self.factory = factory
        self.client = client
        self.ticket = ticket
        self.began = self._since = now
        self._to_wait, self._to_connect = times
        self.is_queued = False
        """Whether the timeout for a server with room is running, and not the one for connecting."""
        self.result: Connecting
        self.attempt: Deferred[Any] | None = None
        """The attempt to connect for this request, if one is in progress."""
        self.server: Server
        """The server of that attempt."""
        self.tried: tuple[Server, ...] = ()
        self.is_late = False
        """Whether the request has timed out."""

    def switch(self, is_queued: bool, now: float) -> float:
        """Make the timeout for room run (`is_queued`), or the one for connecting; return the seconds left of it."""
        passed, self._since = now - self._since, now
        if self.is_queued:
            self._to_wait -= passed
        else:
            self._to_connect -= passed
        self.is_queued = is_queued
        return max(self._to_wait if is_queued else self._to_connect, 0.0)


class Queue:
    """The waiting requests; each may wait `to_wait` seconds for room, and `to_connect` seconds for its connection."""

    def __init__(self, to_wait: float, to_connect: float) -> None:
        self._times = (to_wait, to_connect)
        self._requests: list[Request] = []
        self._tickets = 0

    def request(
        self, factory: IProtocolFactory, client: Client | None, now: float, leave: Callable[[Request], None]
    ) -> Request:
        """Return a new request, not yet in the queue; `leave` is called if it is cancelled."""
        self._tickets += 1
        request = Request(factory, client, self._tickets, now, self._times)
        request.result = Connecting(lambda _: leave(request))
        return request

    def add(self, request: Request) -> None:
        """Insert a request at its place."""
        request.result.is_waiting = True
        insort(self._requests, request, key=_TICKET)

    def remove(self, request: Request) -> None:
        """Remove a request, if it is in the queue."""
        if request.result.is_waiting:
            request.result.is_waiting = False
            del self._requests[bisect_left(self._requests, request.ticket, key=_TICKET)]

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)
