"""The control socket and fooctl, on a running proxy."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fooproxy.driver.orders import Unreachable, ask
from tests.helpers.fooserver import PATIENCE, FooServer, connect, exchange, read_lines
from tests.helpers.processes import completed
from tests.helpers.proxyprocess import Proxy, eventually, fooproxy, settles

pytestmark = pytest.mark.slow


class Site:
    """A proxy before two servers, and its control socket."""

    def __init__(self, proxy: Proxy, path: Path, a: FooServer, b: FooServer) -> None:
        self.proxy = proxy
        self.path = path
        self.a = a
        self.b = b

    def order(self, *words: str, wait: int = 0) -> Any:
        return ask(str(self.path), "POST", *words, wait=wait)

    def states(self) -> list[str]:
        return [row["state"] for row in ask(str(self.path), "GET", "upstreams")["upstreams"]]

    def raw(self, method: str, url: str, body: bytes | None = None) -> tuple[int, Any, dict[str, str]]:
        with closing(socket.socket(socket.AF_UNIX)) as skt:
            skt.connect(str(self.path))
            connection = http.client.HTTPConnection("fooproxy", timeout=PATIENCE)
            connection.sock = skt
            connection.request(method, url, body)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"null"), dict(answer.headers)

    def fooctl(self, *words: str, control: str = "") -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "FOOPROXY_CONTROL": control or f"unix:{self.path}"}
        return completed([sys.executable, "-m", "fooproxy.driver.fooctl", *words], env=environment)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("control")
    with FooServer() as a, FooServer() as b:
        servers = [f"127.0.0.1:{server.port},name={name}" for server, name in ((a, "first"), (b, "unix:/second"))]
        with fooproxy(
            *(folder, "--forward", servers[0], "--forward", servers[1], "--control", f"unix:{folder / 'control'}"),
            *("--drain-timeout", "1"),
        ) as proxy:
            site = Site(proxy, folder / "control", a, b)
            while site.states() != ["up", "up"]:
                exchange(proxy.port, b"REQ 1 a\n")
            yield site


@pytest.fixture
def site(shared: Site) -> Iterator[Site]:
    yield shared
    for name in ("first", "unix:/second"):
        shared.order("upstreams", name, "ready")
    settles(lambda: shared.proxy.stats("connections_active"), {"connections_active": 0})


def asked(server: FooServer) -> int:
    """Return how many requests the server has got."""
    return b"".join(server.received).count(b"\n")


def test_the_socket_is_for_its_own_user_only(site: Site) -> None:
    assert stat.S_IMODE(site.path.stat().st_mode) == 0o600
    site.proxy.says(f"taking orders on {site.path}")


def test_a_server_that_drains_gets_no_clients_until_it_is_ready_and_the_log_says_who_asked(site: Site) -> None:
    before = asked(site.a)
    site.order("upstreams", "first", "drain")
    for _ in range(10):
        assert exchange(site.proxy.port, b"REQ 1 a\n") == b"ACK 1 a\n"
    assert asked(site.a) == before
    first, second = ask(str(site.path), "GET", "upstreams")["upstreams"]
    assert (first["state"], first["reason"], second["reason"]) == ("draining", "operator", None)
    assert re.fullmatch(r"draining by \S+ \(uid \d+, pid \d+\)", first["error"])
    assert "upstream_held" in site.proxy.get("/ready")[1]["warnings"]
    site.proxy.says(f"(uid {os.getuid()}, pid {os.getpid()}) drained upstream first")
    answer = site.order("upstreams", "first", "ready")
    assert answer["upstreams"] == [{"name": "first", "state": "up"}]
    site.proxy.says("made upstream first ready")


def test_a_name_may_have_slashes_and_colons(site: Site) -> None:
    site.order("upstreams", "unix:/second", "pause")
    assert site.states()[1] == "paused"
    site.order("upstreams", "unix:/second", "resume")
    assert site.states()[1] == "up"


def test_a_pause_lets_clients_wait_and_says_when_nothing_is_in_flight(site: Site) -> None:
    with connect(site.proxy.port) as busy, connect(site.proxy.port) as late:
        late.sendall(b"REQ 1 a\n")
        assert read_lines(late, 1) == b"ACK 1 a\n"
        before = site.proxy.stats()["bytes_from_clients"]
        busy.sendall(b"REQ 1 ")
        settles(lambda: site.proxy.stats()["bytes_from_clients"] - before, 6)
        assert site.order("pause", wait=1)["idle"] is False
        with connect(site.proxy.port) as new:
            new.sendall(b"REQ 1 new\n")
            settles(lambda: site.proxy.stats("clients_waiting"), {"clients_waiting": 1})
            busy.sendall(b"a\n")
            assert read_lines(busy, 1) == b"ACK 1 a\n"
            assert site.order("pause", wait=60)["idle"] is True
            assert site.states() == ["paused", "paused"]
            assert site.proxy.get("/ready")[0] == 200
            # A session that was there before goes on.
            late.sendall(b"REQ 2 b\n")
            assert read_lines(late, 1) == b"ACK 2 b\n"
            assert site.proxy.stats("clients_waiting") == {"clients_waiting": 1}
            site.order("resume")
            assert read_lines(new, 1) == b"ACK 1 new\n"


def test_a_session_that_is_closed_gets_its_replies_first(site: Site) -> None:
    with connect(site.proxy.port) as client:
        client.sendall(b"REQ 1 a\n")
        assert read_lines(client, 1) == b"ACK 1 a\n"
        (row,) = ask(str(site.path), "GET", "connections")["connections"]
        answer = site.order("connections", str(row["id"]), "close", wait=5)
        assert (answer["closed"], answer["closes_within_seconds"]) == (True, 1)
        assert client.recv(1) == b""
    assert site.proxy.stats()["connections_closed"]["closed_by_operator"] >= 1
    site.proxy.says(f"closed session {row['id']}")
    assert site.raw("POST", f"/connections/{row['id']}/close")[:2] == (404, {"error": "no open session has this ID"})


def test_a_session_whose_replies_do_not_come_is_aborted_after_the_drain_timeout(site: Site) -> None:
    with connect(site.proxy.port) as client:
        client.sendall(b"REQ 1")
        eventually(lambda: ask(str(site.path), "GET", "connections")["connections"])
        (row,) = ask(str(site.path), "GET", "connections")["connections"]
        answer = site.order("connections", str(row["id"]), "close", wait=10)
        assert answer["closed"] is True


@pytest.mark.parametrize(
    ("method", "url", "status", "allowed"),
    [
        ("GET", "/pause", 405, "POST"),
        ("PUT", "/upstreams/first/drain", 405, "POST"),
        ("POST", "/upstreams", 405, "GET, HEAD"),
        ("POST", "/upstreams/third/drain", 404, None),
        ("POST", "/upstreams/first/explode", 404, None),
        ("POST", "/pause?wait=soon", 400, None),
        ("GET", "/stats", 404, None),
    ],
)
def test_what_is_asked_wrongly_is_refused_in_json(
    site: Site, method: str, url: str, status: int, allowed: str | None
) -> None:
    found, content, headers = site.raw(method, url)
    assert (found, headers.get("Allow")) == (status, allowed)
    assert list(content) == ["error"]
    assert "third" not in content["error"]
    assert site.states() == ["up", "up"]


def test_who_leaves_while_waiting_leaves_nothing_behind(site: Site) -> None:
    with connect(site.proxy.port) as busy:
        busy.sendall(b"REQ 1")
        eventually(lambda: ask(str(site.path), "GET", "connections")["connections"])
        with closing(socket.socket(socket.AF_UNIX)) as skt:
            skt.connect(str(site.path))
            skt.sendall(b"POST /pause?wait=30 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
            settles(site.states, ["paused", "paused"])
    site.order("resume")
    assert site.states() == ["up", "up"]
    # The fixture's end finds no traceback in the log.


def test_a_body_that_is_too_large_is_refused(site: Site) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as skt:
        skt.connect(str(site.path))
        skt.sendall(b"POST /pause HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n")
        assert skt.recv(100).startswith(b"HTTP/1.1 413 ")
    assert site.states() == ["up", "up"]


def test_no_order_is_taken_on_the_port_of_the_page(site: Site) -> None:
    for url in ("/pause", "/drain", "/upstreams/first/drain", "/connections/1/close", "/resume"):
        for method in ("POST", "GET"):
            with closing(http.client.HTTPConnection("127.0.0.1", site.proxy.http_port, timeout=PATIENCE)) as connection:
                connection.request(method, url)
                assert connection.getresponse().status in (404, 405)
    assert site.states() == ["up", "up"]


def test_fooctl_shows_tables_and_gives_orders(site: Site) -> None:
    with connect(site.proxy.port) as client:
        client.sendall(b"REQ 1 a\n")
        assert read_lines(client, 1) == b"ACK 1 a\n"
        shown = site.fooctl("upstreams")
        assert shown.returncode == 0, shown.stderr
        heading, first, second = shown.stdout.splitlines()
        assert heading.split()[:3] == ["NAME", "STATE", "FOR"]
        assert first.startswith("first         up")
        assert second.startswith("unix:/second  up")
        _, row = site.fooctl("connections").stdout.splitlines()
        number = row.split()[0]
        assert " open " in row
        done = site.fooctl("close", number, "--wait")
        assert (done.returncode, done.stdout) == (0, f"session {number} is closed\n")
        again = site.fooctl("close", number)
        assert (again.returncode, again.stderr) == (1, "fooctl: no open session has this ID\n")
    with connect(site.proxy.port) as client:
        site.order("upstreams", "unix:/second", "drain")
        client.sendall(b"REQ 1 a\n")
        assert read_lines(client, 1) == b"ACK 1 a\n"
        paused = site.fooctl("pause", "--wait")
        states = "first is paused, unix:/second is paused"
        assert (paused.returncode, paused.stdout) == (0, f"{states}; nothing is in flight, 1 session open\n")
        assert site.fooctl("resume").stdout == "first is up, unix:/second is draining\n"
    answer = json.loads(site.fooctl("resume", "first", "--json").stdout)
    assert answer["upstreams"] == [{"name": "first", "state": "up"}]
    assert site.fooctl("clients").stdout.splitlines()[1].startswith("127.0.0.1")


def test_fooctl_says_in_one_line_what_is_wrong(site: Site, tmp_path: Path) -> None:
    none = site.fooctl("upstreams", control=f"unix:{tmp_path / 'none'}")
    assert none.returncode == 1
    assert none.stderr.startswith(f"fooctl: no proxy takes orders at {tmp_path / 'none'}: ")
    assert site.fooctl("upstreams", "--control", "8088").returncode == 2
    assert site.fooctl("upstreams", "--control", "").returncode == 2
    assert site.fooctl("explode").returncode == 2
    for found in (none, site.fooctl("explode")):
        assert len(found.stderr.splitlines()) == 1
    helped = site.fooctl("--help")
    assert helped.returncode == 0
    assert "keep new clients waiting" in helped.stdout


def test_a_second_proxy_does_not_take_the_socket_and_a_socket_that_nobody_uses_is_replaced(
    site: Site, tmp_path: Path
) -> None:
    options = ["--listen", "0", "--http", "127.0.0.1:0", "--recovery-path", str(tmp_path / "recovery.json")]
    second = completed([sys.executable, "-m", "fooproxy", *options, "--control", f"unix:{site.path}"])
    assert second.returncode == 1
    assert "choose another address with --control" in second.stderr
    assert site.states() == ["up", "up"]
    left = tmp_path / "left"
    with closing(socket.socket(socket.AF_UNIX)) as skt:
        skt.bind(str(left))
    left.chmod(0o777)
    with FooServer() as server, fooproxy(tmp_path, "--forward", str(server.port), "--control", f"unix:{left}"):
        assert stat.S_IMODE(left.stat().st_mode) == 0o600
        assert ask(str(left), "GET", "connections")["total"] == 0


def test_an_order_to_drain_ends_the_proxy_and_removes_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "control"
    with FooServer() as server, fooproxy(tmp_path, "--forward", str(server.port), "--control", f"unix:{path}") as proxy:
        (row,) = ask(str(path), "GET", "upstreams")["upstreams"]
        assert row["state"] in ("unknown", "up")
        assert ask(str(path), "POST", "pause", wait=1)["idle"] is True
        assert proxy.stats("upstreams_up") == {"upstreams_up": 0}
        assert ask(str(path), "POST", "drain")["state"] == "draining"
        assert proxy.wait() == 0
        assert not path.exists()
        with pytest.raises(Unreachable, match="no proxy takes orders"):
            ask(str(path), "GET", "upstreams")
