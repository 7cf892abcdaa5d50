"""A test bed for relaying: the real bridge between real sockets, with peers that the test controls.

Deadlines use a `task.Clock`, so time passes only when the test advances it.
"""

from __future__ import annotations

import itertools
import math
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.interfaces import IHalfCloseableProtocol, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.logger import globalLogPublisher
from zope.interface import implementer

from fooproxy.net.addresses import client_endpoint, server_endpoint
from fooproxy.net.lead import Lead
from fooproxy.net.poller import Poller
from fooproxy.relay.bridge import BridgeFactory
from fooproxy.relay.interceptor import InterceptorFactory
from fooproxy.relay.session import Session
from fooproxy.relay.sweep import Sweep
from fooproxy.relay.timeouts import Timeouts
from fooproxy.stats.counters import Stats
from fooproxy.stats.session import SessionStats
from tests.helpers.fooserver import PATIENCE, not_yet
from tests.helpers.twins import counting, pump

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IAddress, IListeningPort
    from twisted.python.failure import Failure

reactor: Any = _reactor
publisher: Any = globalLogPublisher

TIMEOUTS = Timeouts()


async def until(condition: Callable[[], Any]) -> None:
    """Let the reactor run until `condition` holds; it may raise look-up errors until then."""
    give_up = time.monotonic() + PATIENCE
    for turn in itertools.count():
        late = time.monotonic() > give_up
        with suppress(*not_yet(late)):
            if condition():
                return
        assert not late, "it did not happen"
        # Most things happen within a few turns; longer waits must not keep a core busy.
        await deferLater(reactor, 0 if turn < 10 else 0.001)


@implementer(IHalfCloseableProtocol)
class Peer(Protocol):
    """Records all events of its connection, and does nothing by itself."""

    transport: Any

    def __init__(self) -> None:
        self.received = bytearray()
        self.connected_ = self.fin = self.lost = False

    def connectionMade(self) -> None:
        self.connected_ = True
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def readConnectionLost(self) -> None:
        self.fin = True

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True

    def reset(self) -> None:
        """Reset the connection (RST)."""
        self.transport.abortConnection()

    def shrink_buffers(self) -> None:
        """Shrink the kernel's receive buffer, so that backpressure is felt soon after the test stops reading."""
        handle = self.transport.getHandle()
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)


class Peers(Factory):
    """Builds peers, and keeps a list of them."""

    noisy = False

    def __init__(self) -> None:
        self.built: list[Peer] = []

    def buildProtocol(self, addr: IAddress | None) -> Peer:
        peer = Peer()
        self.built.append(peer)
        return peer


class Bed:
    """An upstream, the relay in front of it, and clients."""

    session_type: type[Session[Any]] = Session

    def __init__(self, transports: str, timeouts: Timeouts = TIMEOUTS) -> None:
        self.poller = Poller(reactor, clock=self.tick, pump=pump()) if transports == "ours" else None
        self.lead = None if self.poller is None else Lead(reactor, self.poller)
        self.clock = Clock()
        self._ticks = 0
        self.stats = Stats(self.clock.seconds, twin=counting())
        self.bridge = BridgeFactory(
            *(self.connect_upstream, lambda: SessionStats(self.stats), self.clock, timeouts), session=self.session_type
        )
        self.sweep = Sweep(self.bridge.sessions, timeouts, self.clock, self.stats.catch_up, self.poller)
        self.gate: Deferred[None] = succeed(None)
        """Delays every connection to the upstream until it fires."""
        self.upstreams = Peers()
        self.clients = Peers()
        self.ports: list[IListeningPort] = []
        self.failures: list[str] = []

    def tick(self) -> int:
        """Return the time in microseconds, a little later at each call, so that no two events have the same time."""
        self._ticks += 1
        return round(self.clock.seconds() * 1e6) + self._ticks

    def notice(self, event: Any) -> None:
        """Record failures in the log; `stop` checks that there were none."""
        if event.get("log_failure") or event.get("isError"):
            self.failures.append(str(event.get("log_failure")))

    async def start(self) -> None:
        publisher.addObserver(self.notice)
        if self.lead is not None:
            self.lead.take()
        self.ports = [await self.listen(self.upstreams), await self.listen_relay()]
        self.sweep.start()

    async def stop(self) -> None:
        try:
            await self.end_all()
        finally:
            publisher.removeObserver(self.notice)
            if self.lead is not None:
                self.lead.give_back()
        assert not self.failures

    async def end_all(self) -> None:
        for port in self.ports:
            await _done(port.stopListening())
        for peer in self.clients.built + self.upstreams.built:
            if peer.connected_ and not peer.lost:
                peer.reset()
        self.bridge.abort()
        await until(lambda: not self.bridge.sessions)
        self.sweep.stop()
        self.clock.advance(60)
        assert not self.clock.getDelayedCalls()
        await until(lambda: all(peer.lost or not peer.connected_ for peer in self.clients.built + self.upstreams.built))

    async def listen(self, factory: Factory) -> IListeningPort:
        port: IListeningPort = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
        return port

    async def listen_relay(self) -> IListeningPort:
        factory = InterceptorFactory(self.bridge, lambda leg: leg.session.observer.client, self.tick)
        port: IListeningPort = await server_endpoint(reactor, "0", "127.0.0.1", self.poller).listen(factory)
        return port

    def connect_upstream(self, factory: Any) -> Deferred[Any]:
        tapped = InterceptorFactory(factory, lambda leg: leg.session.observer.upstream, self.tick)

        async def connect() -> Any:
            await self._opened()
            return await client_endpoint(reactor, self.forward(), self.poller).connect(tapped)

        return Deferred.fromCoroutine(connect())

    def forward(self) -> str:
        """Return the address of the upstream."""
        address: Any = self.ports[0].getHost()
        return str(address.port)

    def _opened(self) -> Deferred[None]:
        """Wait for the gate; cancelling one wait does not affect the others."""
        mine: Deferred[None] = Deferred()

        def opened(result: Any) -> Any:
            if not mine.called:
                mine.callback(result)

        self.gate.addBoth(opened)
        return mine

    def pass_time(self, seconds: float) -> None:
        """Advance the clock in steps of at most a sweep interval, so that no sweep is skipped."""
        steps = math.ceil(seconds / self.bridge.timeouts.interval)
        self.clock.pump([seconds / steps] * steps)

    async def client(self) -> Peer:
        """Connect a client."""
        address: Any = self.ports[1].getHost()
        peer: Any = await TCP4ClientEndpoint(reactor, "127.0.0.1", address.port).connect(self.clients)
        assert isinstance(peer, Peer)
        return peer

    async def pair(self) -> tuple[Peer, Peer]:
        """Connect a client, and return it with the upstream's end of its session."""
        before = len(self.upstreams.built)
        client = await self.client()
        await until(lambda: len(self.upstreams.built) > before and self.upstreams.built[-1].connected_)
        return client, self.upstreams.built[-1]

    async def exchanged(self) -> tuple[Peer, Peer]:
        """Connect a client that asks and is answered once, and return it with the upstream's end of its session."""
        client, upstream = await self.pair()
        client.transport.write(b"REQ 1\n")
        await until(lambda: upstream.received == b"REQ 1\n")
        upstream.transport.write(b"ACK 1\n")
        await until(lambda: client.received == b"ACK 1\n")
        return client, upstream

    def reasons(self) -> dict[str, int]:
        """Return the number of ended sessions by reason."""
        return {reason: count for reason, count in self.stats.connections_closed.items() if count}

    def session(self) -> Session[Any]:
        """Return the only open session."""
        (session,) = self.bridge.sessions
        return session


async def _done(result: Any) -> None:
    if isinstance(result, Deferred):
        await result
