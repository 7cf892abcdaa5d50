"""A recovery file belongs to one process: another one is refused before it opens a port, and the log says why."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.fooserver import PATIENCE, FooServer, connect, exchange, read_to_end
from tests.helpers.processes import started
from tests.helpers.proxyprocess import TWISTD, Proxy, eventually, fooproxy, options, run, settles
from tests.test_signals import daemonized

pytestmark = pytest.mark.slow


def refusal(folder: Path, proxy: Proxy, *twistd: str) -> str:
    """Start another proxy on the same file and even the same port; return its only error line."""
    command = [*twistd, "--pidfile", "second.pid", "fooproxy"]
    end = run(folder, *command, *options(folder, None, "--listen", f"127.0.0.1:{proxy.port}"))
    assert end.returncode == 1
    assert not (folder / "second.pid").exists()
    log = folder / "second.log"
    said = log.read_text() if log.exists() else end.stderr
    assert "Traceback" not in said + end.stderr
    (line,) = re.findall(r".*#(?:critical|error)\].*", said)
    return str(line)


def names(proxy: Proxy, line: str, folder: Path) -> bool:
    return bool(
        re.search(
            rf"the recovery file {folder}/recovery\.json is in use by process {proxy.pid} on [\w.-]+ "
            r"since [\d-]+ [\d:]+ UTC; "
            r"each proxy needs its own, see --recovery-path$",
            line,
        )
    )


def test_a_second_proxy_on_a_file_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    with FooServer() as server, fooproxy(tmp_path, upstream=server.port) as proxy:
        exchange(proxy.port, b"REQ 1 a\n")
        line = refusal(tmp_path, proxy, "-n")
        assert names(proxy, line, tmp_path)
        assert {file.name for file in tmp_path.iterdir()} >= {"recovery.json", "recovery.json.lock"}
        assert not list(tmp_path.glob("recovery.json.[ou]*"))
        assert exchange(proxy.port, b"REQ 1 b\n") == b"ACK 1 b\n"
        settles(lambda: proxy.get("/ready")[1]["warnings"], [])
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
    assert json.loads((tmp_path / "recovery.json").read_text())["counters"]["client_req"] == 2


def test_after_kill_9_the_file_is_free_at_once(tmp_path: Path) -> None:
    for _ in range(2):
        with fooproxy(tmp_path) as proxy:
            assert refusal(tmp_path, proxy, "-n")
            proxy.signal(signal.SIGKILL)
            proxy.wait()
    with fooproxy(tmp_path) as proxy:
        assert proxy.stats("uptime_seconds")


def test_a_proxy_that_drains_still_has_its_file(tmp_path: Path) -> None:
    with (
        FooServer(holding=True) as server,
        fooproxy(tmp_path, "--drain-timeout", "600", upstream=server.port) as proxy,
        connect(proxy.port) as client,
    ):
        client.sendall(b"REQ 1 a\n")
        eventually(lambda: server.received == [b"REQ 1 a\n"])
        proxy.signal(signal.SIGTERM)
        eventually(lambda: proxy.get("/ready")[1]["reasons"] == ["draining"])
        assert names(proxy, refusal(tmp_path, proxy, "-n"), tmp_path)
        server.release()
        assert read_to_end(client) == b"ACK 1 a\n"
        assert proxy.wait() == 0
    with fooproxy(tmp_path) as proxy:
        assert proxy.stats("msg_req", "msg_ack") == {"msg_req": 1, "msg_ack": 1}


def test_a_daemon_has_its_file_and_a_second_one_is_refused(tmp_path: Path) -> None:
    with daemonized(tmp_path) as daemon:
        assert names(daemon, refusal(tmp_path, daemon, "-n"), tmp_path)
        assert names(daemon, refusal(tmp_path, daemon, "--logfile", "second.log"), tmp_path)
        os.kill(daemon.pid, signal.SIGKILL)
        eventually(lambda: not daemon.running)
    for name in ("foo.pid", "foo.log"):
        (tmp_path / name).unlink()
    with daemonized(tmp_path) as daemon:
        assert daemon.stats("uptime_seconds")


def test_a_path_that_cannot_be_written_is_found_before_a_port_is_opened(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        listen = f"127.0.0.1:{busy.getsockname()[1]}"
        end = run(tmp_path, "-n", "fooproxy", "--listen", listen, "--recovery-path", "/proc/self/no/state")
    assert end.returncode == 1
    assert "cannot save statistics in /proc/self/no/state" in end.stderr and listen not in end.stderr


@pytest.mark.parametrize("there", ["an old state", "rubbish"])
def test_a_start_that_is_refused_for_its_port_leaves_the_file_as_it_was(tmp_path: Path, there: str) -> None:
    old = {"index": 0, "time_stamp": 1505951090, "requests_10s": [0] * 10, "responses_10s": [0] * 10}
    content = json.dumps(old) if there == "an old state" else there
    (tmp_path / "recovery.json").write_text(content)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        arguments = options(tmp_path, None, "--listen", f"127.0.0.1:{busy.getsockname()[1]}")
        end = run(tmp_path, "-n", "--pidfile=", "fooproxy", *arguments)
    assert end.returncode == 1 and "cannot listen" in end.stderr
    assert {file.name for file in tmp_path.iterdir()} == {"recovery.json", "recovery.json.lock"}
    assert (tmp_path / "recovery.json").read_text() == content


@pytest.fixture
def nobody() -> pwd.struct_passwd:
    if os.geteuid():
        pytest.skip("needs root, to become somebody else")
    return pwd.getpwnam("nobody")


@pytest.fixture
def open_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that every user can reach, unlike those of pytest."""
    anybodys = next(folder for folder in tmp_path.parents if folder.stat().st_mode & stat.S_IXOTH)
    folder = Path(tempfile.mkdtemp(dir=anybodys))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def test_the_files_belong_to_the_user_that_the_proxy_becomes(open_folder: Path, nobody: pwd.struct_passwd) -> None:
    data = open_folder / "data"
    data.mkdir()
    os.chown(data, nobody.pw_uid, nobody.pw_gid)
    path = data / "deeper" / "recovery.json"
    arguments = options(open_folder, None, "--recovery-path", str(path))
    command = [*run_as(nobody), "-n", "--pidfile=", "fooproxy", *arguments]
    for starts in (1, 2):
        # No HTTP requests here: they would load modules that this user may not be able to read.
        with (
            (open_folder / "log").open("wb") as log,
            started(command, stdout=log, stderr=log, cwd=open_folder) as process,
        ):
            eventually(lambda least=starts: path.exists() and saves(path) >= 2 * least)  # type: ignore[misc]
            assert Path(f"/proc/{process.pid}").stat().st_uid == nobody.pw_uid
            owned = [path.parent, path, path.with_name("recovery.json.lock")]
            assert {(file.stat().st_uid, file.stat().st_gid) for file in owned} == {(nobody.pw_uid, nobody.pw_gid)}
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0


def saves(path: Path) -> int:
    count: int = json.loads(path.read_bytes())["counters"]["saves_ok"]
    return count


def test_a_path_that_only_root_could_write_is_refused_before_a_port_is_opened(
    open_folder: Path, nobody: pwd.struct_passwd
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        arguments = options(open_folder, None, "--listen", f"127.0.0.1:{busy.getsockname()[1]}")
        end = run(open_folder, "-n", "--pidfile", "foo.pid", "fooproxy", *arguments, command=run_as(nobody))
    assert end.returncode == 1
    assert "Traceback" not in end.stderr
    (line,) = re.findall(r".*#critical\].*", end.stderr)
    assert f"cannot save statistics in {open_folder}/recovery.json: " in line and "Permission denied" in line
    assert list(open_folder.iterdir()) == []


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("more", [[], ["--gid", "54321"]], ids=["uid", "uid and gid"])
def test_a_user_without_a_name_is_refused_with_one_line(tmp_path: Path, more: list[str]) -> None:
    as_user = (*TWISTD, "--uid", "54321", *more)
    end = run(tmp_path, "-n", "--pidfile", "foo.pid", "fooproxy", *options(tmp_path, None), command=as_user)
    assert end.returncode == 1
    assert "Traceback" not in end.stderr
    (line,) = re.findall(r".*#critical\].*", end.stderr)
    assert "cannot become user 54321: /etc/passwd has no user of that number" in line
    assert list(tmp_path.iterdir()) == []


def run_as(user: pwd.struct_passwd) -> tuple[str, ...]:
    return (*TWISTD, "--uid", str(user.pw_uid), "--gid", str(user.pw_gid))
