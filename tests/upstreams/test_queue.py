"""Servers with limits: who is beyond them waits in one queue, and is served first come first served."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from fooproxy.net.failures import NotServed, counted_as
from fooproxy.upstreams.pool import Limits, Links
from fooproxy.upstreams.queue import Queue
from fooproxy.upstreams.servers import Servers
from fooproxy.upstreams.slots import Slots
from tests.upstreams.test_ejection import Case as Taken
from tests.upstreams.test_servers import TIMEOUT, Client, Watched, World


class Case(World):
    """Servers of which each has a few slots; all clients stay until the test ends their connections."""

    def __init__(self, *modes: str, limits: tuple[int, ...] = (1,), queue_timeout: float = 10.0) -> None:
        super().__init__(*modes, limits=limits, queue_timeout=queue_timeout)
        self.order: list[int] = []
        self.connections: dict[int, Any] = {}

    def enter(self, count: int = 1) -> list[Any]:
        entered = []
        for _ in range(count):
            number = len(self.clients)
            joining = self.join(stay=False)
            joining.addBoth(self._outcome, number)
            entered.append(joining)
        return entered

    def _outcome(self, _: Any, number: int) -> None:
        if not isinstance(self.results[-1], Failure):
            self.order.append(number)
            self.connections[number] = self.results[-1].transport

    def end(self, number: int) -> None:
        """End the connection of a client that is served."""
        self.connections.pop(number).loseConnection()
        self.clock.advance(0)

    @property
    def taken(self) -> list[int]:
        return [0 if server.slots is None else server.slots.taken for server in self.servers]


class Discarded:
    """The statistics of a pool."""

    def __init__(self) -> None:
        self.links_taken = self.links_reused = 0
        self.links_discarded: dict[str, int] = {}


def reasons(case: World) -> list[str]:
    return [counted_as(result.value) for result in case.results if isinstance(result, Failure)]


def test_who_is_beyond_the_limits_waits_and_is_served_in_order_of_arrival() -> None:
    case = Case("up", "up", limits=(2, 1))
    case.enter(6)
    assert (case.served, len(case.all.waiting), case.taken) == ([2, 1], 3, [2, 1])
    for number in range(3):
        case.end(number)
    assert case.order == [0, 1, 2, 3, 4, 5]
    assert case.taken == [2, 1]
    assert case.states == ["up", "up"]


def test_one_server_with_a_limit_has_the_same_queue() -> None:
    case = Case("up")
    case.enter(3)
    assert (len(case.all.waiting), case.order) == (2, [0])
    case.end(0)
    case.end(1)
    assert case.order == [0, 1, 2]


def test_a_slot_that_is_free_is_not_given_to_who_comes_later() -> None:
    case = Case("up")
    case.enter(2)
    case.connections[0].loseConnection()
    assert case.taken == [0]
    case.enter()
    case.clock.advance(0)
    assert case.order == [0, 1]


def test_a_client_fails_after_the_queue_timeout_and_the_next_one_is_served_in_time() -> None:
    case = Case("up", queue_timeout=2.0)
    case.enter(2)
    case.pass_time(1)
    case.enter()
    assert case.all.queue[0] == 2
    assert case.all.queue[1] == pytest.approx(1)
    case.pass_time(1.2)
    assert reasons(case) == ["queue_timeout"]
    assert isinstance(case.results[-1].value, NotServed)
    case.end(0)
    assert case.order == [0, 2]


def test_the_time_to_connect_begins_when_a_client_gets_a_slot() -> None:
    case = Case("up")
    case.enter(2)
    case.pass_time(TIMEOUT + 1)
    case.endpoints[0].mode = "slow"
    case.end(0)
    case.pass_time(TIMEOUT - 0.5)
    case.endpoints[0].answer()
    assert case.order == [0, 1]


def test_when_the_servers_go_down_all_who_wait_fail_together() -> None:
    case = Case("up", "up", limits=(1, 1), queue_timeout=60.0)
    case.enter(2)
    case.enter(10)
    case.pass_time(3)
    case.enter(10)
    for endpoint in case.endpoints:
        endpoint.mode = "down"
    case.end(0)
    case.end(1)
    case.pass_time(TIMEOUT - 0.3)
    assert not reasons(case)
    case.pass_time(0.6)
    assert reasons(case) == ["upstream_refused"] * 20
    assert not case.all.waiting


def test_who_waited_for_a_server_that_is_back_but_full_goes_on_to_wait_for_room() -> None:
    case = Case("down", queue_timeout=10.0)
    case.enter(3)
    case.pass_time(TIMEOUT - 1)
    case.endpoints[0].mode = "up"
    case.pass_time(3)
    assert (case.order, len(case.all.waiting)) == ([0], 2)
    case.pass_time(8)
    assert reasons(case) == ["queue_timeout"] * 2


def test_a_client_that_leaves_while_it_is_connected_gives_its_slot_back() -> None:
    case = Case("slow")
    first, second = case.enter(2)
    first.cancel()
    case.clock.advance(0)
    assert case.taken == [1]
    second.cancel()
    case.clock.advance(0)
    assert (case.taken, len(case.all.waiting)) == ([0], 0)


def test_an_attempt_that_fails_gives_its_slot_back_and_its_client_keeps_its_place() -> None:
    case = Case("slow", queue_timeout=60.0)
    case.enter(4)
    attempt, _ = case.endpoints[0].slow.pop()
    case.endpoints[0].mode = "up"
    attempt.errback(ConnectionRefusedError())
    case.pass_time(1)
    for number in range(3):
        case.end(number)
    assert case.order == [0, 1, 2, 3]


def test_a_full_server_is_not_a_reason_to_use_a_backup() -> None:
    world = World("up", "up", limits=(1, 0), backups=(1,))
    world.join(3)
    assert (world.served, len(world.all.waiting)) == ([1, 0], 2)


def test_a_server_that_fails_and_is_full_is_tried_without_a_client() -> None:
    case = Case("up", "down", limits=(1, 1))
    case.enter(2)
    case.servers[0].eject("it failed", "upstream_drops_requests")
    case.pass_time(4)
    assert not case.servers[0].failing
    assert (case.taken, case.order) == ([1, 0], [0])


def test_an_idle_link_is_no_room_for_another_connection_to_a_server_that_was_taken_out() -> None:
    case = Case("up", "up", limits=(1, 1))
    case.enter(2)
    server = case.servers[0]
    server.links = Links(case.clock, Limits(), Discarded())
    server.eject("it failed", "upstream_drops_requests")
    idle: Any = object()
    server.links.idle.append(idle)
    case.enter()
    most = 0
    for _ in range(400):
        case.clock.advance(0.01)
        most = max(most, case.taken[0])
        if case.served[0] > 1 or not server.failing:
            break
    assert (case.served[0], most) == (1, 1)


def test_clients_that_are_being_connected_count_while_others_get_links_that_are_there() -> None:
    case = Case("slow", limits=(3,))
    case.enter(2)
    server = case.servers[0]
    assert server.connecting == 2
    case.endpoints[0].mode = "up"
    case.all.waiting.add(case.all.waiting.request(Factory.forProtocol(Watched), Client(), 0.0, lambda _: None))
    case.all.release(server)
    case.pass_time(0.05)
    assert (len(case.all.waiting), server.connecting) == (0, 2)


def test_the_slots_of_a_server_without_a_limit_are_not_counted() -> None:
    world = World("up", "up", limits=(0, 1))
    world.join(50)
    assert not world.all.waiting
    assert [server.slots is None for server in world.servers] == [True, False]


def test_nothing_is_left_when_all_have_been_served() -> None:
    case = Case("up")
    case.enter(5)
    for number in range(5):
        case.end(number)
    case.pass_time(30)
    assert case.taken == [0]
    assert not case.clock.getDelayedCalls()


def test_a_server_that_drains_gets_no_clients_and_keeps_those_it_has() -> None:
    world = World("up", "up")
    world.join(4)
    world.all.hold(world.servers[0], "draining", "root")
    world.join(10)
    assert world.served == [2, 12]
    assert world.states == ["draining", "up"]
    assert world.all.counts == (1, 2)
    world.all.release(world.servers[0], "draining", "paused")
    assert world.states == ["up", "up"]
    world.join(12)
    assert 0 < world.served[0] - 2 < 8


def test_clients_of_servers_that_are_all_paused_wait_and_are_let_in_slowly_when_they_go_on() -> None:
    world = World("up", "up", limits=(0, 0))
    for server in world.servers:
        world.all.hold(server, "paused", "root")
    world.join(100)
    world.pass_time(1)
    assert (world.served, len(world.all.waiting), world.all.state) == ([0, 0], 100, "paused")
    for server in world.servers:
        world.all.release(server, "paused")
    world.pass_time(0.02)
    assert 0 < sum(world.served) <= 10
    world.pass_time(0.6)
    assert (sum(world.served), world.failed) == (100, 0)


def test_a_pause_does_not_stop_the_queue_timeout() -> None:
    case = Case("up", limits=(0,), queue_timeout=2.0)
    case.all.hold(case.servers[0], "paused", "root")
    case.enter(3)
    case.pass_time(2.3)
    assert reasons(case) == ["queue_timeout"] * 3


def test_a_server_that_is_paused_and_drains_drains_when_it_goes_on() -> None:
    world = World("up", "up")
    for how in ("draining", "paused"):
        world.all.hold(world.servers[0], how, "root")
    assert (world.states[0], world.servers[0].held_by) == ("paused", "root")
    world.pass_time(3)
    assert world.servers[0].since == pytest.approx(3)
    world.all.release(world.servers[0], "paused")
    assert world.states[0] == "draining"


def test_a_backup_serves_while_the_others_drain() -> None:
    world = World("up", "up", backups=(1,))
    world.all.hold(world.servers[0], "draining", "root")
    world.join(3)
    assert world.served == [0, 3]


def test_no_attempt_for_who_waits_is_made_to_a_server_that_is_held_and_down() -> None:
    case = Case("down", limits=(0,), queue_timeout=60.0)
    case.enter(1)
    case.all.hold(case.servers[0], "paused", "root")
    case.endpoints[0].mode = "up"
    case.pass_time(3)
    assert not case.order
    case.all.release(case.servers[0], "paused")
    case.pass_time(2)
    assert case.order == [0]


def test_a_server_is_not_taken_out_for_its_requests_if_only_one_that_is_held_could_take_its_place() -> None:
    case = Taken()
    case.all.hold(case.servers[1], "draining", "root")
    case.drop(0, 5)
    assert not case.out


def test_a_server_that_is_paused_is_not_probed() -> None:
    world = World("down", "up")
    world.all.hold(world.servers[0], "paused", "root")
    Deferred.fromCoroutine(world.all.probe(1.0))
    world.pass_time(0.5)
    assert [len(endpoint.tries) for endpoint in world.endpoints] == [0, 1]


def test_whose_attempt_fails_does_not_overtake_who_came_before_and_waits() -> None:
    case = Case("slow", "slow", "up", limits=(1, 1, 1))
    for target in range(3):
        for server in case.servers:
            case.all.hold(server, "draining", "root")
        case.all.release(case.servers[target], "draining")
        case.enter()
    for server in case.servers:
        case.all.release(server, "draining")
    case.endpoints[0].slow[0][0].errback(ConnectionRefusedError())
    # A slot is free, but the queue has not been looked at yet.
    case.connections.pop(2).loseConnection()
    case.endpoints[1].slow[0][0].errback(ConnectionRefusedError())
    case.clock.advance(0)
    assert case.order == [2, 0]


def test_who_waits_for_room_fails_in_time_if_a_probe_finds_the_server_down() -> None:
    case = Case("up", queue_timeout=60.0)
    case.enter(2)
    case.endpoints[0].mode = "down"
    Deferred.fromCoroutine(case.all.probe(1.0))
    case.pass_time(TIMEOUT + 0.3)
    assert reasons(case) == ["upstream_refused"]


def test_a_slot_is_given_back_once_only() -> None:
    slots = Slots(1)
    attempts: list[Any] = []

    class Half:
        def connect(self, factory: Any) -> Any:
            attempts.append((Deferred(), factory.buildProtocol(None)))
            return attempts[-1][0]

    endpoint: Any = Half()
    slots.connect(endpoint, Factory.forProtocol(Watched)).addErrback(lambda _: None)
    attempt, protocol = attempts[0]
    protocol.connectionLost()
    attempt.errback(ConnectionRefusedError())
    assert slots.taken == 0


def test_a_connection_for_who_waits_is_not_used_if_its_server_is_held_meanwhile() -> None:
    case = Case("down", limits=(0,), queue_timeout=60.0)
    case.enter(1)
    case.endpoints[0].mode = "slow"
    case.pass_time(0.2)
    case.all.hold(case.servers[0], "paused", "root")
    case.endpoints[0].answer()
    case.pass_time(0.2)
    assert not case.order
    case.endpoints[0].mode = "up"
    case.all.release(case.servers[0], "paused")
    case.pass_time(0.2)
    assert case.order == [0]


def test_who_has_tried_all_servers_is_served_by_one_that_was_back_meanwhile() -> None:
    world = World("slow", "slow")
    world.join()
    first = next(number for number in (0, 1) if world.endpoints[number].slow)
    world.endpoints[first].slow[0][0].errback(ConnectionRefusedError())
    world.endpoints[first].mode = "up"
    world.pass_time(0.5)
    assert not world.servers[first].failing
    world.endpoints[1 - first].mode = "down"
    world.endpoints[1 - first].slow[0][0].errback(ConnectionRefusedError())
    world.pass_time(0.5)
    assert (world.served[first], world.failed) == (1, 0)


def test_a_server_that_joins_while_all_are_paused_is_paused() -> None:
    world = World("up", "up")
    late = world.servers.pop()
    world.all = Servers(world.servers, world.clock, TIMEOUT, may_grow=True)
    world.all.pause_all("root")
    world.all.add(late)
    world.join()
    assert late.state == "paused"
    assert not world.results
    world.all.resume_all()
    world.pass_time(1)
    assert late.state in ("unknown", "up")
    assert world.results


def test_a_server_that_joins_after_all_were_resumed_is_not_paused() -> None:
    world = World("up", "up")
    late = world.servers.pop()
    world.all = Servers(world.servers, world.clock, TIMEOUT, may_grow=True)
    world.all.pause_all("root")
    world.all.resume_all()
    world.all.add(late)
    assert late.state == "unknown"


def test_a_slot_that_is_free_does_not_hasten_those_who_are_let_in_slowly() -> None:
    world = World("up", limits=(1000,))
    world.all.pause_all("root")
    world.join(200)
    world.all.resume_all()
    world.pass_time(0.05)
    before = world.served[0]
    assert 0 < before < 50
    world.results[0].transport.loseConnection()
    world.all.serve_now()
    assert world.served[0] == before


def test_those_who_wait_get_what_is_free_when_nothing_more_is_reported() -> None:
    case = Case("up")
    case.enter(2)
    case.connections.pop(0).loseConnection()
    assert case.order == [0]
    case.all.serve_now()
    assert case.order == [0, 1]
    assert not case.all._has_freed


def test_a_request_has_one_time_to_wait_and_one_to_be_connected_however_often_they_alternate() -> None:
    request = Queue(10.0, 5.0).request(Factory(), None, 0.0, lambda _: None)
    left = [request.switch(is_queued, now) for now, is_queued in enumerate([False, True, True, False, False, True])]
    assert left == [5, 10, 9, 4, 3, 8]
    assert request.switch(False, 20) == 2
    assert request.switch(True, 30) == 0
