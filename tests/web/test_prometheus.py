"""The exposition, the rules and the dashboard with a real Prometheus: promtool's checks, scrapes, queries.

One Prometheus, with the configuration that we ship, watches one proxy that has relayed known traffic; most tests query
it.  Those need Debian's package ``prometheus``, and are skipped without it.
"""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from docutils import nodes

from fooproxy.stats.counters import Stats
from fooproxy.web.exposition import exposition
from tests.helpers.fooserver import PATIENCE, FooServer, FooSession, connect, counted, exchange, free_port, read_lines
from tests.helpers.processes import ROOT, completed, started
from tests.helpers.proxyprocess import Proxy, eventually, fooproxy, settles
from tests.project.test_docs import parsed

FOLDER = ROOT / "contrib" / "prometheus"
CONFIGURATION, RULES, RULES_TEST = (
    FOLDER / name for name in ("prometheus.yml", "fooproxy.rules.yml", "fooproxy.rules.test.yml")
)
BOARD = FOLDER / "grafana-dashboard.json"
DASHBOARD: dict[str, Any] = json.loads(BOARD.read_text())

SELECTORS = re.compile(r"(?:\b\w+:)?\b(?:fooproxy|process)_[\w:]+(?:\{[^}]*\})?")
"""Finds the selectors in an expression: series that are exposed or recorded, with their labels."""

SCRAPE_INTERVAL = "250ms"
BATCH, BATCHES = 20, 60
"""Requests per batch, and the number of batches."""
PACE = 0.1
"""Seconds from one batch to the next: 200 requests/s."""
DELAY = 0.04
"""Seconds by which the server delays its replies."""
WINDOW = 4
"""Seconds of steady traffic that queries cover."""


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (Debian: prometheus)")
    return path


def promtool(*arguments: str | Path, given: str | None = None) -> tuple[int, str, str]:
    """Run promtool; return its exit status, standard output and standard error."""
    done = completed([program("promtool"), *arguments], given=given)
    return done.returncode, done.stdout, done.stderr


def get(port: int, path: str, accept: str = "*/*") -> tuple[int, str, str]:
    """Return the status, the content type and the body."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
        connection.request("GET", path, headers={"Accept": accept})
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Content-Type", ""), answer.read().decode()


class Prometheus:
    """A running Prometheus, queried through its HTTP API."""

    def __init__(self, port: int) -> None:
        self._port = port

    @property
    def ready(self) -> bool:
        return get(self._port, "/-/ready")[0] == 200

    def ask(self, path: str, **parameters: str | float) -> Any:
        _, _, body = get(self._port, f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        answer = json.loads(body)
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def query(self, expression: str, at: float | None = None) -> list[float]:
        """Return the values of an instant query, for now or for a time in seconds since 1970."""
        when: dict[str, str | float] = {} if at is None else {"time": at}
        return [float(sample["value"][1]) for sample in self.ask("query", query=expression, **when)["result"]]

    def target(self, job: str = "fooproxy") -> dict[str, Any]:
        """Return the only target of a job, after it has been scraped."""

        def scraped() -> dict[str, Any] | None:
            targets = [target for target in self.ask("targets")["activeTargets"] if target["labels"]["job"] == job]
            return next((target for target in targets if target["health"] != "unknown"), None)

        target = eventually(scraped)
        assert target is not None
        return target

    def rules(self, kind: str) -> list[dict[str, Any]]:
        """Return the rules of a kind (alerting or recording), after each has been evaluated."""

        def evaluated() -> list[dict[str, Any]] | None:
            rules = [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]
            return None if any(rule["health"] == "unknown" for rule in rules) else rules

        rules = eventually(evaluated)
        assert rules is not None
        return [rule for rule in rules if rule["type"] == kind]


@contextmanager
def prometheus(folder: Path, configuration: str) -> Iterator[Prometheus]:
    """Run a Prometheus that keeps all its data in `folder`."""
    (folder / "prometheus.yml").write_text(configuration)
    log = folder / "prometheus.log"
    command = [
        program("prometheus"),
        *("--config.file=prometheus.yml", "--storage.tsdb.path=data", "--web.listen-address=127.0.0.1:0"),
    ]
    with (
        log.open("wb") as output,
        started(command, stdout=output, stderr=output, cwd=folder) as process,
    ):

        def listening() -> re.Match[str] | None:
            assert process.poll() is None, log.read_text()
            return re.search(r'"Listening on".* address=127\.0\.0\.1:(\d+)\n', log.read_text())

        match = eventually(listening)
        assert match is not None
        server = Prometheus(int(match[1]))
        eventually(lambda: server.ready)
        yield server


def shipped_configuration(folder: Path, port: int) -> str:
    """Copy our rules to `folder`; return our configuration for a proxy on `port`, with shorter intervals."""
    shutil.copy(RULES, folder)
    text = CONFIGURATION.read_text()
    for ours, theirs in (("127.0.0.1:8088", f"127.0.0.1:{port}"), ("_interval: 15s", f"_interval: {SCRAPE_INTERVAL}")):
        assert ours in text
        text = text.replace(ours, theirs)
    return text


class Batch(NamedTuple):
    """The time when a batch was sent (seconds since 1970), and the seconds until its last reply arrived."""

    sent_at: float
    latency: float


class Traffic:
    """The batches that were sent, and the counts of requests and replies."""

    def __init__(self, batches: list[Batch], counts: dict[str, int]) -> None:
        self.batches = batches
        self.counts = counts
        self.middle = batches[-1].sent_at
        """The end of a window of steady traffic."""

    @property
    def rate(self) -> float:
        """Requests per second in the window."""
        within = [batch for batch in self.batches if self.middle - WINDOW < batch.sent_at <= self.middle]
        return len(within) * BATCH / WINDOW


def requests(number: int) -> bytes:
    """Return a batch of requests; the server rejects the data of a tenth of them."""
    first = number * BATCH + 1
    return b"".join(b"REQ %d %s\n" % (seq, b"a b" if seq % 10 == 0 else b"ab") for seq in range(first, first + BATCH))


def send(client: socket.socket, session: FooSession, number: int) -> Batch:
    """Send a batch, delay its replies, and read them."""
    expected = len(session.received) + len(requests(number))
    sent_at, begin = time.time(), time.monotonic()
    client.sendall(requests(number))
    eventually(lambda: len(session.received) == expected)
    time.sleep(DELAY)
    session.reply()
    read_lines(client, BATCH)
    return Batch(sent_at, time.monotonic() - begin)


def send_steadily(port: int, server: FooServer) -> Traffic:
    """Send all batches on schedule; a late batch does not delay the others."""
    with connect(port) as client:
        eventually(lambda: server.sessions)
        begin = time.monotonic()
        batches = []
        for number in range(BATCHES):
            time.sleep(max(0.0, begin + number * PACE - time.monotonic()))
            batches.append(send(client, server.sessions[0], number))
    return Traffic(batches, counted(server.received, server.sent))


class Watched(NamedTuple):
    """A proxy, the traffic that it has relayed, and the Prometheus that watched it."""

    proxy: Proxy
    prometheus: Prometheus
    traffic: Traffic


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    program("prometheus")
    folder = tmp_path_factory.mktemp("watched")
    with (
        FooServer(holding=True) as server,
        # Only of several servers there are statistics of each.
        fooproxy(
            folder,
            *("--forward", f"127.0.0.1:{server.port},name=one"),
            *("--forward", f"unix:{folder}/nobody,backup,name=spare"),
        ) as proxy,
        prometheus(folder, shipped_configuration(folder, proxy.http_port)) as watcher,
    ):
        # Rates include the first request only if a scrape has seen the counter at 0.
        settles(lambda: watcher.query('fooproxy_messages_total{type="req"}'), [0.0])
        traffic = send_steadily(proxy.port, server)
        settles(lambda: watcher.query('fooproxy_connections_closed_total{reason="client_closed"}'), [1.0])
        yield Watched(proxy, watcher, traffic)


@pytest.mark.slow
def test_promtool_finds_no_fault_in_the_exposition_of_an_idle_proxy(tmp_path: Path) -> None:
    program("promtool")
    with fooproxy(tmp_path) as proxy:
        _, _, text = get(proxy.http_port, "/metrics", accept="text/plain")
    assert promtool("check", "metrics", given=text) == (0, "", "")


@pytest.mark.slow
def test_promtool_finds_no_fault_in_the_exposition_after_traffic(watched: Watched) -> None:
    _, _, text = get(watched.proxy.http_port, "/metrics", accept="text/plain")
    assert f"fooproxy_request_duration_seconds_count {BATCH * BATCHES}.0" in text
    assert promtool("check", "metrics", given=text) == (0, "", "")


@pytest.mark.slow
def test_promtool_accepts_the_rules() -> None:
    status, output, errors = promtool("check", "rules", RULES)
    assert (status, errors) == (0, "")
    assert "SUCCESS" in output


@pytest.mark.slow
def test_the_rules_pass_their_unit_tests() -> None:
    status, output, errors = promtool("test", "rules", RULES_TEST)
    assert status == 0, output + errors


@pytest.mark.slow
def test_promtool_accepts_the_configuration_and_finds_the_rules_by_it() -> None:
    status, output, errors = promtool("check", "config", CONFIGURATION)
    assert status == 0, output + errors
    assert "1 rule files found" in output


@pytest.mark.slow
def test_prometheus_scrapes_by_our_configuration(watched: Watched) -> None:
    target = watched.prometheus.target()
    assert (target["health"], target["lastError"]) == ("up", "")
    assert target["labels"] == {"instance": f"127.0.0.1:{watched.proxy.http_port}", "job": "fooproxy"}


@pytest.mark.slow
def test_a_rate_is_what_was_sent_per_second(watched: Watched) -> None:
    rate = watched.prometheus.query(
        f'rate(fooproxy_messages_total{{type="req"}}[{WINDOW}s])', at=watched.traffic.middle
    )
    # A scrape that is late at an end of the window costs a part of it.
    assert rate == [pytest.approx(watched.traffic.rate, rel=0.3)]


@pytest.mark.slow
def test_an_increase_over_all_the_traffic_is_what_was_sent(watched: Watched) -> None:
    # Prometheus extrapolates by up to a scrape interval at each end.
    increase = watched.prometheus.query('increase(fooproxy_messages_total{type="req"}[10m])')
    assert increase == [pytest.approx(BATCH * BATCHES, rel=0.1)]


@pytest.mark.slow
def test_counters_are_exactly_what_was_sent_and_answered(watched: Watched) -> None:
    expected = {
        'fooproxy_messages_total{type="req"}': BATCH * BATCHES,
        'fooproxy_messages_total{type="ack"}': watched.traffic.counts["msg_ack"],
        'fooproxy_messages_total{type="nak"}': watched.traffic.counts["msg_nak"],
        'fooproxy_received_bytes_total{leg="client"}': watched.traffic.counts["bytes_from_clients"],
        'fooproxy_received_bytes_total{leg="upstream"}': watched.traffic.counts["bytes_from_upstream"],
        "sum(fooproxy_invalid_messages_total)": 0,
        "fooproxy_misdirected_messages_total": 0,
        "fooproxy_responses_unmatched_total": 0,
        "fooproxy_requests_in_flight": 0,
        "fooproxy_connections_total": 1,
        "fooproxy_connections_active": 0,
        "sum(fooproxy_connections_closed_total)": 1,
        "sum(fooproxy_upstream_connect_failures_total)": 0,
        "fooproxy_request_duration_seconds_count": BATCH * BATCHES,
        'fooproxy_request_duration_seconds_bucket{le="+Inf"}': BATCH * BATCHES,
    }
    assert {name: watched.prometheus.query(name) for name in expected} == {
        name: [float(value)] for name, value in expected.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("quantile", [0.5, 0.99])
def test_a_quantile_is_the_servers_delay_to_a_bucket(watched: Watched, quantile: float) -> None:
    # The latency that the proxy measures lies between the delay and what the client measures.
    least, most = DELAY, max(batch.latency for batch in watched.traffic.batches)
    (found,) = watched.prometheus.query(
        f"histogram_quantile({quantile}, rate(fooproxy_request_duration_seconds_bucket[{WINDOW}s]))",
        at=watched.traffic.middle,
    )
    bounds = [2**power / 1e6 for power in range(6, 27)]
    assert max(bound for bound in bounds if bound < least) < found <= min(bound for bound in bounds if bound > most)


@pytest.mark.slow
def test_the_sum_of_durations_is_between_the_servers_delay_and_what_the_client_waited(watched: Watched) -> None:
    (total,) = watched.prometheus.query("fooproxy_request_duration_seconds_sum")
    waited = sum(batch.latency for batch in watched.traffic.batches)
    assert BATCH * BATCHES * DELAY < total < BATCH * waited


class Through:
    """Forwards scrapes to a proxy, unchanged or with another ``Accept``; records the content types."""

    def __init__(self, port: int, accept: str | None) -> None:
        self.content_types: set[str] = set()
        through = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, content_type, body = get(port, self.path, accept or self.headers["Accept"])
                through.content_types.add(content_type.partition(";")[0])
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Through:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(PATIENCE)
        self._server.server_close()


FORMATS = {"application/openmetrics-text": None, "text/plain": "text/plain;version=0.0.4;q=1,*/*;q=0.1"}
"""What is read, and how it is asked for: as Prometheus does by itself, and as one without OpenMetrics does."""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, dict[str, Through]]]:
    """A Prometheus that reads one proxy in both formats, each as a job of its own, and what hands them on."""
    program("prometheus")
    folder = tmp_path_factory.mktemp("both")
    with fooproxy(folder) as proxy, ExitStack() as stack:
        ways = {name: stack.enter_context(Through(proxy.http_port, accept)) for name, accept in FORMATS.items()}
        jobs = [
            {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{through.port}"]}]}
            for name, through in ways.items()
        ]
        # JSON is YAML.
        configuration = json.dumps({"global": {"scrape_interval": SCRAPE_INTERVAL}, "scrape_configs": jobs})
        yield stack.enter_context(prometheus(folder, configuration)), ways


@pytest.mark.slow
@pytest.mark.parametrize("content_type", FORMATS)
def test_prometheus_reads_either_format(both: tuple[Prometheus, dict[str, Through]], content_type: str) -> None:
    watcher, ways = both
    target = watcher.target(content_type)
    assert (target["health"], target["lastError"]) == ("up", "")
    settles(lambda: watcher.query(f'fooproxy_ready{{job="{content_type}"}}'), [1.0])
    bucket = f'fooproxy_request_duration_seconds_bucket{{le="6.4e-05", job="{content_type}"}}'
    assert watcher.query(bucket) == [0.0]
    assert ways[content_type].content_types == {content_type}


@pytest.mark.slow
def test_every_rule_can_be_evaluated_and_none_fires_at_a_healthy_proxy(watched: Watched) -> None:
    rules = watched.prometheus.rules("alerting") + watched.prometheus.rules("recording")
    assert {rule["name"]: rule.get("lastError", "") for rule in rules if rule["health"] != "ok"} == {}
    assert [rule["name"] for rule in rules if rule.get("state") == "firing"] == []


ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "alert" in rule
]


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_how_grave_it_is_what_happened_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule.get("for", "0s") != "0s"
    assert set(rule["annotations"]) == {"summary", "description"}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
@pytest.mark.parametrize("expected", [r" \[\]$", r"(?! \[\])"], ids=["it is silent", "it fires"])
def test_an_alert_has_a_unit_test_in_which(rule: dict[str, Any], expected: str) -> None:
    check = rf"alertname: {rule['alert']}\n +eval_time: \w+\n +exp_alerts:{expected}"
    assert re.search(check, RULES_TEST.read_text(), re.MULTILINE), (
        f"give {rule['alert']} a test in contrib/prometheus/{RULES_TEST.name}"
    )


@pytest.mark.slow
def test_the_rules_record_rates_shares_and_quantiles_of_the_traffic(watched: Watched) -> None:
    eventually(lambda: watched.prometheus.query("instance:fooproxy_requests:rate5m > 0"))
    assert watched.prometheus.query("instance:fooproxy_naks:ratio_rate5m") == [pytest.approx(0.1, rel=0.1)]
    (p99,) = watched.prometheus.query("instance:fooproxy_request_duration_seconds:p99_5m")
    assert p99 > DELAY / 2


def test_alerts_have_both_severities() -> None:
    assert {rule["labels"]["severity"] for rule in ALERTS} == {"critical", "warning"}


def test_only_alerts_that_there_are_have_unit_tests() -> None:
    tested = set(re.findall(r"alertname: (\w+)$", RULES_TEST.read_text(), re.MULTILINE))
    assert tested == {rule["alert"] for rule in ALERTS}


@pytest.mark.slow
def test_every_selector_in_the_rules_selects_something(watched: Watched) -> None:
    rules = watched.prometheus.rules("alerting") + watched.prometheus.rules("recording")
    selectors = {selector for rule in rules for selector in SELECTORS.findall(rule["query"])}
    assert selectors
    # Recorded series appear only after a second scrape of the traffic.
    settles(lambda: {selector for selector in selectors if not watched.prometheus.query(selector)}, set())


PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [
    pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
    for panel in PANELS
    for target in panel["targets"]
]
EXPRESSIONS: list[str] = [target["expr"] for panel in PANELS for target in panel["targets"]]


@pytest.mark.slow
@pytest.mark.parametrize("expression", TARGETS)
def test_the_dashboards_expression_has_an_answer(watched: Watched, expression: str) -> None:
    asked = expression.replace("$__rate_interval", "10m").replace("$instance", f"127.0.0.1:{watched.proxy.http_port}")
    assert "$" not in asked
    assert eventually(lambda: watched.prometheus.query(asked))


SEEN_OTHERWISE = {
    "fooproxy_build_info": "the list of instances has the version",
    "fooproxy_lookups_failing": "the alert FooproxyLookupsFailing",
    "fooproxy_upstreams": "the alert FooproxyUpstreamDown",
    "fooproxy_upstreams_up": "the alert FooproxyUpstreamDown",
}
"""Series of which no panel of the dashboard tells, and what tells of them instead."""


def names_in(expression: str) -> set[str]:
    """Return the names of the series that an expression asks for."""
    return {selector.partition("{")[0] for selector in SELECTORS.findall(expression)}


NAMED = {name for expression in EXPRESSIONS for name in names_in(expression)}


def exposed() -> set[str]:
    """Return the names of all series that a proxy with several servers exposes, and of those that the rules record."""
    scraped = exposition(Stats(time.monotonic, servers=["one"]), True, "text/plain", {"one": "up"})
    assert scraped is not None
    recorded = re.findall(r"^ +- record: (\S+)$", RULES.read_text(), re.MULTILINE)
    return {*re.findall(r"^\w+", scraped[1].decode(), re.MULTILINE), *recorded}


def test_the_dashboard_tells_of_every_series() -> None:
    # A quantile takes the buckets, and neither their sum nor their count.
    names = {name for name in exposed() if re.match("fooproxy_.*(?<!_seconds_sum)(?<!_seconds_count)$", name)}
    untold = sorted(names - NAMED - SEEN_OTHERWISE.keys())
    assert not untold, f"give {untold} a panel in contrib/prometheus/{BOARD.name}, or say here what tells of it instead"
    needless = sorted(SEEN_OTHERWISE.keys() - (names - NAMED))
    assert not needless, f"take {needless} out of SEEN_OTHERWISE: the dashboard tells of it, or it is not exposed"


@pytest.mark.parametrize("file", [BOARD, RULES], ids=lambda file: file.name)
def test_what_is_named_beside_the_proxy_is_exposed(file: Path) -> None:
    expressions = EXPRESSIONS if file == BOARD else [rule["expr"] for rule in ALERTS]
    named = {name for expression in expressions for name in names_in(expression)}
    unknown = named - exposed()
    assert not unknown, f"{file.name} asks for what the proxy does not expose: {sorted(unknown)}"


def test_the_dashboards_expressions_look_at_the_chosen_instances_alone() -> None:
    selectors = [selector for expression in EXPRESSIONS for selector in SELECTORS.findall(expression)]
    assert [selector for selector in selectors if 'instance=~"$instance"' not in selector] == []


def test_the_dashboard_can_be_imported_and_asks_which_prometheus_to_use() -> None:
    assert DASHBOARD["id"] is None
    assert DASHBOARD["schemaVersion"] == 38
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    source = {"type": "prometheus", "uid": "${datasource}"}
    users = [variables["instance"], *PANELS, *(target for panel in PANELS for target in panel["targets"])]
    assert [user for user in users if user["datasource"] != source] == []


def test_the_dashboards_panels_say_what_they_show_and_in_which_unit() -> None:
    assert [panel["title"] for panel in PANELS if not panel["description"].endswith(".")] == []
    units = {
        panel["title"]: panel["fieldConfig"]["defaults"].get("unit")
        or panel.get("options", {}).get("yAxis", {}).get("unit")
        for panel in PANELS
    }
    assert [title for title, unit in units.items() if not unit] == []


def test_the_dashboards_panels_fill_the_grid_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert sum(place["w"] * place["h"] for place in places) == 24 * max(place["y"] + place["h"] for place in places)
    assert [place for place in places if place["x"] + place["w"] > 24] == []
    assert [
        (one, other)
        for one, other in combinations(places, 2)
        if one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    ] == []


def test_the_readme_tells_of_each_file_beside_it() -> None:
    named = {node.astext() for node in parsed("contrib/prometheus/README.rst").findall(nodes.literal)}
    files = {path.name for path in FOLDER.iterdir()} - {"README.rst"}
    assert files - named == set()


def ask_many(port: int, requests: int) -> None:
    """Have so many requests answered."""
    lines = b"".join(b"REQ %d a\n" % (number + 1) for number in range(requests))
    assert exchange(port, lines).count(b"\n") == requests


@pytest.mark.slow
def test_a_crash_whose_last_second_was_not_saved_is_no_second_start_of_the_counters(tmp_path: Path) -> None:
    program("prometheus")
    query = 'increase(fooproxy_messages_total{type="req"}[2m])'
    with FooServer() as server, ExitStack() as stack:
        port = free_port()
        with fooproxy(tmp_path, "--http", f"127.0.0.1:{port}", upstream=server.port) as proxy:
            watcher = stack.enter_context(prometheus(tmp_path, shipped_configuration(tmp_path, port)))
            settles(lambda: watcher.query('fooproxy_messages_total{type="req"}'), [0.0])
            ask_many(proxy.port, 1000)
            settles(lambda: watcher.query('fooproxy_messages_total{type="req"}'), [1000.0])
            proxy.signal(signal.SIGKILL)
            proxy.process.wait(PATIENCE)
        # As if the last of them had come after the last save.
        path = tmp_path / "recovery.json"
        saved = json.loads(path.read_text())
        saved["counters"]["client_req"] = 990
        path.write_text(json.dumps(saved))
        again = stack.enter_context(fooproxy(tmp_path, "--http", f"127.0.0.1:{port}", upstream=server.port))
        assert again.stats("msg_req") == {"msg_req": 990}
        settles(lambda: watcher.query('fooproxy_messages_total{type="req"}'), [0.0])
        ask_many(again.port, 500)
        settles(lambda: watcher.query('fooproxy_messages_total{type="req"}'), [500.0])
        assert again.stats("msg_req") == {"msg_req": 1490}
        # Prometheus extrapolates to the edges of its window.
        assert watcher.query(query) == [pytest.approx(1500, rel=0.25)]
