"""The statistics of several servers: each has its own, and together they are the totals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fooproxy.foo.latency import Histogram
from fooproxy.stats.counters import Stats
from fooproxy.stats.session import SessionStats
from tests.helpers.twins import counting

A, B = (SimpleNamespace(number=number) for number in (0, 1))


class World:
    """Statistics of two servers on a clock that a test advances."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.stats = Stats(lambda: self.now, twin=counting(), servers=("a", "b"))
        self.a, self.b = self.stats.servers

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
