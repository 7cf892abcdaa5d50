"""The control side in memory: what each order changes, and what its answer waits for."""

from __future__ import annotations

import inspect
import json
import pwd
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.web.http_headers import Headers

from fooproxy.stats.counters import Stats
from fooproxy.stats.session import SessionStats
from fooproxy.upstreams.server import Server
from fooproxy.upstreams.servers import Servers
from fooproxy.web.control import Control
from fooproxy.web.errors import Refused
from tests.upstreams.test_servers import Endpoint


class Request:
    """What the routes use of a request that came over a unix socket."""

    def __init__(self, skt: socket.socket, wait: int) -> None:
        self.args = {b"wait": [b"%d" % wait]}
        self.requestHeaders = Headers()
        self.channel = self.transport = self
        self.getHandle = lambda: skt

    def setResponseCode(self, code: int, phrase: bytes) -> None:
        assert code == 200

    def setHeader(self, name: str, value: str) -> None:
        pass


class Session:
    """A session of the bridge."""

    def __init__(self, observer: SessionStats) -> None:
        self.observer = observer
        self.upstream: object | None = object()


class Site:
    def __init__(self, *names: str) -> None:
        self.clock = Clock()
        self.stats = Stats(self.clock.seconds, servers=names if len(names) > 1 else ())
        where: Any = Endpoint(self.clock, "slow")
        self.servers = [Server(where, name, self.clock, number=number) for number, name in enumerate(names)]
        self.all = Servers(self.servers, self.clock, 5.0)
        self.sessions: list[Any] = []
        self.told: list[str] = []
        proxy, sessions = self, self.sessions
        self.control = Control(self.stats, self.all, sessions, proxy, self.clock)
        self.skt, self.other = socket.socketpair(socket.AF_UNIX)

    def close(self, session: Any) -> float:
        self.told.append("close")
        return 1.5

    def drain(self) -> None:
        self.told.append("drain")

    def order(self, what: str, *arguments: Any, wait: int = 0) -> list[Any]:
        """Give an order; return a list that has its answer as soon as there is one."""
        answers: list[Any] = []
        request: Any = Request(self.skt, wait)
        answer = getattr(self.control, what)(request, *arguments)
        if isinstance(answer, bytes):
            return [json.loads(answer)]
        Deferred.fromCoroutine(answer).addCallback(lambda body: answers.append(json.loads(body)))
        return answers

    def session(self, number: int = 0) -> SessionStats:
        """Have a client that is served by a server."""
        observer = SessionStats(self.stats)
        if self.stats.most_servers:
            observer.served_by(self.servers[number])
        self.sessions.append(Session(observer))
        return observer

    @property
    def states(self) -> list[str]:
        return [server.state for server in self.servers]


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site("a", "b")
    yield site
    site.skt.close()
    site.other.close()


@pytest.fixture
def single() -> Iterator[Site]:
    site = Site("a")
    yield site
    site.skt.close()
    site.other.close()


def test_a_pause_is_idle_once_the_requests_of_that_server_are_answered(site: Site) -> None:
    session = site.session()
    session.client.feed(b"REQ 1\n", 1)
    other = site.session(1)
    other.client.feed(b"REQ 1\n", 1)
    answers = site.order("pause", "a", wait=10)
    site.clock.advance(1)
    assert not answers
    session.upstream.feed(b"ACK 1\n", 2)
    site.clock.advance(1)
    assert [(answer["idle"], answer["requests_in_flight"]) for answer in answers] == [(True, 0)]
    assert site.states == ["paused", "unknown"]


def test_a_pause_of_the_only_server_is_idle_once_its_requests_are_answered(single: Site) -> None:
    session = single.session()
    session.client.feed(b"REQ 1\n", 1)
    (answer,) = single.order("pause", "a")
    assert (answer["idle"], answer["requests_in_flight"], answer["connections_active"]) == (False, 1, 1)
    session.upstream.feed(b"ACK 1\n", 2)
    (answer,) = single.order("pause", "a")
    assert (answer["idle"], answer["requests_in_flight"]) == (True, 0)


def test_a_pause_is_not_idle_while_a_client_is_in_the_middle_of_a_request(site: Site) -> None:
    site.session().client.feed(b"REQ", 0)
    assert site.order("pause", "b")[0]["idle"] is True
    assert site.order("pause", "a")[0]["idle"] is False


def test_a_pause_is_not_idle_while_a_client_is_being_connected(site: Site) -> None:
    site.servers[0].connecting += 1
    assert site.order("pause", "a")[0]["idle"] is False
    site.servers[0].connecting -= 1
    assert site.order("pause", "a")[0]["idle"] is True


def test_a_pause_is_not_idle_while_replies_on_a_link_are_still_to_come(site: Site) -> None:
    links: Any = type("Links", (), {"draining": {1}, "hold": lambda self, how: None})()
    site.servers[0].links = links
    assert site.order("pause", "a")[0]["idle"] is False
    links.draining.clear()
    assert site.order("pause", "a")[0]["idle"] is True


def test_a_pause_that_is_ended_by_a_resume_answers_at_once_and_is_not_idle(site: Site) -> None:
    site.session().client.feed(b"REQ 1\n", 1)
    answers = site.order("pause_all", wait=100)
    site.clock.advance(1)
    assert not answers
    site.order("resume_all")
    site.clock.advance(1)
    assert [answer["idle"] for answer in answers] == [False]
    assert site.states == ["unknown", "unknown"]


def test_a_pause_waits_no_longer_than_it_was_asked_to(site: Site) -> None:
    site.clock.advance(1000)
    site.session().client.feed(b"REQ 1\n", 1)
    answers = site.order("pause", "a", wait=10)
    site.clock.pump([0.1] * 98)
    assert not answers
    site.clock.pump([0.1] * 3)
    assert [answer["idle"] for answer in answers] == [False]


def test_a_resume_leaves_a_server_draining_that_drains_and_ready_does_not(site: Site) -> None:
    for end, state in (("resume", "draining"), ("ready", "unknown")):
        site.order("pause", "a")
        site.order("drain", "a")
        assert site.states[0] == "paused"
        site.order(end, "a")
        assert site.states[0] == state


def test_a_drain_waits_until_the_sessions_of_the_server_have_ended(site: Site) -> None:
    session = site.session()
    site.session(1)
    answers = site.order("drain", "a", wait=10)
    site.clock.advance(1)
    assert not answers
    session.ended("client_closed")
    site.clock.advance(1)
    assert answers == [
        {"upstreams": [{"name": "a", "state": "draining"}], "requests_in_flight": 0, "connections_active": 0}
    ]


def test_a_drain_of_a_server_that_is_made_ready_is_over(site: Site) -> None:
    site.session()
    answers = site.order("drain", "a", wait=10)
    site.order("ready", "a")
    site.clock.advance(1)
    assert [answer["connections_active"] for answer in answers] == [1]


def test_clients_that_wait_are_no_sessions_of_the_only_server(single: Site) -> None:
    single.session()
    single.session()
    single.sessions[0].upstream = None
    assert single.order("drain", "a")[0]["connections_active"] == 1


def test_who_closes_a_session_is_answered_when_it_has_ended(site: Site) -> None:
    number = site.session().number
    answers = site.order("close", number, wait=10)
    assert site.told == ["close"]
    site.clock.advance(1)
    assert not answers
    site.sessions.clear()
    site.clock.advance(1)
    assert answers == [{"id": number, "closed": True, "closes_within_seconds": 1.5}]


def test_who_does_not_wait_learns_that_a_session_is_still_open(site: Site) -> None:
    number = site.session().number
    assert site.order("close", number) == [{"id": number, "closed": False, "closes_within_seconds": 1.5}]


def test_what_is_not_there_is_refused(site: Site) -> None:
    with pytest.raises(Refused):
        site.order("ready", "c")
    assert not site.told


def test_an_order_to_stop_is_answered_before_the_proxy_stops(site: Site) -> None:
    site.session()
    assert site.order("drain_all") == [{"state": "draining", "connections_active": 1}]
    assert not site.told
    site.clock.advance(0)
    assert site.told == ["drain"]


def test_the_log_names_a_user_who_has_no_name_by_number(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    with capturedLogs() as events:
        site.order("ready", "a")
    assert formatEvent(events[0]).startswith("somebody (uid ")
    assert formatEvent(events[0]).endswith(" made upstream a ready")


ORDERS = sorted({rule.endpoint for rule in Control.app.url_map.iter_rules() if "POST" in (rule.methods or ())})


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_is_given_by_a_test(order: str) -> None:
    assert f'"{order}"' in Path(__file__).read_text(), f"write a test here that gives the order {order!r}"


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_is_in_the_log(order: str) -> None:
    # The pauses have their line in common.
    source = inspect.getsource(getattr(Control, order))
    assert "self._note(" in source or "self._pause(" in source, f"log who gave the order {order!r}, with _note"
