"""A log that nobody reads, in all the ways to choose one: the real process relays, answers and stops all the same."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers.fooserver import PATIENCE, FooServer, connect, connect_unix, exchange, read_lines
from tests.helpers.processes import started
from tests.helpers.proxyprocess import TWISTD, eventually, fooproxy, options

pytestmark = pytest.mark.slow

TWIST = (sys.executable, "-m", "twisted")


class Way(NamedTuple):
    """A way to choose where the log goes."""

    command: tuple[str, ...]
    stream: str


WAYS = {
    "twistd -n": Way((*TWISTD, "-n"), "stderr"),
    "twistd -n --logfile=-": Way((*TWISTD, "-n", "--logfile=-"), "stdout"),
    "twistd -n --logfile=/dev/stdout": Way((*TWISTD, "-n", "--logfile=/dev/stdout"), "stdout"),
    "twistd -n --logfile=/dev/stderr": Way((*TWISTD, "-n", "--logfile=/dev/stderr"), "stderr"),
    "twistd -n --logfile=fifo": Way((*TWISTD, "-n", "--logfile=fifo"), "fifo"),
    "twist": Way(TWIST, "stdout"),
    "twist --log-file=+": Way((*TWIST, "--log-file=+"), "stderr"),
    "twist --log-file=+ --log-format=text": Way((*TWIST, "--log-file=+", "--log-format=text"), "stderr"),
    "twist --log-file=fifo": Way((*TWIST, "--log-file=fifo"), "fifo"),
}

each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


class Unread:
    """A proxy whose log is a small pipe, which is read no further than to its ports."""

    def __init__(self, process: subprocess.Popen[bytes], reading: int) -> None:
        self.process = process
        self.log = b""
        self._reading = reading
        # Both formats have the values, if in another order.
        while len(ports := set(re.findall(rb"127\.0\.0\.1:([0-9]+)/?[^0-9/]", self.log))) < 2:
            self.log += os.read(reading, 512)
        self.port, self.http_port = sorted(map(int, ports), key=lambda port: b":%d/" % port in self.log)

    def relays_and_answers(self) -> None:
        assert exchange(self.port, b"REQ 1 a\n") == b"ACK 1 a\n"
        with closing(http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=PATIENCE)) as connection:
            connection.request("GET", "/health")
            assert connection.getresponse().status == 200

    def open_sessions(self) -> int:
        """Return how many sessions have not ended yet."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=PATIENCE)) as connection:
            connection.request("GET", "/stats")
            report = json.loads(connection.getresponse().read())
            return int(report["connections_active"])

    @contextmanager
    def being_read(self) -> Iterator[None]:
        """Read the log from now on, until the process has ended."""

        def read() -> None:
            while piece := os.read(self._reading, 4096):
                self.log += piece

        reader = threading.Thread(target=read)
        reader.start()
        yield
        reader.join(PATIENCE)


@contextmanager
def unread(folder: Path, way: Way, *more: str) -> Iterator[Unread]:
    os.mkfifo(folder / "fifo")
    if way.stream == "fifo":
        reading = os.open(folder / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        writing = os.open(folder / "fifo", os.O_WRONLY)
        os.set_blocking(reading, True)
    else:
        reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, way.stream: writing}
    streams.pop("fifo", None)
    try:
        with FooServer() as server:
            command = [*way.command, "fooproxy", *options(folder, server.port), *more]
            with started(command, cwd=folder, **streams) as process:
                os.close(writing)
                yield Unread(process, reading)
    finally:
        os.close(reading)


@each_way
def test_a_log_that_nobody_reads_stops_neither_relay_nor_http_nor_the_stop(tmp_path: Path, way: Way) -> None:
    with unread(tmp_path, way, "--log-sessions") as proxy:
        for _ in range(100):
            proxy.relays_and_answers()
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.process.wait(PATIENCE) == 0


@each_way
def test_entries_that_were_dropped_are_counted_once_the_log_is_read_again(tmp_path: Path, way: Way) -> None:
    with unread(tmp_path, way, "--log-sessions") as proxy:
        # About 1200 lines are kept.
        for _ in range(10):
            for _ in range(250):
                connect(proxy.port).close()
            # Each has had its line by then, and nobody waits in a queue.
            eventually(lambda: not proxy.open_sessions())
        proxy.relays_and_answers()
        with proxy.being_read():
            # What was kept has been written.
            eventually(lambda: len(proxy.log) > 1 << 17)
            proxy.relays_and_answers()
            proxy.process.send_signal(signal.SIGTERM)
            assert proxy.process.wait(PATIENCE) == 0
    assert b"log entries dropped because the log was not being written fast enough" in proxy.log
    assert b"Main loop terminated" in proxy.log


def test_a_disk_that_hangs_stops_neither_relay_nor_http_nor_the_stop(tmp_path: Path) -> None:
    # The first session is the last thing that is written.
    program = (
        "import threading; from twisted.python.logfile import LogFile; write = LogFile.write\n"
        "def hang(file, data): write(file, data); b' session 1 of ' in data and threading.Event().wait()\n"
        "LogFile.write = hang; from twisted.scripts.twistd import run; run()"
    )
    command = (sys.executable, "-c", program, "-n", "--logfile=foo.log")
    with (
        FooServer() as server,
        fooproxy(tmp_path, "--log-sessions", upstream=server.port, command=command, log="foo.log") as proxy,
    ):
        exchange(proxy.port, b"REQ 1 a\n")
        proxy.says(" session 1 of ")
        for _ in range(100):
            exchange(proxy.port, b"REQ 1 a\n")
            proxy.signal(signal.SIGUSR1)
        assert proxy.get("/health")[0] == 200
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
        assert " session 2 of " not in proxy.log


def test_rotating_all_the_time_loses_no_line(tmp_path: Path) -> None:
    command = (*TWISTD, "-n", "--logfile=foo.log")
    with (
        FooServer() as server,
        fooproxy(tmp_path, "--log-sessions", upstream=server.port, command=command, log="foo.log") as proxy,
    ):
        for _ in range(20):
            for _ in range(20):
                exchange(proxy.port, b"REQ 1 a\n")
            proxy.signal(signal.SIGUSR1)
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
    text = "".join(path.read_text() for path in tmp_path.glob("foo.log*"))
    assert sorted(map(int, re.findall(r" session (\d+) of ", text))) == list(range(1, 401))
    assert len(list(tmp_path.glob("foo.log*"))) > 5


@pytest.mark.parametrize(
    "command", [("twistd", "-n", "--logfile=-"), ("twistd", "-n"), ("twist",), ("twist", "--log-file=+")], ids=" ".join
)
def test_a_log_that_was_closed_before_the_start_is_left_alone(tmp_path: Path, command: tuple[str, ...]) -> None:
    program = TWISTD if command[0] == "twistd" else TWIST
    shell = ("sh", "-c", 'exec "$@" >&- 2>&-', "sh", *program, *command[1:])
    with FooServer() as server:
        given = options(tmp_path, server.port, "--listen", f"unix:{tmp_path}/relay", "--log-sessions")
        with started([*shell, "fooproxy", *given], cwd=tmp_path) as process:
            for _ in range(3):
                with connect_unix(tmp_path / "relay") as client:
                    client.sendall(b"REQ 1 a\n")
                    assert read_lines(client, 1) == b"ACK 1 a\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        assert server.received == 3 * [b"REQ 1 a\n"]


def test_a_report_that_nobody_reads_to_its_end_stops_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    with FooServer() as server, (tmp_path / "log").open("w+b") as log:
        command = [*TWISTD, "-n", "fooproxy", *options(tmp_path, server.port)]
        with started(command, cwd=tmp_path, stdout=writing, stderr=log) as process:
            os.close(writing)

            def port() -> int:
                found = re.search(r"clients on 127.0.0.1:(\d+)\n", (tmp_path / "log").read_text())
                return int(found[1]) if found else 0

            relay = eventually(port)
            for _ in range(20):
                process.send_signal(signal.SIGUSR2)
                assert exchange(relay, b"REQ 1 a\n") == b"ACK 1 a\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
            assert os.read(reading, 4096).startswith(b'{"msg_total"')
    os.close(reading)
