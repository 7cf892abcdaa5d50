"""The faults of `test_faults`, with each kind of pool and with one server or two: what the next client gets then.

A link that was used before, or a connection made for the session, is hit by a fault in some phase.  Whatever that was,
the next client gets its reply and nothing else, from a server that is there, and no link is left in use.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from fooproxy.net.addresses import client_endpoint
from fooproxy.relay.interceptor import InterceptorFactory
from fooproxy.relay.link import LinkFactory
from fooproxy.stats.counters import Stats
from fooproxy.upstreams.pool import Limits, Links
from fooproxy.upstreams.server import Server
from fooproxy.upstreams.servers import Servers
from tests.helpers.bed import Bed, reactor
from tests.helpers.faults import LITTLE, FaultyPeer, close, expect, expect_end, half_close, read_on, send
from tests.helpers.fooserver import free_port
from tests.helpers.poolbed import Pooled
from tests.helpers.twins import counting
from tests.relay.test_faults import (
    EVER,
    FAULTS,
    Stage,
    client_does_not_read,
    half_closed_by_upstream,
    idle,
    in_flight,
    mid_message,
    mid_reply,
    upstream_does_not_read,
)

ensure = pytest_twisted.ensureDeferred


class Kind(NamedTuple):
    """How clients are connected."""

    pool: str
    servers: int

    def __str__(self) -> str:
        return f"{self.pool}-{self.servers}"


KINDS = (Kind("burst", 1), Kind("session", 1), Kind("burst", 2), Kind("off", 2))


class PoolStage(Pooled, Stage):
    """A stage with a pool, if `kind` says so, and with one server or two, of which the second is a backup."""

    def __init__(self, kind: Kind) -> None:
        Stage.__init__(self, "ours")
        self.kind = kind
        self.stats = Stats(self.clock.seconds, twin=counting(), servers=("1", "2") if kind.servers == 2 else ())
        self.accepted: list[FaultyPeer] = []
        self.listeners: list[socket.socket] = []
        if kind.pool != "off":
            self.set_up_pool(Limits(), kind.pool == "burst", 0)
            observe = self.bridge.observe
            self.bridge.observe = lambda: self._remember(observe())

    async def start(self) -> None:
        await Stage.start(self)
        self.listeners = [self.listener, *(_listener() for _ in range(1, self.kind.servers))]
        self.pools = []
        servers = []
        for number, listener in enumerate(self.listeners):
            endpoint = client_endpoint(reactor, str(listener.getsockname()[1]), self.poller)
            server = Server(endpoint, str(number + 1), self.clock, number=number, backup=number > 0)
            if self.kind.pool != "off":
                server.links = Links(self.clock, Limits(), self.stats)
                self.pools.append(server.links)
            servers.append(server)
        self.servers = Servers(servers, self.clock, 5.0)

    async def stop(self) -> None:
        for server in self.servers.servers[:]:
            self.servers.remove(server)
            server.close()
        for listener in self.listeners[1:]:
            listener.close()
        await Bed.stop(self)
        assert not any(links.open for links in self.pools)
        assert self.made == sum(self.stats.links_discarded.values())

    def connect_upstream(self, factory: Any) -> Deferred[Any]:
        wrapper = InterceptorFactory if self.kind.pool == "off" else LinkFactory
        client = factory.session.observer if self.kind.servers > 1 else None
        return self.servers.connect(wrapper(factory, lambda leg: leg.session.observer.upstream, self.tick), client)

    def turn(self) -> None:
        for listener in self.listeners:
            try:
                skt, _ = listener.accept()
            except OSError:
                continue
            self.accepted.append(FaultyPeer(skt))
        for peer in self.peers:
            peer.turn()

    @property
    def peers(self) -> list[FaultyPeer]:
        callers = [] if self.caller is None else [self.caller]
        return callers + self.accepted

    async def open(self) -> tuple[FaultyPeer, FaultyPeer]:
        """Connect the client, for which there is a link that another one has used, or a connection of its own."""
        if self.kind.pool != "off":
            await self.served(b"REQ 1 before\n", b"ACK 1 before\n")
            await self.until(lambda: self.servers.links()["idle"] == 1)
        client = await self.dial()
        await self.until(lambda: self.accepted)
        self.upstream = self.accepted[0]
        for record in (self.upstream.received, self.upstream.sent):
            record.clear()
        return client, self.upstream

    async def served(self, request: bytes, reply: bytes) -> None:
        """Have another client ask, be answered by whichever server gets its request, and leave."""
        before = {id(peer): len(peer.received) for peer in self.accepted}
        self.caller = None
        address: Any = self.ports[1].getHost()
        skt = socket.create_connection(("127.0.0.1", address.port))
        client = self.caller = FaultyPeer(skt)
        client.do(send(request))

        def asked() -> list[FaultyPeer]:
            return [peer for peer in self.accepted if request in bytes(peer.received[before.get(id(peer), 0) :])]

        await self.until(asked)
        (server,) = asked()
        assert bytes(server.received[before.get(id(server), 0) :]) == request
        # What it owes to clients that have left comes first, as servers answer in order.
        owed = server.received.count(b"\n") - server.sent.count(b"\n") - 1
        server.do(send(b"ACK 0 late\n" * owed + reply))
        await self.until(lambda: len(client.received) >= len(reply))
        client.do(half_close())
        await self.until(lambda: client.fin or not self.bridge.sessions or self.kind.pool == "off")
        server.do(expect_end(), close()) if self.kind.pool == "off" else None
        await self.until(lambda: not self.bridge.sessions)
        await self.turns(3)
        assert bytes(client.received) == reply
        client.close()


def _listener() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", free_port()))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LITTLE)
    listener.setblocking(False)
    return listener


def _shown(kind: Kind) -> Any:
    return pytest.param(kind, marks=() if kind is KINDS[0] else pytest.mark.slow, id=str(kind))


@pytest_twisted.async_yield_fixture(params=map(_shown, KINDS))
async def stage(request: Any) -> AsyncIterator[PoolStage]:
    stage = PoolStage(request.param)
    await stage.start()
    yield stage
    for peer in stage.peers:
        peer.close()
    await stage.stop()


async def left_by_client(stage: Stage) -> None:
    client, upstream = await stage.open()
    client.do(send(b"REQ 1\nREQ 2\n"), half_close())
    await stage.follow(upstream, expect(12), send(b"ACK 1\n"))


PHASES = (
    idle,
    in_flight,
    mid_message,
    mid_reply,
    left_by_client,
    half_closed_by_upstream,
    # Filling the kernel's buffers takes time.
    pytest.param(client_does_not_read, marks=pytest.mark.slow, id="client_does_not_read"),
    pytest.param(upstream_does_not_read, marks=pytest.mark.slow, id="upstream_does_not_read"),
)


async def _all_end(stage: PoolStage) -> None:
    """Let the client read to the end and leave, and the server answer nothing more; then let all deadlines pass."""
    for peer in stage.peers:
        peer.do(read_on())
    moved = None
    while moved != (moved := [len(peer.sent) + len(peer.received) for peer in stage.peers]):
        await stage.turns(10)
    assert stage.caller is not None
    stage.caller.do(half_close(), expect_end(), close())
    for _ in range(6):
        await stage.turns(10)
        if not stage.bridge.sessions:
            break
        stage.clock.advance(EVER)
    assert not stage.bridge.sessions


@ensure
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("who", ["client", "upstream"])
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__)
async def test_the_next_client_gets_its_reply_and_nothing_else_after_a_fault(
    stage: PoolStage, phase: Callable[[Stage], Any], who: str, fault: str
) -> None:
    await phase(stage)
    client, upstream = stage.caller, stage.upstream
    assert client is not None
    assert upstream is not None
    before = len(stage.observers) - 1
    (client if who == "client" else upstream).do(*FAULTS[fault]())
    await stage.turns(5)
    await _all_end(stage)
    observer = stage.observers[before]
    assert bytes(client.sent[: observer.client.bytes]).startswith(upstream.received)
    assert bytes(upstream.sent).startswith(client.received)
    links = stage.servers.links()
    assert (links["in_use"], links["draining"]) == (0, 0)
    if stage.kind.servers == 2 and not links["idle"]:
        # The first one is gone for good, so the second one has to serve.
        stage.listeners[0].close()
    for peer in stage.accepted:
        peer.script.clear()
    client.close()
    numbers = itertools.count(7)
    for _ in range(2):
        number = next(numbers)
        await stage.served(b"REQ %d after\n" % number, b"ACK %d after\n" % number)
    report = stage.stats.report()
    assert report["connections_active"] == report["requests_in_flight"] == 0
    assert report["connections_total"] == sum(report["connections_closed"].values())
    if stage.kind.servers == 2:
        assert sum(row.requests for row in stage.stats.servers) == stage.stats.client.req
