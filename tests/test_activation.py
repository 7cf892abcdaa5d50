"""Socket activation: somebody else holds the listening socket, so that a restart under load loses nobody.

What can be promised: no connection is refused, each request that the Foo server gets is answered to the client that
sent it, and no other request reached the server.  So a client that sends again on its next connection what had no reply
when it saw the FIN, or a reset after it, has every request served, and once.
"""

from __future__ import annotations

import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.error import CannotListenError

from fooproxy.net.addresses import connects_polled, listens_polled
from fooproxy.net.endpoints import Listener
from fooproxy.net.poller import Poller
from fooproxy.net.transport import Transport
from tests.helpers.bed import Peers, reactor, until
from tests.helpers.fooserver import PATIENCE, FooServer, connect, exchange, read_lines, replies_to
from tests.helpers.processes import completed, environment, started
from tests.helpers.proxyprocess import TWISTD, Proxy, eventually, fooproxy, options

# What systemd does between fork and exec.
_ACTIVATE = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3)\n"
    "os.environ.update(LISTEN_FDS='1', LISTEN_FDNAMES='fooproxy.socket', LISTEN_PID=str(os.getpid()))\n"
    "os.execv(sys.argv[2], sys.argv[2:])"
)

RESTARTS = 3


@contextmanager
def activated(folder: Path, holder: socket.socket, upstream: int, *more: str) -> Iterator[Proxy]:
    """Run a proxy that inherits the socket that `holder` is."""
    fd = holder.fileno()
    command = (sys.executable, "-c", _ACTIVATE, str(fd), *TWISTD, "-n")
    listen = ("--listen", "systemd:domain=INET:index=0", *more)
    with fooproxy(folder, *listen, upstream=upstream, command=command, inherited=[fd]) as proxy:
        yield proxy


class Client(threading.Thread):
    """Sends `batch` requests at a time, `per_connection` times, and has each answered, whatever connections end."""

    def __init__(self, port: int, name: str, batch: int, per_connection: int) -> None:
        super().__init__(daemon=True)
        self.answered: list[bytes] = []
        self.enough = threading.Event()
        self.problem: Exception | None = None
        self._port, self._name, self._batch, self._per_connection = port, name, batch, per_connection
        self._asked = 0
        self._open: list[bytes] = []

    def run(self) -> None:
        try:
            while self._open or not self.enough.is_set():
                self._connection()
        except Exception as error:
            self.problem = error

    def has_answers(self, count: int) -> bool:
        """Say whether so many requests have been answered."""
        return len(self.answered) >= count

    def _connection(self) -> None:
        # A connect that is refused is a failure of the test; what ends a connection afterwards is not.
        with connect(self._port) as peer:
            for _ in range(self._per_connection):
                while len(self._open) < self._batch and not self.enough.is_set():
                    self._asked += 1
                    self._open.append(b"REQ %d %s-%d\n" % (self._asked, self._name.encode(), self._asked))
                with suppress(ConnectionResetError, BrokenPipeError):
                    # There may still be replies to read after a failure.
                    peer.sendall(b"".join(self._open))
                with suppress(ConnectionResetError):
                    self._take_replies(peer)
                if self._open or self.enough.is_set():
                    return

    def _take_replies(self, peer: socket.socket) -> None:
        rest = b""
        while self._open and (chunk := peer.recv(1 << 16)):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                assert line + b"\n" == replies_to(self._open.pop(0))
                self.answered.append(line)


@pytest.mark.slow
def test_restarts_under_load_refuse_no_connection_and_lose_no_request(tmp_path: Path) -> None:
    with FooServer() as server, socket.create_server(("127.0.0.1", 0), backlog=1024) as holder:
        port = holder.getsockname()[1]
        clients = [Client(port, f"long-{number}", 20, 1 << 30) for number in range(10)]
        clients += [Client(port, f"short-{number}", 1, 1) for number in range(10)]
        for client in clients:
            client.start()
        try:
            for _ in range(RESTARTS):
                seen = [len(client.answered) for client in clients]
                with activated(tmp_path, holder, server.port) as proxy:
                    assert proxy.port == port
                    for client, before in zip(clients, seen, strict=True):
                        eventually(partial(client.has_answers, before + 5))
                    proxy.signal(signal.SIGTERM)
                    assert proxy.wait() == 0
                    assert "aborting" not in proxy.log
                eventually(lambda: not any(client.problem for client in clients))
            with activated(tmp_path, holder, server.port):
                for client in clients:
                    client.enough.set()
                for client in clients:
                    client.join(PATIENCE)
        finally:
            for client in clients:
                client.enough.set()
        assert [client.problem for client in clients] == [None] * len(clients)
        received = Counter(line for stream in server.received for line in stream.splitlines())
        answered = Counter(line.replace(b"ACK", b"REQ", 1) for client in clients for line in client.answered)
        assert set(received.values()) == {1}
        assert answered == received


@pytest.mark.slow
def test_clients_that_come_while_no_proxy_runs_wait_for_the_next(tmp_path: Path) -> None:
    with FooServer() as server, socket.create_server(("127.0.0.1", 0)) as holder:
        with activated(tmp_path, holder, server.port) as proxy:
            assert exchange(proxy.port, b"REQ 1 a\n") == b"ACK 1 a\n"
            proxy.signal(signal.SIGTERM)
            assert proxy.wait() == 0
        with connect(proxy.port) as client:
            client.sendall(b"REQ 2 b\n")
            with activated(tmp_path, holder, server.port) as proxy:
                assert read_lines(client, 1) == b"ACK 2 b\n"


@pytest_twisted.ensureDeferred
async def test_an_inherited_socket_has_our_transports_and_outlasts_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder, holder.dup() as inherited:
        inherited.setblocking(False)
        peers = Peers()
        port: Any = Listener(reactor, Poller(reactor)).adoptStreamPort(inherited.fileno(), 0, peers)
        with connect(holder.getsockname()[1]):
            await until(lambda: peers.built and peers.built[0].connected_)
            assert isinstance(peers.built[0].transport, Transport)
        await until(lambda: peers.built[0].fin)
        peers.built[0].transport.loseConnection()
        await port.stopListening()
        await until(lambda: peers.built[0].lost)
        with connect(holder.getsockname()[1]):
            holder.accept()[0].close()


def unsuitable(kind: str) -> tuple[Any, ...]:
    """Make what is no listening socket; the first is what is inherited, and all have to be closed."""
    if kind == "file":
        return (tempfile.TemporaryFile(),)
    if kind == "connection":
        return socket.socketpair()
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM)
    made.bind(("127.0.0.1", 0))
    return (made,)


UNSUITABLE = [
    ("datagram", "is a datagram socket"),
    ("bound", "is a socket that does not listen"),
    ("connection", "is a connection"),
    ("file", "is no socket"),
]


@pytest.mark.parametrize("polled", [True, False], ids=["our transports", "Twisted's"])
@pytest.mark.parametrize(("kind", "found"), UNSUITABLE)
def test_what_was_inherited_and_does_not_listen_is_refused(kind: str, found: str, polled: bool) -> None:
    made = unsuitable(kind)
    listener = Listener(reactor, Poller(reactor) if polled else None)
    with pytest.raises(CannotListenError, match=found) as refusal:
        listener.adoptStreamPort(made[0].fileno(), socket.AF_INET, Peers())
    assert "expected a listening socket for streams (ListenStream= and Accept=no" in str(refusal.value.socketError)
    for each in made:
        each.close()


@pytest.mark.slow
def test_a_udp_socket_of_systemd_ends_the_start_with_one_line(tmp_path: Path) -> None:
    with closing(unsuitable("datagram")[0]) as holder:
        command = [sys.executable, "-c", _ACTIVATE, str(holder.fileno()), *TWISTD, "-n", "fooproxy"]
        command += options(tmp_path, 1, "--listen", "systemd:domain=INET:index=0")
        end = completed(command, cwd=tmp_path, pass_fds=[holder.fileno()])
    assert end.returncode == 1
    (line,) = (line for line in end.stderr.splitlines() if "#info]" not in line)
    assert "cannot listen on systemd:domain=INET:index=0: the file descriptor 3 that was passed is a datagram" in line


@pytest.mark.parametrize(
    ("address", "ours"),
    [
        ("8002", True),
        ("systemd:domain=INET:index=0", True),
        ("systemd:index=1:domain=INET6", True),
        ("systemd:domain=UNIX:index=0", True),
        ("tcp:8002", True),
        ("unix:/run/foo.sock:mode=660", True),
        ("ssl:8002", False),
        ("haproxy:tcp:8002", False),
    ],
)
def test_plain_listeners_have_our_transports_also_when_they_were_inherited(address: str, ours: bool) -> None:
    assert listens_polled(address) is ours


@pytest.mark.parametrize(
    ("address", "ours"),
    [
        ("8001", True),
        ("foo.example:8001", True),
        ("unix:/run/foo.sock", True),
        ("unix:path=/run/foo.sock", True),
        ("unix:/run/foo.sock:timeout=5", False),
        ("unix:/run/foo.sock:lockfile=1", False),
        ("tcp:127.0.0.1:8001", True),
        ("tcp:host=foo.example:port=8001", True),
        ("tcp:foo.example:8001:timeout=5", False),
        ("tcp:foo.example:8001:bindAddress=192.0.2.7", False),
        ("tls:foo.example:8001", False),
    ],
)
def test_connections_to_plain_upstreams_have_our_transports(address: str, ours: bool) -> None:
    assert connects_polled(address) is ours


@pytest.mark.slow
@pytest.mark.parametrize("domain", ["INET", "INET6"])
def test_an_inherited_socket_may_be_of_either_family(tmp_path: Path, domain: str) -> None:
    family, host = (socket.AF_INET, "127.0.0.1") if domain == "INET" else (socket.AF_INET6, "::1")
    with FooServer() as server, socket.create_server((host, 0), family=family) as holder:
        listen = ("--listen", f"systemd:domain={domain}:name=fooproxy.socket", "--http", "127.0.0.1:0")
        fd = holder.fileno()
        command = (sys.executable, "-c", _ACTIVATE, str(fd), *TWISTD, "-n")
        arguments = [*command, "fooproxy", *options(tmp_path, server.port, *listen)]
        with started(arguments, stderr=subprocess.PIPE, cwd=tmp_path, pass_fds=[fd], text=True) as process:
            with socket.create_connection(holder.getsockname()[:2], timeout=PATIENCE) as client:
                client.sendall(b"REQ 1 a\n")
                assert read_lines(client, 1) == b"ACK 1 a\n"
            process.terminate()
            _, log = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert f"listening for clients on {'[::1]' if domain == 'INET6' else host}:" in log
        assert "Traceback" not in log


def connected(address: tuple[str, int]) -> socket.socket | None:
    """Connect, if somebody listens."""
    try:
        return socket.create_connection(address, timeout=PATIENCE)
    except ConnectionRefusedError:
        return None


@pytest.mark.slow
def test_it_is_started_by_the_first_connection_under_systemd_socket_activate(tmp_path: Path) -> None:
    program = shutil.which("systemd-socket-activate")
    if program is None:
        pytest.skip("there is no systemd-socket-activate")
    # It takes no port 0; on an address that nobody else uses, a free port stays free.
    with socket.create_server((f"127.{random.randint(1, 254)}.{random.randint(0, 255)}.1", 0)) as chosen:
        host, port = chosen.getsockname()
    # Twisted wants names; systemd itself always gives some.
    activate = [program, f"--listen={host}:{port}", "--fdname=fooproxy.socket"]
    before = [*activate, f"--setenv=PYTHONPATH={environment()['PYTHONPATH']}", *TWISTD, "-n"]
    with FooServer() as server, (tmp_path / "log").open("wb") as log:
        after = ["fooproxy", *options(tmp_path, server.port, "--listen", "systemd:domain=INET:index=0")]
        with started([*before, *after], cwd=tmp_path, stderr=log) as process:
            client = eventually(lambda: connected((host, port)))
            assert client is not None
            with client:
                client.sendall(b"REQ 1 a\n")
                assert read_lines(client, 1) == b"ACK 1 a\n"
            process.terminate()
            assert process.wait(PATIENCE) == 0
    assert f"listening for clients on {host}:{port}" in (tmp_path / "log").read_text()
