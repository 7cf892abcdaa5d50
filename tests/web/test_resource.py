"""The web side, in memory: what each URL answers."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from treq.testing import StubTreq
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from fooproxy import __version__
from fooproxy.core import IMPLEMENTATION
from fooproxy.health import Health
from fooproxy.stats.counters import Stats
from fooproxy.stats.session import SessionStats
from fooproxy.web import overview
from fooproxy.web.resource import Web

OPTIONS = {"file": None, "options": {"listen": {"value": "8002", "source": "command line", "place": "--listen"}}}


class Reachability:
    """A fake upstream."""

    name = "127.0.0.1:8001"
    error: str | None = None
    reason: str | None = None
    state = "up"
    silence = since = 0.0
    weight, backup = 1, False
    slots = check = held = links = oldest_wait = None
    waiting = ()

    def __init__(self) -> None:
        self.probes = 0
        self.failed_ago = 0.0
        self.servers = [self]

    def unreachable(self, within: float) -> str | None:
        return self.error if self.failed_ago <= within else None

    async def probe(self, timeout: float) -> None:
        self.probes += 1
        self.error, self.reason = "refused", "upstream_refused"


class Answer:
    def __init__(self, response: Any, body: bytes) -> None:
        self.status = response.code
        self.body = body
        self._headers = response.headers

    def header(self, name: str) -> str:
        return str((self._headers.getRawHeaders(name) or [""])[0])

    @property
    def json(self) -> Any:
        assert self.header("Content-Type") == "application/json"
        return json.loads(self.body)


class Site:
    def __init__(self) -> None:
        self.now = 0.0
        self.stats = Stats(lambda: self.now)
        self.upstream = Reachability()
        self.recovery: dict[str, Any] = {"path": "recovery.json", "failing": False, "saved_seconds_ago": 0.5}
        upstream: Any = self.upstream
        self.busy = self.loops = False
        warnings = {"recovery_failing": lambda: self.recovery["failing"]}
        self.health = Health(upstream, lambda: self.busy, lambda: self.loops, warnings)
        self.health.starting = False
        self.wall = 1000.0
        self.discovery: list[dict[str, Any]] = []
        self._web = Web(
            *(self.stats, self.health, upstream, [], lambda: self.recovery, lambda: self.wall, lambda: OPTIONS),
            identity=lambda: {"host": "here", "pid": 7},
            discovery=lambda: self.discovery,
        )
        self._treq: Any = StubTreq(self._web.app.resource())

    def say(self, head: bytes) -> bytes:
        """Send raw bytes to the real site, and return its raw answer."""
        clock = Clock()
        channel: Any = self._web.site(clock).buildProtocol(None)
        transport = StringTransport()
        channel.makeConnection(transport)
        channel.dataReceived(head)
        clock.advance(0)
        channel.connectionLost(Failure(ConnectionDone()))
        answer: bytes = transport.value()
        return answer

    def ask(self, path: str, method: str = "GET", **headers: str) -> Answer:
        response = _now(self._treq.request(method, f"http://fooproxy{path}", headers=headers))
        return Answer(response, _now(self._treq.content(response)))


def _now(deferred: Any) -> Any:
    results: list[Any] = []
    deferred.addBoth(results.append)
    return results[0]


@pytest.fixture
def site() -> Site:
    return Site()


def test_stats_is_the_report(site: Site) -> None:
    SessionStats(site.stats).client.feed(b"REQ 1\n", 0)
    answer = site.ask("/stats")
    assert answer.status == 200
    assert list(answer.json) == [field.name for field in Stats.reported]
    assert answer.json["msg_req"] == 1


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "application/json",
        "application/json, text/plain, */*",
        "text/plain;q=0.5, application/json",
        "text/plain;q=0",
    ],
)
def test_metrics_is_the_report_unless_a_text_type_is_asked_for(site: Site, accept: str) -> None:
    assert site.ask("/metrics", Accept=accept).json == site.ask("/stats").json


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("text/plain", "text/plain"),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", "text/plain"),
        ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", "application/openmet"),
    ],
)
def test_metrics_is_the_exposition_when_a_text_type_is_asked_for(site: Site, accept: str, content_type: str) -> None:
    session = SessionStats(site.stats)
    session.client.feed(b"REQ 1\nREQ 2\n\n", 0)
    session.upstream.feed(b"NAK 1\n", 1)
    answer = site.ask("/metrics", Accept=accept)
    assert answer.header("Content-Type").startswith(content_type)
    lines = answer.body.decode().splitlines()
    for line in (
        'fooproxy_messages_total{type="req"} 2.0',
        'fooproxy_messages_total{type="nak"} 1.0',
        'fooproxy_invalid_messages_total{leg="client"} 1.0',
        'fooproxy_received_bytes_total{leg="client"} 13.0',
        "fooproxy_connections_total 1.0",
        "fooproxy_connections_active 1.0",
        f'fooproxy_build_info{{implementation="{IMPLEMENTATION}",version="{__version__}"}} 1.0',
    ):
        assert line in lines
    assert not [line for line in lines if "_created" in line]
    assert [line for line in lines if line.startswith("process_resident_memory_bytes")]


@pytest.mark.parametrize("path", ["/health", "/heartbeat", "/status"])
def test_liveness_never_looks_upstream(site: Site, path: str) -> None:
    site.upstream.error = "refused"
    site.health.draining = True
    answer = site.ask(path)
    assert (answer.status, answer.json) == (200, {"status": "OK!"})


def test_ready_says_yes_or_why_not(site: Site) -> None:
    assert site.ask("/ready").status == 200
    site.upstream.error, site.upstream.reason = "bad certificate", "upstream_tls"
    site.health.draining = True
    answer = site.ask("/ready")
    assert answer.status == 503
    reasons = ["draining", "upstream_unreachable", "upstream_tls"]
    assert answer.json == {"ready": False, "reasons": reasons, "warnings": []}


def test_an_upstream_that_is_unreachable_for_no_special_reason_is_named_once(site: Site) -> None:
    site.upstream.error, site.upstream.reason = "No route to host", "upstream_unreachable"
    assert site.ask("/ready").json["reasons"] == ["upstream_unreachable"]


def test_a_failing_recovery_is_a_warning_and_no_reason_to_send_traffic_elsewhere(site: Site) -> None:
    site.recovery["failing"] = True
    answer = site.ask("/ready")
    assert answer.status == 200
    assert answer.json["warnings"] == ["recovery_failing"]


def test_being_asked_for_readiness_looks_at_an_upstream_that_was_long_silent(site: Site) -> None:
    site.ask("/ready")
    assert site.upstream.probes == 0
    site.upstream.silence = 6.0
    answer = site.ask("/ready")
    assert site.upstream.probes == 1
    assert (answer.status, answer.json["reasons"]) == (503, ["upstream_unreachable", "upstream_refused"])


def test_sessions_say_that_the_upstream_is_there_only_if_the_last_attempt_has_not_failed(site: Site) -> None:
    site.busy, site.upstream.silence = True, 6.0
    assert site.ask("/ready").status == 200
    assert site.upstream.probes == 0
    site.upstream.state = "down"
    assert site.ask("/ready").status == 503


def test_a_scrape_looks_again_at_an_upstream_that_was_unreachable_and_at_no_other(site: Site) -> None:
    site.upstream.silence = 6.0
    assert b"\nfooproxy_ready 1.0\n" in site.ask("/metrics", Accept="text/plain").body
    assert site.upstream.probes == 0
    # The failure itself is forgotten by now.
    site.upstream.state = "down"
    assert b"\nfooproxy_ready 0.0\n" in site.ask("/metrics", Accept="text/plain").body


def test_setting_the_clock_is_not_taken_for_a_restart(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def started() -> list[bytes]:
        lines = site.ask("/metrics", Accept="text/plain").body.splitlines()
        return [line for line in lines if line.startswith(b"process_start_time_seconds ")]

    before, now = started(), time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    assert len(before) == 1
    assert started() == before


def test_a_proxy_that_forwards_to_itself_is_not_ready(site: Site) -> None:
    site.loops = True
    answer = site.ask("/ready")
    assert (answer.status, answer.json["reasons"]) == (503, ["loop"])


def test_the_proxy_is_not_ready_for_ten_seconds_after_a_failed_attempt_to_connect(site: Site) -> None:
    site.upstream.error, site.upstream.reason = "refused", "upstream_refused"
    site.upstream.failed_ago = 10.0
    assert site.ask("/ready").status == 503
    site.upstream.failed_ago = 10.1
    assert site.ask("/ready").json == {"ready": True, "reasons": [], "warnings": []}


def test_an_upstream_that_is_unreachable_for_an_unknown_reason_has_no_second_word(site: Site) -> None:
    site.upstream.error = "something odd"
    assert site.ask("/ready").json["reasons"] == ["upstream_unreachable"]


def test_each_time_that_the_upstream_was_silent_for_more_than_five_seconds_it_is_tested_again(site: Site) -> None:
    site.upstream.silence = 5.0
    site.ask("/ready")
    assert site.upstream.probes == 0
    site.upstream.silence = 5.1
    site.ask("/ready")
    site.ask("/ready")
    assert site.upstream.probes == 2


def test_sessions_say_that_an_upstream_is_there_of_which_nothing_else_is_known(site: Site) -> None:
    site.busy, site.upstream.silence, site.upstream.state = True, 6.0, "unknown"
    assert site.ask("/ready").status == 200
    assert site.upstream.probes == 0


def test_a_proxy_is_not_ready_before_its_service_has_started(site: Site) -> None:
    upstream: Any = site.upstream
    assert Health(upstream, bool, bool, {}).reasons() == ["starting"]


def test_many_who_ask_make_one_check_and_may_leave(site: Site) -> None:
    done: Deferred[None] = Deferred()
    probes: list[float] = []

    async def probe(timeout: float) -> None:
        probes.append(timeout)
        await done

    site.upstream.silence = 6.0
    site.upstream.probe = probe  # type: ignore[method-assign]
    asked = [Deferred.fromCoroutine(site.health.check()) for _ in range(3)]
    left: list[Any] = []
    asked[0].addErrback(left.append)
    asked[0].cancel()
    done.callback(None)
    assert probes == [1.0]
    assert len(left) == 1
    assert [deferred.called for deferred in asked] == [True] * 3
    assert site.upstream.error is None


def test_the_end_of_a_very_long_list_of_types_is_not_looked_at(site: Site) -> None:
    many = "a/b;q=0.1," * 190
    assert site.ask("/metrics", Accept=f"{many}text/plain").header("Content-Type").startswith("text/plain")
    assert site.ask("/metrics", Accept=f"{2 * many}text/plain").json == site.ask("/stats").json


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=abc", "text/plain;version=x;escaping=zzz"])
def test_a_version_that_is_none_gets_an_exposition_all_the_same(site: Site, accept: str) -> None:
    assert site.ask("/metrics", Accept=accept).status == 200


def test_each_connection_answers_one_request(site: Site) -> None:
    answer = site.say(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
    assert answer.count(b"HTTP/1.1 200") == 1
    assert b"Connection: close" in answer


def test_a_proxy_that_still_starts_is_not_ready(site: Site) -> None:
    site.health.starting = True
    answer = site.ask("/ready")
    assert (answer.status, answer.json["reasons"]) == (503, ["starting"])


def test_live_has_all_that_the_page_shows(site: Site) -> None:
    session = SessionStats(site.stats)
    session.client.feed(b"REQ 1\n", 0)
    site.stats.history.record()
    session.upstream.feed(b"ACK 1\n", 2_000)
    site.now = 1.0
    site.stats.history.record()
    answer = site.ask("/live").json
    # Apart from values that depend on the instant, it equals the answers of the other resources.
    assert answer["report"] == site.ask("/stats").json
    assert answer["history"] == site.ask("/history").json
    assert answer["connections"] == site.ask("/connections").json == {"total": 0, "matching": 0, "connections": []}
    assert answer["health"] == site.ask("/ready").json
    assert answer["recovery"] == site.recovery
    assert answer["upstream"] == {
        "address": "127.0.0.1:8001",
        "state": "up",
        "reason": None,
        "error": None,
    }
    assert answer["history"]["responses"] == [1]
    assert answer["started"] == 1000.0
    assert answer["process"] == {"host": "here", "pid": 7}
    assert answer["verdict"]["state"] == "ok"
    (bucket,) = answer["latency_buckets"]
    assert bucket[0] == pytest.approx(0.002, rel=0.07)
    assert bucket[1] == 1


def test_live_says_what_is_wrong_with_the_upstream(site: Site) -> None:
    site.upstream.state, site.upstream.error, site.upstream.reason = "down", "refused", "upstream_refused"
    found = site.ask("/live").json["upstream"]
    assert (found["state"], found["error"], found["reason"]) == ("down", "refused", "upstream_refused")


def test_live_names_what_servers_are_looked_up_under_while_there_are_none(site: Site) -> None:
    site.upstream.servers = []
    site.stats.most_servers = 64
    site.discovery = [{"name": "dns:foo.example:8001"}, {"name": "dns:bar.example:8001"}]
    assert site.ask("/live").json["upstream"]["address"] == "dns:foo.example:8001, dns:bar.example:8001"


def test_upstreams_has_what_is_known_of_names(site: Site) -> None:
    site.discovery = [{"name": "dns:foo.example:8001"}]
    found = site.ask("/upstreams").json
    assert found["discovery"] == site.discovery


def test_the_time_at_which_the_proxy_was_started_stays(site: Site) -> None:
    site.wall += 60
    assert site.ask("/live").json["started"] == 1000.0


def test_history_begins_after_the_second_that_is_asked_for(site: Site) -> None:
    for _ in range(3):
        site.now += 1
        site.stats.history.record()
    last = site.ask("/history").json["last"]
    assert len(site.ask(f"/history?since={last - 1}").json["responses"]) == 1
    assert [site.ask(f"/history?since={number}").status for number in (1 << 40, (1 << 40) + 1)] == [200, 400]


def test_a_hundred_clients_are_listed_unless_another_number_is_asked_for(site: Site) -> None:
    for number in range(120):
        SessionStats(site.stats).accepted(f"192.0.2.{number}:5")
    assert len(site.ask("/clients").json["clients"]) == 100
    assert len(site.ask("/clients?limit=7").json["clients"]) == 7


def test_clients_are_listed(site: Site) -> None:
    session = SessionStats(site.stats)
    session.accepted("192.0.2.1:5")
    answer = site.ask("/clients").json
    assert [client["client"] for client in answer["clients"]] == ["192.0.2.1"]


@pytest.mark.parametrize(
    "path",
    [
        "/history?since=1e5",
        "/clients?limit=2000",
        "/connections?sort=paused",
        f"/connections?filter={'x' * 101}",
        f"/clients?limit={'9' * 5000}",
    ],
)
def test_a_wrong_parameter_is_a_400_that_says_what_would_be_right(site: Site, path: str) -> None:
    answer = site.ask(path)
    assert answer.status == 400
    assert "must be" in answer.json["error"]


def test_version_is_the_packages(site: Site) -> None:
    assert site.ask("/version").json == {"version": __version__, "implementation": IMPLEMENTATION}


@pytest.mark.parametrize(
    ("path", "content_type"), [("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")]
)
def test_the_page_and_its_parts_are_served(site: Site, path: str, content_type: str) -> None:
    answer = site.ask(path)
    assert answer.status == 200
    assert answer.header("Content-Type").startswith(content_type)
    assert len(answer.body) > 300


@pytest.mark.parametrize("path", ["/nothing", "/stats/", "/%3Cscript%3E", "/static/../web.py", "//stats/x"])
def test_other_paths_are_404_in_json_and_not_repeated(site: Site, path: str) -> None:
    answer = site.ask(path)
    assert (answer.status, answer.json) == (404, {"error": "not found"})


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"])
@pytest.mark.parametrize("path", ["/", "/stats", "/metrics", "/health", "/ready"])
def test_other_methods_are_405_in_json_with_allow(site: Site, path: str, method: str) -> None:
    answer = site.ask(path, method)
    assert (answer.status, answer.json) == (405, {"error": "method not allowed"})
    assert answer.header("Allow") == "GET, HEAD"


@pytest.mark.parametrize("path", ["/", "/stats", "/metrics", "/health", "/ready"])
def test_head_is_get_without_the_body(site: Site, path: str) -> None:
    head, get = site.ask(path, "HEAD"), site.ask(path)
    assert (head.status, head.body) == (get.status, b"")
    assert head.header("Content-Type") == get.header("Content-Type")


@pytest.mark.parametrize(("path", "method"), [("/", "GET"), ("/stats", "GET"), ("/nothing", "GET"), ("/stats", "POST")])
def test_every_answer_has_the_security_headers(site: Site, path: str, method: str) -> None:
    answer = site.ask(path, method)
    assert "default-src 'none'" in answer.header("Content-Security-Policy")
    assert answer.header("X-Content-Type-Options") == "nosniff"
    assert answer.header("X-Frame-Options") == "DENY"
    assert answer.header("Cache-Control") == "no-store"
    assert answer.header("Server") == "fooproxy"


def test_a_defect_is_a_500_without_details(site: Site) -> None:
    site.stats.report = None  # type: ignore[assignment,method-assign]
    answer = site.ask("/stats")
    assert (answer.status, answer.json) == (500, {"error": "internal server error"})


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /stats HTTP/1.1\r\nHost: x\r\n", 200),
        (b"GET /stats HTTP/1.1\r\nHost: " + b"a" * 300 + b"..\r\n", 200),
        (b"GET /stats HTTP/1.1\r\nHost: \xff\xfe\r\n", 200),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: \xff\r\n", 200),
        (b"GET http://elsewhere/version HTTP/1.1\r\nHost: x\r\n", 200),
        (b"GET /stats?%ff=1 HTTP/1.1\r\nHost: x\r\n", 200),
        (b"GET /%ff HTTP/1.1\r\nHost: x\r\n", 404),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n", 405),
    ],
)
def test_odd_requests_get_proper_answers(site: Site, head: bytes, status: int) -> None:
    answer = site.say(head + b"Connection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"application/json" in answer
    assert b"Traceback" not in answer


def test_a_body_is_dropped_as_it_comes(site: Site) -> None:
    answer = site.say(b"POST /stats HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000)
    assert answer.startswith(b"HTTP/1.1 405 ")


@pytest.mark.parametrize("endpoint", sorted(Web.app.endpoints))
def test_a_route_says_what_it_answers_and_only_reads(endpoint: str) -> None:
    meaning = (getattr(Web, endpoint).__doc__ or "").partition("\n")[0]
    assert re.match(r"[A-Z0-9].*", meaning), f"write a docstring for {endpoint}: its first line is the table's row"
    for rule in Web.app.url_map.iter_rules(endpoint):
        assert rule.methods == {"GET", "HEAD"}, f"{rule.rule} must have methods=['GET']"


@pytest.mark.parametrize("route", sorted({rule.rule for rule in Web.app.url_map.iter_rules()} - {"/<name>"}))
def test_a_route_is_asked_by_a_test(route: str) -> None:
    assert re.search(rf'"{route}[?"]', Path(__file__).read_text()), f"write a test here that asks for {route}"


def test_a_proxy_that_drains_makes_no_attempt_to_connect_when_it_is_asked_whether_it_is_ready(site: Site) -> None:
    site.upstream.silence = 60
    site.health.draining = True
    answer = site.ask("/ready")
    assert (answer.status, answer.json["reasons"]) == (503, ["draining"])
    assert site.upstream.probes == 0
    site.health.draining = False
    site.ask("/ready")
    assert site.upstream.probes == 1


def test_sessions_without_a_value_come_last_and_within_the_limit() -> None:
    stats = Stats(lambda: 1.0)
    quick, *others = [SessionStats(stats) for _ in range(4)]
    quick.client.feed(b"REQ 1\n", 1)
    quick.upstream.feed(b"ACK 1\n", 9)
    sessions: Any = [FakeSession(session) for session in [*others, quick]]
    for descending in (True, False):
        for limit in (0, 1, 2, 9):
            found = overview.connections(stats, sessions, "latency_p50_seconds", descending, limit)
            numbers = [session["id"] for session in found["connections"]]
            assert len(numbers) == min(limit, 4)
            assert numbers[:1] == [quick.number][:limit]


class FakeSession:
    """As much of a session as the overview reads."""

    state = "connecting"
    upstream = None
    paused: tuple[str, ...] = ()

    class client:
        peer = "192.0.2.1:5"

    def __init__(self, observer: SessionStats) -> None:
        self.observer = observer


def test_config_is_the_options_in_force(site: Site) -> None:
    answer = site.ask("/config")
    assert (answer.status, answer.json) == (200, OPTIONS)
