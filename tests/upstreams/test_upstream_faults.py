"""The real process with a faulty upstream: what clients and operators see, and that the proxy recovers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.helpers.fooserver import PATIENCE, FooServer, connect, exchange, free_port, read_lines, read_to_end, reset
from tests.helpers.processes import started
from tests.helpers.proxyprocess import Proxy, eventually, fooproxy, freeze, settles

pytestmark = pytest.mark.slow

CROWD = 300


def closed(proxy: Proxy) -> dict[str, int]:
    """Return the number of ended sessions by reason."""
    reasons: dict[str, int] = proxy.stats("connections_closed")["connections_closed"]
    return {reason: count for reason, count in reasons.items() if count}


def unready(proxy: Proxy) -> list[str]:
    status, report = proxy.get("/ready")
    assert status == (503 if report["reasons"] else 200)
    reasons: list[str] = report["reasons"]
    return reasons


@contextmanager
def bound() -> Iterator[socket.socket]:
    """Bind a port that refuses connections until `listen` is called."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        yield server


def is_refused(proxy: Proxy) -> bool:
    """Send a request, and return whether the proxy closes or resets the connection; the request was not read."""
    with connect(proxy.port) as client:
        client.sendall(b"REQ 1 a\n")
        try:
            return client.recv(1) == b""
        except ConnectionResetError:
            return True


def is_served(proxy: Proxy) -> bool:
    return exchange(proxy.port, b"REQ 1 a\n") == b"ACK 1 a\n"


def looking_up(code: str) -> tuple[str, ...]:
    """Return a command that runs twistd with DNS lookups replaced by `look_up(host, *rest)`, defined in `code`."""
    program = f"import os, socket, threading\ntrue = socket.getaddrinfo\n{code}\nsocket.getaddrinfo = look_up\n"
    return (sys.executable, "-c", f"{program}from twisted.scripts.twistd import run; run()", "-n")


def test_an_upstream_that_refuses_ends_the_clients_that_need_it_and_is_counted(tmp_path: Path) -> None:
    with bound() as server, fooproxy(tmp_path, "--connect-timeout", "0.5", upstream=server.getsockname()[1]) as proxy:
        assert is_refused(proxy)
        settles(lambda: closed(proxy), {"upstream_refused": 1})
        assert unready(proxy) == ["upstream_unreachable", "upstream_refused"]
        assert proxy.stats("upstream_connect_failures", "connections_active") == {
            "upstream_connect_failures": 1,
            "connections_active": 0,
        }
        proxy.says("Connection refused")
        proxy.says("ended: upstream_refused")
        with FooServer(server):
            assert is_served(proxy)
            eventually(lambda: not unready(proxy))
            proxy.says("connected to upstream")


def test_an_upstream_that_no_route_leads_to_is_told_apart(tmp_path: Path) -> None:
    # The kernel does not route TCP to a broadcast address, not even on loopback.
    more = ("--forward", "127.255.255.255:9", "--connect-timeout", "0.5")
    with fooproxy(tmp_path, *more) as proxy:
        assert is_refused(proxy)
        settles(lambda: closed(proxy), {"upstream_unreachable": 1})
        proxy.says("Network is unreachable")


def test_a_name_that_does_not_resolve_is_told_apart(tmp_path: Path) -> None:
    command = looking_up("def look_up(*_): raise socket.gaierror(-2, 'no such name')")
    more = ("--forward", "foo.example:8001", "--connect-timeout", "0.5")
    with fooproxy(tmp_path, *more, command=command) as proxy:
        assert is_refused(proxy)
        settles(lambda: closed(proxy), {"upstream_unresolved": 1})
        proxy.says("foo.example")


def test_a_name_is_looked_up_again_when_its_address_takes_no_connections_any_more(tmp_path: Path) -> None:
    command = looking_up("def look_up(host, *rest): return true(open('address').read(), *rest)")
    (tmp_path / "address").write_text("127.0.0.2")
    with ExitStack() as stack:
        old = stack.enter_context(FooServer(socket.create_server(("127.0.0.2", free_port()))))
        more = ("--forward", f"foo.example:{old.port}")
        proxy = stack.enter_context(fooproxy(tmp_path, *more, command=command))
        assert is_served(proxy)
        old.close()
        stack.enter_context(FooServer(socket.create_server(("127.0.0.3", old.port))))
        (tmp_path / "address").write_text("127.0.0.3")
        assert is_served(proxy)


def full_backlog(server: socket.socket, stack: ExitStack) -> None:
    """Fill the backlog until connecting times out, as with a host that is down or overloaded."""
    server.listen(0)
    while True:
        peer = stack.enter_context(socket.socket())
        peer.settimeout(0.2)
        try:
            peer.connect(server.getsockname())
        except TimeoutError:
            return


def test_an_upstream_that_does_not_answer_the_connect_ends_its_clients_in_time(tmp_path: Path) -> None:
    with bound() as server, ExitStack() as stack:
        full_backlog(server, stack)
        upstream = server.getsockname()[1]
        with fooproxy(tmp_path, "--connect-timeout", "0.5", upstream=upstream) as proxy:
            clients = [stack.enter_context(connect(proxy.port)) for _ in range(20)]
            for client in clients:
                assert client.recv(1) == b""
            settles(lambda: closed(proxy), {"connect_timeout": 20})
            assert unready(proxy) == ["upstream_unreachable", "connect_timeout"]
            proxy.says("no answer within 0.5 s")


def test_clients_that_wait_for_a_connect_are_served_when_it_is_answered_at_last(tmp_path: Path) -> None:
    with bound() as server, ExitStack() as stack:
        full_backlog(server, stack)
        upstream = server.getsockname()[1]
        proxy = stack.enter_context(fooproxy(tmp_path, "--connect-timeout", "60", upstream=upstream))
        client = stack.enter_context(connect(proxy.port))
        client.sendall(b"REQ 1 a\n")
        settles(lambda: proxy.stats("connections_active"), {"connections_active": 1})
        stack.enter_context(FooServer(server))
        assert read_lines(client, 1) == b"ACK 1 a\n"


def test_a_server_that_is_stopped_holds_its_own_sessions_alone_and_answers_when_it_goes_on(tmp_path: Path) -> None:
    program = (
        "import socket\n"
        "server = socket.create_server(('127.0.0.1', 0)); print(server.getsockname()[1], flush=True)\n"
        "while True: peer, _ = server.accept(); peer.sendall(b'ACK ' + peer.recv(99)[4:])"
    )
    with started([sys.executable, "-c", program], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        with fooproxy(tmp_path, upstream=port) as proxy, connect(proxy.port) as client:
            freeze(server.pid)
            client.sendall(b"REQ 1 a\n")
            settles(lambda: proxy.stats("requests_in_flight"), {"requests_in_flight": 1})
            # Its kernel still accepts connections, so it looks like a slow server.
            assert unready(proxy) == []
            os.kill(server.pid, signal.SIGCONT)
            assert read_lines(client, 1) == b"ACK 1 a\n"


@pytest.mark.parametrize(("how", "reason"), [("reset", "upstream_reset"), ("close", "upstream_closed")])
@pytest.mark.parametrize("said", [b"", b"ACK 1 a\nACK 2 half of a mess"], ids=["at once", "in a message"])
def test_an_upstream_that_leaves_is_told_to_its_client_with_all_that_it_said(
    tmp_path: Path, how: str, reason: str, said: bytes
) -> None:
    with bound() as server:
        server.listen()
        with fooproxy(tmp_path, upstream=server.getsockname()[1]) as proxy:
            with connect(proxy.port) as client:
                peer, _ = server.accept()
                with peer:
                    client.sendall(b"REQ 1 a\nREQ 2 b\n")
                    assert peer.recv(99) == b"REQ 1 a\nREQ 2 b\n"
                    peer.sendall(said)
                    # A reset would discard what the proxy has not read yet.
                    settles(lambda: proxy.stats("bytes_from_upstream"), {"bytes_from_upstream": len(said)})
                    if how == "reset":
                        reset(peer)
                assert read_to_end(client) == said
            settles(lambda: closed(proxy), {reason: 1})


def test_a_crowd_that_waits_for_a_server_that_is_down_is_served_when_it_comes_back(tmp_path: Path) -> None:
    with bound() as server, ExitStack() as stack:
        upstream = server.getsockname()[1]
        proxy = stack.enter_context(fooproxy(tmp_path, "--connect-timeout", "60", upstream=upstream))
        clients = [stack.enter_context(connect(proxy.port)) for _ in range(CROWD)]
        for seq, client in enumerate(clients):
            client.sendall(b"REQ %d a\n" % seq)
        settles(lambda: proxy.stats("connections_active"), {"connections_active": CROWD})
        stack.enter_context(FooServer(server))
        for seq, client in enumerate(clients):
            assert read_lines(client, 1) == b"ACK %d a\n" % seq
        assert closed(proxy) == {}
        proxy.says("connected to upstream", times=1)


def test_a_server_that_restarts_under_its_clients_costs_only_the_sessions_it_had(tmp_path: Path) -> None:
    with (
        FooServer() as server,
        fooproxy(tmp_path, "--connect-timeout", "60", upstream=server.port) as proxy,
    ):
        with connect(proxy.port) as client:
            client.sendall(b"REQ 1 a\n")
            assert read_lines(client, 1) == b"ACK 1 a\n"
            server.close()
            server.forget()
            assert client.recv(1) == b""
        with connect(proxy.port) as client:
            client.sendall(b"REQ 1 b\n")
            settles(lambda: unready(proxy), ["upstream_unreachable", "upstream_refused"])
            with FooServer(socket.create_server(("127.0.0.1", server.port))):
                client.settimeout(PATIENCE)
                assert read_lines(client, 1) == b"ACK 1 b\n"


@pytest.mark.parametrize(
    "code",
    [
        "def look_up(host, *rest):\n"
        "    if os.path.exists('exhausted'): raise OSError(24, 'Too many open files')\n"
        "    return true('127.0.0.1', *rest)",
        "start = threading.Thread.start\n"
        "def start_if_possible(thread):\n"
        "    if 'names' in thread.name and os.path.exists('exhausted'): raise RuntimeError('too many threads')\n"
        "    start(thread)\n"
        "threading.Thread.start = start_if_possible\n"
        "def look_up(host, *rest): return true('127.0.0.1', *rest)",
    ],
    ids=["descriptors", "threads"],
)
def test_a_look_up_for_which_there_is_nothing_left_is_a_failure_that_passes(tmp_path: Path, code: str) -> None:
    (tmp_path / "exhausted").touch()
    with (
        FooServer() as server,
        fooproxy(
            tmp_path, "--forward", f"foo.example:{server.port}", "--connect-timeout", "1", command=looking_up(code)
        ) as proxy,
    ):
        assert is_refused(proxy)
        settles(lambda: closed(proxy), {"upstream_unresolved": 1})
        (tmp_path / "exhausted").unlink()
        assert is_served(proxy)


def test_a_name_that_is_none_is_not_resolved(tmp_path: Path) -> None:
    with fooproxy(tmp_path, "--forward", "foo..example:8001", "--connect-timeout", "0.5") as proxy:
        assert is_refused(proxy)
        settles(lambda: closed(proxy), {"upstream_unresolved": 1})


def warnings(proxy: Proxy) -> list[str]:
    found: list[str] = proxy.get("/ready")[1]["warnings"]
    return found


def test_a_server_that_takes_requests_and_closes_without_an_answer_is_noticed(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        fooproxy(tmp_path, upstream=server.getsockname()[1]) as proxy,
    ):
        for _ in range(3):
            with connect(proxy.port) as client:
                client.sendall(b"REQ 1 a\nREQ 2 b\n")
                peer, _ = server.accept()
                with peer:
                    assert read_lines(peer, 2)
                assert read_to_end(client) == b""
        settles(lambda: proxy.stats("requests_unanswered")["requests_unanswered"]["upstream_closed"], 6)
        assert "upstream_drops_requests" in warnings(proxy)
        assert all(" unanswered=2 " in line for line in proxy.says("ended: upstream_closed", times=3))


def test_what_accepts_for_a_dead_server_and_closes_at_once_is_unreachable_and_logged(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        ExitStack() as stack,
        fooproxy(tmp_path, upstream=server.getsockname()[1]) as proxy,
    ):
        stack.callback(server.shutdown, socket.SHUT_RDWR)
        threading.Thread(target=_turn_away, args=(server,), daemon=True).start()
        settles(lambda: unready(proxy), ["upstream_unreachable"])
        with connect(proxy.port) as client:
            # It looks before it speaks.
            assert read_to_end(client) == b""
        settles(lambda: closed(proxy), {"upstream_closed": 1})
        assert "upstream_drops_requests" in warnings(proxy)
        proxy.says("ended: upstream_closed")


def _turn_away(server: socket.socket) -> None:
    with suppress(OSError):
        while True:
            server.accept()[0].close()


def test_a_proxy_that_forwards_to_itself_is_not_ready_even_before_a_client_came(tmp_path: Path) -> None:
    port = free_port()
    with fooproxy(tmp_path, "--listen", f"[::]:{port}", "--forward", f"127.0.0.1:{port}") as proxy:
        settles(lambda: unready(proxy), ["loop", "upstream_unreachable"])


def test_a_server_that_hangs_is_stuck_after_ten_seconds_and_not_when_it_answers_again(tmp_path: Path) -> None:
    with (
        FooServer(holding=True) as server,
        fooproxy(tmp_path, upstream=server.port) as proxy,
        connect(proxy.port) as client,
    ):
        client.sendall(b"REQ 1 a\n")
        settles(lambda: proxy.stats("requests_in_flight"), {"requests_in_flight": 1})
        assert "upstream_stuck" not in warnings(proxy)
        # Forged replies of a client change nothing.
        client.sendall(b"ACK 1\n")
        eventually(lambda: "upstream_stuck" in warnings(proxy))
        assert unready(proxy) == []
        server.release()
        assert read_lines(client, 2) == b"ACK 1 a\nNAK 0 ERRDECODE\n"
        eventually(lambda: not warnings(proxy))


def test_a_client_that_reads_late_does_not_make_the_server_look_slow(tmp_path: Path) -> None:
    data = b"x" * 1000
    requests = 20_000
    with FooServer() as server, fooproxy(tmp_path, upstream=server.port) as proxy:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
            client.settimeout(PATIENCE)
            client.connect(("127.0.0.1", proxy.port))
            sent = b"".join(b"REQ %d %s\n" % (number, data) for number in range(requests))
            sender = threading.Thread(target=client.sendall, args=[sent], daemon=True)
            sender.start()
            settles(lambda: proxy.stats("reads_paused")["reads_paused"]["upstream"] > 0, True)
            time.sleep(3)
            read_lines(client, requests)
            sender.join(PATIENCE)
        report = proxy.stats("latency_seconds", "replies_late", "msg_req", "msg_ack", "requests_in_flight")
    assert report["replies_late"] > 0
    assert report["latency_seconds"]["count"] + report["replies_late"] == requests
    assert (report["msg_req"], report["msg_ack"], report["requests_in_flight"]) == (requests, requests, 0)
    assert report["latency_seconds"]["max"] < 3
