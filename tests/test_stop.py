"""The real process is told to stop while something hangs: at ``--drain-timeout`` it is over, with status 0."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.helpers.fooserver import FooServer, connect
from tests.helpers.proxyprocess import Proxy, eventually, fooproxy, settles

pytestmark = pytest.mark.slow

DRAIN = ("--drain-timeout", "0.5", "--connect-timeout", "600")


@contextmanager
def silent(backlog: int) -> Iterator[socket.socket]:
    """Listen, but let nobody hear anything."""
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as server:
        yield server


def ends(proxy: Proxy) -> bool:
    """Stop the proxy."""
    proxy.signal(signal.SIGTERM)
    return proxy.wait() == 0


@pytest.mark.parametrize("address", ["foo.example:8001", "tcp:foo.example:8001", "tls:foo.example:8001"])
def test_a_name_service_that_hangs_does_not_keep_the_process_from_ending(tmp_path: Path, address: str) -> None:
    program = (
        "import socket, sys, threading\n"
        "def look_up(*_): print('looking up', file=sys.__stderr__, flush=True); threading.Event().wait()\n"
        "socket.getaddrinfo = look_up; from twisted.scripts.twistd import run; run()"
    )
    command = (sys.executable, "-c", program, "-n")
    with (
        fooproxy(tmp_path, *DRAIN, "--forward", address, command=command) as proxy,
        connect(proxy.port),
    ):
        proxy.says("looking up")
        assert ends(proxy)


def test_a_connect_that_hangs_does_not_delay_a_stop(tmp_path: Path) -> None:
    with silent(0) as server, ExitStack() as stack:
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        proxy = stack.enter_context(fooproxy(tmp_path, *DRAIN, upstream=server.getsockname()[1]))
        stack.enter_context(connect(proxy.port))
        settles(lambda: proxy.stats("connections_active"), {"connections_active": 1})
        assert ends(proxy)


def test_a_tls_handshake_that_hangs_is_cut_at_the_drain_timeout(tmp_path: Path) -> None:
    with silent(9) as server, ExitStack() as stack:
        forward = f"tls:127.0.0.1:{server.getsockname()[1]}"
        proxy = stack.enter_context(fooproxy(tmp_path, *DRAIN, "--forward", forward))
        client = stack.enter_context(connect(proxy.port))
        client.sendall(b"REQ 1 a\n")
        # The client is not read before the handshake is done.
        settles(lambda: proxy.stats("connections_active"), {"connections_active": 1})
        assert ends(proxy)


def test_legs_that_are_paused_are_cut_at_the_drain_timeout(tmp_path: Path) -> None:
    with (
        FooServer() as server,
        fooproxy(tmp_path, *DRAIN, upstream=server.port) as proxy,
        connect(proxy.port) as client,
    ):
        server.reading.clear()
        sender = threading.Thread(target=flood, args=(client,), daemon=True)
        sender.start()
        eventually(lambda: proxy.stats("reads_paused")["reads_paused"]["client"])
        assert ends(proxy)
        assert "aborting 1 busy session" in proxy.log
        sender.join()


def test_http_clients_that_hang_on_do_not_delay_a_stop(tmp_path: Path) -> None:
    with fooproxy(tmp_path, *DRAIN) as proxy, ExitStack() as stack:
        for said in (
            b"",
            b"GET / HT",
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nx",
        ):
            stack.enter_context(connect(proxy.http_port)).sendall(said)
        # It has been asked after all of those.
        assert proxy.get("/health")[0] == 200
        assert ends(proxy)


def flood(client: socket.socket) -> None:
    with suppress(OSError):
        while True:
            client.sendall(b"REQ 1 " + 10_000 * b"x" + b"\n")
