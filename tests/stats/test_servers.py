"""The statistics of several servers: each has its own, and together they are the totals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fooproxy.foo.counting import PURE
from fooproxy.foo.latency import Histogram
from fooproxy.stats.counters import Stats
from fooproxy.stats.servers import SavedServer, ServerStats, give_back
from fooproxy.stats.session import SessionStats
from tests.helpers.twins import counting

A, B = (SimpleNamespace(number=number) for number in (0, 1))


class World:
    """Statistics of two servers on a clock that a test advances."""

    a: ServerStats
    b: ServerStats

    def __init__(self, *names: str, rows: int = 0) -> None:
        self.now = 1000.0
        names = names if names or rows else ("a", "b")
        self.stats = Stats(lambda: self.now, twin=counting(), servers=names, rows=rows)
        for server in self.stats.servers:
            setattr(self, server.name, server)

    def session(self, server: Any = None) -> SessionStats:
        session = SessionStats(self.stats)
        if server is not None:
            session.served_by(server)
        return session

    def ask(self, session: SessionStats, requests: int = 1) -> None:
        session.client.feed(b"REQ 1\n" * requests, round(self.now * 1e6))

    def answer(self, session: SessionStats, replies: int = 1, word: bytes = b"ACK") -> None:
        self.now += 0.001
        session.upstream.feed((word + b" 1\n") * replies, round(self.now * 1e6))
        self.stats.catch_up()


@pytest.fixture
def world(twin: str) -> World:
    return World()


def test_each_server_has_its_traffic_and_the_report_has_the_sum(world: World) -> None:
    one, other = world.session(A), world.session(B)
    world.ask(one, 3)
    world.ask(other, 2)
    world.answer(one, 2)
    world.answer(other, 1, b"NAK")
    assert (world.a.requests, world.a.replies, world.a.requests_in_flight) == (3, {"ack": 2, "nak": 0}, 1)
    assert (world.b.requests, world.b.replies, world.b.requests_in_flight) == (2, {"ack": 0, "nak": 1}, 1)
    assert (world.a.latency_seconds.count, world.b.latency_seconds.count) == (2, 1)
    assert (world.a.load, world.b.load) == (2, 2)
    report = world.stats.report()
    assert (report["msg_req"], report["msg_ack"], report["msg_nak"], report["requests_in_flight"]) == (5, 2, 1, 2)
    assert report["latency_seconds"]["count"] == 3


def test_what_a_client_sent_before_it_had_a_server_counts_for_the_one_that_gets_it(world: World) -> None:
    session = world.session()
    world.ask(session, 2)
    assert world.stats.report()["requests_in_flight"] == 2
    session.served_by(B)
    world.answer(session)
    assert (world.b.requests, world.b.requests_in_flight, world.b.replies["ack"]) == (2, 1, 1)
    report = world.stats.report()
    assert (report["msg_req"], report["msg_ack"], report["requests_in_flight"]) == (2, 1, 1)


def test_a_session_that_goes_on_at_another_server_leaves_its_counts_behind(world: World) -> None:
    session = world.session(A)
    world.ask(session)
    world.answer(session)
    session.served_by(B)
    world.ask(session, 2)
    world.answer(session, 2)
    assert (world.a.requests, world.a.requests_in_flight, world.a.connections_active) == (1, 0, 0)
    assert (world.b.requests, world.b.replies["ack"], world.b.connections_active) == (2, 2, 1)
    assert session.client.req == 3


def test_the_end_of_a_session_is_its_servers(world: World) -> None:
    blamed = []
    world.a.when_ended = lambda dropped, replied: blamed.append((dropped, replied))
    session = world.session(A)
    world.ask(session, 2)
    session.ended("upstream_reset")
    other = world.session(A)
    world.ask(other)
    world.answer(other)
    other.ended("client_closed")
    assert blamed == [(True, float("-inf")), (False, pytest.approx(world.now))]
    assert (world.a.connections_total, world.a.connections_active, world.a.connections_dropped) == (2, 0, 1)
    assert (world.a.requests_unanswered, world.b.requests_unanswered) == (2, 0)
    assert world.stats.drops_requests


def test_a_server_is_stuck_though_another_one_answers(world: World) -> None:
    one, other = world.session(A), world.session(B)
    world.ask(one)
    for _ in range(11):
        world.ask(other)
        world.answer(other)
        world.now += 1
    assert (world.a.stuck, world.b.stuck, world.stats.upstream_stuck) == (1, 0, 1)
    assert (world.a.waiting(world.now - 10), world.a.waiting(world.now - 20)) == (1, 0)
    assert (world.a.is_answering(0.0), world.b.is_answering(world.now - 5)) == (False, True)
    world.answer(one)
    assert (world.a.stuck, world.stats.upstream_stuck) == (0, 0)


def test_what_another_server_has_answered_does_not_speak_for_the_one_that_a_session_is_at_now(world: World) -> None:
    replies = []
    world.a.when_ended = lambda dropped, replied: replies.append(replied)
    before = world.now
    session = world.session(B)
    world.ask(session)
    world.answer(session)
    session.served_by(A)
    world.ask(session)
    assert not world.a.is_answering(before)
    session.ended("client_closed")
    assert replies == [float("-inf")]


def test_the_saved_counters_are_those_of_all_servers_and_come_back_as_totals(world: World) -> None:
    session = world.session(A)
    world.ask(session, 2)
    world.answer(session)
    saved = world.stats.counters()
    assert (saved["client_req"], saved["upstream_ack"], saved["requests_in_flight"]) == (2, 1, 1)
    later = World()
    later.stats.restore(saved, Histogram())
    assert (later.stats.msg_req, later.a.requests) == (2, 0)
    later.ask(later.session(B))
    assert (later.stats.msg_req, later.b.requests) == (3, 1)


def crashed(world: World, *names: str, rows: int = 0) -> World:
    """Return what a process begins with, for servers of these names, after that of `world` has crashed."""
    stats = world.stats
    saved = {name: read(state) for name, state in stats.saved_servers().items()}
    after = World(*names, rows=rows)
    after.stats.restore(stats.counters(), stats.latency_seconds, saved)
    return after


def read(state: dict[str, Any]) -> SavedServer:
    latency = state["latency"]
    buckets = {int(number): count for number, count in latency["buckets"].items()}
    return SavedServer(state["counters"], Histogram(buckets, latency["sum"], latency["longest"]))


def used(world: World) -> tuple[SessionStats, SessionStats]:
    """Let both servers have traffic, of which one request is open; return their sessions."""
    sessions = world.session(A), world.session(B)
    for session, requests, replies in zip(sessions, (3, 5), (2, 5), strict=True):
        world.ask(session, requests)
        world.answer(session, replies)
    world.b.connect_failures["refused"] += 4
    world.b.checks["failed"] += 6
    world.b.ejections += 1
    return sessions


def figures(world: World) -> dict[str, Any]:
    """Return what has to be the same whichever server has which part of it."""
    report = world.stats.report()
    return {name: report[name] for name in ("msg_req", "msg_ack", "bytes_from_clients", "latency_seconds")}


def test_each_server_goes_on_after_a_crash_under_its_name(world: World) -> None:
    used(world)
    before = figures(world)
    after = crashed(world, "b", "c", "a")
    b, c, a = after.stats.servers
    assert (a.requests, b.requests, c.requests) == (3, 5, 0)
    assert (a.replies["ack"], b.replies["ack"]) == (2, 5)
    assert (a.connections_total, a.connections_active, b.connect_failures["refused"]) == (1, 0, 4)
    assert (b.checks["failed"], b.ejections) == (6, 1)
    assert (a.latency_seconds.count, b.latency_seconds.count, c.latency_seconds.count) == (2, 5, 0)
    assert b.latency_seconds == world.b.latency_seconds
    assert figures(after) == before


def test_open_requests_of_a_server_are_unanswered_after_a_crash(world: World) -> None:
    used(world)
    after = crashed(world, "a", "b")
    assert (after.a.requests_unanswered, after.b.requests_unanswered) == (1, 0)
    assert (after.a.requests_in_flight, after.a.stuck, after.a.load) == (0, 0, 0)
    again = crashed(after, "a", "b")
    assert again.a.requests_unanswered == 1


def test_a_server_counts_on_after_a_crash_and_what_is_exposed_begins_with_the_process(world: World) -> None:
    used(world)
    after = crashed(world, "a", "b")
    session = after.session(B)
    after.ask(session)
    after.answer(session)
    assert (after.b.requests, after.stats.msg_req) == (6, 9)
    exposed = after.stats.since_start()
    assert [server.requests for server in exposed.servers] == [0, 1]
    assert exposed.servers[1].latency_seconds.count == exposed.latency_seconds.count == 1
    assert exposed.msg_req == 1


def test_a_server_that_is_there_no_more_is_in_the_totals_only(world: World) -> None:
    used(world)
    before = figures(world)
    after = crashed(world, "a", "c")
    assert [server.requests for server in after.stats.servers] == [3, 0]
    assert figures(after) == before
    assert sorted(after.stats.saved_servers()) == ["a", "c"]


def test_a_server_that_joins_later_gets_what_was_saved_of_it(world: World) -> None:
    used(world)
    before = figures(world)
    after = crashed(world, rows=3)
    assert (after.stats.servers, figures(after)) == ([], before)
    # A second crash before it has joined loses nothing.
    after = crashed(after, rows=3)
    session = after.session()
    after.ask(session)
    b = after.stats.join("b")
    assert (b.requests, b.replies["ack"], b.connections_total) == (5, 5, 1)
    assert after.stats.msg_req == before["msg_req"] + 1
    exposed = after.stats.since_start()
    assert (exposed.msg_req, exposed.servers[0].requests) == (1, 0)
    assert after.stats.join("new").requests == 0
    assert sorted(after.stats.saved_servers()) == ["a", "b", "new"]


def test_no_more_names_are_remembered_than_there_can_be_servers(world: World) -> None:
    assert list(crashed(world, rows=1).stats.saved_servers()) == ["a"]


def test_what_a_server_that_has_left_counted_stays_in_the_totals(world: World) -> None:
    session, _ = used(world)
    session.ended("client_closed")
    before, longest = figures(world), world.a.latency_seconds.longest
    exposed = world.stats.since_start().msg_req
    world.stats.leave(world.a)
    assert figures(world) == before
    assert world.stats.since_start().msg_req == exposed
    assert [server.name for server in world.stats.servers] == ["b"]
    assert world.stats.latency_seconds.longest >= longest
    assert world.stats.report()["requests_in_flight"] == 0


def test_a_server_gets_the_row_of_one_that_has_left_and_begins_from_zero(world: World) -> None:
    used(world)[1].ended("upstream_closed")
    before = world.stats.msg_req
    world.stats.leave(world.b)
    for number in range(5):
        server = world.stats.join(f"server-{number}")
        assert (server.requests, server.connections_total, server.latency_seconds.count) == (0, 0, 0)
        session = world.session(SimpleNamespace(number=server.place))
        world.ask(session)
        world.answer(session)
        assert server.replies == {"ack": 1, "nak": 0}
        session.ended("client_closed")
        world.stats.leave(server)
    assert len(world.stats.rows) == 2
    assert world.stats.msg_req == before + 5
    assert world.stats.report()["requests_in_flight"] == 1
    assert world.stats.since_start().msg_req == world.stats.msg_req


def test_the_array_does_not_grow_with_the_servers_that_join() -> None:
    world = World("a", rows=4)
    size = len(world.stats.numbers)
    for name in ("b", "c", "d"):
        world.stats.join(name)
    assert len(world.stats.numbers) == size
    assert World(rows=4).stats.report()["upstream_stuck"] == 0


def test_what_is_exposed_begins_with_the_process_for_each_server_too(world: World) -> None:
    session = world.session(A)
    world.ask(session)
    exposed = world.stats.since_start()
    world.ask(session)
    world.stats.catch_up()
    assert (exposed.servers[0].requests, world.a.requests, exposed.msg_req) == (1, 2, 1)


def test_the_time_of_the_last_traffic_is_that_of_any_server(world: World) -> None:
    world.ask(world.session(B))
    world.stats.catch_up()
    world.now += 1
    assert world.stats.times._seen() == pytest.approx(1000.0)


def test_chunks_of_all_servers_are_counted_when_there_is_time(world: World) -> None:
    for server in (A, B):
        session = world.session(server)
        for _ in range(50):
            world.ask(session)
    world.stats.digest()
    assert (world.a.figures.client.req, world.b.figures.client.req) == (50, 50)


def test_the_report_says_how_many_servers_can_be_reached(world: World) -> None:
    world.stats.reachable = lambda: (1, 2)
    report = world.stats.report()
    assert (report["upstreams_up"], report["upstreams_total"]) == (1, 2)


def test_a_session_without_a_link_is_no_load_and_keeps_its_counts(world: World) -> None:
    session = world.session(A)
    world.ask(session)
    world.answer(session)
    session.released()
    assert (world.a.load, world.a.requests, world.a.connections_total) == (0, 1, 1)
    session.served_by(A)
    assert (world.a.load, world.a.connections_total) == (1, 1)
    session.released()
    session.served_by(B)
    world.ask(session)
    world.answer(session)
    assert (world.a.requests, world.b.requests, world.b.load) == (1, 1, 1)


def test_what_waits_to_be_counted_at_a_server_is_counted_there_before_its_session_goes_elsewhere() -> None:
    world = World()
    world.stats = Stats(lambda: world.now, twin=PURE, servers=("a", "b"))
    session = world.session(B)
    world.ask(session, 2)
    session.served_by(A)
    assert [server.requests for server in world.stats.servers] == [0, 2]
    assert world.stats.msg_req == 2


def test_a_server_that_drops_its_sessions_is_told_from_others(world: World) -> None:
    session = world.session(A)
    world.ask(session)
    session.ended("upstream_reset")
    now = world.now * 1e6
    assert (world.a.traffic.troubles.drops(now), world.b.traffic.troubles.drops(now)) == (True, False)
    assert not world.stats.traffic.troubles.drops(now)


def test_a_server_that_gets_the_row_of_another_is_not_blamed_for_it(world: World) -> None:
    told: list[bool] = []
    world.a.when_ended = lambda dropped, replied: told.append(dropped)
    session = world.session(A)
    world.ask(session)
    session.ended("upstream_reset")
    world.stats.leave(world.a)
    server = world.stats.join("c")
    assert not world.stats.drops_requests
    world.session(SimpleNamespace(number=server.place)).ended("client_closed")
    assert told == [True]


def test_what_earlier_processes_counted_of_a_server_that_leaves_is_still_not_exposed() -> None:
    world = World("a")
    world.ask(world.session(A), 3)
    counters, servers = world.stats.counters(), {"a": world.a.saved()}
    fresh = World("a")
    fresh.stats.restore(counters, Histogram(), servers)
    fresh.stats.leave(fresh.a)
    assert fresh.stats.msg_req == 3
    assert fresh.stats.since_start().msg_req == 0


def test_a_server_that_was_remembered_is_saved_with_what_it_has_counted_since() -> None:
    world = World("a", rows=2)
    world.ask(world.session(A), 3)
    counters, servers = world.stats.counters(), {"b": world.a.saved()}
    fresh = World("a", rows=2)
    fresh.stats.restore(counters, Histogram(), servers)
    fresh.stats.join("b")
    fresh.ask(fresh.session(B), 4)
    assert fresh.stats.saved_servers()["b"]["counters"]["client_req"] == 7


def test_counters_that_a_recovery_file_lacks_stay_as_they_are(world: World) -> None:
    world.ask(world.session(A), 3)
    world.session().ended("client_closed")
    world.stats.restore({}, Histogram())
    assert world.stats.connections_total == 2
    assert world.stats.connections_closed["client_closed"] == 1


def test_requests_given_up_and_replies_that_nobody_asked_for_are_not_in_flight(world: World) -> None:
    session = world.session(A)
    world.ask(session, 2)
    session.ended("client_closed")
    assert world.a.requests_in_flight == 0
    session = world.session(A)
    world.answer(session)
    world.ask(session)
    world.stats.catch_up()
    assert (world.a.requests_in_flight, world.a.load) == (1, 2)


def test_what_is_exposed_of_a_server_does_not_change_any_more(world: World) -> None:
    world.session(A)
    exposed = world.stats.since_start()
    world.session(A)
    assert (exposed.servers[0].connections_total, world.a.connections_total) == (1, 2)


def test_replies_of_every_kind_are_what_the_latencies_are_compared_with(world: World) -> None:
    session = world.session(A)
    world.ask(session, 3)
    world.answer(session)
    world.answer(session, word=b"NAK")
    session.resumed("upstream")
    world.answer(session, 2)
    saved = world.a.saved()
    assert saved.matched == saved.replied == 3
    assert saved.counters["replies_late"] == saved.counters["responses_unmatched"] == 1


def test_a_row_that_is_given_back_is_empty(world: World) -> None:
    session = world.session(A)
    world.ask(session, 2)
    session.ended("upstream_reset")
    world.a.ejections += 1
    world.a.checks["failed"] += 1
    world.stats.leave(world.a)
    server = world.stats.join("c")
    assert not any(server.numbers)


def test_only_requests_that_wait_for_the_server_are_waiting(world: World) -> None:
    session, idle = world.session(A), world.session(A)
    world.ask(session)
    world.stats.catch_up()
    assert world.a.waiting(world.now) == 1
    session.paused("upstream")
    assert world.a.waiting(world.now) == 0
    idle.ended("client_closed")


def test_a_session_without_replies_does_not_say_that_its_server_answers(world: World) -> None:
    one, other = world.session(A), world.session(A)
    world.ask(one)
    world.answer(one)
    since = world.now
    one.ended("client_closed")
    world.now += 1
    world.ask(other)
    world.stats.catch_up()
    assert not world.a.is_answering(since - 1)


def test_every_number_of_a_row_is_given_back() -> None:
    row, totals = [1] * ServerStats.size, [0] * ServerStats.size
    give_back(row, totals, 0)
    assert not any(row)
