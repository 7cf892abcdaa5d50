"""A server whose connections are pooled or limited: what it lends, what it has to do, and who examines it."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.protocol import Factory, Protocol

from fooproxy.upstreams.server import Server
from tests.upstreams.test_servers import Client, Watched, World


class Link:
    def __init__(self) -> None:
        self.lent: list[Any] = []

    def lend(self, factory: Any) -> None:
        self.lent.append(factory)


class Links:
    """The links to a server, and what it tells them."""

    def __init__(self) -> None:
        self.idle: list[Link] = []
        self.lent = 0
        self.held: bool | None = None
        self.is_closed = False
        self.made: list[Any] = []
        self.when_free: Any = None
        self.are_needed: Any = None

    @property
    def has_any(self) -> bool:
        return bool(self.idle)

    def take(self) -> Link | None:
        return self.idle.pop() if self.idle else None

    def making(self, factory: Any) -> Any:
        self.made.append(factory)
        return factory

    def hold(self, is_held: bool) -> None:
        self.held = is_held

    def close(self) -> None:
        self.is_closed = True


class Case(World):
    """One server with a pool and at most one connection."""

    def __init__(self, mode: str = "up") -> None:
        super().__init__(mode, "down", limits=(1, 0))
        self.links = Links()
        links: Any = self.links
        self.server: Server = self.servers[0]
        self.server.links = links
        self.factory = Factory.forProtocol(Watched)


@pytest.fixture
def case() -> Case:
    return Case()


def test_a_full_server_has_room_for_who_can_have_an_idle_link(case: Case) -> None:
    case.server.connect(case.factory)
    assert not case.server.has_room
    case.links.idle.append(Link())
    assert (case.server.has_room, case.server.can_grow) == (True, False)


def test_a_client_gets_an_idle_link_and_is_told_of_the_server(case: Case) -> None:
    link, client = Link(), Client()
    case.links.idle.append(link)
    found: list[Any] = []
    case.server.connect(case.factory, client).addCallback(found.append)
    assert (found, link.lent, client.server) == ([link], [case.factory], case.server)
    assert not case.endpoints[0].tries


def test_a_fresh_connection_is_made_though_a_link_is_idle(case: Case) -> None:
    case.links.idle.append(Link())
    case.server.connect(case.factory, fresh=True)
    assert (len(case.links.idle), case.links.made, len(case.endpoints[0].tries)) == (1, [case.factory], 1)


def test_links_that_are_lent_and_clients_being_connected_and_requests_are_the_load_of_a_pool(case: Case) -> None:
    case.links.lent, case.counts[0].in_flight, case.counts[0].load = 3, 4, 100
    case.server.connecting = 2
    assert case.server.load == 3 + 4 + 2


def test_sessions_and_clients_being_connected_are_the_load_without_a_pool(case: Case) -> None:
    case.counts[1].load = 5
    case.servers[1].connecting = 2
    assert case.servers[1].load == 5 + 2
    case.servers[1].counts = None
    assert (case.servers[1].load, case.servers[1].is_idle) == (2, False)


def test_links_are_told_whether_their_server_is_held(case: Case) -> None:
    case.server.hold("paused", "somebody")
    assert case.links.held is True
    case.server.release("paused")
    assert case.links.held is False


def test_links_are_closed_with_their_server(case: Case) -> None:
    case.server.close()
    assert case.links.is_closed


def test_the_set_is_told_of_free_links_and_tells_whether_they_are_needed() -> None:
    case = Case()
    late = Server(case.server._endpoint, "late", case.clock, number=2)
    links: Any = Links()
    late.links = links
    case.all.add(late)
    assert not links.are_needed()
    late.hold("draining", "somebody")
    assert links.are_needed()
    late.release("draining")
    for server in case.servers[:2]:
        server.hold("paused", "somebody")
    late.failed(ConnectionRefusedError())
    case.join()
    late.failing = False
    assert links.are_needed()
    links.when_free()
    case.pass_time(0.1)
    assert case.served == [0, 0]
    assert case.clients[0].server is late


class Examined(Case):
    def __init__(self) -> None:
        super().__init__()
        self.examined = 0
        self.server.examine = self.examine

    async def examine(self, timeout: float) -> None:
        self.examined += 1
        raise ConnectionRefusedError

    def probe(self, is_trial: bool) -> None:
        Deferred.fromCoroutine(self.server.probe(1.0, is_trial))
        self.clock.advance(0.3)


def test_only_the_trial_of_a_server_that_was_taken_out_examines_it_and_counts_nowhere() -> None:
    case = Examined()
    case.probe(is_trial=True)
    assert (case.examined, len(case.endpoints[0].tries)) == (0, 1)
    case.server.eject("it failed", "upstream_stuck")
    case.probe(is_trial=False)
    assert (case.examined, len(case.endpoints[0].tries)) == (0, 2)
    case.probe(is_trial=True)
    assert case.examined == 1
    assert sum(case.counts[0].connect_failures.values()) == 0


def test_a_server_that_was_removed_is_not_tried_again() -> None:
    world = World("down", "up")
    world.servers[0].failed(ConnectionRefusedError())
    tries = len(world.endpoints[0].tries)
    world.all.remove(world.servers[0])
    world.servers[0].failed(ConnectionRefusedError())
    world.pass_time(30)
    assert len(world.endpoints[0].tries) == tries


def test_the_next_server_is_tried_after_half_of_a_short_timeout() -> None:
    world = World("silent", "up")
    world.all._timeout = 1.0
    world.servers[1].connecting = 5
    world.join()
    world.pass_time(0.6)
    assert world.served == [0, 1]


def test_an_attempt_that_nobody_can_take_the_place_of_is_not_cut_short() -> None:
    world = World("slow", "silent")
    world.servers[1].failed(ConnectionRefusedError())
    world.join()
    world.pass_time(2)
    assert not world.servers[0].failing
    assert world.servers[0].connecting == 1


def test_who_is_late_is_not_connected_elsewhere() -> None:
    world = World("slow", "down")
    world.servers[1].failed(ConnectionRefusedError())
    world.join()
    world.endpoints[1].mode = "slow"
    world.servers[1].succeeded()
    tries = len(world.endpoints[1].tries)
    world.clock.advance(5.1)
    assert world.failed == 1
    assert len(world.endpoints[1].tries) <= tries + 1
    assert not any(server.connecting for server in world.servers)


def test_a_protocol_of_our_own_needs_no_slot(case: Case) -> None:
    case.server.reach(Protocol)
    assert case.server.slots is not None
    assert case.server.slots.taken == 0


def test_a_server_that_failed_is_tried_for_who_waits_with_a_connection_and_not_with_an_idle_link(case: Case) -> None:
    for server in case.servers:
        server.failed(ConnectionRefusedError())
    case.links.idle.append(Link())
    case.join()
    case.pass_time(0.1)
    assert len(case.endpoints[0].tries) == 1
    assert (len(case.links.idle), case.clients[0].server) == (1, case.server)


def test_a_server_that_is_tried_for_nobody_has_a_second_for_its_answer() -> None:
    world = World("silent", "up")
    world.servers[0].failed(ConnectionRefusedError())
    while not world.endpoints[0].tries:
        world.pass_time(0.01)
    world.pass_time(1.05)
    assert world.servers[0].failures == 2
