"""The real process and its signals: reports on standard output, logs elsewhere, and a stop that loses nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fooserver import PATIENCE, FooServer, connect, exchange, read_lines, read_to_end
from tests.helpers.processes import completed, started
from tests.helpers.proxyprocess import TWIST, TWISTD, Proxy, eventually, fooproxy, options, refuses, settles

pytestmark = pytest.mark.slow

FIRST_KEYS = [
    *("msg_total", "msg_req", "msg_ack", "msg_nak"),
    *("request_rate_1s", "request_rate_10s", "response_rate_1s", "response_rate_10s"),
]

stop_signals = pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=["SIGTERM", "SIGINT", "SIGHUP"]
)


def is_report(line: str) -> bool:
    report = json.loads(line)
    values = [type(report[name]) for name in FIRST_KEYS]
    return list(report)[:8] == FIRST_KEYS and values == [int] * 4 + [float] * 4


def ask(proxy: Proxy, number: signal.Signals = signal.SIGUSR2) -> str:
    """Send a signal that asks for a report, and give all that is printed, once it ends a line."""
    proxy.signal(number)
    eventually(lambda: proxy.printed.endswith("\n"))
    return proxy.printed


def test_sigusr2_prints_one_line_of_json_with_the_eight_keys_first(tmp_path: Path) -> None:
    with FooServer() as server, fooproxy(tmp_path, upstream=server.port) as proxy:
        exchange(proxy.port, b"REQ 1 a\nREQ 2 b\nREQ 3 c d\n")
        printed = ask(proxy)
    (line,) = printed.splitlines()
    assert is_report(line)
    assert list(json.loads(line).values())[:4] == [6, 3, 2, 1]


def test_the_report_and_the_statistics_page_have_the_same_keys(tmp_path: Path) -> None:
    with fooproxy(tmp_path) as proxy:
        assert list(json.loads(ask(proxy))) == list(proxy.stats())


def test_sigusr1_prints_the_report_when_no_log_file_takes_it(tmp_path: Path) -> None:
    with fooproxy(tmp_path) as proxy:
        (line,) = ask(proxy, signal.SIGUSR1).splitlines()
    assert is_report(line)


def test_log_lines_go_to_standard_error_and_leave_standard_output_to_reports(tmp_path: Path) -> None:
    with fooproxy(tmp_path, "--connect-timeout", "0.1") as proxy:
        exchange(proxy.port)
        proxy.says("cannot connect to upstream")
        assert proxy.printed == ""


def test_with_a_log_file_sigusr1_rotates_it_and_the_proxy_goes_on(tmp_path: Path) -> None:
    command = (*TWISTD, "-n", "--logfile", "foo.log")
    with FooServer() as server, fooproxy(tmp_path, upstream=server.port, command=command, log="foo.log") as proxy:
        proxy.signal(signal.SIGUSR1)
        eventually((tmp_path / "foo.log.1").exists)
        assert exchange(proxy.port, b"REQ 1 a\n") == b"ACK 1 a\n"
        assert is_report(ask(proxy))


def test_under_twist_sigusr2_prints_the_report_too(tmp_path: Path) -> None:
    with fooproxy(tmp_path, command=TWIST) as proxy:
        assert is_report(ask(proxy))


def ask_in_vain(proxy: Proxy) -> None:
    """Ask until some reports have gone to the log for want of a reader."""

    def logged() -> bool:
        proxy.signal(signal.SIGUSR2)
        return proxy.log.count('{"msg_total"') > 3

    eventually(logged)


def test_a_pipe_that_nobody_reads_does_not_stop_the_relay(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with (
        os.fdopen(reading, "rb"),
        os.fdopen(writing, "wb"),
        FooServer() as server,
        fooproxy(tmp_path, upstream=server.port, stdout=writing) as proxy,
    ):
        ask_in_vain(proxy)
        assert exchange(proxy.port, b"REQ 1 a\n") == b"ACK 1 a\n"


def test_a_pipe_whose_reader_is_gone_does_not_stop_the_relay(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with (
        os.fdopen(writing, "wb"),
        FooServer() as server,
        fooproxy(tmp_path, upstream=server.port, stdout=writing) as proxy,
    ):
        ask_in_vain(proxy)
        assert exchange(proxy.port, b"REQ 1 a\n") == b"ACK 1 a\n"


def test_a_standard_output_that_was_closed_does_not_stop_the_relay(tmp_path: Path) -> None:
    command = ("sh", "-c", 'exec "$@" >&-', "sh", *TWISTD, "-n")
    with FooServer() as server, fooproxy(tmp_path, upstream=server.port, command=command) as proxy:
        with connect(proxy.port) as client:
            ask_in_vain(proxy)
            client.sendall(b"REQ 1 a\n")
            assert read_lines(client, 1) == b"ACK 1 a\n"
        assert server.received == [b"REQ 1 a\n"]


class Daemon(Proxy):
    """A proxy that twistd sent into the background; known by its pid file alone."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        super().__init__(process, folder / "foo.log", folder / "stdout")
        self.pidfile = folder / "foo.pid"
        self.pid = int(self.pidfile.read_text())


@contextmanager
def daemonized(folder: Path) -> Iterator[Daemon]:
    command = [*TWISTD, "--pidfile", "foo.pid", "--logfile", "foo.log", "fooproxy", *options(folder, None)]
    pidfile = folder / "foo.pid"
    with (
        (folder / "stdout").open("wb") as out,
        started(command, stdout=out, stderr=out, cwd=folder) as process,
    ):
        try:
            assert process.wait(PATIENCE) == 0
            daemon = Daemon(process, folder)
            yield daemon
        finally:
            with suppress(FileNotFoundError, ProcessLookupError):
                os.kill(int(pidfile.read_text()), signal.SIGKILL)
    assert "Traceback" not in daemon.log


def test_a_daemon_reports_to_its_log(tmp_path: Path) -> None:
    with daemonized(tmp_path) as daemon:
        daemon.signal(signal.SIGUSR2)
        report = eventually(lambda: re.search(r"(\{\"msg_total\".*\})\n", daemon.log))
        assert report is not None and is_report(report[1])
        assert daemon.printed == ""


def test_a_daemon_ends_at_sigterm_and_takes_its_pid_file_along(tmp_path: Path) -> None:
    with daemonized(tmp_path) as daemon:
        daemon.signal(signal.SIGTERM)
        eventually(lambda: not daemon.running)
        assert not daemon.pidfile.exists()


@stop_signals
def test_a_stop_lets_the_replies_to_requests_in_flight_arrive(tmp_path: Path, number: signal.Signals) -> None:
    with (
        FooServer(holding=True) as server,
        fooproxy(tmp_path, "--drain-timeout", "600", upstream=server.port) as proxy,
        connect(proxy.port) as client,
    ):
        client.sendall(b"REQ 1 a\nREQ 2 b\nREQ 3 c\n")
        settles(lambda: server.received, [b"REQ 1 a\nREQ 2 b\nREQ 3 c\n"])
        proxy.signal(number)
        eventually(lambda: refuses(proxy.port))
        server.release()
        assert read_to_end(client) == b"ACK 1 a\nACK 2 b\nACK 3 c\n"
        assert proxy.wait() == 0


def test_a_stop_loses_no_reply_to_a_client_that_reads_late_and_goes_on_sending(tmp_path: Path) -> None:
    with FooServer() as server, fooproxy(tmp_path, "--drain-timeout", "600", upstream=server.port) as proxy:
        with late_reader(proxy) as client:
            proxy.signal(signal.SIGTERM)
            settles(lambda: [session["state"] for session in proxy.get("/connections")[1]["connections"]], ["closing"])
            client.sendall(b"REQ 41 too late\n")
            assert [read_to_end(client)] == server.sent
        assert proxy.wait() == 0


def test_what_the_kernel_has_of_the_replies_outlasts_the_drain_timeout(tmp_path: Path) -> None:
    with (
        FooServer() as server,
        fooproxy(tmp_path, "--drain-timeout", "0.3", upstream=server.port) as proxy,
        late_reader(proxy) as client,
    ):
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
        assert [read_to_end(client)] == server.sent


@contextmanager
def late_reader(proxy: Proxy) -> Iterator[socket.socket]:
    """Be a client to whom much was replied that it has not read, most of which its kernel has not taken either."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", proxy.port))
        client.sendall(b"".join(b"REQ %d %s\n" % (seq, 10_000 * b"x") for seq in range(1, 41)))
        settles(lambda: proxy.stats("msg_ack"), {"msg_ack": 40})
        yield client


def test_a_stop_refuses_new_clients_and_says_so_while_it_waits(tmp_path: Path) -> None:
    with draining(tmp_path, "--drain-timeout", "600") as proxy:
        assert refuses(proxy.port)
        settles(lambda: proxy.get("/ready"), (503, {"ready": False, "reasons": ["draining"], "warnings": []}))
        assert proxy.get("/health") == (200, {"status": "OK!"})


def test_idle_clients_do_not_delay_a_stop(tmp_path: Path) -> None:
    with (
        FooServer() as server,
        fooproxy(tmp_path, "--drain-timeout", "600", upstream=server.port) as proxy,
        connect(proxy.port) as silent,
        connect(proxy.port) as client,
    ):
        client.sendall(b"REQ 1 a\n")
        assert read_lines(client, 1) == b"ACK 1 a\n"
        settles(lambda: proxy.stats("connections_active"), {"connections_active": 2})
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
        assert (silent.recv(1), client.recv(1)) == (b"", b"")


def test_clients_that_wait_for_an_upstream_do_not_delay_a_stop(tmp_path: Path) -> None:
    more = ("--drain-timeout", "600", "--connect-timeout", "600")
    with fooproxy(tmp_path, *more) as proxy, connect(proxy.port) as client:
        proxy.says("cannot connect to upstream")
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
        assert client.recv(1) == b""


def test_the_drain_timeout_cuts_a_stop_short(tmp_path: Path) -> None:
    with draining(tmp_path, "--drain-timeout", "0.5") as proxy:
        assert proxy.wait() == 0
        assert "waiting up to 0.5 s for 1 session to finish" in proxy.log
        assert "aborting 1 busy session" in proxy.log


@stop_signals
def test_a_second_signal_stops_at_once(tmp_path: Path, number: signal.Signals) -> None:
    with draining(tmp_path, "--drain-timeout", "600") as proxy:
        proxy.signal(number)
        assert proxy.wait() == 0


def test_the_log_names_the_signals_that_stop_the_proxy(tmp_path: Path) -> None:
    with draining(tmp_path, "--drain-timeout", "600") as proxy:
        proxy.says("SIGTERM received: stopping")
        proxy.signal(signal.SIGINT)
        assert proxy.wait() == 0
        assert "SIGINT received while stopping: not waiting any longer" in proxy.log


def test_two_signals_at_one_time_stop_at_once(tmp_path: Path) -> None:
    with (
        FooServer(holding=True) as server,
        fooproxy(tmp_path, "--drain-timeout", "600", upstream=server.port) as proxy,
        connect(proxy.port) as client,
    ):
        client.sendall(b"REQ 1 a\n")
        settles(lambda: server.received, [b"REQ 1 a\n"])
        for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
            proxy.signal(number)
        assert proxy.wait() == 0


def test_a_save_that_hangs_does_not_keep_a_stop_from_ending(tmp_path: Path) -> None:
    # A disk that hangs: the first sync after the start never returns.
    program = (
        "import os, threading; sync = os.fsync\n"
        "def hang(fd): threading.current_thread() is threading.main_thread() or threading.Event().wait(); sync(fd)\n"
        "os.fsync = hang; from twisted.scripts.twistd import run; run()"
    )
    with fooproxy(tmp_path, command=(sys.executable, "-c", program, "-n")) as proxy:
        settles(lambda: proxy.get("/ready")[1]["warnings"], ["recovery_failing"])
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
        assert "in time" in proxy.log


def test_a_client_that_does_not_read_cannot_outlast_the_drain_timeout(tmp_path: Path) -> None:
    stream = (b"REQ 1 " + 1000 * b"x" + b"\n") * 30_000
    with (
        FooServer(holding=True) as server,
        fooproxy(tmp_path, "--drain-timeout", "1", upstream=server.port) as proxy,
        connect(proxy.port) as client,
    ):
        client.sendall(stream)
        eventually(lambda: server.received == [stream])
        replying = threading.Thread(target=server.release)
        replying.start()
        eventually(lambda: proxy.stats("msg_ack")["msg_ack"] > 0)
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
        replying.join()


@pytest.mark.parametrize("command", [(*TWISTD, "-n"), TWIST], ids=["twistd", "twist"])
def test_an_idle_proxy_ends_with_status_0(tmp_path: Path, command: Any) -> None:
    with fooproxy(tmp_path, command=command) as proxy:
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0


def test_a_stop_is_heeded_as_soon_as_the_ports_are_announced(tmp_path: Path) -> None:
    command = [*TWISTD, "-n", "fooproxy", *options(tmp_path, None)]
    with (
        (tmp_path / "stdout").open("wb") as out,
        started(command, stdout=out, stderr=subprocess.PIPE, cwd=tmp_path) as process,
    ):
        assert process.stderr is not None
        assert any(b"serving HTTP" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("command", [(*TWISTD, "-n"), TWIST], ids=["twistd", "twist"])
def test_sighup_and_sigint_that_are_ignored_at_start_stay_ignored(tmp_path: Path, command: Any) -> None:
    # What nohup does, and a shell for what it runs in the background.
    ignoring = ("sh", "-c", 'trap "" HUP INT; exec "$@"', "sh", *command)
    with FooServer() as server, fooproxy(tmp_path, upstream=server.port, command=ignoring) as proxy:
        proxy.signal(signal.SIGHUP)
        proxy.signal(signal.SIGINT)
        # The report comes after a stop has begun, if there is one.
        assert is_report(ask(proxy))
        assert exchange(proxy.port, b"REQ 1 a\n") == b"ACK 1 a\n"
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0


EARLY = """
import os, sys

class Importing:
    def find_spec(name, *_):
        if name == "klein":
            os.kill(os.getpid(), {number:d})

sys.meta_path.insert(0, Importing)
"""
"""Sends a signal while the proxy is being loaded."""


@stop_signals
@pytest.mark.parametrize("command", [TWISTD, TWIST], ids=["twistd", "twist"])
def test_a_stop_that_comes_while_the_proxy_is_loaded_ends_it_with_status_0(
    tmp_path: Path, number: signal.Signals, command: Any
) -> None:
    run = {
        TWISTD: "from twisted.scripts.twistd import run; sys.argv[:] = ['twistd', '-n', *sys.argv[1:]]; run()",
        TWIST: "from twisted.application.twist._twist import Twist; Twist.main(['twist', *sys.argv[1:]])",
    }[command]
    program = EARLY.format(number=number) + run
    end = completed([sys.executable, "-c", program, "fooproxy", *options(tmp_path, None)], cwd=tmp_path)
    assert end.returncode == 0, end.stderr
    assert json.loads((tmp_path / "recovery.json").read_text())


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2], ids=["SIGUSR1", "SIGUSR2"])
def test_a_report_that_is_asked_for_while_the_proxy_is_loaded_is_printed(
    tmp_path: Path, number: signal.Signals
) -> None:
    program = EARLY.format(number=number) + "from twisted.scripts.twistd import run; run()"
    with fooproxy(tmp_path, command=(sys.executable, "-c", program, "-n")) as proxy:
        eventually(lambda: proxy.printed.endswith("\n"))
        assert is_report(proxy.printed)


def test_a_rotation_that_is_asked_for_while_the_proxy_is_loaded_does_not_end_it(tmp_path: Path) -> None:
    program = EARLY.format(number=signal.SIGUSR1) + "from twisted.scripts.twistd import run; run()"
    command = (sys.executable, "-c", program, "-n", "--logfile", "foo.log")
    with fooproxy(tmp_path, command=command, log="foo.log") as proxy:
        proxy.signal(signal.SIGUSR1)
        eventually((tmp_path / "foo.log.1").exists)


def test_a_signal_ends_the_process_that_waits_for_a_daemon_to_start(tmp_path: Path) -> None:
    # A daemon that comes no further.
    program = "import os, time; os.setsid = lambda: time.sleep(600); from twisted.scripts.twistd import run; run()"
    command = [sys.executable, "-c", program, "fooproxy", *options(tmp_path, None)]
    with started(command, cwd=tmp_path) as starter:
        of_starter = Path(f"/proc/{starter.pid}")
        eventually((of_starter / f"task/{starter.pid}/children").read_text)
        eventually(lambda: not catches(of_starter, signal.SIGTERM))
        starter.send_signal(signal.SIGTERM)
        assert starter.wait(PATIENCE) == -signal.SIGTERM


def catches(process: Path, number: signal.Signals) -> bool:
    (caught,) = re.findall(r"^SigCgt:\s*(\w+)", (process / "status").read_text(), re.MULTILINE)
    return bool(int(caught, 16) >> (number - 1) & 1)


@contextmanager
def draining(folder: Path, *more: str) -> Iterator[Proxy]:
    """Run a proxy that has been told to stop and waits for a reply that does not come."""
    with (
        FooServer(holding=True) as server,
        fooproxy(folder, *more, upstream=server.port) as proxy,
        connect(proxy.port) as client,
    ):
        client.sendall(b"REQ 1 a\n")
        settles(lambda: server.received, [b"REQ 1 a\n"])
        proxy.signal(signal.SIGTERM)
        eventually(lambda: refuses(proxy.port))
        yield proxy
