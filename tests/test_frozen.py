"""The process is stopped past a deadline, as when a container is paused: what arrived meanwhile is read first."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.helpers.fooserver import PATIENCE, FooServer, connect, read_to_end
from tests.helpers.proxyprocess import Proxy, eventually, fooproxy, freeze, settles

pytestmark = pytest.mark.slow

DEADLINE = 600
"""Seconds; so many that no deadline passes on a machine that is merely slow."""

PROGRAM = f"""
import select, signal, time
passed, epoll, monotonic, monotonic_ns = 0, select.epoll, time.monotonic, time.monotonic_ns

def go_on(*_):
    global passed
    passed += {2 * DEADLINE}

class Epoll:
    def __init__(self, *arguments):
        self._true = epoll(*arguments)

    def __getattr__(self, name):
        return getattr(self._true, name)

    def poll(self, *arguments):
        before, found = passed, self._true.poll(*arguments)
        return found if passed == before else []

select.epoll = Epoll
time.monotonic = lambda: monotonic() + passed
time.monotonic_ns = lambda: monotonic_ns() + passed * 10**9
signal.signal(signal.SIGCONT, go_on)
from twisted.scripts.twistd import run; run()
"""
"""Runs twistd with a clock by which the process, whenever it goes on, was stopped past the deadline.

As after a long stop, a wait for events is then over without any, so that timers come before what has arrived.
"""

COMMAND = (sys.executable, "-c", PROGRAM, "-n")


@contextmanager
def frozen(proxy: Proxy) -> Iterator[None]:
    """Stop the process until the context ends; by its clock, a deadline that was running has long passed then."""
    freeze(proxy.pid)
    yield
    proxy.signal(signal.SIGCONT)


def asked(stack: ExitStack, folder: Path, *options: str) -> tuple[FooServer, Proxy, socket.socket]:
    """Start everything, and send a request that the server has, and has not answered."""
    server = stack.enter_context(FooServer(holding=True))
    proxy = stack.enter_context(fooproxy(folder, *options, upstream=server.port, command=COMMAND))
    client = stack.enter_context(connect(proxy.port))
    client.sendall(b"REQ 1 a\n")
    settles(lambda: server.received, [b"REQ 1 a\n"])
    return server, proxy, client


def test_a_client_that_has_closed_its_side_gets_the_reply(tmp_path: Path) -> None:
    with ExitStack() as stack:
        server, proxy, client = asked(stack, tmp_path, "--client-fin-timeout", str(DEADLINE))
        client.shutdown(socket.SHUT_WR)
        eventually(lambda: not server.sessions[0].thread.is_alive())
        with frozen(proxy):
            server.release()
        assert read_to_end(client) == b"ACK 1 a\n"


def test_a_client_gets_its_reply_before_the_drain_timeout_ends_its_session(tmp_path: Path) -> None:
    with ExitStack() as stack:
        server, proxy, client = asked(stack, tmp_path, "--drain-timeout", str(DEADLINE))
        proxy.signal(signal.SIGTERM)
        proxy.says("stopping: waiting")
        with frozen(proxy):
            server.release()
        assert read_to_end(client) == b"ACK 1 a\n"
        assert proxy.wait() == 0
        assert "ended: aborted" not in proxy.log


def is_being_connected(port: int) -> bool:
    """Return whether somebody on this machine has sent a SYN to `port`, which was not answered yet."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[2].endswith(f":{port:04X}") and row[3] == "02" for row in rows)


@pytest.mark.parametrize("scheme", ["", "tcp:", "name"])
def test_a_connect_that_has_succeeded_is_not_late(tmp_path: Path, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as stack:
        listener.settimeout(PATIENCE)
        fillers = {stack.enter_context(connect(listener.getsockname()[1])).getsockname()}
        host = "localhost" if scheme == "name" else "127.0.0.1"
        forward = f"{scheme.removesuffix('name')}{host}:{listener.getsockname()[1]}"
        options = ("--forward", forward, "--connect-timeout", str(DEADLINE))
        proxy = stack.enter_context(fooproxy(tmp_path, *options, command=COMMAND))
        client = stack.enter_context(connect(proxy.port))
        client.sendall(b"REQ 1 a\n")
        eventually(lambda: is_being_connected(listener.getsockname()[1]))
        with frozen(proxy):
            # With room again, the next of the kernel's own retries gets through.
            while (accepted := listener.accept())[1] in fillers:
                stack.enter_context(accepted[0])
        upstream = stack.enter_context(accepted[0])
        upstream.settimeout(PATIENCE)
        assert upstream.recv(100) == b"REQ 1 a\n"
