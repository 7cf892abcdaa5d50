"""Runs the real proxy in a separate process, for tests that need one.

Tests learn about it the way an operator would: ports and warnings from the log, statistics over HTTP, open files from
``/proc``.  When the context of a run ends, the process is killed and its log must not contain a traceback.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.helpers.fooserver import PATIENCE, connect, not_yet
from tests.helpers.nursery import NURSERY, Child
from tests.helpers.processes import completed, started

T = TypeVar("T")

TWISTD = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()")
# The code of the installed command fooproxy.
COMMAND = (sys.executable, "-m")
# By default, twist logs to standard output.
TWIST = (sys.executable, "-m", "twisted", "--log-file=+", "--log-format=text")


def eventually(condition: Callable[[], T]) -> T:
    """Wait until `condition` returns something true, and return that; it may raise look-up errors until then."""
    deadline = time.monotonic() + PATIENCE
    while True:
        late = time.monotonic() > deadline
        with suppress(*not_yet(late)):
            if result := condition():
                return result
        if late:
            pytest.fail("it did not happen")
        time.sleep(0.01)


def settles(read: Callable[[], T], expected: T) -> None:
    """Wait until `read` returns `expected`; otherwise fail, and show the last value."""
    deadline = time.monotonic() + PATIENCE
    while True:
        late = time.monotonic() > deadline
        with suppress(*not_yet(late)):
            if (found := read()) == expected:
                return
            if late:
                pytest.fail(f"it stays {found!r} and does not become {expected!r}")
        time.sleep(0.01)


def refuses(port: int) -> bool:
    """Return whether connections to `port` are refused."""
    try:
        connect(port).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        # The connection was still in the backlog when the port closed.
        pass
    return False


def freeze(pid: int) -> None:
    """Stop a process with SIGSTOP, and wait until all of its threads stand still.

    One thread takes the signal and stops the others, which run on until it gets its turn.
    """
    os.kill(pid, signal.SIGSTOP)

    def stands_still() -> bool:
        threads = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
        return all(thread.rpartition(")")[2].split()[0] == "T" for thread in threads)

    eventually(stands_still)


class Proxy:
    """A running proxy that logs to the file `log` and prints to the file `stdout`."""

    def __init__(self, process: subprocess.Popen[bytes] | Child, log: Path, stdout: Path) -> None:
        self.process = process
        self.pid = process.pid
        self.stdout = stdout
        self._log = log
        self.port = self._announced(r"listening for clients on \S*?(\d+)\n")
        self.http_port = self._announced(r"serving HTTP on http://127\.0\.0\.1:(\d+)/")
        # Wait until the proxy serves, since the ports are open a little earlier.
        assert self.get("/health") == (200, {"status": "OK!"})

    @property
    def log(self) -> str:
        """All log lines that have been written so far; the last ones may be missing until the process has ended."""
        return self._log.read_text() if self._log.exists() else ""

    def says(self, text: str, times: int | None = None) -> list[str]:
        """Wait until the log has `text`, in exactly `times` lines if that is given; return these lines.

        A thread writes the log, so an event can be visible elsewhere before its line is.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            late = time.monotonic() > deadline
            whole, _, _ = self.log.rpartition("\n")
            lines = [line for line in whole.splitlines() if text in line]
            if late or len(lines) >= (times or 1):
                break
            time.sleep(0.01)
        enough = len(lines) == times if times else lines
        assert enough, f"{text!r} is in {len(lines)} lines of the log:\n{self.log}"
        return lines

    @property
    def printed(self) -> str:
        """Everything on standard output so far."""
        return self.stdout.read_text()

    @property
    def running(self) -> bool:
        """Whether the process is running; a zombie is not."""
        try:
            return Path(f"/proc/{self.pid}/cmdline").read_bytes() != b""
        except OSError:
            return False

    def get(self, path: str) -> tuple[int, Any]:
        """Get a JSON resource; return its status and content."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=PATIENCE)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def stats(self, *names: str) -> dict[str, Any]:
        """Return the report, or only the fields `names`."""
        _, report = self.get("/stats")
        return {name: report[name] for name in names or report}

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait until the process ends, and return its exit status."""
        return self.process.wait(PATIENCE)

    def files(self) -> set[str]:
        """Return the names of all open file descriptors."""
        names = set()
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                names.add(str(entry.readlink()))
            except FileNotFoundError:
                continue
        return names

    def memory(self, field: str) -> int:
        """Return a memory figure of the process in MB: VmRSS for now, VmHWM for the peak."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
        assert match is not None
        return int(match[1]) // 1024

    def _announced(self, pattern: str) -> int:
        def found() -> re.Match[str] | None:
            match = re.search(pattern, self.log)
            assert match or self.process.poll() in (None, 0), self.log
            return match

        match = eventually(found)
        assert match is not None
        return int(match[1])


def options(folder: Path, upstream: int | None, *more: str) -> list[str]:
    """Return options for free ports and a recovery file in `folder`; without `upstream`, connecting to it fails.

    Options in `more` replace these.
    """
    usual = {
        "--listen": "127.0.0.1:0",
        "--http": "127.0.0.1:0",
        "--forward": f"127.0.0.1:{upstream}" if upstream else f"unix:{folder}/nobody",
        "--recovery-path": str(folder / "recovery.json"),
        # Allow for a busy disk.
        "--recovery-max-age": "600",
    }
    return [word for name, value in usual.items() if name not in more for word in (name, value)] + [*more]


@contextmanager
def fooproxy(
    folder: Path,
    *more: str,
    upstream: int | None = None,
    command: Sequence[str] = (),
    log: str = "stderr",
    stdout: int | None = None,
    inherited: Sequence[int] = (),
) -> Iterator[Proxy]:
    """Run the proxy in `folder` with the options `more`; `log` is the file there that the proxy logs to.

    Without a `command`, it is a fork that runs ``twistd -n``: see `tests.helpers.nursery`.
    """
    arguments = [*command, *(() if command else ["-n"]), "fooproxy", *options(folder, upstream, *more)]
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        running: AbstractContextManager[subprocess.Popen[bytes] | Child]
        if command:
            running = started(arguments, stdout=stdout or out, stderr=err, cwd=folder, pass_fds=inherited)
        else:
            running = NURSERY.started(arguments, stdout=stdout or out, stderr=err, cwd=folder)
        with running as process:
            proxy = Proxy(process, folder / log, folder / "stdout")
            yield proxy
    assert "Traceback" not in proxy.log


def run(folder: Path, *arguments: str, command: Sequence[str] = TWISTD) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder` and wait until it ends."""
    return completed([*command, *arguments], cwd=folder)
