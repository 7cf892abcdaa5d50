"""The command ``fooproxy``, as a process: the same proxy as under twistd, without a pid file."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fooproxy import __version__
from fooproxy.core import IMPLEMENTATION
from tests.helpers.fooserver import PATIENCE, FooServer, connect, connect_unix, exchange, read_lines
from tests.helpers.processes import completed, started
from tests.helpers.proxyprocess import COMMAND, eventually, fooproxy, options, refuses, run, settles

pytestmark = pytest.mark.slow


def test_the_command_relays_reports_and_stops_and_has_no_file_but_its_recovery_file(tmp_path: Path) -> None:
    with FooServer() as server, fooproxy(tmp_path, upstream=server.port, command=COMMAND) as proxy:
        assert exchange(proxy.port, b"REQ 1 a\n") == b"ACK 1 a\n"
        proxy.signal(signal.SIGUSR2)
        eventually(lambda: proxy.printed.endswith("\n"))
        assert json.loads(proxy.printed)["msg_total"] == 2
        eventually((tmp_path / "recovery.json").exists)
        left = {path.name for path in tmp_path.iterdir()} - {"recovery.json.new"}
        assert left == {"stdout", "stderr", "recovery.json", "recovery.json.lock"}
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0


def signalled(*numbers: signal.Signals) -> list[str]:
    """Return the command of a proxy that gets signals in the first moment of its start."""
    program = (
        "import os, sys\n"
        "class Importing:\n"
        "    def find_spec(name, *_):\n"
        "        if name == 'twisted':\n"
        f"            for number in {list(map(int, numbers))}: os.kill(os.getpid(), number)\n"
        "sys.meta_path.insert(0, Importing)\n"
        "from fooproxy.__main__ import main\n"
        "assert 'twisted' not in sys.modules\n"
        "main()"
    )
    return [sys.executable, "-c", program]


def test_a_second_signal_ends_a_start(tmp_path: Path) -> None:
    end = completed([*signalled(signal.SIGTERM, signal.SIGTERM), *options(tmp_path, None)], cwd=tmp_path)
    assert (end.returncode, end.stdout) == (0, "")
    assert end.stderr == "fooproxy: ended by a second signal, before it had started\n"


@pytest.mark.parametrize("command", ["--check-config", "--check-health"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_ends_a_check(tmp_path: Path, command: str, number: signal.Signals) -> None:
    end = completed([*signalled(number), command], cwd=tmp_path)
    assert (end.returncode, end.stdout, end.stderr) == (-number, "", "")


def test_a_signal_is_heeded_before_twisted_is_loaded(tmp_path: Path) -> None:
    end = completed([*signalled(signal.SIGTERM), *options(tmp_path, None)], cwd=tmp_path)
    assert end.returncode == 0, end.stderr
    assert json.loads((tmp_path / "recovery.json").read_text())


def test_with_the_json_format_each_line_of_the_log_is_one_object_and_sessions_have_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOOPROXY_LISTN", "8003")
    listen, log = tmp_path / "relay", tmp_path / "log"
    with FooServer() as server, log.open("wb") as stderr:
        more = ("--listen", f"unix:{listen}", "--log-format", "json", "--log-sessions")
        arguments = [*COMMAND, "fooproxy", *options(tmp_path, server.port, *more)]
        with started(arguments, stderr=stderr, cwd=tmp_path) as process:
            with connect_unix(listen) as client:
                client.sendall(b"REQ 1 a\n")
                assert read_lines(client, 1) == b"ACK 1 a\n"
            eventually(lambda: "session 1 of" in log.read_text())
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(list(entry)[:4] == ["time", "level", "logger", "message"] for entry in entries)
    (first,) = [entry for entry in entries if "implementation" in entry]
    assert {name: first[name] for name in list(first)[4:]} == {"version": __version__, "implementation": IMPLEMENTATION}
    (note,) = [entry for entry in entries if "near" in entry]
    found = {name: note[name] for name in ("level", "variable", "near")}
    assert found == {"level": "warn", "variable": "FOOPROXY_LISTN", "near": "FOOPROXY_LISTEN"}
    (ended,) = [entry for entry in entries if "session" in entry]
    found = {name: ended[name] for name in ("level", "session", "reason", "req", "ack", "unanswered")}
    assert found == {"level": "info", "session": 1, "reason": "client_closed", "req": 1, "ack": 1, "unanswered": 0}


def test_several_listeners_relay_side_by_side_within_one_limit_and_stop_together(tmp_path: Path) -> None:
    path = tmp_path / "relay"
    more = ("--listen", "127.0.0.1:0", "--listen", f"unix:{path}", "--max-connections", "1")
    with FooServer() as server, fooproxy(tmp_path, *more, upstream=server.port, command=COMMAND) as proxy:
        with connect_unix(path) as local:
            local.sendall(b"REQ 1 a\n")
            assert read_lines(local, 1) == b"ACK 1 a\n"
            with connect(proxy.port) as remote:
                remote.sendall(b"REQ 1 b\n")
                eventually(lambda: "clients_waiting" in proxy.get("/ready")[1]["warnings"])
                assert proxy.stats("connections_total") == {"connections_total": 1}
                local.close()
                assert read_lines(remote, 1) == b"ACK 1 b\n"
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
    assert not path.exists()


def test_all_listeners_refuse_new_clients_while_the_proxy_drains(tmp_path: Path) -> None:
    path = tmp_path / "relay"
    more = ("--listen", f"unix:{path}", "--listen", "127.0.0.1:0", "--drain-timeout", "600")
    with (
        FooServer(holding=True) as server,
        fooproxy(tmp_path, *more, upstream=server.port, command=COMMAND) as proxy,
        connect(proxy.port) as busy,
    ):
        busy.sendall(b"REQ 1 a\n")
        settles(lambda: server.received, [b"REQ 1 a\n"])
        proxy.signal(signal.SIGTERM)
        # The ports close one after the other.
        eventually(lambda: refuses(proxy.port) and not path.exists())
        server.release()
        assert read_lines(busy, 1) == b"ACK 1 a\n"
        assert proxy.wait() == 0


def test_a_configuration_file_is_used_and_shown_by_the_running_proxy(tmp_path: Path) -> None:
    (tmp_path / "fooproxy.toml").write_text('idle-timeout = 60\nforward = "nonsense"\n')
    with fooproxy(tmp_path, "--config", "fooproxy.toml", command=COMMAND) as proxy:
        status, shown = proxy.get("/config")
    assert (status, shown["file"]) == (200, "fooproxy.toml")
    named = {"value": 60.0, "source": "file", "place": "fooproxy.toml:1: idle-timeout"}
    assert shown["options"]["idle-timeout"] == named
    assert shown["options"]["forward"]["source"] == "command line"


def test_a_wrong_configuration_file_ends_a_check_with_status_2(tmp_path: Path) -> None:
    (tmp_path / "fooproxy.toml").write_text("\nforward = 0\n")
    end = run(tmp_path, "fooproxy", "--config", "fooproxy.toml", "--check-config", command=COMMAND)
    assert (end.returncode, end.stdout) == (2, "")
    assert re.fullmatch("fooproxy: fooproxy.toml:2: forward: '0' names port 0, .*; expected .*\n", end.stderr)


def test_a_wrong_option_of_the_command_is_refused_with_one_line_and_status_2(tmp_path: Path) -> None:
    end = run(tmp_path, "fooproxy", "--idle-timeout", "soon", command=COMMAND)
    assert (end.returncode, end.stdout) == (2, "")
    assert re.fullmatch("fooproxy: --idle-timeout: 'soon' is not a time; expected .*\n", end.stderr)


@pytest.mark.parametrize("command", ["--check-config", "--help", "--version"])
def test_a_command_whose_output_nobody_reads_ends_in_silence(tmp_path: Path, command: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with started([*COMMAND, "fooproxy", command], cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said) == (0, b"")


@pytest.mark.parametrize("command", ["--check-config", "--help"])
def test_a_command_that_cannot_write_says_so(tmp_path: Path, command: str) -> None:
    with Path("/dev/full").open("wb") as full:
        arguments = [*COMMAND, "fooproxy", command]
        with started(arguments, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE) as process:
            _, said = process.communicate(timeout=PATIENCE)
    expected = b"fooproxy: cannot write to standard output: No space left on device\n"
    assert (process.returncode, said) == (1, expected)


def test_a_check_without_standard_output_has_its_status(tmp_path: Path) -> None:
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "fooproxy", "--check-config", "--forward", "nobody.invalid:1"]
    end = completed(shell, cwd=tmp_path)
    assert end.returncode == 2
    assert re.fullmatch("fooproxy: --forward: .*; expected .*\n", end.stderr)


def test_the_help_of_the_command_does_not_mention_twistd(tmp_path: Path) -> None:
    end = run(tmp_path, "fooproxy", "--help", command=COMMAND)
    assert (end.returncode, end.stderr) == (0, "")
    assert end.stdout.startswith("Usage: fooproxy [options]\n")
    assert "twistd" not in end.stdout


def test_the_command_tells_its_version(tmp_path: Path) -> None:
    end = run(tmp_path, "fooproxy", "--version", command=COMMAND)
    assert (end.returncode, end.stdout, end.stderr) == (0, f"fooproxy {__version__} ({IMPLEMENTATION})\n", "")
