"""One server: makes single attempts to connect to it, and knows its load.

`fooproxy.upstreams.condition` records whether it may get clients.  This module knows nothing about other servers,
sessions or messages.  `fooproxy.upstreams.servers` decides when to try it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from typing import Protocol as Interface

from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Factory, Protocol

from fooproxy.net.arrival import ArrivalEndpoint
from fooproxy.net.deadlines import Deadlines
from fooproxy.upstreams.condition import Condition
from fooproxy.upstreams.probe import cause, stays
from fooproxy.upstreams.slots import Slots

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from twisted.internet.interfaces import (
        IProtocolFactory,
        IReactorTime,
        IStreamClientEndpoint,
    )

    from fooproxy.upstreams.pool import Links


class Client(Interface):
    """The client of a connection, if there are several servers."""

    @property
    def host(self) -> str:
        """The client's address, by which it may be kept on one server."""

    def served_by(self, server: Server) -> None:
        """Record which server the client gets, before the protocol of the connection is built."""


class Checked(Interface):
    """The checks of a server."""

    def report(self) -> dict[str, Any]:
        """Return the results of the checks."""


class Server(Condition):
    """Connects to `endpoint`.

    `name` identifies the server in log lines, `number` among all servers.  `weight` is its share of the clients, and a
    `backup` gets some only if no other server can.  At most `limit` connections are open at once (0: no limit).
    """

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        name: str,
        clock: IReactorTime,
        *,
        number: int = 0,
        weight: int = 1,
        backup: bool = False,
        limit: int = 0,
    ) -> None:
        super().__init__(name, clock, weight)
        self._endpoint = endpoint
        self.number = number
        self.backup = backup
        self.priority = 0
        """Of several backups, those with the lowest priority come first."""
        self.slots = Slots(limit) if limit else None
        """The slots for connections to the server, if they are limited."""
        self.links: Links | None = None
        """The links to the server, if its connections are pooled."""
        self.connecting = 0
        """The number of clients for which an attempt is in progress."""
        self._deadlines: Deadlines[Any] = Deadlines(clock)
        self.check: Checked | None = None
        """The checks of the server, if there are any."""
        self.examine: Callable[[float], Awaitable[None]] | None = None
        """Tries the server after it failed its clients, within the given seconds; `None` uses `stays`."""
        if isinstance(endpoint, ArrivalEndpoint):
            endpoint.rejected = self.failed

    @property
    def has_room(self) -> bool:
        """Whether the server may get one more client: over a new connection, or over an idle link."""
        return self.can_grow or (self.links is not None and self.links.has_any)

    @property
    def can_grow(self) -> bool:
        """Whether the server may have one more connection."""
        return self.slots is None or self.slots.has_room

    @property
    def load(self) -> int:
        """The sum of open sessions, clients that are being connected, and requests in flight.

        With a pool, the links in use count instead of the sessions, since a session may have no link.
        """
        if self.counts is None:
            return self.connecting
        if self.links is not None:
            return self.connecting + self.links.lent + self.counts.in_flight
        return self.connecting + self.counts.load

    @property
    def is_idle(self) -> bool:
        """Whether the server has no sessions, no clients being connected and no requests."""
        return self.load == 0

    def connect(self, factory: IProtocolFactory, client: Client | None = None, fresh: bool = False) -> Deferred[Any]:
        """Make one attempt to connect `factory`; `client.served_by` is called as soon as there is a connection.

        An idle link is used if there is one, unless `fresh` asks for a new connection.
        """
        if self.links is not None:
            link = None if fresh else self.links.take()
            if link is not None:
                if client is not None:
                    client.served_by(self)
                link.lend(factory)
                return succeed(link)
            factory = self.links.making(factory)
        if client is not None:
            factory = _For(client, self, factory)
        if self.slots is not None:
            return self.slots.connect(self._endpoint, factory)
        return self._endpoint.connect(factory)

    def reach(self, protocol: Callable[[], Protocol]) -> Deferred[Any]:
        """Make one attempt to connect a protocol of our own, which needs no slot."""
        return self._endpoint.connect(Factory.forProtocol(protocol))

    async def probe(self, timeout: float, is_trial: bool = False) -> None:
        """Check whether a connection can be made within `timeout` seconds and stays open, and close it again.

        A successful trial (`is_trial`) brings back a server that was taken out.
        """
        examine = self.examine if is_trial and self.ejected else None
        try:
            await (examine or self.stays)(timeout)
        except Exception as reason:
            self.failed(cause(reason, timeout), is_counted=examine is None)
        else:
            self.succeeded(is_trial)

    async def stays(self, timeout: float) -> None:
        """Connect within `timeout` seconds, and close after a moment; fail if that fails or the peer closes first."""
        await stays(self._endpoint, timeout, self._deadlines)

    def hold(self, how: str, who: str) -> None:
        """Make the server ``paused`` or ``draining`` for `who`: it gets no new clients, and keeps its sessions."""
        super().hold(how, who)
        self._hold_links()

    def release(self, how: str) -> None:
        """End the hold `how`, if it is in force."""
        super().release(how)
        self._hold_links()

    def _hold_links(self) -> None:
        if self.links is not None:
            self.links.hold(self.held is not None)

    def close(self) -> None:
        """Log and count nothing more, even if an attempt is still in progress, and close the idle links."""
        super().close()
        if self.links is not None:
            self.links.close()


class _For(Factory):
    """Tells `client` which server it got once there is a connection, and builds the protocol of `factory`."""

    noisy = False

    def __init__(self, client: Client, server: Server, factory: IProtocolFactory) -> None:
        self._client = client
        self._server = server
        self._factory = factory

    def buildProtocol(self, addr: Any) -> Any:
        """Build the protocol."""
        self._client.served_by(self._server)
        return self._factory.buildProtocol(addr)
