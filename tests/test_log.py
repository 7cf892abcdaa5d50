"""What the real process logs: its own lines, and those of the twistd or twist that runs it."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fooserver import FooServer, connect
from tests.helpers.proxyprocess import TWIST, TWISTD, Proxy, eventually, fooproxy
from tests.test_signals import daemonized

pytestmark = pytest.mark.slow

EXPECTED = (
    r"fooproxy\.[\w.]+#\w+",
    r"twisted\.scripts\._twistd_unix\.UnixAppLogger#info",
    r"twisted\.application\.runner\._runner\.Runner#info",
    r"twisted\.internet\.base#info",
)
"""Who writes lines: the proxy; twistd, twist and the reactor at the start and at the end."""


def strange(log: str) -> list[str]:
    """Give the lines of others."""
    return [line for line in log.splitlines() if not re.search(rf" \[(?:{'|'.join(EXPECTED)})\] ", line)]


def lives(proxy: Proxy, begin: bytes = b"") -> None:
    """Let the proxy have a session and a request over HTTP, and stop it."""
    with connect(proxy.port) as client:
        client.sendall(begin + b"REQ 1 a\n")
        client.recv(100)
    proxy.get("/stats")
    proxy.signal(signal.SIGTERM)


@pytest.mark.parametrize("command", [(*TWISTD, "-n"), TWIST], ids=["twistd", "twist"])
@pytest.mark.parametrize("listen", ["127.0.0.1:0", "haproxy:tcp:0:interface=127.0.0.1"])
def test_a_start_a_session_and_a_stop_log_only_our_own_lines(tmp_path: Path, command: Any, listen: str) -> None:
    begin = b"PROXY TCP4 192.0.2.7 192.0.2.8 7 8\r\n" if "haproxy" in listen else b""
    with FooServer() as server, fooproxy(tmp_path, "--listen", listen, upstream=server.port, command=command) as proxy:
        lives(proxy, begin)
        assert proxy.wait() == 0
    assert strange(proxy.log) == []
    assert "Main loop terminated" in proxy.log


@pytest.mark.parametrize("forward", ["localhost:{}", "tcp:127.0.0.1:{}", "ssl:127.0.0.1:{}"])
def test_connecting_logs_only_our_own_lines(tmp_path: Path, forward: str) -> None:
    with FooServer() as server, fooproxy(tmp_path, "--forward", forward.format(server.port)) as proxy:
        lives(proxy)
        assert proxy.wait() == 0
    assert strange(proxy.log) == []


def test_a_log_file_has_only_our_own_lines(tmp_path: Path) -> None:
    with daemonized(tmp_path) as daemon:
        connect(daemon.port).close()
        daemon.get("/stats")
        daemon.signal(signal.SIGTERM)
        eventually(lambda: "Server Shut Down" in daemon.log)
    assert strange(daemon.log) == []
