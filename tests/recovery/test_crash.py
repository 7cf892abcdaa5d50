"""The real process after a crash, with a bad file, and without its upstream: it carries on, or says why it cannot."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fooserver import FooServer, connect, exchange, read_lines
from tests.helpers.proxyprocess import Proxy, eventually, fooproxy, settles

pytestmark = pytest.mark.slow

STREAM = b"REQ 1 a\nREQ 2 b\nREQ 3 c d\nnonsense\n"
COUNTS = {"msg_total": 7, "msg_req": 3, "msg_ack": 2, "msg_nak": 2, "msg_invalid": 1, "connections_total": 1}


@contextmanager
def load(port: int) -> Iterator[None]:
    """Keep the proxy busy, even while it dies."""
    client = connect(port)
    enough = threading.Event()

    def flood() -> None:
        with suppress(OSError, AssertionError):
            while not enough.wait(0.001):
                client.sendall(b"".join(b"REQ %d data\n" % seq for seq in range(1, 21)))
                read_lines(client, 20)

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        yield
    finally:
        enough.set()
        flooding.join()
        client.close()


class Sights:
    """The answers of /stats over time."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._seen: list[tuple[float, int, dict[str, int]]] = []

    def look_for(self, saves: int) -> bool:
        """Ask /stats once more; return whether there have been so many saves."""
        report = self._proxy.stats()
        self._seen.append((time.monotonic(), report["recovery_saves"]["ok"], report))
        return self._seen[-1][1] >= saves

    def at(self, moment: float, name: str) -> int:
        """Return the last count seen until `moment`."""
        return [0, *(counts[name] for seen_at, _, counts in self._seen if seen_at <= moment)][-1]

    def saved_for_certain(self, name: str) -> int:
        """Return the last count seen before the last save that is known of can have begun."""
        last = self._seen[-1][1]
        return [0, *(counts[name] for _, saves, counts in self._seen if saves < last - 1)][-1]


def test_after_kill_9_under_load_the_counters_go_on_from_the_last_save(tmp_path: Path) -> None:
    with FooServer() as server, fooproxy(tmp_path, upstream=server.port) as proxy, load(proxy.port):
        sights = Sights(proxy)
        eventually(lambda: sights.look_for(saves=5))
        proxy.signal(signal.SIGKILL)
        proxy.wait()
        # The client waits for its replies, so at most its last twenty requests did not reach the server.
        at_most = b"".join(server.received + server.sent).count(b"\n") + 20
    with fooproxy(tmp_path) as proxy:
        asked_at = time.monotonic()
        restored = proxy.stats("msg_total", "msg_req", "request_rate_10s")
        answered_at = time.monotonic()
    assert 0 < sights.saved_for_certain("msg_total") <= restored["msg_total"] <= at_most
    # What was saved are the sums of whole seconds.
    least, most = (restored["msg_req"] - sights.at(until - 10, "msg_req") for until in (answered_at + 1, asked_at - 1))
    assert least * 0.9 <= 10 * restored["request_rate_10s"] <= most * 1.1


def test_a_restart_after_a_stop_goes_on_from_the_exact_counts(tmp_path: Path) -> None:
    for _ in range(2):
        with FooServer() as server, fooproxy(tmp_path, upstream=server.port) as proxy:
            exchange(proxy.port, STREAM)
            proxy.signal(signal.SIGTERM)
            assert proxy.wait() == 0
    with fooproxy(tmp_path) as proxy:
        assert proxy.stats(*COUNTS) == {name: 2 * count for name, count in COUNTS.items()}


def test_a_file_older_than_the_maximum_age_is_kept_aside_and_all_starts_from_zero(tmp_path: Path) -> None:
    path = tmp_path / "recovery.json"
    with FooServer() as server, fooproxy(tmp_path, upstream=server.port) as proxy:
        exchange(proxy.port, STREAM)
        proxy.signal(signal.SIGTERM)
        proxy.wait()
    old = path.read_bytes()
    eventually(lambda: time.time() - json.loads(old)["saved_at"] > 1)
    with fooproxy(tmp_path, "--recovery-max-age", "1") as proxy:
        assert set(proxy.stats(*COUNTS).values()) == {0}
        assert (tmp_path / "recovery.json.old").read_bytes() == old


@pytest.mark.parametrize(("ahead", "restored"), [(50, True), (3600, False)])
def test_a_file_from_the_future_is_restored_when_the_clock_may_have_been_set_back_so_far(
    tmp_path: Path, ahead: int, restored: bool
) -> None:
    path = tmp_path / "recovery.json"
    with FooServer() as server, fooproxy(tmp_path, upstream=server.port) as proxy:
        exchange(proxy.port, STREAM)
        proxy.signal(signal.SIGTERM)
        proxy.wait()
    state = json.loads(path.read_bytes())
    path.write_text(json.dumps({**state, **{key: time.time() + ahead for key in ("saved_at", "time_stamp")}}))
    with fooproxy(tmp_path, "--recovery-max-age", "60") as proxy:
        assert proxy.stats(*COUNTS) == (COUNTS if restored else dict.fromkeys(COUNTS, 0))
        assert proxy.stats("request_rate_10s")["request_rate_10s"] == (0.3 if restored else 0.0)
        assert (tmp_path / "recovery.json.old").exists() == (not restored)
        (line,) = proxy.says("in the future (the clock was set back)", times=1)
        assert not re.search(r" -\d", line)


@pytest.mark.parametrize(
    "content",
    [b"", b'{"index": 9, "requests_10s": [1, 2', b"\xff\xfe\x00", b'{"index": 7}'],
    ids=["empty", "truncated", "binary", "incomplete"],
)
def test_an_unusable_file_is_kept_aside_with_a_warning(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recovery.json").write_bytes(content)
    with fooproxy(tmp_path) as proxy:
        assert set(proxy.stats(*COUNTS).values()) == {0}
        assert (tmp_path / "recovery.json.unusable").read_bytes() == content
        (warning,) = proxy.says("cannot use the recovery file", times=1)
        assert "#warn]" in warning and "recovery.json.unusable" in warning


def test_a_file_of_another_foo_proxy_is_accepted_and_its_windows_shifted(tmp_path: Path) -> None:
    time_stamp = int(time.time()) - 2
    foreign = {"index": 7, "time_stamp": time_stamp, "requests_10s": [100] * 10, "responses_10s": [50] * 10}
    (tmp_path / "recovery.json").write_text(json.dumps(foreign))

    def remaining() -> float:
        """The part of the ten seconds that is still in the window."""
        return max(0.0, 10 - (time.time() - time_stamp))

    with fooproxy(tmp_path) as proxy:
        before = remaining()
        rates = proxy.stats("request_rate_10s", "response_rate_10s", "request_rate_1s")
        after = remaining()
    assert 10 * after - 1 <= rates["request_rate_10s"] <= 10 * before + 1
    assert 5 * after - 1 <= rates["response_rate_10s"] <= 5 * before + 1
    assert rates["request_rate_1s"] == 0.0
    assert not (tmp_path / "recovery.json.unusable").exists()


def test_a_save_that_fails_while_running_is_shown_and_mended(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    more = ("--recovery-path", str(folder / "recovery.json"))
    with FooServer() as server, fooproxy(tmp_path, *more, upstream=server.port) as proxy:
        shutil.move(folder, tmp_path / "elsewhere")
        folder.write_text("a file where the folder was")
        eventually(lambda: proxy.stats()["recovery_saves"]["failed"] > 1)
        assert exchange(proxy.port, b"REQ 1 a\n") == b"ACK 1 a\n"
        assert proxy.get("/ready") == (200, {"ready": True, "reasons": [], "warnings": ["recovery_failing"]})
        proxy.says("cannot save the statistics", times=1)
        folder.unlink()
        settles(lambda: proxy.get("/ready")[1]["warnings"], [])
        assert json.loads((folder / "recovery.json").read_text())["counters"]["client_req"] == 1


def test_an_upstream_that_is_down_costs_each_client_its_connection_and_no_more(tmp_path: Path) -> None:
    with fooproxy(tmp_path, "--connect-timeout", "0.3") as proxy:
        for _ in range(2):
            with connect(proxy.port) as client:
                assert client.recv(1) == b""
        expected = {"upstream_connect_failures": 2, "connections_active": 0, "connections_total": 2}
        settles(lambda: proxy.stats(*expected), expected)


def test_a_client_that_already_sends_is_closed_too_when_the_upstream_stays_down(tmp_path: Path) -> None:
    with fooproxy(tmp_path, "--connect-timeout", "0.3") as proxy, connect(proxy.port) as client:
        client.sendall(b"REQ 1 a\n")
        with suppress(ConnectionResetError):
            assert client.recv(1) == b""
        settles(lambda: proxy.stats("connections_active"), {"connections_active": 0})


@contextmanager
def silent_port() -> Iterator[socket.socket]:
    """Reserve a port on which nobody listens yet."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held


def test_an_upstream_that_comes_up_in_time_gets_what_the_client_sent_before(tmp_path: Path) -> None:
    with (
        silent_port() as held,
        fooproxy(tmp_path, "--connect-timeout", "600", upstream=held.getsockname()[1]) as proxy,
        connect(proxy.port) as client,
    ):
        client.sendall(b"REQ 1 early\n")
        proxy.says("cannot connect to upstream")
        with FooServer(held) as server:
            assert read_lines(client, 1) == b"ACK 1 early\n"
            assert server.received == [b"REQ 1 early\n"]


def test_ready_tells_whether_the_upstream_could_be_reached(tmp_path: Path) -> None:
    ready: tuple[int, Any] = (200, {"ready": True, "reasons": [], "warnings": []})
    unready = (503, {"ready": False, "reasons": ["upstream_unreachable", "upstream_refused"], "warnings": []})
    with (
        silent_port() as held,
        fooproxy(tmp_path, "--connect-timeout", "2", upstream=held.getsockname()[1]) as proxy,
    ):
        with connect(proxy.port):
            settles(lambda: proxy.get("/ready"), unready)
        with FooServer(held):
            assert exchange(proxy.port, b"REQ 1 a\n") == b"ACK 1 a\n"
            settles(lambda: proxy.get("/ready"), ready)
