"""The real process with checks: what servers see of them, and who gets clients meanwhile."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.fooserver import PATIENCE, FooServer, exchange
from tests.helpers.proxyprocess import eventually, fooproxy, settles
from tests.upstreams.test_several import forward

pytestmark = pytest.mark.slow

OFTEN = ("--check", "foo", "--check-interval", "0.2")


class Listener:
    """Accepts connections, answers each first line, and records how they end."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.seen: list[tuple[bytes, bytes]] = []
        """What came until the answer, and what came after it; a reset is ``RST``."""

    @contextmanager
    def running(self) -> Iterator[int]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=self._serve, args=(listener,), daemon=True)
            thread.start()
            yield listener.getsockname()[1]
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                peer.settimeout(PATIENCE)
                first = peer.recv(100)
                peer.sendall(self.answer)
                try:
                    rest = peer.recv(100)
                except ConnectionResetError:
                    rest = b"RST"
                self.seen.append((first, rest))


def test_a_server_sees_a_whole_request_and_then_a_fin(tmp_path: Path) -> None:
    server = Listener(b"NAK 1 busy\n")
    with server.running() as port, fooproxy(tmp_path, *forward(port), *OFTEN) as proxy:
        eventually(lambda: len(server.seen) >= 3)
        assert all(first.startswith(b"REQ 1 ") and first.endswith(b"\n") for first, _ in server.seen)
        assert {rest for _, rest in server.seen} == {b""}
        (row,) = proxy.get("/upstreams")[1]["upstreams"]
        assert (row["state"], row["checks"]["failed"], row["check"]["result"]) == ("up", 0, "passed")
        report = proxy.stats()
        assert report["upstream_checks"]["passed"] >= 3
        kept = {name: value for name, value in report.items() if name.startswith(("msg_", "bytes_", "connections_"))}
        assert not any(value for name, value in kept.items() if name not in ("connections_limit", "connections_closed"))


def test_a_server_that_answers_wrongly_gets_no_clients_until_it_answers_rightly(tmp_path: Path) -> None:
    server = Listener(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with server.running() as port, FooServer() as b, fooproxy(tmp_path, *forward(port, b), *OFTEN) as proxy:
        proxy.says("upstream a fails its checks: its answer to a request is not a reply")
        for _ in range(20):
            assert exchange(proxy.port, b"REQ 1 a\n") == b"ACK 1 a\n"
        row = proxy.get("/upstreams")[1]["upstreams"][0]
        assert (row["state"], row["reason"], row["requests"]) == ("down", "upstream_check", 0)
        assert row["check"]["last_error"] == row["error"]
        assert proxy.get("/ready")[0] == 200
        server.answer = b"ACK 1\n"
        proxy.says("connected to upstream a again")
        settles(lambda: proxy.stats("upstreams_up"), {"upstreams_up": 2})


def test_the_only_server_serves_although_it_fails_its_checks(tmp_path: Path) -> None:
    with FooServer() as a, fooproxy(tmp_path, *forward(a), *OFTEN) as proxy:
        a.resets_at = b"check"
        proxy.says("upstream a fails its checks: ")
        assert exchange(proxy.port, b"REQ 1 a\n") == b"ACK 1 a\n"
        assert proxy.get("/ready")[0] == 200


def test_checks_that_only_connect_leave_the_server_in_peace(tmp_path: Path) -> None:
    with FooServer() as a, fooproxy(tmp_path, *forward(a), "--check", "tcp", "--check-interval", "0.5") as proxy:
        eventually(lambda: proxy.stats("upstream_checks")["upstream_checks"]["passed"] >= 2)
        settles(lambda: a.received[:2], [b"", b""])
