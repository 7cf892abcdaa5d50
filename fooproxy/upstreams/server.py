"""One server: makes single attempts to connect to it, and knows what it has to do.

Whether it may get clients, `fooproxy.upstreams.condition` records.  It knows nothing about other servers, sessions or
messages.  `fooproxy.upstreams.servers` decides when to try it.
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
    """Whoever a connection is made for, if there are several servers."""

    @property
    def host(self) -> str:
        """The address by which it may be kept on one server."""

    def served_by(self, server: Server) -> None:
        """Take note of the server, before the protocol of the connection is built."""


class Checked(Interface):
    """The checks of a server."""

    def report(self) -> dict[str, Any]:
        """Return what they have found."""


class Server(Condition):
    """Connects to `endpoint`.

    `name` identifies the server in log lines, `number` among all servers.  `weight` is its share of the clients, and a
    `backup` gets some only if no other server can.  It has at most `limit` connections at once, if that is not 0.
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
        """Of several backups, those with a lower one come first."""
        self.slots = Slots(limit) if limit else None
        """Its connections, if they are limited."""
        self.links: Links | None = None
        """The links to it, if they are pooled."""
        self.connecting = 0
        """Clients for which an attempt is in progress, if there are several servers."""
        self._deadlines: Deadlines[Any] = Deadlines(clock)
        self.check: Checked | None = None
        """Its checks, if there are any."""
        self.examine: Callable[[float], Awaitable[None]] | None = None
        """Tries it within some seconds after it was taken out for its requests; by default, `stays` does."""
        if isinstance(endpoint, ArrivalEndpoint):
            endpoint.rejected = self.failed

    @property
    def has_room(self) -> bool:
        """Whether it may get one more client: over a new connection, or over a link that is idle."""
        return self.can_grow or (self.links is not None and self.links.has_any)

    @property
    def can_grow(self) -> bool:
        """Whether it may have one more connection."""
        return self.slots is None or self.slots.has_room

    @property
    def load(self) -> int:
        """Open sessions, clients that are being connected and requests in flight together.

        With a pool, links that are lent count, since a session may be without one.
        """
        if self.counts is None:
            return self.connecting
        if self.links is not None:
            return self.connecting + self.links.lent + self.counts.in_flight
        return self.connecting + self.counts.load

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing to do for anybody."""
        return self.load == 0

    def connect(self, factory: IProtocolFactory, client: Client | None = None, fresh: bool = False) -> Deferred[Any]:
        """Make one attempt to connect `factory`; `client` is told as soon as there is a connection.

        If there are idle links, it gets one of those, unless it must be a `fresh` connection.
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

        If it `is_trial`, a server that was taken out is back if it can.
        """
        examine = self.examine if is_trial and self.ejected else None
        try:
            await (examine or self.stays)(timeout)
        except Exception as reason:
            self.failed(cause(reason, timeout), is_counted=examine is None)
        else:
            self.succeeded(is_trial)

    async def stays(self, timeout: float) -> None:
        """Connect within `timeout` seconds, and close if the peer has not after a moment; fail otherwise."""
        await stays(self._endpoint, timeout, self._deadlines)

    def hold(self, how: str, who: str) -> None:
        """Let it be ``paused`` or ``draining``, as `who` asks: it gets no clients, and keeps those that it has."""
        super().hold(how, who)
        self._hold_links()

    def release(self, how: str) -> None:
        """Let it be neither paused nor draining for this reason."""
        super().release(how)
        self._hold_links()

    def _hold_links(self) -> None:
        if self.links is not None:
            self.links.hold(self.held is not None)

    def close(self) -> None:
        """Do, say and count nothing more, also if an attempt is still in progress."""
        super().close()
        if self.links is not None:
            self.links.close()


class _For(Factory):
    """Tells `client` which server it gets once there is a connection, and builds the protocol of `factory`."""

    noisy = False

    def __init__(self, client: Client, server: Server, factory: IProtocolFactory) -> None:
        self._client = client
        self._server = server
        self._factory = factory

    def buildProtocol(self, addr: Any) -> Any:
        """Build the protocol."""
        self._client.served_by(self._server)
        return self._factory.buildProtocol(addr)
