"""What an operator sees of the real process: latency, sessions, clients, history, readiness, and why sessions ended."""

from __future__ import annotations

import gzip
import http.client
import json
import math
import re
import signal
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fooserver import PATIENCE, FooServer, connect, exchange, read_lines, read_to_end, reset
from tests.helpers.proxyprocess import Proxy, eventually, fooproxy, settles

pytestmark = pytest.mark.slow

PRECISION = 0.04
"""A percentile is read from buckets, and off by at most half of one, 3.2 %."""


@pytest.fixture
def server() -> Iterator[FooServer]:
    with FooServer() as server:
        yield server


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy that several tests only ask over HTTP."""
    with fooproxy(tmp_path_factory.mktemp("idle")) as proxy:
        yield proxy


@contextmanager
def late_server(delays: list[float], took: list[float]) -> Iterator[int]:
    """Serve one session: each chunk of requests is answered after the next of `delays`, invalid lines as servers do.

    How long each of them took by the server's clock is appended to `took`.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        peer, _ = listener.accept()
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with closing(peer):
            for delay in delays:
                lines = peer.recv(1 << 16).splitlines()
                received_at = time.perf_counter()
                time.sleep(delay)
                replies = b"".join(b"ACK 1\n" if line.startswith(b"REQ") else b"NAK 0 ERRDECODE\n" for line in lines)
                took.append(time.perf_counter() - received_at)
                peer.sendall(replies)
            peer.recv(1)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        thread.join(PATIENCE)
        listener.close()


@pytest.mark.parametrize(
    "chunk", [b"REQ 1\n", b"REQ 1\n" * 8, b"REQ 1\nnoise\nREQ 2 x\n"], ids=["one", "many", "noise"]
)
def test_percentiles_are_those_of_the_server(tmp_path: Path, chunk: bytes) -> None:
    # Few, so that all are in the last ten seconds on a slow machine too.
    delays = [0.05 if number % 4 == 3 else 0.005 for number in range(40)]
    count = chunk.count(b"\n")
    # The proxy is between the two, so none of its latencies is below the server's or above the client's, however busy
    # the machine is; nor is any percentile.
    server: list[float] = []
    client: list[float] = []
    with late_server(delays, server) as port, fooproxy(tmp_path, upstream=port) as proxy, connect(proxy.port) as peer:
        for _ in delays:
            sent_at = time.perf_counter()
            peer.sendall(chunk)
            read_lines(peer, count)
            client.append(time.perf_counter() - sent_at)
        report = proxy.stats()
    least, most = sorted(server), sorted(client)
    for latency in (report["latency_seconds"], report["latency_seconds_10s"]):
        assert latency["count"] == len(delays) * count
        for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1)):
            rank = math.ceil(share * len(delays)) - 1
            assert (
                least[rank] * (1 - PRECISION) <= latency[name] <= most[min(rank + 1, len(most) - 1)] * (1 + PRECISION)
            )
        assert statistics.mean(server) <= latency["mean"] <= statistics.mean(client)
    assert (report["requests_in_flight"], report["responses_unmatched"]) == (0, 0)


def text_metrics(proxy: Proxy) -> dict[str, float]:
    """Scrape the exposition, and give each series with its value."""
    with closing(http.client.HTTPConnection("127.0.0.1", proxy.http_port, timeout=PATIENCE)) as connection:
        connection.request("GET", "/metrics", headers={"Accept": "text/plain"})
        lines = connection.getresponse().read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_report_sessions_clients_and_exposition_agree(tmp_path: Path, server: FooServer) -> None:
    with fooproxy(tmp_path, upstream=server.port) as proxy:
        clients = [connect(proxy.port) for _ in range(5)]
        for number, client in enumerate(clients):
            client.sendall(b"REQ 1 a\nREQ 2 with space\n" * (number + 1) + b"noise\n")
            read_lines(client, 2 * number + 3)
        report, (_, connections), series = proxy.stats(), proxy.get("/connections"), text_metrics(proxy)
        (client_report,) = proxy.get("/clients")[1]["clients"]
        for client in clients:
            client.close()
    assert report["msg_req"] == 30
    assert report["requests_in_flight"] == 0
    rows = connections["connections"]
    assert connections["total"] == report["connections_active"] == len(rows) == 5
    for name in ("msg_req", "msg_ack", "msg_nak", "msg_invalid"):
        assert sum(row[name] for row in rows) == report[name]
    assert sum(row["bytes_from_client"] for row in rows) == report["bytes_from_clients"]
    assert sum(row["bytes_from_upstream"] for row in rows) == report["bytes_from_upstream"]
    assert {row["client"].rpartition(":")[0] for row in rows} == {"127.0.0.1"}
    assert {row["upstream"] for row in rows} == {f"127.0.0.1:{server.port}"}
    assert {row["state"] for row in rows} == {"open"}
    assert client_report["client"] == "127.0.0.1"
    assert client_report["requests"] == report["msg_req"]
    for kind in ("req", "ack", "nak"):
        assert series[f'fooproxy_messages_total{{type="{kind}"}}'] == report[f"msg_{kind}"]
    assert series['fooproxy_invalid_messages_total{leg="client"}'] == report["msg_invalid"]
    assert series["fooproxy_connections_active"] == 5
    latency = report["latency_seconds"]
    assert series["fooproxy_request_duration_seconds_count"] == latency["count"] == 35
    assert series['fooproxy_request_duration_seconds_bucket{le="+Inf"}'] == 35
    assert series["fooproxy_request_duration_seconds_sum"] == pytest.approx(latency["mean"] * 35)


def test_an_ipv4_client_of_an_ipv6_listener_is_shown_as_what_it_is(tmp_path: Path, server: FooServer) -> None:
    listen = ("--listen", "[::]:0", "--log-sessions")
    with fooproxy(tmp_path, *listen, upstream=server.port) as proxy:
        with connect(proxy.port) as client:
            client.sendall(b"REQ 1 a\n")
            assert read_lines(client, 1) == b"ACK 1 a\n"
            own = "{}:{}".format(*client.getsockname())
            _, open_now = proxy.get("/connections")
            assert [session["client"] for session in open_now["connections"]] == [own]
        _, clients = proxy.get("/clients")
        assert [client["client"] for client in clients["clients"]] == ["127.0.0.1"]
        proxy.says(f"session 1 of {own} ended")


def test_sessions_are_sorted_and_limited_as_asked(tmp_path: Path, server: FooServer) -> None:
    with fooproxy(tmp_path, upstream=server.port) as proxy:
        clients = [connect(proxy.port) for _ in range(4)]
        for client, count in zip(clients, (3, 1, 0, 2), strict=True):
            client.sendall(b"REQ 1\n" * count)
            read_lines(client, count)

        def listed(query: str, column: str = "msg_req") -> tuple[int, list[Any]]:
            status, answer = proxy.get(f"/connections?{query}")
            assert (status, answer["total"]) == (200, 4)
            return len(answer["connections"]), [row[column] for row in answer["connections"]]

        assert listed("sort=msg_req") == (4, [3, 2, 1, 0])
        assert listed("sort=msg_req&order=asc&limit=2") == (2, [0, 1])
        assert listed("", "id") == (4, [1, 2, 3, 4])
        # What has no value comes last, whichever way.
        assert listed("sort=latency_p50_seconds")[1][3] == listed("sort=latency_p50_seconds&order=asc")[1][3] == 0
        assert listed("limit=0") == (0, [])
        for client in clients:
            client.close()


@pytest.mark.parametrize(
    "query",
    [
        "sort=nonsense",
        "sort=<script>",
        "order=up",
        "limit=-1",
        "limit=501",
        "limit=x",
        "limit=",
        "since=x",
        "sort=%ff",
    ],
)
def test_wrong_parameters_are_refused_without_being_repeated(idle: Proxy, query: str) -> None:
    status, answer = idle.get(f"/live?{query}")
    assert status == 400
    assert "must be" in answer["error"]
    assert "script" not in answer["error"]


def test_states_and_requests_in_flight_are_shown_while_they_last(tmp_path: Path) -> None:
    with FooServer(holding=True) as server, fooproxy(tmp_path, upstream=server.port) as proxy:

        def row() -> Any:
            found = proxy.get("/connections")[1]["connections"]
            return (found[0]["state"], found[0]["requests_in_flight"]) if found else None

        with connect(proxy.port) as client:
            client.sendall(b"REQ 1\nREQ 2\n")
            settles(row, ("open", 2))
            assert proxy.stats("requests_in_flight") == {"requests_in_flight": 2}
            client.shutdown(socket.SHUT_WR)
            settles(row, ("half-closed", 2))
            proxy.signal(signal.SIGTERM)
            settles(row, ("draining", 2))
            assert proxy.get("/ready")[1]["reasons"] == ["draining"]
            server.release()
            assert read_to_end(client).count(b"\n") == 2
        assert proxy.wait() == 0


def ended(proxy: Proxy) -> list[str]:
    return re.findall(r"session \d+ of 127\.0\.0\.1:\d+ ended: (\w+), after", proxy.log)


def test_each_end_has_its_reason_in_the_counters_and_in_the_log(tmp_path: Path, server: FooServer) -> None:
    with fooproxy(tmp_path, "--log-sessions", upstream=server.port) as proxy:
        exchange(proxy.port, b"REQ 1\n")
        settles(lambda: ended(proxy), due := ["client_closed"])
        with connect(proxy.port) as client:
            client.sendall(b"REQ 1\n")
            read_lines(client, 1)
            reset(client)
        settles(lambda: ended(proxy), due := [*due, "client_reset"])
        with connect(proxy.port) as client:
            client.sendall(b"REQ 1\n")
            read_lines(client, 1)
            server.forget()
            assert read_to_end(client) == b""
        settles(lambda: ended(proxy), due := [*due, "upstream_closed"])
        with connect(proxy.port) as client:
            client.sendall(b"REQ 1 please reset\n")
            read_to_end(client)
        settles(lambda: ended(proxy), due := [*due, "upstream_reset"])
        with connect(proxy.port) as client:
            client.sendall(b"REQ 1\n")
            read_lines(client, 1)
            closed = proxy.stats("connections_closed")["connections_closed"]
            proxy.signal(signal.SIGTERM)
            assert proxy.wait() == 0
        assert ended(proxy) == [*due, "drained"]
    assert {reason: count for reason, count in closed.items() if count} == dict.fromkeys(due, 1)
    line = next(line for line in proxy.log.splitlines() if "client_closed" in line)
    assert "req=1 ack=1 nak=0 invalid=0 unanswered=0 bytes_from_client=6 bytes_from_upstream=7" in line


def test_a_clean_end_is_not_logged_and_a_failed_connect_is(tmp_path: Path) -> None:
    with FooServer() as server:
        port = server.port
        with fooproxy(tmp_path, "--connect-timeout", "0.2", upstream=port) as proxy:
            exchange(proxy.port, b"REQ 1\n")
            settles(lambda: proxy.stats("connections_active"), {"connections_active": 0})
            server.close()
            with connect(proxy.port) as client:
                assert client.recv(1) == b""
            settles(lambda: ended(proxy), ["upstream_refused"])
            assert text_metrics(proxy)['fooproxy_upstream_connect_failures_total{reason="refused"}'] == 1


def test_readiness_finds_out_about_the_upstream_when_there_is_no_traffic(tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, fooproxy(tmp_path, upstream=listener.getsockname()[1]) as proxy:
        assert proxy.get("/live")[1]["upstream"]["state"] == "unknown"
        settles(lambda: proxy.get("/ready"), (200, {"ready": True, "reasons": [], "warnings": []}))
        probe, _ = listener.accept()
        with probe:
            assert probe.recv(1) == b""
        assert proxy.get("/live")[1]["upstream"]["state"] == "up"
        assert proxy.stats("connections_total") == {"connections_total": 0}
    (tmp_path / "down").mkdir()
    with fooproxy(tmp_path / "down") as proxy:
        status, answer = proxy.get("/ready")
        assert (status, answer["reasons"]) == (503, ["upstream_unreachable"])
        assert proxy.get("/live")[1]["upstream"]["state"] == "down"
        assert proxy.get("/health") == (200, {"status": "OK!"})


def test_history_and_latency_outlive_a_crash(tmp_path: Path, server: FooServer) -> None:
    with fooproxy(tmp_path, upstream=server.port) as proxy:
        exchange(proxy.port, b"REQ 1\n" * 7)
        eventually(lambda: sum(proxy.get("/history")[1]["requests"]) == 7)
        state = tmp_path / "recovery.json"
        eventually(lambda: sum(int(second.split(",")[0]) for second in saved_history(state)) == 7)
        before = proxy.stats("latency_seconds", "connections_closed")
        proxy.signal(signal.SIGKILL)
        proxy.wait()
    with fooproxy(tmp_path, upstream=server.port) as proxy:
        history = proxy.get("/history")[1]
        assert sum(history["requests"]) == sum(history["responses"]) == 7
        assert max(filter(None, history["p99"])) > 0
        assert proxy.stats("latency_seconds", "connections_closed") == before
        assert proxy.stats("latency_seconds_10s")["latency_seconds_10s"]["count"] == 0
        # Those who know the newest second get only what comes after.
        last = proxy.get("/history")[1]["last"]
        eventually(lambda: set(proxy.get(f"/history?since={last}")[1]["requests"]) == {0})


def saved_history(state: Path) -> list[str]:
    text = json.loads(state.read_text())["history"]
    return str(text).split(";") if text else []


def test_answers_are_compressed_for_those_who_take_that(idle: Proxy) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", idle.http_port)) as connection:
        answers = {}
        for accepted in ("gzip, deflate", "identity", "gzip;q=0", ""):
            connection.request("GET", "/stats", headers={"Accept-Encoding": accepted})
            answer = connection.getresponse()
            answers[accepted] = answer.headers["Content-Encoding"], answer.read()
            assert answer.headers["Vary"] == "Accept, Accept-Encoding"
    encoding, body = answers.pop("gzip, deflate")
    assert encoding == "gzip"
    plain = {body for _, body in answers.values()}
    assert {encoding for encoding, _ in answers.values()} == {None}
    assert json.loads(gzip.decompress(body)).keys() == json.loads(plain.pop()).keys()


def test_what_clients_send_reaches_no_answer(tmp_path: Path, server: FooServer) -> None:
    with fooproxy(tmp_path, upstream=server.port) as proxy:
        exchange(proxy.port, b"REQ 1 <script>alert(1)</script>\n<img src=x onerror=alert(1)>\n")
        for path in ("/live", "/connections", "/clients", "/stats", "/history"):
            assert "<" not in json.dumps(proxy.get(path)[1])


def test_what_counts_as_slow_is_up_to_the_operator(tmp_path: Path, server: FooServer) -> None:
    with fooproxy(tmp_path, "--slow-replies", "1e-6", upstream=server.port) as proxy:
        exchange(proxy.port, b"REQ 1\n")
        eventually(lambda: "slow_replies" in proxy.get("/ready")[1]["warnings"])
