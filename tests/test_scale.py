"""The real process under more than is comfortable: a huge reply, ten thousand sessions, thousands that idle."""

from __future__ import annotations

import json
import re
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from benchmarks.measure import usage
from benchmarks.native import CannotCompile, Programs, compile_programs
from benchmarks.processes import divide_cores, raise_file_limit, read_line, running
from benchmarks.runs import NAK_EVERY, SPARE_FILES, check_counts
from tests.helpers.fooserver import PATIENCE, connect
from tests.helpers.proxyprocess import Proxy, eventually, fooproxy, settles

# Thousands of connections, on a machine that does other things too, take their time.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BLOCK = b"ACK 1 " + bytes(range(32, 127)) * 11037 + b"\n"
BLOCKS = 1024
GIGABYTE = len(BLOCK) * BLOCKS

SESSIONS = 10_000
ENOUGH = 4_000
"""Sessions, below which a limit of files makes the test say too little."""

SESSION_KIB = 8
"""What a session may cost in the proxy's memory; it is about half of that."""

IDLERS = 5_000
REQUESTS = 100_000


@pytest.fixture
def files() -> Iterator[int]:
    """The limit of open files, as high as it may be, here and in what is started here."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield raise_file_limit()
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    try:
        return compile_programs(tmp_path_factory.mktemp("programs"))
    except CannotCompile as error:
        pytest.skip(str(error))


def peak(proxy: Proxy) -> int:
    """Give the most memory that the proxy ever had, in KiB."""
    status = Path(f"/proc/{proxy.pid}/status").read_text()
    match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    assert match is not None
    return int(match[1])


@contextmanager
def flooding(listener: socket.socket) -> Iterator[None]:
    """Answer the first request that comes with a gigabyte, as fast as it is taken."""

    def serve() -> None:
        peer, _ = listener.accept()
        with peer:
            assert peer.recv(1 << 16) == b"REQ 1\n"
            for _ in range(BLOCKS):
                peer.sendall(BLOCK)
            peer.recv(1)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield
    thread.join(PATIENCE)
    assert not thread.is_alive()


def read_blocks(client: socket.socket, size: int) -> None:
    """Read so many bytes of the flood, and check each."""
    # Twice, so that what comes is one piece of it wherever it begins.
    due = memoryview(BLOCK * 2)
    buffer = memoryview(bytearray(1 << 18))
    at = 0
    while at < size:
        count = client.recv_into(buffer)
        assert count, f"closed after {at} bytes"
        begin = at % len(BLOCK)
        assert buffer[:count] == due[begin : begin + count]
        at += count


def test_a_reply_of_a_gigabyte_to_a_slow_reader_costs_no_memory(tmp_path: Path) -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        proxy = stack.enter_context(fooproxy(tmp_path, upstream=listener.getsockname()[1]))
        settles(lambda: proxy.stats("connections_active"), {"connections_active": 0})
        before = usage(proxy.pid).rss
        stack.enter_context(flooding(listener))
        client = stack.enter_context(connect(proxy.port))
        client.sendall(b"REQ 1\n")
        # It does not read at all until the proxy has stopped reading what is for it.
        eventually(lambda: proxy.stats("reads_paused")["reads_paused"]["upstream"])
        held = proxy.stats("bytes_from_upstream")["bytes_from_upstream"]
        assert held < GIGABYTE // 10
        assert usage(proxy.pid).rss - before < 2048
        read_blocks(client, GIGABYTE)
        assert peak(proxy) - before < 2048
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        due = {"msg_req": 1, "msg_ack": BLOCKS, "bytes_from_upstream": GIGABYTE, "connections_active": 0}
        settles(lambda: proxy.stats(*due), due)


class Rig:
    """The proxy, the server of the benchmarks behind it, and its load generator."""

    def __init__(self, stack: ExitStack, programs: Programs, folder: Path) -> None:
        self._programs = programs
        self._cores = divide_cores()
        self._log = folder / "load.log"
        log = folder / "server.log"
        command: list[str | Path] = [programs.server, "--nak", str(NAK_EVERY)]
        upstream = int(read_line(stack.enter_context(running(command, self._cores.load, log, piped=True)), log))
        self.proxy = stack.enter_context(fooproxy(folder, upstream=upstream))
        settles(lambda: self.proxy.stats("connections_active"), {"connections_active": 0})
        self.fresh = self.proxy.files()

    def load(self, meanwhile: Callable[[], object] = lambda: None, **options: object) -> dict[str, float]:
        """Run the load generator, which checks each reply; do `meanwhile` when its connections stand."""
        all_options = {"port": self.proxy.port, "nak": NAK_EVERY, "timeout": 60, **options}
        command: list[str | Path] = [
            self._programs.load,
            *(f"--{name}={value}" for name, value in all_options.items()),
        ]
        with running(command, self._cores.load, self._log, piped=True) as process:
            read_line(process, self._log)
            meanwhile()
            assert process.stdin is not None
            process.stdin.close()
            told: dict[str, float] = json.loads(read_line(process, self._log))
        return told

    def leaves_nothing(self) -> None:
        settles(lambda: self.proxy.stats("connections_active"), {"connections_active": 0})
        eventually(lambda: self.proxy.files() <= self.fresh)


def test_ten_thousand_sessions_are_served_by_one_process(tmp_path: Path, files: int, programs: Programs) -> None:
    sessions = min(SESSIONS, (files - SPARE_FILES) // 2)
    if sessions < ENOUGH:
        pytest.skip(f"the limit of open files, {files}, allows {sessions} sessions only")
    with ExitStack() as stack:
        rig = Rig(stack, programs, tmp_path)
        before = usage(rig.proxy.pid).rss

        def look() -> None:
            assert rig.proxy.stats("connections_active") == {"connections_active": sessions}
            assert usage(rig.proxy.pid).rss - before < sessions * SESSION_KIB

        told = rig.load(look, mode="idle", connections=sessions)
        # One request before that look, to have both legs stand, and one after it.
        assert told["requests"] == 2 * sessions
        check_counts(rig.proxy.http_port, told)
        rig.leaves_nothing()
        assert rig.proxy.stats("connections_total") == {"connections_total": sessions}


def test_thousands_of_idle_connections_are_in_nobodys_way(tmp_path: Path, files: int, programs: Programs) -> None:
    idlers = min(IDLERS, (files - SPARE_FILES) // 3)
    if idlers < ENOUGH // 2:
        pytest.skip(f"the limit of open files, {files}, allows {idlers} idle connections only")
    with ExitStack() as stack:
        rig = Rig(stack, programs, tmp_path)
        clients = [stack.enter_context(connect(rig.proxy.port)) for _ in range(idlers)]
        for client in clients[::2]:
            client.sendall(b"REQ 1 ha")
        begun = len(clients[::2]) * len(b"REQ 1 ha")
        settles(lambda: rig.proxy.stats("bytes_from_clients"), {"bytes_from_clients": begun})
        told = rig.load(mode="steady", connections=64, inflight=16, requests=REQUESTS)
        assert told["requests"] >= REQUESTS
        check_counts(rig.proxy.http_port, told)
        # Those that had begun are served when they go on after all.
        for client in clients[:20:2]:
            client.sendall(b"lf\n")
            assert client.recv(100) == b"ACK 1 half\n"
        for client in clients:
            client.close()
        rig.leaves_nothing()
        assert rig.proxy.stats("msg_req") == {"msg_req": told["requests"] + 10}
