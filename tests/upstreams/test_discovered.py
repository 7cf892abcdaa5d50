"""The real process with servers that a real name server on loopback names."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fooserver import FooServer, connect, exchange, free_port, read_lines
from tests.helpers.nameserver import NameServer
from tests.helpers.proxyprocess import Proxy, eventually, fooproxy, settles

pytestmark = pytest.mark.slow

NAME = "foo.example"
HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")


@contextmanager
def servers(count: int) -> Iterator[tuple[int, list[FooServer]]]:
    """Run servers on one port of several addresses."""
    port = free_port()
    with ExitStack() as stack:
        listeners = [socket.create_server((host, port)) for host in HOSTS[:count]]
        yield port, [stack.enter_context(FooServer(listener)) for listener in listeners]


def usable(proxy: Proxy) -> list[str]:
    return sorted(row["name"] for row in proxy.get("/upstreams")[1]["upstreams"] if row["state"] != "draining")


def states(proxy: Proxy) -> dict[str, str]:
    return {row["name"]: row["state"] for row in proxy.get("/upstreams")[1]["upstreams"]}


def discovery(proxy: Proxy) -> dict[str, Any]:
    found: dict[str, Any] = proxy.get("/upstreams")[1]["discovery"][0]
    return found


def ask(proxy: Proxy, times: int = 10) -> None:
    for _ in range(times):
        assert exchange(proxy.port, b"REQ 1 a\n") == b"ACK 1 a\n"


def test_servers_follow_answers_that_grow_shrink_turn_empty_fail_and_time_out(tmp_path: Path) -> None:
    with NameServer() as names, servers(3) as (port, (a, b, c)):
        names.host(NAME, *HOSTS[:2])
        first, second, third = (f"{host}:{port}" for host in HOSTS)
        options = "--forward", f"dns:{NAME}:{port}", "--name-server", names.place
        with fooproxy(tmp_path, *options) as proxy, connect(proxy.port) as stays:
            stays.sendall(b"REQ 1 a\n")
            assert read_lines(stays, 1) == b"ACK 1 a\n"
            settles(lambda: usable(proxy), [first, second])
            names.host(NAME, *HOSTS)
            settles(lambda: usable(proxy), [first, second, third])
            ask(proxy, 30)
            assert all(server.received for server in (a, b, c))
            for word in ("empty", "SERVFAIL", "NXDOMAIN", "other", "noise"):
                names.records[NAME] = word
                eventually(lambda: discovery(proxy)["error"])
                assert usable(proxy) == [first, second, third]
                ask(proxy, 3)
                names.host(NAME, *HOSTS)
                eventually(lambda: not discovery(proxy)["error"])
            assert "discovery_failing" not in proxy.get("/ready")[1]["warnings"]
            proxy.says(f"cannot look up dns:{NAME}:{port}: SERVFAIL from 127.0.0.1; keeping the 3 found ")
            # The server with the session is gone.
            settles(lambda: proxy.stats("connections_active"), {"connections_active": 1})
            its = next(row["name"] for row in proxy.get("/upstreams")[1]["upstreams"] if row["connections_active"])
            names.host(NAME, *[host for host in HOSTS if not its.startswith(f"{host}:")])
            settles(lambda: states(proxy)[its], "draining")
            before = proxy.stats("msg_req")["msg_req"]
            ask(proxy, 20)
            row = next(row for row in proxy.get("/upstreams")[1]["upstreams"] if row["name"] == its)
            assert row["connections_active"] == 1
            stays.sendall(b"REQ 2 b\n")
            assert read_lines(stays, 1) == b"ACK 2 b\n"
            stays.close()
            eventually(lambda: its not in states(proxy))
            assert proxy.stats("msg_req") == {"msg_req": before + 21}


def test_a_proxy_starts_without_an_answer_and_serves_who_waits_when_there_is_one(tmp_path: Path) -> None:
    with NameServer() as names, servers(1) as (port, _):
        names.records[NAME] = "SERVFAIL"
        options = "--forward", f"dns:{NAME}:{port}", "--name-server", names.place, "--connect-timeout", "30"
        with fooproxy(tmp_path, *options) as proxy, connect(proxy.port) as client:
            client.sendall(b"REQ 1 a\n")
            proxy.says("SERVFAIL from 127.0.0.1; no server is known yet, and clients wait")
            status, ready = proxy.get("/ready")
            assert (status, ready["reasons"]) == (503, ["upstream_unreachable", "upstream_unresolved"])
            assert ready["warnings"] == ["discovery_failing"]
            upstream = proxy.get("/live")[1]["upstream"]
            assert (upstream["address"], upstream["state"]) == (f"dns:{NAME}:{port}", "down")
            names.host(NAME, HOSTS[0])
            assert read_lines(client, 1) == b"ACK 1 a\n"
            assert proxy.get("/ready")[0] == 200
            # Nothing but what happened is in the log.
            assert not [line for line in proxy.log.splitlines() if "DNS" in line or "Port" in line]


def test_a_service_is_forwarded_to_by_priority_over_tcp_if_need_be(tmp_path: Path) -> None:
    service = "_foo._tcp.example"
    with NameServer() as names, servers(2) as (port, (a, b)):
        names.truncates = True
        names.service(service, (1, 1, port, "a.example"), (2, 1, port, "b.example"))
        names.host("a.example", HOSTS[0])
        names.host("b.example", HOSTS[1])
        with fooproxy(tmp_path, "--forward", f"srv:{service}", "--name-server", names.place) as proxy:
            settles(lambda: usable(proxy), [f"a.example@{HOSTS[0]}:{port}", f"b.example@{HOSTS[1]}:{port}"])
            ask(proxy)
            assert (len(a.sessions), len(b.sessions)) == (10, 0)
            a.close()
            ask(proxy)
            assert len(b.sessions) == 10
