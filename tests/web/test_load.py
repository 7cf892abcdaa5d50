"""The real process under hostile HTTP clients while it serves Foo clients; and HTTP on a unix socket."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from fooproxy.web.site import MOST_CONNECTIONS
from tests.helpers.fooserver import PATIENCE, FooServer, connect, read_lines, read_to_end
from tests.helpers.processes import completed, started
from tests.helpers.proxyprocess import TWISTD, Proxy, eventually, fooproxy, options, run, settles

pytestmark = pytest.mark.slow

CROWD = 500
LITTLE = 30
"""Megabytes of memory that the crowd may cost."""


def sockets(proxy: Proxy) -> int:
    return sum(name.startswith("socket:") for name in proxy.files())


def dribble(clients: list[socket.socket], byte: bytes) -> None:
    for client in clients:
        # By then, the proxy has closed most of them.
        with suppress(ConnectionResetError, BrokenPipeError):
            client.sendall(byte)


def test_five_hundred_slow_http_clients_neither_hold_up_foo_clients_nor_pile_up(tmp_path: Path) -> None:
    with FooServer() as server, fooproxy(tmp_path, upstream=server.port) as proxy, ExitStack() as stack:
        foo = stack.enter_context(connect(proxy.port))
        settles(lambda: proxy.stats("connections_active"), {"connections_active": 1})
        idle, before = sockets(proxy), proxy.memory("VmRSS")
        slow = []
        for _ in range(CROWD):
            slow.append(stack.enter_context(connect(proxy.http_port)))
            slow[-1].sendall(b"GET /stats HTTP/1.1\r\nX: ")
        for seq in range(1, 201):
            dribble(slow, b"y") if seq % 50 == 0 else None
            foo.sendall(b"REQ %d data\n" % seq)
            assert read_lines(foo, 1) == b"ACK %d data\n" % seq
        # A well-behaved client still gets an answer.
        assert proxy.get("/stats")[1]["msg_ack"] == 200
        eventually(lambda: sockets(proxy) <= idle + MOST_CONNECTIONS)
        assert proxy.memory("VmHWM") - before < LITTLE


def test_many_requests_at_once_are_all_answered_and_so_are_foo_clients(tmp_path: Path) -> None:
    with FooServer() as server, fooproxy(tmp_path, upstream=server.port) as proxy, ExitStack() as stack:
        foo = stack.enter_context(connect(proxy.port))
        asking = [stack.enter_context(connect(proxy.http_port)) for _ in range(MOST_CONNECTIONS)]
        for client in asking:
            client.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for seq in range(1, 101):
            foo.sendall(b"REQ %d data\n" % seq)
            assert read_lines(foo, 1) == b"ACK %d data\n" % seq
        for client in asking:
            assert read_to_end(client).startswith(b"HTTP/1.1 200 ")


def test_a_huge_body_is_refused_and_costs_no_memory(tmp_path: Path) -> None:
    with fooproxy(tmp_path) as proxy, connect(proxy.http_port) as client:
        before = proxy.memory("VmRSS")
        client.sendall(b"POST /stats HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + (1 << 20) * b"x" + b"\r\n"
        with suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(200):
                client.sendall(chunk)
            pytest.fail("it took everything")
        assert proxy.get("/health")[0] == 200
        assert proxy.memory("VmHWM") - before < LITTLE


class UnixWeb:
    """A proxy that serves HTTP on a unix socket."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.path = folder / "http.sock"
        self._log = folder / "log"
        eventually(lambda: f"serving HTTP on unix:{self.path}\n" in self.log or process.poll() is not None)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def get(self, host: str) -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(self.path))
            client.sendall(b"GET /health HTTP/1.1\r\nHost:%s\r\n\r\n" % host.encode())
            return read_to_end(client)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE)


@contextmanager
def on_unix_socket(folder: Path, mode: str) -> Iterator[UnixWeb]:
    http = ("--http", f"unix:{folder}/http.sock:mode={mode}")
    command = [*TWISTD, "-n", "--pidfile=", "fooproxy", *options(folder, None, *http)]
    with (folder / "log").open("wb") as log, started(command, stderr=log, cwd=folder) as process:
        yield UnixWeb(folder, process)
    assert "Traceback" not in (folder / "log").read_text()


@pytest.mark.parametrize("mode", ["660", "600"])
def test_http_may_listen_on_a_unix_socket_with_a_mode(tmp_path: Path, mode: str) -> None:
    with on_unix_socket(tmp_path, mode) as web:
        assert stat.S_IMODE(web.path.stat().st_mode) == int(mode, 8)
        for host in (" localhost", "", " %2Frun%2Fhttp.sock", " /run/http.sock:80", " a b"):
            assert web.get(host).endswith(b'\r\n\r\n{"status": "OK!"}\n')
        assert web.stop() == 0
        assert not web.path.exists()


def test_a_unix_socket_that_a_killed_proxy_left_is_taken_over(tmp_path: Path) -> None:
    with on_unix_socket(tmp_path, "660") as web:
        web.process.kill()
        web.process.wait()
        assert web.path.exists()
    with on_unix_socket(tmp_path, "660") as web:
        assert b"OK!" in web.get(" x")
        assert web.stop() == 0


def test_a_unix_socket_that_another_proxy_serves_is_left_to_it(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with on_unix_socket(tmp_path, "660") as web:
        arguments = options(tmp_path / "other", None, "--http", f"unix:{web.path}:mode=660")
        ended = run(tmp_path / "other", "-n", "--pidfile=", "fooproxy", *arguments)
        assert ended.returncode == 1
        assert f"cannot listen on unix:{web.path}" in ended.stderr
        assert b"OK!" in web.get(" x")


def test_who_has_no_permission_is_refused_by_the_file(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    # Opened in advance, because the other user may have no access to the directory.
    asking = (
        "import os, socket, sys; folder = os.open(sys.argv[1], os.O_RDONLY); os.fchdir(folder)\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); os.stat('http.sock')\n"
        "socket.socket(socket.AF_UNIX).connect('http.sock')"
    )
    tmp_path.chmod(0o755)
    for mode, refused in (("660", True), ("666", False)):
        with on_unix_socket(tmp_path, mode):
            asked = completed([sys.executable, "-c", asking, str(tmp_path)])
            assert ("PermissionError" in asked.stderr) is refused
            assert (asked.returncode != 0) is refused


def test_curl_gets_the_report_over_a_unix_socket(tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("there is no curl")
    with on_unix_socket(tmp_path, "600") as web:
        command = [curl, "--silent", "--fail", "--unix-socket", str(web.path), "http://fooproxy/stats"]
        asked = completed(command)
        assert asked.returncode == 0, asked.stderr
        assert "msg_total" in json.loads(asked.stdout)
