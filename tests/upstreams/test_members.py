"""What is known of several servers together, and which of them may be chosen."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError, DNSLookupError, TimeoutError

from fooproxy.upstreams.members import Members
from tests.upstreams.test_servers import World

REFUSED = ConnectionRefusedError()


@pytest.fixture
def world() -> World:
    return World("up", "up", "up")


def down(world: World, *numbers: int) -> None:
    for number in numbers:
        for _ in range(3):
            world.servers[number].failed(REFUSED)


def test_the_state_of_all_is_the_best_of_any(world: World) -> None:
    one, two, three = world.servers
    found = []
    down(world, 0, 1, 2)
    found.append(world.all.state)
    one.hold("draining", "root")
    found.append(world.all.state)
    two.hold("paused", "root")
    found.append(world.all.state)
    three.failing = False
    three.close()
    found.append(world.all.state)
    three._standing.work()
    two.release("paused")
    found.append(world.all.state)
    assert found == ["down", "draining", "paused", "unknown", "up"]


def test_a_server_that_is_up_comes_before_one_that_was_never_tried(world: World) -> None:
    world.servers[1].succeeded()
    assert world.all.state == "up"


def test_without_a_server_the_state_is_unknown_until_the_look_up_has_failed() -> None:
    members = Members(None)
    assert (members.state, members.error, members.reason, members.unreachable(10)) == ("unknown", None, None, None)
    members.absence = DNSLookupError("SERVFAIL")
    assert (members.state, members.reason) == ("down", "upstream_unresolved")
    assert "SERVFAIL" in str(members.unreachable(10))


def test_the_error_is_that_of_the_server_that_failed_last_if_none_can_be_reached(world: World) -> None:
    down(world, 0, 1)
    world.clock.advance(1)
    for _ in range(3):
        world.servers[2].failed(TimeoutError())
    assert world.all.latest is world.servers[2]
    assert world.all.reason == "connect_timeout"
    assert world.all.error == world.all.unreachable(10) == world.servers[2].error
    world.clock.advance(11)
    assert world.all.unreachable(10) is None


def test_there_is_no_error_while_one_server_can_be_reached(world: World) -> None:
    down(world, 0)
    assert (world.all.error, world.all.reason, world.all.unreachable(10)) == (None, None, None)


def test_servers_that_fail_their_checks_can_be_reached_unless_they_cannot_be_connected(world: World) -> None:
    for server in world.servers:
        server.failed(REFUSED)
        server.succeeded()
        server.doubt("it is slow")
    assert world.all.state == "down"
    assert world.all.unreachable(10) is None
    down(world, 0, 1, 2)
    assert world.all.unreachable(10) is not None


def test_the_silence_is_that_since_any_server_was_heard_of(world: World) -> None:
    world.servers[0].succeeded()
    world.clock.advance(5)
    world.servers[1].succeeded()
    world.clock.advance(1)
    assert world.all.silence == 1


def test_servers_that_were_not_tried_count_as_good_and_those_that_are_gone_do_not_count(world: World) -> None:
    world.servers[0].succeeded()
    down(world, 1)
    assert world.all.counts == (2, 3)
    world.servers[2].is_back(False)
    assert world.all.counts == (1, 2)
    assert (world.all.count("up"), world.all.count("down"), world.all.count("draining")) == (1, 1, 1)


def test_the_links_to_all_servers_are_counted_together_and_closed(world: World) -> None:
    closed = []
    for server in world.servers[:2]:
        links: Any = type("Links", (), {"states": {"idle": 1, "in_use": 2, "draining": 3}})()
        links.close = lambda: closed.append(1)
        server.links = links
    assert world.all.links() == {"idle": 2, "in_use": 4, "draining": 6}
    world.all.close_links()
    assert len(closed) == 2


def test_a_server_that_drains_is_probed_and_one_that_is_paused_is_not(world: World) -> None:
    world.servers[0].hold("draining", "root")
    world.servers[1].hold("paused", "root")
    Deferred.fromCoroutine(world.all.probe(1.0))
    assert [len(endpoint.tries) for endpoint in world.endpoints] == [1, 0, 1]
    world.pass_time(0.5)


def test_servers_that_are_gone_are_chosen_only_if_no_other_can_be() -> None:
    world = World("up", "up", "up", backups=(2,))
    one, two, three = world.servers
    assert world.all.candidates() == [one, two]
    one.is_back(False)
    two.doubt("it is slow")
    assert world.all.candidates() == [three]
    down(world, 2)
    assert world.all.candidates() == [two]
    down(world, 1)
    assert world.all.candidates() == [one]
    down(world, 0)
    assert world.all.candidates() is None


def test_who_is_held_or_full_is_worth_waiting_for_but_not_who_was_tried() -> None:
    world = World("up", "up", limits=(1, 0))
    one, two = world.servers
    assert world.all.candidates([two]) == [one]
    world.join()
    down(world, 1)
    if one.slots is not None:
        one.slots.taken = 1
    assert world.all.candidates() == []
    assert world.all.candidates([one]) is None
    one.hold("paused", "root")
    assert world.all.candidates() == []
    assert world.all.candidates([one]) is None


def test_a_single_server_is_chosen_once_for_a_client_if_it_has_room() -> None:
    world = World("up", limits=(1,))
    (server,) = world.servers
    assert world.all.choose(None) is server
    assert world.all.choose(None, [server]) is None
    world.join()
    assert world.all.choose(None) is None


def test_a_server_that_is_removed_is_not_chosen_any_more(world: World) -> None:
    world.all.remove(world.servers[0])
    assert world.all.candidates() == world.servers[1:]
    assert world.servers[0] not in world.all.servers


def test_servers_that_fail_together_are_not_tried_again_in_step() -> None:
    world = World(*["down"] * 8)
    world.join()
    due = {call.getTime() for call in world.clock.getDelayedCalls() if call.getTime() <= 0.05}
    assert len(due) > 4


def test_a_connection_for_who_waited_is_closed_if_nobody_does_any_more() -> None:
    world = World("down", "down")
    joining = world.join()
    world.endpoints[0].mode = "slow"
    world.pass_time(0.2)
    joining.cancel()
    world.endpoints[0].answer()
    assert world.endpoints[0].lines[-1].is_lost
    assert not world.servers[0].failing


def test_once_all_were_let_in_slowly_what_is_free_is_given_at_once_again() -> None:
    world = World("up", limits=(3,))
    world.all.pause_all("root")
    world.join(3)
    world.all.resume_all()
    world.pass_time(1)
    world.join()
    assert world.served == [3]
    world.results[0].transport.loseConnection()
    world.all.serve_now()
    assert world.served == [4]
