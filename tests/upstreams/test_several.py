"""The real process with several servers: who gets the clients, and what becomes of them when servers fail."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fooserver import FooServer, connect, exchange, read_lines, reset
from tests.helpers.processes import started
from tests.helpers.proxyprocess import Proxy, eventually, fooproxy, freeze, settles

pytestmark = pytest.mark.slow


def forward(*servers: FooServer | int, more: tuple[str, ...] = ()) -> list[str]:
    """Return the options for these servers, named after the letters."""
    words = []
    for number, server in enumerate(servers):
        port = server if isinstance(server, int) else server.port
        extra = more[number] if more else ""
        words += ["--forward", f"127.0.0.1:{port},name={'abcd'[number]}{extra}"]
    return words


@contextmanager
def holding(proxy: Proxy, count: int) -> Iterator[list[socket.socket]]:
    """Open sessions that have each asked once and been answered."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(proxy.port)) for _ in range(count)]
        for client in clients:
            client.sendall(b"REQ 1 a\n")
        for client in clients:
            assert read_lines(client, 1) == b"ACK 1 a\n"
        yield clients


FEW = ("--upstream-max-connections", "1")


def ask_all(clients: list[socket.socket]) -> None:
    for client in clients:
        client.sendall(b"REQ 2 b\n")
    for client in clients:
        assert read_lines(client, 1) == b"ACK 2 b\n"


@pytest.mark.parametrize(("more", "due"), [(("", ""), (20, 20)), ((",weight=3", ""), (30, 10))])
def test_forty_sessions_are_shared_out_by_weight(tmp_path: Path, more: tuple[str, ...], due: tuple[int, int]) -> None:
    with (
        FooServer() as a,
        FooServer() as b,
        fooproxy(tmp_path, *forward(a, b, more=more)) as proxy,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(connect(proxy.port)) for _ in range(40)]
        # Requests in flight count too, so none is sent before all are there.
        eventually(lambda: len(a.sessions) + len(b.sessions) == 40)
        found = len(a.sessions), len(b.sessions)
        assert all(abs(count - part) <= 1 for count, part in zip(found, due, strict=True))
        ask_all(clients)
        ask_all(clients)
        report = proxy.stats()
        assert (report["msg_req"], report["msg_ack"], report["connections_active"]) == (80, 80, 40)
        assert (report["upstreams_up"], report["upstreams_total"]) == (2, 2)


@pytest.mark.parametrize("balance", ["least", "round-robin"])
def test_a_server_that_refuses_costs_no_client_anything(tmp_path: Path, balance: str) -> None:
    with socket.socket() as bound, FooServer() as b:
        bound.bind(("127.0.0.1", 0))
        with fooproxy(tmp_path, *forward(bound.getsockname()[1], b), "--balance", balance) as proxy:
            for _ in range(30):
                assert exchange(proxy.port, b"REQ 1 a\n") == b"ACK 1 a\n"
            eventually(lambda: proxy.stats("upstreams_up")["upstreams_up"] == 1)
            proxy.says("cannot connect to upstream a: ")
            assert proxy.get("/ready")[0] == 200
            with FooServer(bound) as a:
                proxy.says("connected to upstream a again")
                settles(lambda: proxy.stats("upstreams_up"), {"upstreams_up": 2})
                with holding(proxy, 20):
                    assert a.sessions


def test_hash_keeps_a_client_address_on_one_server(tmp_path: Path) -> None:
    with FooServer() as a, FooServer() as b, fooproxy(tmp_path, *forward(a, b), "--balance", "hash") as proxy:
        for _ in range(20):
            assert exchange(proxy.port, b"REQ 1 a\n") == b"ACK 1 a\n"
            settles(lambda: proxy.stats("connections_active"), {"connections_active": 0})
        assert sorted([len(a.sessions), len(b.sessions)]) == [0, 20]


def test_a_backup_serves_while_no_other_server_can(tmp_path: Path) -> None:
    with FooServer() as a, FooServer() as b, fooproxy(tmp_path, *forward(a, b, more=("", ",backup"))) as proxy:
        with holding(proxy, 10):
            assert (len(a.sessions), len(b.sessions)) == (10, 0)
        a.close()
        with holding(proxy, 10):
            assert len(b.sessions) == 10


def test_when_all_servers_are_down_clients_wait_for_the_first_that_comes_back(tmp_path: Path) -> None:
    with ExitStack() as stack:
        bound: list[Any] = [stack.enter_context(socket.socket()) for _ in range(2)]
        for one in bound:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in bound]
        proxy = stack.enter_context(fooproxy(tmp_path, *forward(*ports), "--connect-timeout", "30"))
        clients = [stack.enter_context(connect(proxy.port)) for _ in range(50)]
        for client in clients:
            client.sendall(b"REQ 1 a\n")
        settles(
            lambda: proxy.stats("upstreams_up", "connections_active"), {"upstreams_up": 0, "connections_active": 50}
        )
        status, ready = proxy.get("/ready")
        assert (status, ready["reasons"]) == (503, ["upstream_unreachable", "upstream_refused"])
        stack.enter_context(FooServer(bound[1]))
        for client in clients:
            assert read_lines(client, 1) == b"ACK 1 a\n"


def test_a_server_that_is_closed_under_load_ends_its_sessions_only(tmp_path: Path) -> None:
    with FooServer() as a, FooServer() as b, fooproxy(tmp_path, *forward(a, b)) as proxy, holding(proxy, 20) as clients:
        a.close()
        a.forget()
        served = 0
        for client in clients:
            with suppress(ConnectionResetError, BrokenPipeError):
                client.sendall(b"REQ 2 b\n")
                served += client.recv(100) == b"ACK 2 b\n"
        assert served == len(b.sessions) >= 8
        with holding(proxy, 20):
            assert len(b.sessions) == served + 20


@contextmanager
def own_process() -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Run a server in a process of its own; give its port, which nobody takes when it has ended, and the process."""
    code = (
        "import signal\nfrom tests.helpers.fooserver import FooServer\nwith FooServer() as server:\n"
        "    print(server.port, flush=True)\n    signal.pause()"
    )
    with started([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline()), process


def ends(proxy: Proxy) -> bytes:
    """Ask once, and return what comes until the connection ends."""
    with connect(proxy.port) as client:
        client.sendall(b"REQ 1 a\n")
        try:
            return client.recv(100)
        except ConnectionResetError:
            return b""


def test_a_server_that_resets_its_clients_is_taken_out_and_costs_three_of_them(tmp_path: Path) -> None:
    with FooServer() as a, FooServer() as b, fooproxy(tmp_path, *forward(a, b)) as proxy:
        a.resets_at = b"REQ"
        found = []

        def is_taken_out() -> bool:
            found.append(ends(proxy))
            return bool(proxy.stats("upstreams_up")["upstreams_up"] == 1)

        eventually(is_taken_out)
        assert found.count(b"") == 3
        assert set(found) <= {b"", b"ACK 1 a\n"}
        proxy.says("taking out upstream a: it ends sessions with requests unanswered")
        a.resets_at = b"please reset"
        proxy.says("connected to upstream a again")
        with holding(proxy, 20):
            assert len(a.sessions) > 3


def test_the_only_server_is_never_taken_out_for_what_it_does(tmp_path: Path) -> None:
    with FooServer() as a, fooproxy(tmp_path, *forward(a)) as proxy:
        a.resets_at = b"REQ"
        assert [ends(proxy) for _ in range(10)] == [b""] * 10
        a.resets_at = b"please reset"
        assert ends(proxy) == b"ACK 1 a\n"


def test_two_servers_that_both_reset_their_clients_are_not_both_taken_out(tmp_path: Path) -> None:
    with FooServer() as a, FooServer() as b, fooproxy(tmp_path, *forward(a, b)) as proxy:
        a.resets_at = b.resets_at = b"REQ"
        for _ in range(20):
            assert ends(proxy) == b""
            assert proxy.stats("upstreams_up")["upstreams_up"] >= 1
        proxy.says("taking out upstream")
        a.resets_at = b.resets_at = b"please reset"
        assert ends(proxy) == b"ACK 1 a\n"


def test_a_server_that_is_stopped_gets_no_more_clients_after_ten_seconds_and_comes_back(tmp_path: Path) -> None:
    with own_process() as (port, server), FooServer() as b, fooproxy(tmp_path, *forward(port, b)) as proxy:
        with holding(proxy, 20) as clients:
            freeze(server.pid)
            for client in clients:
                client.sendall(b"REQ 2 b\n")
            proxy.says("taking out upstream a: it has not answered any request for 10 s")
            before = len(b.sessions)
            for _ in range(20):
                assert exchange(proxy.port, b"REQ 1 a\n") == b"ACK 1 a\n"
            assert len(b.sessions) == before + 20
            os.kill(server.pid, signal.SIGCONT)
            # Nothing that waited there is lost.
            for client in clients:
                assert read_lines(client, 1) == b"ACK 2 b\n"
        proxy.says("connected to upstream a again")
        settles(lambda: proxy.stats("upstreams_up", "requests_in_flight"), {"upstreams_up": 2, "requests_in_flight": 0})


def test_a_server_that_is_killed_under_load_costs_only_its_sessions(tmp_path: Path) -> None:
    with (
        own_process() as (port, server),
        FooServer() as b,
        fooproxy(tmp_path, *forward(port, b)) as proxy,
        holding(proxy, 20),
    ):
        server.kill()
        server.wait()
        for _ in range(30):
            assert exchange(proxy.port, b"REQ 1 a\n") == b"ACK 1 a\n"
        # Sessions of the dead server may still be open, but now it has fewer than the other one, and is tried.
        with holding(proxy, 20):
            proxy.says("upstream a: ")


def test_a_server_that_closes_after_each_reply_stays_in_as_long_as_nothing_is_left_unanswered(tmp_path: Path) -> None:
    with FooServer() as b, FooServer() as a, fooproxy(tmp_path, *forward(a, b)) as proxy:
        for _ in range(20):
            with connect(proxy.port) as client:
                client.sendall(b"REQ 1 a\n")
                assert read_lines(client, 1) == b"ACK 1 a\n"
                for server in (a, b):
                    server.forget()
                assert client.recv(1) == b""
        assert proxy.stats("upstreams_up")["upstreams_up"] == 2


def test_operators_see_which_server_does_what(tmp_path: Path) -> None:
    with (
        FooServer() as a,
        FooServer() as b,
        fooproxy(tmp_path, *forward(a, b), "--log-sessions") as proxy,
        holding(proxy, 10),
    ):
        _, answer = proxy.get("/upstreams")
        first, second = answer["upstreams"]
        assert (first["name"], second["name"], first["state"], answer["clients_waiting"]) == ("a", "b", "up", 0)
        assert first["connections_active"] == len(a.sessions) and second["connections_active"] == len(b.sessions)
        assert first["requests"] + second["requests"] == 10
        _, listed = proxy.get("/connections")
        names = [row["upstream_name"] for row in listed["connections"]]
        assert (names.count("a"), names.count("b")) == (len(a.sessions), len(b.sessions))
        assert len(proxy.get("/live")[1]["upstreams"]) == 2
        a.close()
        a.forget()
        proxy.says("upstream=a")
        with holding(proxy, 20):
            eventually(lambda: proxy.get("/upstreams")[1]["upstreams"][0]["state"] == "down")
        status, ready = proxy.get("/ready")
        assert (status, ready["reasons"]) == (200, [])
        assert "upstream_down" in ready["warnings"]


def test_clients_beyond_the_limits_wait_in_order_and_are_told_from_who_is_served(tmp_path: Path) -> None:
    with (
        FooServer() as a,
        FooServer() as b,
        fooproxy(tmp_path, *forward(a, b, more=("", ",max=2")), *FEW, "--queue-timeout", "600") as proxy,
        holding(proxy, 3) as served,
        ExitStack() as stack,
    ):
        waiting = []
        for number in range(4):
            waiting.append(stack.enter_context(connect(proxy.port)))
            if number:
                waiting[-1].sendall(b"REQ 1 %d\n" % number)
            settles(lambda: proxy.stats("clients_waiting"), {"clients_waiting": number + 1})
        _, listed = proxy.get("/connections")
        assert sorted(row["state"] for row in listed["connections"]) == ["open"] * 3 + ["waiting"] * 4
        _, found = proxy.get("/upstreams")
        assert [row["connections_limit"] for row in found["upstreams"]] == [1, 2]
        assert found["oldest_wait_seconds"] > 0
        assert (len(a.sessions), len(b.sessions)) == (1, 2)
        # Who leaves without a word is no longer in the queue; each end lets in the next one, and no other.
        waiting.pop(0).close()
        settles(lambda: proxy.stats("clients_waiting"), {"clients_waiting": 3})
        served[1].close()
        assert read_lines(waiting[0], 1) == b"ACK 1 1\n"
        assert proxy.stats("clients_waiting", "connections_active") == {"clients_waiting": 2, "connections_active": 5}
        ask_all([served[0], served[2], waiting[0]])


def test_clients_that_have_waited_for_too_long_are_closed_and_counted(tmp_path: Path) -> None:
    with (
        FooServer() as a,
        fooproxy(tmp_path, *forward(a), *FEW, "--queue-timeout", "0.2") as proxy,
        holding(proxy, 1) as served,
    ):
        for _ in range(2):
            with connect(proxy.port) as waiting:
                assert waiting.recv(1) == b""
        settles(lambda: proxy.stats()["connections_closed"]["queue_timeout"], 2)
        proxy.says("ended: queue_timeout")
        ask_all(served)


def test_what_each_server_did_outlives_a_crash_under_its_name(tmp_path: Path) -> None:
    with FooServer() as a, FooServer() as b:
        with fooproxy(tmp_path, *forward(a, b)) as proxy, holding(proxy, 10):
            before = {row["name"]: row["requests"] for row in proxy.get("/upstreams")[1]["upstreams"]}
            saves = proxy.stats("recovery_saves")["recovery_saves"]["ok"]
            eventually(lambda: proxy.stats("recovery_saves")["recovery_saves"]["ok"] >= saves + 2)
            proxy.process.kill()
            proxy.process.wait()
        with fooproxy(tmp_path, *forward(b, a)) as proxy:
            # What was called a is called b now.
            rows = {row["name"]: row for row in proxy.get("/upstreams")[1]["upstreams"]}
            assert {name: row["requests"] for name, row in rows.items()} == before
            assert sum(row["latency_seconds"]["count"] for row in rows.values()) == 10
            assert proxy.stats("msg_req") == {"msg_req": 10}


def test_no_slot_is_lost_however_clients_and_servers_leave(tmp_path: Path) -> None:
    with FooServer() as a, fooproxy(tmp_path, "--forward", f"127.0.0.1:{a.port},max=3") as proxy:
        for turn in range(8):
            with ExitStack() as stack:
                clients = [stack.enter_context(connect(proxy.port)) for _ in range(12)]
                for number, client in enumerate(clients):
                    if number % 4:
                        client.sendall((b"REQ 1 a\n", b"REQ 1", b"REQ 1 a\nREQ 2 b\n")[number % 4 - 1])
                settles(lambda: proxy.stats("clients_waiting"), {"clients_waiting": 9})
                if turn % 2:
                    a.forget()
                for number, client in enumerate(clients):
                    if number % 3 == turn % 3:
                        reset(client)
            settles(
                lambda: proxy.stats("clients_waiting", "connections_active"),
                {"clients_waiting": 0, "connections_active": 0},
            )
        with holding(proxy, 3), connect(proxy.port):
            settles(lambda: proxy.stats("clients_waiting"), {"clients_waiting": 1})
