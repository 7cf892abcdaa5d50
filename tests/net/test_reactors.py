"""The same relay on every reactor, without epoll, and with addresses that have Twisted's transports."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.helpers.fooserver import FooServer, connect, exchange, read_lines, replies_to
from tests.helpers.proxyprocess import TWISTD, Proxy, eventually, fooproxy, settles

pytestmark = pytest.mark.slow

STREAM = b"".join(b"REQ %d data-%d\n" % (seq, seq) for seq in range(1, 501))


def relays(proxy: Proxy) -> None:
    """Check a long exchange, and that all of it was counted."""
    assert exchange(proxy.port, STREAM) == replies_to(STREAM)
    assert proxy.stats("msg_req", "msg_total") == {"msg_req": 500, "msg_total": 1000}


@pytest.mark.parametrize("reactor", ["epoll", "poll", "select", "asyncio"])
def test_it_relays_on_this_reactor(tmp_path: Path, reactor: str) -> None:
    command = (*TWISTD, "-n", "--reactor", reactor)
    with FooServer() as server, fooproxy(tmp_path, upstream=server.port, command=command) as proxy:
        relays(proxy)


def test_it_relays_where_there_is_no_epoll(tmp_path: Path) -> None:
    program = "import select; del select.epoll; from twisted.scripts.twistd import run; run()"
    command = (sys.executable, "-c", program, "-n")
    with FooServer() as server, fooproxy(tmp_path, upstream=server.port, command=command) as proxy:
        relays(proxy)


@pytest.mark.parametrize("reactor", ["epoll", "asyncio"])
def test_a_wall_clock_that_is_set_back_stops_neither_saves_nor_rates(tmp_path: Path, reactor: str) -> None:
    # Half a second after the start, the time is an hour earlier.
    program = (
        "import time; clock, start = time.time, time.monotonic()\n"
        "time.time = lambda: clock() - (3600 if time.monotonic() - start > 1.5 else 0)\n"
        "from twisted.scripts.twistd import run; run()"
    )
    command = (sys.executable, "-c", program, "-n", "--reactor", reactor)
    with FooServer() as server, fooproxy(tmp_path, upstream=server.port, command=command) as proxy:
        saved = tmp_path / "recovery.json"
        eventually(lambda: json.loads(saved.read_text())["saved_at"] < time.time() - 3000)
        relays(proxy)

        def shows_a_rate() -> bool:
            exchange(proxy.port, b"REQ 1 a\n")
            return float(proxy.stats("request_rate_1s")["request_rate_1s"]) > 0

        eventually(shows_a_rate)
        settles(lambda: proxy.stats("request_rate_1s"), {"request_rate_1s": 0.0})


@pytest.mark.parametrize("forward", ["tcp:127.0.0.1:{}", "tcp:127.0.0.1:{}:timeout=30", "localhost:{}"])
def test_it_relays_to_an_upstream_named_otherwise(tmp_path: Path, forward: str) -> None:
    with FooServer() as server, fooproxy(tmp_path, "--forward", forward.format(server.port)) as proxy:
        relays(proxy)


def test_it_relays_to_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "foo.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def answer() -> None:
            peer, _ = listener.accept()
            with peer:
                read_lines(peer, 1)
                peer.sendall(b"ACK 1\n")

        answering = threading.Thread(target=answer)
        answering.start()
        with fooproxy(tmp_path, "--forward", f"unix:{path}") as proxy, connect(proxy.port) as client:
            client.sendall(b"REQ 1\n")
            assert read_lines(client, 1) == b"ACK 1\n"
        answering.join()
