"""Whatever servers and clients do in whatever order: nobody is forgotten, and some server is always left.

With limits: no server has more connections than it may, no slot is lost, and nobody overtakes who waits.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.python.failure import Failure

from fooproxy.upstreams.server import Server
from tests.upstreams.test_ejection import Case
from tests.upstreams.test_queue import Case as Limited
from tests.upstreams.test_servers import TIMEOUT

NUMBERS = st.integers(0, 3)
STEP = st.one_of(
    st.tuples(st.just("mode"), NUMBERS, st.sampled_from(["up", "down", "silent", "slow"])),
    st.tuples(st.just("answer"), NUMBERS, st.just("")),
    st.tuples(st.just("drop"), NUMBERS, st.just("")),
    st.tuples(st.just("serve"), NUMBERS, st.just("")),
    st.tuples(st.just("join"), st.integers(1, 5), st.just("")),
    st.tuples(st.just("leave"), st.integers(0, 50), st.just("")),
    st.tuples(st.just("pass"), st.integers(1, 300), st.just("")),
)


@given(st.integers(1, 4), st.lists(STEP, max_size=60))
def test_each_client_has_one_outcome_and_some_server_stays(count: int, steps: list[tuple[str, int, str]]) -> None:
    case = Case(count)
    joined = []
    for what, number, how in steps:
        server = number % count
        if what == "mode":
            case.endpoints[server].mode = how
        elif what == "answer" and case.endpoints[server].slow:
            attempt, _ = case.endpoints[server].slow[0]
            if attempt.called:
                del case.endpoints[server].slow[0]
            else:
                case.endpoints[server].answer()
        elif what == "drop":
            case.drop(server, 3)
        elif what == "serve":
            case.serve(server)
        elif what == "join":
            for _ in range(number):
                joined.append(case.join(stay=False))
        elif what == "leave" and joined:
            joined[number % len(joined)].cancel()
        elif what == "pass":
            case.pass_time(number / 100)
        assert 2 * len(case.out) <= count
        assert len(case.out) < count
    # Each has been served, has left, or fails when its time is over.
    case.pass_time(TIMEOUT + 1)
    assert len(case.results) == len(joined)
    assert not case.all.waiting
    assert [server.connecting for server in case.servers] == [0] * count
    for endpoint in case.endpoints:
        endpoint.mode = "up"
    case.pass_time(75)
    # A single one is tried again when there is a client.
    assert count == 1 or not any(server.failing for server in case.servers)
    before = len(case.results)
    case.join(5)
    case.pass_time(2)
    assert not any(isinstance(result, Failure) for result in case.results[before:])
    assert all(
        not isinstance(result, Failure) or not result.check(AttributeError, KeyError, AssertionError)
        for result in case.results
    )


class Watching(Server):
    """Notes its attempts, and that each is for who has waited longest."""

    attempts: list[Deferred[Any]]
    world: Queued

    def connect(self, factory: Any, client: Any = None, fresh: bool = False) -> Deferred[Any]:
        if client is not None:
            place = self.world.clients.index(client)
            for request in self.world.all.waiting:
                waits: Any = request.client
                assert self.world.clients.index(waits) > place
            assert self.held is None
        attempt = super().connect(factory, client)
        self.attempts.append(attempt)
        return attempt


class Queued(Limited):
    """Servers with limits, or without one if that is 0."""

    def __init__(self, limits: list[int]) -> None:
        super().__init__(*["up"] * len(limits), limits=tuple(limits))
        for server in self.servers:
            server.__class__ = Watching
            server.attempts, server.world = [], self  # type: ignore[attr-defined]

    def check(self) -> None:
        for endpoint, server in zip(self.endpoints, self.servers, strict=True):
            server.attempts = [each for each in server.attempts if not each.called]  # type: ignore[attr-defined]
            lines = [line for line in endpoint.lines if hasattr(line.protocol, "when_lost") and not line.is_lost]
            if server.slots is not None:
                assert server.slots.taken == len(server.attempts) + len(lines)  # type: ignore[attr-defined]
                assert server.slots.taken <= server.slots.limit
        waiting = list(self.all.waiting)
        assert [request.ticket for request in waiting] == sorted({request.ticket for request in waiting})
        # Nobody waits for longer than the pause between two batches while there is room.
        self.clock.advance(0.01)
        if self.all.waiting and self.all.candidates():
            assert self.all._timer is not None


MOVE = st.one_of(
    st.tuples(st.just("mode"), NUMBERS, st.sampled_from(["up", "down", "silent", "slow"])),
    st.tuples(st.just("answer"), NUMBERS, st.just("")),
    st.tuples(st.just("refuse"), NUMBERS, st.just("")),
    st.tuples(st.just("join"), st.integers(1, 5), st.just("")),
    st.tuples(st.just("leave"), st.integers(0, 50), st.just("")),
    st.tuples(st.just("end"), st.integers(0, 50), st.just("")),
    st.tuples(st.just("eject"), NUMBERS, st.just("")),
    st.tuples(st.sampled_from(["hold", "release"]), NUMBERS, st.sampled_from(["paused", "draining"])),
    st.tuples(st.just("pass"), st.integers(1, 300), st.just("")),
)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=3).filter(any), st.lists(MOVE, max_size=60))
def test_no_slot_is_lost_and_nobody_overtakes(limits: list[int], moves: list[tuple[str, int, str]]) -> None:
    case = Queued(limits)
    entered: list[Any] = []
    for what, number, how in moves:
        place = number % len(limits)
        endpoint = case.endpoints[place]
        if what == "mode":
            endpoint.mode = how
        elif what in ("answer", "refuse"):
            endpoint.slow = [(attempt, factory) for attempt, factory in endpoint.slow if not attempt.called]
            if endpoint.slow and what == "answer":
                endpoint.answer()
            elif endpoint.slow:
                endpoint.slow.pop(0)[0].errback(ConnectionRefusedError())
        elif what == "join":
            entered += case.enter(number)
        elif what == "leave" and entered:
            entered[number % len(entered)].cancel()
        elif what == "end" and case.connections:
            case.end(list(case.connections)[number % len(case.connections)])
        elif what == "eject" and len(limits) > 1 and not any(server.failing for server in case.servers):
            case.servers[place].eject("it failed", "upstream_drops_requests")
        elif what == "hold":
            case.all.hold(case.servers[place], how, "root")
        elif what == "release":
            case.all.release(case.servers[place], how)
        elif what == "pass":
            case.pass_time(number / 100)
        case.check()
    for endpoint, server in zip(case.endpoints, case.servers, strict=True):
        endpoint.mode = "up"
        case.all.release(server, "paused", "draining")
    # What still hangs is given up, and each client is served, or has waited for too long.
    case.pass_time(TIMEOUT + 10 + 1)
    case.check()
    assert len(case.results) == len(entered)
    assert not case.all.waiting
    for number in list(case.connections):
        case.end(number)
    case.pass_time(1)
    assert case.taken == [0] * len(limits)
    assert all(
        not isinstance(result, Failure) or not result.check(AttributeError, KeyError, AssertionError, IndexError)
        for result in case.results
    )
