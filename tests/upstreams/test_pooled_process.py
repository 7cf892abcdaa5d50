"""The real process with a pool: many clients over few links, servers that restart, and what operators see."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.helpers.fooserver import FooServer, connect, exchange, read_exactly, read_lines, read_to_end
from tests.helpers.proxyprocess import eventually, fooproxy, settles

pytestmark = pytest.mark.slow

BURST = ("--pool", "burst", "--upstream-max-connections", "4")


def test_sixty_clients_share_four_links_and_get_their_own_replies(tmp_path: Path) -> None:
    with FooServer() as server, fooproxy(tmp_path, *BURST, upstream=server.port) as proxy, ExitStack() as stack:
        clients = [stack.enter_context(connect(proxy.port)) for _ in range(60)]
        for turn in range(1, 6):
            for number, client in enumerate(clients):
                client.sendall(b"".join(b"REQ %d%03d x\n" % (turn, number) for _ in range(turn)))
            for number, client in enumerate(clients):
                due = b"ACK %d%03d x\n" % (turn, number) * turn
                assert read_exactly(client, len(due)) == due
        assert len(server.received) <= 4
        settles(lambda: proxy.stats("links")["links"], {"idle": len(server.received), "in_use": 0, "draining": 0})
        found = proxy.stats("connections_active", "links_taken", "links_reused", "responses_unmatched", "msg_req")
        assert found["connections_active"] == 60
        assert found["links_taken"] - found["links_reused"] == len(server.received)
        assert found["responses_unmatched"] == 0
        assert found["msg_req"] == 60 * 15
        row = proxy.get("/upstreams")[1]["upstreams"][0]
        assert row["links"] == {"idle": len(server.received), "in_use": 0, "draining": 0}
        states = {session["state"] for session in proxy.get("/connections")[1]["connections"]}
        assert states == {"idle"}


def test_clients_that_pause_notice_nothing_of_a_restart(tmp_path: Path) -> None:
    with (
        FooServer() as server,
        fooproxy(tmp_path, "--pool", "burst", upstream=server.port) as proxy,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(connect(proxy.port)) for _ in range(8)]
        for client in clients:
            client.sendall(b"REQ 1 a\n")
            assert read_lines(client, 1) == b"ACK 1 a\n"
        settles(lambda: proxy.stats("links")["links"]["in_use"], 0)
        server.forget()
        settles(lambda: sum(proxy.stats("links")["links"].values()), 0)
        for client in clients:
            client.sendall(b"REQ 2 b\n")
            assert read_lines(client, 1) == b"ACK 2 b\n"


def test_short_clients_need_no_connection_of_their_own(tmp_path: Path) -> None:
    with FooServer() as server, fooproxy(tmp_path, "--pool", "session", upstream=server.port) as proxy:
        for number in range(20):
            assert exchange(proxy.port, b"REQ %d x\n" % number) == b"ACK %d x\n" % number
        eventually(lambda: proxy.stats("links")["links"]["idle"] == 1)
        assert len(server.received) == 1
        assert proxy.stats("links_reused") == {"links_reused": 19}


def test_who_holds_the_only_link_in_mid_line_is_closed_for_who_waits(tmp_path: Path) -> None:
    more = ("--pool", "burst", "--upstream-max-connections", "1", "--pool-hold-timeout", "0.5")
    with FooServer() as server, fooproxy(tmp_path, *more, upstream=server.port) as proxy:
        with connect(proxy.port) as holder, connect(proxy.port) as waiter:
            holder.sendall(b"REQ 1")
            eventually(lambda: proxy.stats("links")["links"]["in_use"] == 1)
            waiter.sendall(b"REQ 2 x\n")
            assert read_lines(waiter, 1) == b"ACK 2 x\n"
            assert read_to_end(holder) == b""
        assert proxy.get("/stats")[1]["connections_closed"]["hold_timeout"] == 1
