"""The pool compared with a simple model: whatever clients and servers do, each client gets its own replies in order.

The sessions, the links, the queue and the counting are the real ones; the sockets are models.  Each request has a seq
of its own, so that a reply that crosses is noticed.  A client that keeps to the protocol is answered whatever the
others do, unless the server breaks the link that it has; nobody is forgotten, and whoever waits is served in order.
"""

from __future__ import annotations

from itertools import count
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.defer import Deferred, succeed

from fooproxy.relay.bridge import BridgeFactory
from fooproxy.relay.interceptor import InterceptorFactory
from fooproxy.relay.link import LinkFactory
from fooproxy.relay.pooled import BurstSession, PooledSession
from fooproxy.relay.timeouts import Timeouts
from fooproxy.stats.counters import Stats
from fooproxy.stats.session import SessionStats
from fooproxy.upstreams.pool import Limits, Links
from fooproxy.upstreams.server import Server
from fooproxy.upstreams.servers import Servers
from tests.helpers.fooserver import replies_to
from tests.helpers.twins import counting, each_twin
from tests.helpers.wires import Reactor, Wire

MOST_CLIENTS = 5
MOST_LINKS = 2

SEQS = st.integers(0, MOST_CLIENTS - 1)


class Client:
    """A client as the model knows it."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.wire = Wire()
        self.expected = b""
        self.unsent = b""
        self.is_lost = False
        """Whether it left without waiting, said something wrong, or had a link that the server broke."""

    @property
    def is_done(self) -> bool:
        return self.wire.arrived == self.expected and not self.unsent


class Ordered(Server):
    """Notes that whoever gets a link has waited longest."""

    machine: Pool

    def connect(self, factory: Any, client: Any = None, fresh: bool = False) -> Deferred[Any]:
        order = self.machine.order
        assert all(order[request.factory] > order[factory] for request in self.machine.servers.waiting)
        return super().connect(factory, client, fresh)


class Pool(RuleBasedStateMachine):
    """Everything that can happen, one step per event; `kind` is the kind of pool."""

    kind: Any = PooledSession

    def __init__(self) -> None:
        super().__init__()
        self.reactor = Reactor()
        self.clock = self.reactor.clock
        self.seqs = count(1)
        self.clients: list[Client] = []
        self.order: dict[Any, int] = {}
        self.wires: list[Wire] = []
        self.answered: dict[Wire, int] = {}
        self.broken: set[Wire] = set()

    @initialize()
    def set_up(self) -> None:
        self.stats = Stats(self.clock.seconds, twin=counting())
        self.links = Links(self.clock, Limits(age=300.0, idle=50.0), self.stats)
        server = Ordered(self, "8001", self.clock, limit=MOST_LINKS)  # type: ignore[arg-type]
        server.machine = self
        server.links = self.links
        self.servers = Servers([server], self.clock, 1e6, queue_timeout=1e6)
        timeouts = Timeouts(client_fin=10.0)
        self.bridge = BridgeFactory(
            self._get_link, lambda: SessionStats(self.stats), self.clock, timeouts, session=self.kind
        )
        self.tapped = InterceptorFactory(self.bridge, lambda leg: leg.session.observer.client, self._tick)
        self._ticks = 0

    def _tick(self) -> int:
        self._ticks += 1
        return round(self.clock.seconds() * 1e6) + self._ticks

    def _get_link(self, factory: Any) -> Deferred[Any]:
        link_factory = LinkFactory(factory, lambda leg: leg.session.observer.upstream, self._tick)
        self.order[link_factory] = len(self.order)
        return self.servers.connect(link_factory)

    def connect(self, factory: Any) -> Deferred[Any]:
        """Connect as the server's endpoint does."""
        wire, protocol = Wire(), factory.buildProtocol(None)
        self.wires.append(wire)
        self.answered[wire] = 0
        self.reactor.connect(wire, protocol)
        return succeed(protocol)

    # What clients do

    @precondition(lambda self: len(self.clients) < MOST_CLIENTS)
    @rule()
    def client_connects(self) -> None:
        protocol = self.tapped.buildProtocol(None)
        client = Client(protocol.wrapped.session)
        self.clients.append(client)
        self.reactor.connect(client.wire, protocol)

    def _some(self, which: int, *, is_lost: bool = False) -> Client | None:
        fit = [c for c in self.clients if c.is_lost is is_lost and not (c.wire.fin_sent or c.wire.reset_sent)]
        return fit[which % len(fit)] if fit else None

    @rule(which=SEQS, requests=st.integers(1, 3), kept=st.integers(0, 6))
    def client_asks(self, which: int, requests: int, kept: int) -> None:
        client = self._some(which)
        if client is not None:
            for seq in [next(self.seqs) for _ in range(requests)]:
                client.unsent += b"REQ %d\n" % seq
                client.expected += b"ACK %d \n" % seq
            self._say(client, len(client.unsent) - kept)

    @rule(which=SEQS)
    def client_finishes_its_line(self, which: int) -> None:
        client = self._some(which)
        if client is not None:
            self._say(client, len(client.unsent))

    def _say(self, client: Client, size: int) -> None:
        client.wire.peer_sends(client.unsent[:size])
        client.unsent = client.unsent[size:]

    @rule(which=SEQS, data=st.sampled_from([b"noise\n", b"\n", b"ACK 1\n"]))
    def client_says_something_else(self, which: int, data: bytes) -> None:
        client = self._some(which)
        if client is not None and not client.unsent:
            client.wire.peer_sends(data)
            client.expected += replies_to(data)

    @rule(which=SEQS)
    def client_leaves_between_lines(self, which: int) -> None:
        client = self._some(which)
        if client is not None and not client.unsent:
            client.wire.fin_sent = True

    @rule(which=SEQS)
    def client_leaves_in_mid_line(self, which: int) -> None:
        client = self._some(which)
        if client is not None:
            client.wire.peer_sends(b"REQ 999")
            client.wire.fin_sent = client.is_lost = True

    @rule(which=SEQS)
    def client_resets(self, which: int) -> None:
        client = self._some(which)
        if client is not None:
            client.wire.reset_sent = client.is_lost = True

    # What the server does

    @rule(which=SEQS, most=st.sampled_from([1, 7, 10_000]))
    def server_answers(self, which: int, most: int) -> None:
        due = [wire for wire in self.wires if self._due(wire)]
        if due:
            self._answer(due[which % len(due)], most)

    def _due(self, wire: Wire) -> bytes:
        whole = bytes(wire.arrived[: wire.arrived.rfind(b"\n") + 1])
        return replies_to(whole)[self.answered[wire] :] if wire.peer_may_send else b""

    def _answer(self, wire: Wire, most: int) -> None:
        part = self._due(wire)[:most]
        wire.peer_reads(1 << 20)
        wire.peer_sends(part)
        self.answered[wire] += len(part)

    @rule(which=SEQS, how=st.sampled_from(["fin", "reset", "byte", "line"]))
    def server_spoils_a_link(self, which: int, how: str) -> None:
        live = [wire for wire in self.wires if wire.peer_may_send and not wire.closed and wire not in self.broken]
        if not live:
            return
        wire = live[which % len(live)]
        for client in self.clients:
            leg = client.session.upstream if hasattr(client.session, "upstream") else None
            if leg is not None and getattr(leg.transport, "socket", None) is wire:
                client.is_lost = True
        self.broken.add(wire)
        if how == "fin":
            wire.fin_sent = True
        elif how == "reset":
            wire.reset_sent = True
        else:
            wire.peer_sends(b"N" if how == "byte" else b"NAK 7\n")

    # What the proxy and its clock do

    @rule()
    def turn(self) -> None:
        self._turn()

    @rule(seconds=st.sampled_from([0.006, 1.0, 60.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        for client in self.clients:
            # It has sent its FIN, and waits for replies for so long only.
            client.is_lost = client.is_lost or (seconds > 9 and client.wire.fin_sent and not client.is_done)
        self.clock.advance(seconds)

    def _settle(self) -> None:
        for _ in range(1000):
            if not self._turn():
                return
        raise AssertionError("it never comes to rest")

    def _turn(self) -> bool:
        moved = self.reactor.turn()
        for client in self.clients:
            client.wire.peer_reads(1 << 20)
        return moved

    # What must hold

    @invariant()
    def each_client_gets_its_own_replies(self) -> None:
        for client in self.clients:
            if not client.is_lost:
                assert client.expected.startswith(client.wire.arrived)

    @invariant()
    def no_link_has_two_owners_and_no_server_too_many(self) -> None:
        if not hasattr(self, "links"):
            return
        owned = [session.upstream.link for session in self.bridge.sessions if session.upstream is not None]
        assert len(owned) == len(set(owned))
        assert not set(owned) & set(self.links.idle)
        assert len(self.links.open) <= MOST_LINKS
        assert sum(not wire.closed for wire in self.wires) <= MOST_LINKS

    @invariant()
    def idle_links_have_everything_answered(self) -> None:
        for link in self.links.idle if hasattr(self, "links") else ():
            whole: Any = link
            wire = whole.transport.socket
            assert wire in self.broken or (not self._due(wire) and not wire.arrived[-1:].strip())

    def teardown(self) -> None:
        if not hasattr(self, "links"):
            return
        for client in self.clients:
            if not client.is_lost:
                self._say(client, len(client.unsent))
        for time in range(100):
            self._settle()
            if not self.bridge.sessions:
                break
            for client in self.clients:
                # Who has everything, or has gone wrong, leaves, so that others get the link.
                if (client.is_lost or client.is_done) and not client.wire.reset_sent:
                    client.wire.fin_sent = True
            while due := [wire for wire in self.wires if self._due(wire) and not wire.closed]:
                for wire in due:
                    self._answer(wire, 1 << 20)
                self._settle()
            self.clock.pump([0.006, 0.0] if time % 5 else [11.0, 0.1, 0.1])
        for client in self.clients:
            assert client.is_lost or client.is_done, (client.expected, client.wire.arrived, self.links.states)
        assert not self.servers.waiting
        self.clock.pump([11.0, 0.1, 0.1] * 3)
        self._settle()
        self.links.close()
        self._settle()
        assert not self.bridge.sessions
        assert not self.links.open
        assert self.stats.links_taken - self.stats.links_reused == sum(self.stats.links_discarded.values())
        assert self.stats.requests_in_flight == 0


class Bursts(Pool):
    """The same with links that are lent for a burst."""

    kind = BurstSession


_SETTINGS = settings(
    max_examples=settings().max_examples,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def _run(machine: Any) -> None:
    for _ in each_twin():
        run_state_machine_as_test(machine, settings=_SETTINGS)


def test_whatever_happens_a_pool_of_sessions_keeps_its_promises() -> None:
    _run(Pool)


def test_whatever_happens_a_pool_of_bursts_keeps_its_promises() -> None:
    _run(Bursts)
