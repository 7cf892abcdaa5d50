"""A test bed whose sessions are lent links by a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest_twisted

from fooproxy.net.addresses import client_endpoint
from fooproxy.relay.bridge import BridgeFactory
from fooproxy.relay.link import LinkFactory
from fooproxy.relay.pooled import BurstSession, PooledSession
from fooproxy.relay.sweep import Sweep
from fooproxy.relay.timeouts import Timeouts
from fooproxy.stats.session import SessionStats
from fooproxy.upstreams.pool import Limits, Links
from fooproxy.upstreams.server import Server
from fooproxy.upstreams.servers import Servers
from tests.helpers.anybed import AnyBed
from tests.helpers.bed import TIMEOUTS, Bed, Peer, reactor, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from twisted.internet.defer import Deferred


_LIMITS = Limits()


class Pooled(Bed):
    """A mixin for a bed with a pool of links to its upstream; call `set_up_pool` first."""

    servers: Servers

    def set_up_pool(self, limits: Limits, burst: bool, most: int) -> None:
        """Make sessions get their links from a pool, of at most `most` links if that is not 0."""
        self._most = most
        self.links = Links(self.clock, limits, self.stats)
        self.stats.linked = lambda: self.links.states
        timeouts = self.bridge.timeouts
        self.bridge = BridgeFactory(
            *(self.connect_upstream, lambda: SessionStats(self.stats), self.clock, timeouts),
            session=BurstSession if burst else PooledSession,
        )
        if self.poller is not None:
            self.poller.afterwards.append(self.stats.tell_settled)
        self.sweep = Sweep(self.bridge.sessions, timeouts, self.clock, self.stats.catch_up, self.poller)

    async def start(self) -> None:
        await super().start()
        endpoint = client_endpoint(reactor, self.forward(), self.poller)
        server = Server(endpoint, "8001", self.clock, limit=self._most)
        server.links = self.links
        self.servers = Servers([server], self.clock, 5.0)

    async def stop(self) -> None:
        self.links.close()
        await super().stop()
        assert not self.links.open
        assert self.made == sum(self.stats.links_discarded.values())

    @property
    def made(self) -> int:
        """The number of links made so far."""
        return self.stats.links_taken - self.stats.links_reused

    def connect_upstream(self, factory: Any) -> Deferred[Any]:
        return self.servers.connect(LinkFactory(factory, lambda leg: leg.session.observer.upstream, self.tick))

    async def asks(self, client: Peer, line: bytes = b"REQ 1\n") -> Peer:
        """Make a client send a line, and return the server's end of the link on which it arrives."""
        before = {peer: len(peer.received) for peer in self.upstreams.built}
        client.transport.write(line)
        await until(lambda: [peer for peer in self.upstreams.built if len(peer.received) > before.get(peer, 0)])
        link = next(peer for peer in self.upstreams.built if len(peer.received) > before.get(peer, 0))
        await until(lambda: link.received.endswith(line))
        return link

    async def abandoned(self, requests: bytes = b"REQ 1\n") -> Peer:
        """Make a client send a request and reset; return the server's end of its link, on which the reply is due."""
        client = await self.client()
        link = await self.asks(client, requests)
        client.reset()
        await self.states(draining=1)
        return link

    async def exchange(self, client: Peer, number: int = 1) -> Peer:
        """Make a client send a request and get its reply; return the server's end of its link."""
        link = await self.asks(client, b"REQ %d\n" % number)
        link.transport.write(b"ACK %d\n" % number)
        await until(lambda: client.received.endswith(b"ACK %d\n" % number))
        return link

    async def leaves(self, client: Peer) -> None:
        """Make a client close, and wait until its session has ended."""
        before = len(self.bridge.sessions)
        client.transport.loseConnection()
        await until(lambda: len(self.bridge.sessions) < before)

    async def states(self, **expected: int) -> None:
        """Wait until the links are in these states; lingering links are given back meanwhile."""
        wanted = {"idle": 0, "in_use": 0, "draining": 0, **expected}

        def are_reached() -> bool:
            self.clock.advance(0.0001)
            return self.links.states == wanted

        await until(are_reached)

    def discarded(self) -> dict[str, int]:
        """Return how many links were closed, by reason."""
        return {reason: count for reason, count in self.stats.links_discarded.items() if count}


class PoolBed(Pooled):
    """A bed with a pool."""

    def __init__(
        self,
        transports: str,
        timeouts: Timeouts = TIMEOUTS,
        limits: Limits = _LIMITS,
        burst: bool = False,
        most: int = 0,
    ) -> None:
        super().__init__(transports, timeouts)
        self.set_up_pool(limits, burst, most)


def pool_bed(*arguments: Any, **named: Any) -> Any:
    """Return a fixture of a module: a `PoolBed` with these arguments, over our own and over Twisted's transports."""

    @pytest_twisted.async_yield_fixture(params=["ours", "twisted's"])
    async def bed(twin: str, request: Any) -> AsyncIterator[PoolBed]:
        bed = PoolBed(request.param, *arguments, **named)
        await bed.start()
        yield bed
        await bed.stop()

    return bed


class AnyPoolBed(Pooled, AnyBed):
    """A bed with a pool whose clients connect over any kind of transport."""

    def __init__(self, transports: str, folder: Path, burst: bool) -> None:
        AnyBed.__init__(self, transports, folder)
        self.set_up_pool(_LIMITS, burst, 0)
