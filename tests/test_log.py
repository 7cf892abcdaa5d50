"""What the real process logs: its own lines, and those of the twistd or twist that runs it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from fooproxy.logs.limits import AT_ONCE
from tests.helpers.fooserver import PATIENCE, FooServer, connect, connect_unix, exchange, read_lines, reset
from tests.helpers.processes import completed, started
from tests.helpers.proxyprocess import TWIST, TWISTD, Proxy, eventually, fooproxy, options, run, settles
from tests.test_signals import daemonized

pytestmark = pytest.mark.slow

EXPECTED = (
    r"fooproxy\.[\w.]+#\w+",
    r"twisted\.scripts\._twistd_unix\.UnixAppLogger#info",
    r"twisted\.application\.runner\._runner\.Runner#info",
    r"twisted\.internet\.base#info",
)
"""Who writes lines: the proxy; twistd, twist and the reactor at the start and at the end."""


def strange(log: str) -> list[str]:
    """Give the lines of others."""
    return [line for line in log.splitlines() if not re.search(rf" \[(?:{'|'.join(EXPECTED)})\] ", line)]


def lives(proxy: Proxy, begin: bytes = b"") -> None:
    """Let the proxy have a session and a request over HTTP, and stop it."""
    with connect(proxy.port) as client:
        client.sendall(begin + b"REQ 1 a\n")
        # An upstream that does not speak TLS ends the session.
        with suppress(ConnectionResetError):
            client.recv(100)
    proxy.get("/stats")
    proxy.signal(signal.SIGTERM)


@pytest.mark.parametrize("command", [(*TWISTD, "-n"), TWIST], ids=["twistd", "twist"])
@pytest.mark.parametrize("listen", ["127.0.0.1:0", "haproxy:tcp:0:interface=127.0.0.1"])
def test_a_start_a_session_and_a_stop_log_only_our_own_lines(tmp_path: Path, command: Any, listen: str) -> None:
    begin = b"PROXY TCP4 192.0.2.7 192.0.2.8 7 8\r\n" if "haproxy" in listen else b""
    with FooServer() as server, fooproxy(tmp_path, "--listen", listen, upstream=server.port, command=command) as proxy:
        lives(proxy, begin)
        assert proxy.wait() == 0
    assert strange(proxy.log) == []
    assert "Main loop terminated" in proxy.log


@pytest.mark.parametrize("forward", ["localhost:{}", "tcp:127.0.0.1:{}:timeout=30", "ssl:127.0.0.1:{}"])
def test_connecting_logs_only_our_own_lines(tmp_path: Path, forward: str) -> None:
    with FooServer() as server, fooproxy(tmp_path, "--forward", forward.format(server.port)) as proxy:
        lives(proxy)
        assert proxy.wait() == 0
    assert strange(proxy.log) == []


def test_a_log_file_has_only_our_own_lines(tmp_path: Path) -> None:
    with daemonized(tmp_path) as daemon:
        connect(daemon.port).close()
        daemon.get("/stats")
        daemon.signal(signal.SIGTERM)
        daemon.says("Server Shut Down")
    assert strange(daemon.log) == []


FLOOD = 100
"""Resets; few enough to come within the minute after which the log counts anew."""


def test_a_flood_of_resets_costs_a_few_lines_which_count_them_all(tmp_path: Path) -> None:
    with FooServer() as server, fooproxy(tmp_path, upstream=server.port) as proxy:
        before = len(proxy.log)
        for _ in range(FLOOD):
            client = connect(proxy.port)
            client.sendall(b"REQ 1 a\n")
            assert read_lines(client, 1) == b"ACK 1 a\n"
            reset(client)
        settles(lambda: proxy.stats("connections_closed")["connections_closed"]["client_reset"], FLOOD)
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
    assert len(re.findall(r" session \d+ of ", proxy.log)) == AT_ONCE
    told = re.findall(r"not logged in the last \d+ s: (.*)", proxy.log)
    assert told == [f"{FLOOD - AT_ONCE} session ends ({FLOOD - AT_ONCE} client_reset)"]
    assert len(proxy.log) - before < 10_000


def test_with_log_sessions_all_ends_are_logged(tmp_path: Path) -> None:
    with FooServer() as server, fooproxy(tmp_path, "--log-sessions", upstream=server.port) as proxy:
        for _ in range(5 * AT_ONCE):
            exchange(proxy.port, b"REQ 1 a\n")
        proxy.says(" ended: client_closed", times=5 * AT_ONCE)


def test_in_the_background_too_clean_ends_are_logged_only_with_log_sessions(tmp_path: Path) -> None:
    with daemonized(tmp_path) as daemon:
        connect(daemon.port).close()
        settles(
            lambda: daemon.stats("connections_total", "connections_active"),
            {"connections_total": 1, "connections_active": 0},
        )
        daemon.signal(signal.SIGTERM)
        daemon.says("Server Shut Down")
    assert "session 1 of" not in daemon.log


@pytest.mark.parametrize(
    "command",
    [(*TWISTD, "-n"), (*TWISTD, "-n", "--logfile=stderr"), TWIST],
    ids=["twistd", "twistd --logfile", "twist"],
)
def test_nothing_below_the_level_is_logged_and_everything_above(tmp_path: Path, command: Any) -> None:
    listen = tmp_path / "socket"
    level = ("--log-level", "warn", "--drain-timeout", "0.1", "--connect-timeout", "60")
    arguments = [*command, "fooproxy", *options(tmp_path, None, "--listen", f"unix:{listen}"), *level]
    with (
        (tmp_path / "stderr").open("wb") as log,
        started(arguments, stderr=log, cwd=tmp_path) as process,
        connect_unix(listen),
    ):
        eventually(lambda: b"cannot connect" in (tmp_path / "stderr").read_bytes())
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    lines = (tmp_path / "stderr").read_text().splitlines()
    assert [re.sub(r".*#(\w+)\] (\w+) .*", r"\1 \2", line) for line in lines] == ["warn cannot"]


def test_with_level_debug_the_clean_ends_are_logged_under_twist_as_well(tmp_path: Path) -> None:
    with FooServer() as server, fooproxy(tmp_path, "--log-level=debug", upstream=server.port, command=TWIST) as proxy:
        connect(proxy.port).close()
        proxy.says("#debug] session 1 of")


NASTY = b"\x1b[2J\n2026-01-01T00:00:00+0000 [fooproxy#info] forged \xff"


@pytest.mark.parametrize(
    "command",
    [(*TWISTD, "-n"), (*TWISTD, "-n", "--logfile=stderr"), TWIST],
    ids=["twistd", "twistd --logfile", "twist"],
)
def test_whatever_a_client_has_named_its_socket_its_line_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("--listen", "unix:relay", "--http", "unix:http", "--log-sessions")
    with FooServer() as server, (tmp_path / "stderr").open("wb") as log:
        arguments = [*command, "fooproxy", *options(tmp_path, server.port, *given)]
        with started(arguments, stderr=log, cwd=tmp_path) as process:
            eventually((tmp_path / "http").exists)
            with closing(socket.socket(socket.AF_UNIX)) as client:
                client.bind(NASTY)
                client.connect("relay")
                client.sendall(b"REQ 1 a\n")
                assert read_lines(client, 1) == b"ACK 1 a\n"
                names = {session["client"] for session in get_by_unix("http", "/connections")["connections"]}
            eventually(lambda: "session 1 of" in (tmp_path / "stderr").read_text())
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
    shown = r"\x1b[2J\n2026-01-01T00:00:00+0000 [fooproxy#info] forged \xff"
    (line,) = [line for line in (tmp_path / "stderr").read_text().splitlines() if "forged" in line]
    assert f"session 1 of {shown} ended" in line
    assert names == {shown}


def get_by_unix(path: str, url: str) -> Any:
    with closing(HTTPConnection("localhost")) as connection:
        connection.sock = connect_unix(path)
        connection.request("GET", url)
        return json.loads(connection.getresponse().read().decode())


@pytest.mark.parametrize("command", [(*TWISTD, "-n"), (*TWISTD, "-n", "--logfile=stderr"), TWIST])
def test_a_recovery_file_with_any_name_is_mentioned(tmp_path: Path, command: Any) -> None:
    path = os.fsdecode(b"caf\xe9.json")
    with fooproxy(tmp_path, "--recovery-path", path, command=command) as proxy:
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
    with fooproxy(tmp_path, "--recovery-path", path, command=command) as proxy:
        proxy.says(r"restored the statistics from caf\xe9.json, saved")
        assert proxy.get("/live")[1]["recovery"]["path"] == r"caf\xe9.json"


def test_a_log_file_that_cannot_be_opened_is_named_in_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, "-n", "--logfile=no/such/foo.log", "fooproxy", *options(tmp_path, None))
    assert done.returncode == 1
    assert re.fullmatch(
        r"fooproxy: cannot open the log file .*no/such/foo\.log: No such file or directory; "
        r"choose another one with --logfile\n",
        done.stderr,
    )


LOGROTATE = """\
{folder}/foo.log {{
    daily
    rotate 7
    create 0640
    compress
    delaycompress
    postrotate
        kill -USR1 $(cat {folder}/foo.pid)
    endscript
}}
"""


@pytest.mark.skipif(not shutil.which("logrotate"), reason="logrotate is not installed")
def test_logrotate_may_rotate_the_log(tmp_path: Path) -> None:
    # It refuses a folder in which others may replace files.
    tmp_path.chmod(0o755)
    configuration = tmp_path / "rotate.conf"
    configuration.write_text(LOGROTATE.format(folder=tmp_path))
    with daemonized(tmp_path) as daemon:
        for _ in range(2):
            before = daemon.log
            done = completed(["logrotate", "--force", "--state", str(tmp_path / "state"), str(configuration)])
            assert (done.returncode, done.stderr) == (0, "")
            # A line may have come in between.
            assert (tmp_path / "foo.log.1").read_text().startswith(before)
            # A signal that arrives before the file is open would be told in the old one.
            eventually(lambda: str(tmp_path / "foo.log") in daemon.files())
            daemon.signal(signal.SIGUSR2)
            daemon.says("msg_total")
            assert stat.S_IMODE((tmp_path / "foo.log").stat().st_mode) == 0o640
    found = {path.name for path in tmp_path.glob("foo.log*")}
    assert found == {"foo.log", "foo.log.1", "foo.log.2.gz"}
