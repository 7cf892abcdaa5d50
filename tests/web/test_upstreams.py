"""What the web side says of several servers."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock

from fooproxy.stats.counters import Stats
from fooproxy.stats.session import SessionStats
from fooproxy.upstreams.checks import Checks, Rules
from fooproxy.upstreams.server import Server
from fooproxy.upstreams.servers import Servers
from fooproxy.upstreams.slots import Slots
from fooproxy.web.exposition import exposition
from fooproxy.web.upstreams import STATES, report, rows
from tests.upstreams.test_servers import Endpoint


class World:
    def __init__(self, *names: str) -> None:
        self.clock = Clock()
        self.now = 1.0
        several = names if len(names) > 1 else ()
        self.stats = Stats(lambda: self.now, servers=several)
        endpoint: Any = Endpoint(self.clock, "silent")
        self.servers = [Server(endpoint, name, self.clock, number=number) for number, name in enumerate(names)]
        for server, record in zip(self.servers, self.stats.servers, strict=False):
            server.counted_by(record)
        self.all = Servers(self.servers, self.clock, 5.0)

    def traffic(self, number: int, replies: int, seconds: float, naks: int = 0) -> None:
        session = SessionStats(self.stats)
        if self.stats.servers:
            session.served_by(self.servers[number])
        session.client.feed(b"REQ 1\n" * replies, round(self.now * 1e6))
        self.now += seconds
        session.upstream.feed(b"ACK 1\n" * (replies - naks) + b"NAK 1\n" * naks, round(self.now * 1e6))

    def rows(self) -> list[dict[str, Any]]:
        return rows(self.stats, self.all)


@pytest.fixture
def world() -> World:
    return World("a", "b", "c")


def test_each_server_has_a_row_with_its_state_and_its_figures(world: World) -> None:
    world.traffic(1, 3, 0.01, naks=1)
    for _ in range(3):
        world.servers[0].failed(ConnectionRefusedError("no"))
    world.clock.advance(2)
    a, b, c = world.rows()
    assert (a["name"], a["state"], a["state_seconds"], a["reason"]) == ("a", "down", 2, "upstream_unreachable")
    assert a["error"] == "no"
    assert a["connect_failures"]["unreachable"] == 3
    assert (b["requests"], b["replies"], b["connections_active"]) == (3, {"ack": 2, "nak": 1}, 1)
    assert b["latency_seconds"]["count"] == 3
    assert (c["state"], c["weight"], c["backup"], c["requests"]) == ("unknown", 1, False, 0)
    assert report(world.stats, world.all)["clients_waiting"] == 0


def test_the_row_of_a_single_server_has_the_figures_of_all_traffic_under_the_same_names(world: World) -> None:
    single = World("a")
    single.traffic(0, 3, 0.01)
    (row,) = single.rows()
    assert list(row) == list(world.rows()[0])
    assert (row["requests"], row["replies"]["ack"], row["connections_active"]) == (3, 3, 1)


def test_a_server_that_is_far_from_the_others_is_an_outlier(world: World) -> None:
    world.traffic(0, 200, 0.010)
    world.traffic(1, 200, 0.012)
    world.traffic(2, 200, 0.100, naks=50)
    assert [row["outlier"] for row in world.rows()] == [[], [], ["latency", "naks"]]


def test_a_server_with_few_replies_is_compared_with_none(world: World) -> None:
    world.traffic(0, 200, 0.010)
    world.traffic(1, 200, 0.010)
    world.traffic(2, 20, 0.5)
    assert [row["outlier"] for row in world.rows()] == [[], [], []]


def test_the_exposition_tells_the_servers_apart_and_its_labels_are_bounded(world: World) -> None:
    world.traffic(1, 3, 0.01, naks=1)
    found = exposition(world.stats, True, "text/plain", {server.name: server.state for server in world.servers})
    assert found is not None
    samples = {
        (sample.name, sample.labels.pop("upstream"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(found[1].decode())
        for sample in family.samples
        if "upstream" in sample.labels
    }
    assert samples["fooproxy_server_requests_total", "b"] == 3
    assert samples["fooproxy_server_replies_total", "b", "nak"] == 1
    assert samples["fooproxy_server_requests_total", "a"] == 0
    assert samples["fooproxy_server_request_duration_seconds_count", "b"] == 3
    assert [samples["fooproxy_server_state", "a", state] for state in STATES] == [1, 0, 0, 0, 0]
    assert {labels[0] for _, *labels in samples} == {"a", "b", "c"}


def test_the_row_of_a_server_says_what_its_checks_found(world: World) -> None:
    assert world.rows()[1]["check"] is None
    checks = Checks(Rules(), world.clock, Random(1), world.stats.upstream_checks)
    checks.join(world.servers[1])
    checks.start()
    world.clock.pump([0.5] * 20)
    row = world.rows()[1]
    assert (row["checks"], row["check"]["result"]) == ({"passed": 0, "failed": 1}, "failed")
    assert row["check"]["last_error"] == "no answer within 5 s"
    assert world.stats.report()["upstream_checks"] == {"passed": 0, "failed": 1}


def test_a_single_server_has_no_series_of_its_own() -> None:
    found = exposition(World("a").stats, True, "text/plain", {"a": "up"})
    assert found is not None
    assert b"fooproxy_server_" not in found[1]


def test_the_row_of_a_server_that_is_held_says_by_whom(world: World) -> None:
    world.servers[0].failed(ConnectionRefusedError("no"))
    world.servers[0].hold("paused", "root")
    row = world.rows()[0]
    assert (row["state"], row["reason"], row["error"]) == ("paused", "operator", "paused by root")


def test_the_row_of_a_server_has_its_limit_and_its_links(world: World) -> None:
    assert (world.rows()[0]["connections_limit"], world.rows()[0]["links"]) == (None, None)
    links: Any = type("Links", (), {"states": {"idle": 1}})()
    world.servers[0].slots, world.servers[0].links = Slots(7), links
    assert (world.rows()[0]["connections_limit"], world.rows()[0]["links"]) == (7, {"idle": 1})


def test_those_who_wait_are_counted_with_how_long_the_first_has() -> None:
    world = World("a")
    world.servers[0].hold("paused", "root")
    for _ in range(2):
        world.all.connect(Factory.forProtocol(Protocol))
        world.clock.advance(1)
    found = report(world.stats, world.all)
    assert (found["clients_waiting"], found["oldest_wait_seconds"]) == (2, 2)


def test_the_row_of_a_single_server_tells_open_sessions_from_all_and_requests_from_replies() -> None:
    single = World("a")
    single.traffic(0, 3, 0.01, naks=1)
    session = SessionStats(single.stats)
    session.client.feed(b"REQ 1\n" * 2, 5_000_000)
    (row,) = single.rows()
    assert (row["requests"], row["replies"], row["requests_in_flight"]) == (5, {"ack": 2, "nak": 1}, 2)
    session.ended("client_reset")
    (row,) = single.rows()
    assert (row["connections_total"], row["connections_active"]) == (2, 1)
    assert (row["requests_unanswered"], row["requests_in_flight"]) == (2, 0)


@pytest.mark.parametrize(
    ("mine", "outlier"),
    [((99, 0.1, 0), []), ((100, 0.1, 0), ["latency"]), ((100, 0.011, 4), []), ((100, 0.011, 20), ["naks"])],
)
def test_an_outlier_has_enough_replies_and_is_far_from_the_median(mine: tuple[int, float, int], outlier: Any) -> None:
    world = World("a", "b", "c", "d")
    world.traffic(0, *mine)
    for number, naks in ((1, 0), (2, 1), (3, 90)):
        world.traffic(number, 100, 0.011, naks=naks)
    assert world.rows()[0]["outlier"] == outlier


def test_many_naks_are_no_outlier_where_the_others_have_nearly_as_many(world: World) -> None:
    for number, naks in enumerate((50, 20, 20)):
        world.traffic(number, 100, 0.01, naks=naks)
    assert [row["outlier"] for row in world.rows()] == [[], [], []]


def test_two_servers_are_compared_with_each_other() -> None:
    world = World("a", "b")
    world.traffic(0, 100, 0.1)
    world.traffic(1, 100, 0.01)
    assert [row["outlier"] for row in world.rows()] == [["latency"], []]


def test_the_row_of_a_single_server_that_answers_nobody_says_so() -> None:
    single = World("a")
    session = SessionStats(single.stats)
    session.client.feed(b"REQ 1\n", 1_000_000)
    assert single.rows()[0]["stuck"] == 0
    single.now += 60
    assert single.rows()[0]["stuck"] == single.stats.upstream_stuck == 1
