"""The real process whose ``--forward`` leads back to itself: it notices, says so, and fills no table."""

from __future__ import annotations

import socket
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.helpers.fooserver import PATIENCE, connect, free_port, read_to_end
from tests.helpers.proxyprocess import Proxy, eventually, fooproxy, settles

pytestmark = pytest.mark.slow

FEW = 4
"""Connections that a client may cost before the proxy recognizes its own."""


def check(proxy: Proxy, clients: int) -> None:
    settles(lambda: proxy.stats("connections_active"), {"connections_active": 0})
    found = proxy.stats("connections_total", "connections_closed")
    assert found["connections_closed"]["loop"] >= clients
    assert found["connections_total"] <= FEW * clients
    line, *_ = proxy.says("made itself")
    assert "#warn]" in line and "--forward" in line


@pytest.mark.parametrize(
    ("listen", "forward"),
    [
        ("127.0.0.1:{}", "tcp:127.0.0.1:{}"),
        ("tcp:{}", "127.0.0.1:{}"),
        ("tcp:{}", "tcp:localhost:{}"),
        ("tcp:{}", "tcp:0.0.0.0:{}"),
        ("tcp:{}", "tcp:localhost:{}:timeout=30"),
        ("0.0.0.0:{}", "127.0.0.2:{}"),
        ("haproxy:tcp:{}", "127.0.0.1:{}"),
        ("tcp6:{}", ":{}"),
    ],
)
def test_a_proxy_that_is_its_own_client_serves_nobody_but_stays_small(
    tmp_path: Path, listen: str, forward: str
) -> None:
    port = free_port()
    header = b"PROXY UNKNOWN\r\n" if listen.startswith("haproxy") else b""
    more = ("--listen", listen.format(port), "--forward", forward.format(port))
    with fooproxy(tmp_path, *more) as proxy:
        for _ in range(5):
            with closing(connect(port)) as client:
                client.sendall(header + b"REQ 1 a\n")
                with suppress(ConnectionResetError):
                    assert read_to_end(client) == b""
        check(proxy, clients=5)


def test_a_proxy_that_forwards_to_its_own_unix_socket_recognizes_itself_too(tmp_path: Path) -> None:
    path = f"unix:{tmp_path}/relay.1"
    with fooproxy(tmp_path, "--listen", path, "--forward", path) as proxy:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(f"{tmp_path}/relay.1")
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""
        check(proxy, clients=1)


@pytest.mark.parametrize("forward", ["127.0.0.2:{}", "tcp:127.0.0.1:{}:timeout=30"])
def test_the_test_of_the_upstream_for_ready_is_recognized_as_well(tmp_path: Path, forward: str) -> None:
    port = free_port()
    with fooproxy(tmp_path, "--listen", f"0.0.0.0:{port}", "--forward", forward.format(port)) as proxy:
        proxy.get("/ready")
        eventually(lambda: proxy.stats("connections_closed")["connections_closed"]["loop"])
        check(proxy, clients=1)
