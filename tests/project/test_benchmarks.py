"""The benchmarks as a user runs them, and their load generator against servers that answer wrongly.

Nothing here judges speed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import xml.etree.ElementTree as ET
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.chart import chart
from benchmarks.micro import cases, feeding
from benchmarks.native import Programs, compile_programs
from benchmarks.peers import find_peers
from benchmarks.processes import Failed, divide_cores, running
from benchmarks.report import Results, table
from benchmarks.runs import check_counts
from benchmarks.shapes import SHAPES
from tests.helpers.processes import GRACE, ROOT, completed, started
from tests.helpers.twins import counting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIMEOUT = 60
BY_NAME = {shape.name: shape for shape in SHAPES}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler"),
]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return compile_programs(tmp_path_factory.mktemp("programs"))


@pytest.fixture
def server(programs: Programs) -> Iterator[int]:
    """The port of a server that answers NAK to every third seq."""
    with started([programs.server, "--nak", "3"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())


def load(programs: Programs, port: int, *options: str) -> subprocess.CompletedProcess[str]:
    command = [str(programs.load), "--port", str(port), *options]
    return completed(command, timeout=TIMEOUT)


def talk(port: int, *parts: bytes) -> bytes:
    """Send `parts` one by one, then FIN, and read all that comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            connection.sendall(part)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@contextmanager
def answering(answer: Callable[[bytes], bytes]) -> Iterator[int]:
    """Answer the lines of one connection as `answer` says, and hang up when it raises OSError; gives the port."""

    def serve() -> None:
        connection, _ = listener.accept()
        with suppress(OSError), connection, connection.makefile("rb") as lines:
            for line in lines:
                connection.sendall(answer(line))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT)
        thread = Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(TIMEOUT)


def acknowledge(line: bytes) -> bytes:
    return b"ACK" + line[3:]


def hang_up(line: bytes) -> bytes:
    raise ConnectionAbortedError


class TestServer:
    def test_answers_pipelined_requests_in_order_with_their_data(self, server: int) -> None:
        sent = b"REQ 1 a\nREQ 2 b c\nREQ 3 d\nREQ 4\n"
        assert talk(server, sent) == b"ACK 1 a\nACK 2 b c\nNAK 3 d\nACK 4\n"

    def test_puts_lines_together_from_pieces(self, server: int) -> None:
        assert talk(server, *(bytes([byte]) for byte in b"REQ 1 a\nREQ\t2 bc\n")) == b"ACK 1 a\nACK\t2 bc\n"

    @pytest.mark.parametrize(
        "line", [b"", b"REQ", b"REQ x a", b"REQ1 a", b"ACK 1 a", b"req 1 a", b"REQ 1x", b"REQ - a"]
    )
    def test_refuses_what_is_no_request_and_goes_on(self, server: int, line: bytes) -> None:
        assert talk(server, line + b"\nREQ 1 a\n") == b"NAK 0 ERRDECODE\nACK 1 a\n"

    def test_answers_a_client_that_reads_late(self, server: int) -> None:
        line = b"REQ 1 " + b"x" * 100_000 + b"\n"
        with socket.create_connection(("127.0.0.1", server), timeout=TIMEOUT) as connection:
            sender = Thread(target=connection.sendall, args=(line * 200,))
            sender.start()
            with connection.makefile("rb") as replies:
                assert all(replies.readline() == acknowledge(line) for _ in range(200))
            sender.join(TIMEOUT)


class TestLoad:
    @pytest.mark.parametrize(
        "options",
        [
            ("--connections=5", "--inflight=7", "--requests=1000"),
            ("--connections=2", "--inflight=3", "--requests=10", "--size=2000000"),
            ("--connections=2", "--inflight=3", "--milliseconds=50", "--size=0"),
            ("--mode=connect", "--connections=5", "--requests=100"),
            ("--mode=idle", "--connections=100"),
        ],
    )
    def test_agrees_with_the_server_in_every_mode(self, programs: Programs, server: int, options: tuple[str]) -> None:
        done = load(programs, server, "--nak=3", *options)
        assert (done.returncode, done.stderr) == (0, "")
        ready, line = done.stdout.splitlines()
        told = json.loads(line)
        assert ready == "ready"
        assert told["requests"] == told["acks"] + told["naks"] > 0
        assert 0 < told["p50_us"] <= told["p99_us"] <= told["p999_us"]

    def test_makes_as_many_requests_as_it_is_told(self, programs: Programs, server: int) -> None:
        done = load(programs, server, "--nak=3", "--connections=7", "--inflight=11", "--requests=1000", "--warmup=2")
        told = json.loads(done.stdout.splitlines()[-1])
        assert (told["measured"], told["requests"]) == (1000, 1014)

    @pytest.mark.parametrize(
        "answer",
        [
            lambda line: b"NAK" + line[3:],
            lambda line: line,
            lambda line: acknowledge(line.replace(b" 5 ", b" 6 ")),
            lambda line: acknowledge(line.replace(b" 5 ", b" 05 ")),
            lambda line: acknowledge(line[:-2] + b"~\n" if b" 5 " in line else line),
            lambda line: acknowledge(line[:-2] + b"\n" if b" 5 " in line else line),
            lambda line: acknowledge(line[:-1] + b"~\n" if b" 5 " in line else line),
            lambda line: acknowledge(line).replace(b"\n", b"\r\n"),
            lambda line: b"NAK 0 ERRDECODE\n" if b" 5 " in line else acknowledge(line),
            lambda line: acknowledge(line) * (1 + (b" 5 " in line)),
            lambda line: b"" if b" 5 " in line else acknowledge(line),
        ],
        ids=["type", "echo", "seq", "digits", "data", "short", "long", "end", "refused", "doubled", "left-out"],
    )
    def test_ends_at_a_wrong_reply(self, programs: Programs, answer: Callable[[bytes], bytes]) -> None:
        with answering(answer) as port:
            done = load(programs, port, "--inflight=3", "--requests=20")
        assert done.returncode == 1
        assert "wrong reply to request" in done.stderr or "a reply nobody asked for" in done.stderr
        assert done.stderr.count("\n") == 1

    def test_does_not_take_the_data_of_another_connection(self, programs: Programs) -> None:
        first = []

        def mixed_up(line: bytes) -> bytes:
            first.append(line)
            return acknowledge(first[0])

        with answering(mixed_up) as port:
            assert "wrong reply" in load(programs, port, "--requests=1").stderr

    def test_ends_when_a_connection_is_lost(self, programs: Programs) -> None:
        with answering(hang_up) as port:
            done = load(programs, port, "--requests=1")
        assert done.returncode == 1
        assert "connection 1: lost with 1 requests unanswered" in done.stderr

    def test_gives_up_in_time_when_nothing_comes(self, programs: Programs) -> None:
        with answering(lambda _: b"") as port:
            done = load(programs, port, "--requests=1", "--timeout=1")
        assert done.returncode == 1
        assert done.stderr == "load: gave up after 1 s with 1 requests unanswered\n"

    def test_says_that_nothing_listens(self, programs: Programs) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            done = load(programs, bound.getsockname()[1], "--requests=1")
        assert done.returncode == 1
        assert "Connection refused" in done.stderr


class TestReport:
    def test_compares_within_a_round_before_it_takes_medians(self) -> None:
        results = Results()
        shape = BY_NAME["64x1x32"]
        for number, (ours, theirs) in enumerate([(2.0, 1.0), (30.0, 10.0), (400.0, 100.0)]):
            results.add(shape, "fooproxy", number, {"cpu_us": ours})
            results.add(shape, "haproxy", number, {"cpu_us": theirs})
        summary = results.summary(shape)
        assert summary["fooproxy"]["medians"] == {"cpu_us": 30.0}
        assert summary["fooproxy"]["ratios"] == {"cpu_us": {"haproxy": 3.0}}

    def test_a_round_that_one_peer_missed_is_not_compared(self) -> None:
        results = Results()
        shape = BY_NAME["64x1x32"]
        results.add(shape, "haproxy", 1, {"cpu_us": 1.0})
        results.add(shape, "fooproxy", 0, {"cpu_us": 2.0})
        assert results.summary(shape)["fooproxy"]["ratios"] == {"cpu_us": {}}

    def test_added_latency_is_what_the_direct_run_of_the_round_does_not_have(self) -> None:
        results = Results()
        shape = BY_NAME["latency"]
        results.add(shape, "direct", 0, {"p50_us": 20.0, "p99_us": 40.0})
        results.add(shape, "fooproxy", 0, {"p50_us": 50.0, "p99_us": 60.0})
        results.add(shape, "haproxy", 0, {"p50_us": 40.0, "p99_us": 140.0})
        summary = results.summary(shape)
        assert summary["fooproxy"]["medians"]["added_us"] == 30.0
        assert summary["fooproxy"]["ratios"] == {"added_us": {"haproxy": 1.5}, "added_p99_us": {"haproxy": 0.2}}
        assert "30.0" in table(shape, summary)

    def test_the_chart_shows_less_as_better_throughout(self) -> None:
        results = Results()
        shape = BY_NAME["connects"]
        results.add(shape, "fooproxy", 0, {"rate": 10.0})
        results.add(shape, "haproxy", 0, {"rate": 20.0})
        drawing = chart([(shape, results.summary(shape))])
        assert drawing is not None
        assert "2.00" in [text.text for text in ET.fromstring(drawing).iter("{http://www.w3.org/2000/svg}text")]

    def test_there_is_no_chart_without_haproxy(self) -> None:
        results = Results()
        shape = BY_NAME["connects"]
        results.add(shape, "fooproxy", 0, {"rate": 10.0})
        assert chart([(shape, results.summary(shape))]) is None


class TestCounts:
    TOLD = {"requests": 5.0, "acks": 3.0, "naks": 2.0}
    COUNTED = {"msg_total": 10, "msg_req": 5, "msg_ack": 3, "msg_nak": 2, "msg_invalid": 0, "msg_misdirected": 0}

    def check(self, counted: dict[str, int]) -> None:
        """Check `TOLD` against a proxy that says it `counted` so."""

        class Stats(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(counted).encode())

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        with HTTPServer(("127.0.0.1", 0), Stats) as http:
            thread = Thread(target=http.handle_request)
            thread.start()
            with ExitStack() as stack:
                stack.callback(thread.join, TIMEOUT)
                check_counts(http.server_port, self.TOLD)

    def test_equal_counts_pass(self) -> None:
        self.check(self.COUNTED)

    @pytest.mark.parametrize("key", list(COUNTED))
    def test_one_message_more_fails(self, key: str) -> None:
        with pytest.raises(Failed, match=f"{key} {self.COUNTED[key] + 1} is not"):
            self.check({**self.COUNTED, key: self.COUNTED[key] + 1})


def test_a_peer_that_is_not_there_says_why() -> None:
    missing = {peer.name: peer.missing for peer in find_peers("/nowhere/python", ["asyncio"], "/nowhere/mitmdump")}
    assert missing["direct"] is None
    assert missing["fooproxy-asyncio"] == "there is no /nowhere/twistd"
    assert missing["mitmproxy"] == "there is no program /nowhere/mitmdump"


@pytest.mark.usefixtures("twin")
@pytest.mark.parametrize("name", cases())
def test_the_microbenchmark_counts_every_message(name: str) -> None:
    messages, chunks = cases()[name]
    assert feeding(counting(), chunks, messages)(1) > 0


class TestProcesses:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_an_interrupt_while_a_process_starts_does_not_leave_it_behind(
        self, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = []
        really = subprocess.Popen

        def interrupted(*arguments: Any, **named: Any) -> Any:
            made.append(really(*arguments, **named))
            signal.raise_signal(number)
            return made[-1]

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        before = signal.signal(number, stop)
        monkeypatch.setattr(subprocess, "Popen", interrupted)
        try:
            with (
                pytest.raises(KeyboardInterrupt),
                running(["sleep", "60"], divide_cores().load, tmp_path / "log"),
            ):
                pytest.fail("it goes on")
        finally:
            signal.signal(number, before)
        assert made[0].poll() is not None
        assert signal.getsignal(number) is before


class TestCommand:
    def start(self, directory: Path, *options: str) -> AbstractContextManager[subprocess.Popen[str]]:
        return started(
            [sys.executable, "-m", "benchmarks", "--quick", *options],
            grace=GRACE,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(directory)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def left_over(self, directory: Path) -> list[str]:
        """The command lines of processes that still run from `directory`."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                found.append(path.read_text().replace("\0", " "))
        return [line for line in found if str(directory) in line]

    def test_quick_runs_all_that_is_there_and_leaves_nothing(self, tmp_path: Path) -> None:
        told, drawn, work = tmp_path / "told.json", tmp_path / "drawn.svg", tmp_path / "work"
        work.mkdir()
        with self.start(work, "--json", str(told), "--svg", str(drawn)) as process:
            tables, progress = process.communicate(timeout=2 * TIMEOUT)
        assert process.returncode == 0, progress
        shapes = json.loads(told.read_text())["shapes"]
        assert list(shapes) == list(BY_NAME)
        assert all("fooproxy" in shape["peers"] for shape in shapes.values())
        assert all(shape.title in tables for shape in SHAPES)
        if shutil.which("haproxy"):
            assert ET.fromstring(drawn.read_text()).tag.endswith("svg")
        assert not list(work.iterdir())
        assert not self.left_over(work)

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_a_signal_stops_what_was_started(self, tmp_path: Path, number: signal.Signals, status: int) -> None:
        with self.start(tmp_path, "--peers=direct,fooproxy", "--shapes=latency") as process:
            assert process.stderr is not None
            # The direct run is over, fooproxy's has begun.
            assert "direct" in process.stderr.readline()
            process.send_signal(number)
            process.communicate(timeout=TIMEOUT)
        assert process.returncode == status
        assert not list(tmp_path.iterdir())
        assert not self.left_over(tmp_path)

    @pytest.mark.parametrize("option", ["--peers", "--shapes"])
    def test_an_unknown_name_is_refused_with_those_there_are(self, tmp_path: Path, option: str) -> None:
        with self.start(tmp_path, option, "direct,nonsense") as process:
            _, error = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 2
        assert f"{option}: no " in error
        assert "nonsense" in error
