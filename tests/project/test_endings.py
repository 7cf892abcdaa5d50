"""However a test run ends, it leaves no process behind, and no test can hang it; seen on runs of one small test."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.helpers.fooserver import PATIENCE
from tests.helpers.processes import ENDING, GRACE, ROOT, completed, started
from tests.helpers.proxyprocess import eventually

pytestmark = pytest.mark.slow

HEAD = """
import os, subprocess, sys, time
from pathlib import Path
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from tests.helpers.processes import started
from tests.helpers.proxyprocess import eventually, fooproxy
from tests.test_signals import daemonized

kept = []
SLEEPER = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"]

def note(*pids):
    with open("pids", "a") as noted:
        noted.write("".join(f"{pid} " for pid in pids))
"""

PROXY = """
def test(tmp_path):
    with fooproxy(tmp_path) as proxy:
        note(proxy.pid)
        end()
"""

DAEMON = """
def test(tmp_path):
    with daemonized(tmp_path) as daemon:
        note(daemon.pid)
        end()
"""

WITHOUT_CONTEXT = """
def test():
    kept.append(process := subprocess.Popen(SLEEPER, stdout=subprocess.PIPE, start_new_session=True))
    process.stdout.read(1)
    note(process.pid)
    end()
"""

WITH_CHILDREN = """
def test():
    program = f"import subprocess, sys; print(subprocess.Popen({SLEEPER}).pid, flush=True); sys.stdin.read()"
    with started([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        note(process.pid, int(process.stdout.readline()))
        end()
"""

ASYNCHRONOUS = """
@pytest_twisted.ensureDeferred
async def test():
    with started(SLEEPER, stdout=subprocess.PIPE) as process:
        process.stdout.read(1)
        note(process.pid)
        await hang()
"""

FAIL = "def end(): assert False"
SLEEP = "def end(): time.sleep(600)"
WAIT = "def hang(): return Deferred()"
STUCK = "def hang(): reactor.callLater(0, time.sleep, 600); return Deferred()"


def command(folder: Path, program: str) -> list[str]:
    """Write a test, and give the command that runs it as the tests of the checkout are run."""
    (folder / "test_it.py").write_text(HEAD + program)
    options = ["-c", f"{ROOT}/setup.cfg", "--rootdir", str(folder), "--basetemp", str(folder / "basetemp")]
    return [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", *options, "test_it.py"]


def running(folder: Path, program: str, *more: str) -> AbstractContextManager[subprocess.Popen[str]]:
    arguments = [*command(folder, program), *more]
    return started(arguments, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, grace=GRACE)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() == b""
    except OSError:
        return True


def noted(folder: Path) -> list[int]:
    file = folder / "pids"
    return list(map(int, file.read_text().split())) if file.exists() else []


def nothing_is_left(folder: Path, processes: int = 1) -> None:
    pids = noted(folder)
    assert len(pids) == processes
    eventually(lambda: all(map(gone, pids)))
    assert {path.name for path in folder.iterdir()} <= {"test_it.py", "pids", "basetemp", "__pycache__"}


def numbered(*tests: str) -> str:
    """Give each test a name of its own."""
    return "".join(test.replace("def test(", f"def test_{number}(") for number, test in enumerate(tests))


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    done = completed(command(tmp_path, FAIL + numbered(PROXY, DAEMON, WITH_CHILDREN)), cwd=tmp_path)
    assert done.returncode == 1
    assert "3 failed" in done.stdout and done.stdout.count(" - assert False") == 3
    assert "left behind" not in done.stdout
    nothing_is_left(tmp_path, 4)


@pytest.fixture
def short_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give what a run leaves behind little time."""
    monkeypatch.setenv(ENDING, "0.5")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.usefixtures("short_ending")
def test_a_process_that_outlives_its_test_is_killed_and_fails_the_run(tmp_path: Path, workers: int) -> None:
    done = completed([*command(tmp_path, "def end(): pass" + WITHOUT_CONTEXT), f"-n{workers}"], cwd=tmp_path)
    assert done.returncode == 1
    assert "1 passed" in done.stdout
    assert re.findall("left behind and killed: process (.*?) ", done.stdout) == [str(pid) for pid in noted(tmp_path)]
    nothing_is_left(tmp_path)


@pytest.mark.parametrize(
    ("test", "number"),
    [
        pytest.param(SLEEP + PROXY, signal.SIGINT, id="proxy SIGINT"),
        pytest.param(SLEEP + PROXY, signal.SIGKILL, id="proxy SIGKILL"),
        pytest.param(SLEEP + DAEMON, signal.SIGTERM, id="daemon SIGTERM"),
        pytest.param(SLEEP + WITHOUT_CONTEXT, signal.SIGHUP, id="without a context SIGHUP"),
        pytest.param(WAIT + ASYNCHRONOUS, signal.SIGINT, id="asynchronous SIGINT"),
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.usefixtures("short_ending")
def test_a_run_that_is_interrupted_leaves_nothing(
    tmp_path: Path, test: str, number: signal.Signals, workers: int
) -> None:
    with running(tmp_path, test, f"-n{workers}") as process:
        eventually(lambda: noted(tmp_path))
        process.send_signal(number)
        output, _ = process.communicate(timeout=PATIENCE)
    nothing_is_left(tmp_path)
    if number in (signal.SIGINT, signal.SIGTERM):
        assert process.returncode == 2
        assert "KeyboardInterrupt" in output


def test_a_test_that_hangs_fails_and_leaves_nothing_and_the_next_one_runs(tmp_path: Path) -> None:
    hanging = numbered(SLEEP + WITH_CHILDREN, WAIT + ASYNCHRONOUS, STUCK + ASYNCHRONOUS, "\ndef test(): pass")
    # On a busy machine, two seconds may be over before a test has started its processes.
    for limit in (2, 20):
        (tmp_path / "pids").unlink(missing_ok=True)
        arguments = [*command(tmp_path, hanging), f"--timeout={limit}"]
        done = completed(arguments, cwd=tmp_path, timeout=5 * limit + PATIENCE)
        if len(noted(tmp_path)) == 4:
            break
    assert done.returncode == 1
    assert "3 failed, 1 passed" in done.stdout and "left behind" not in done.stdout
    nothing_is_left(tmp_path, 4)


def test_children_of_a_run_that_ignores_signals_heed_them(tmp_path: Path) -> None:
    test = """
def test():
    with started(SLEEPER, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        process.stdout.read(1)
        note(process.pid)
        for number in (2, 1):
            ignored = Path(f"/proc/{process.pid}/status").read_text().partition("SigIgn:")[2].split()[0]
            assert not int(ignored, 16) & 1 << number - 1
"""
    ignoring = ["sh", "-c", 'trap "" INT HUP; exec "$@"', "sh"]
    done = completed([*ignoring, *command(tmp_path, test)], cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    nothing_is_left(tmp_path)
