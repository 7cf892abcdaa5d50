"""Runs the real proxy as a process of its own, for tests of what only a process can show.

Everything is found out as an operator would: ports and warnings from the log, statistics over HTTP, files from
``/proc``.  Every run is checked to have shown no traceback, and is over when its context ends.
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
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.helpers.fooserver import PATIENCE

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
TWISTD = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()")
# Left to itself, twist logs to standard output.
TWIST = (sys.executable, "-m", "twisted", "--log-file=+", "--log-format=text")

ENVIRONMENT = {
    **os.environ,
    # The checkout need not be installed.
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
}


def eventually(condition: Callable[[], T]) -> T:
    """Wait until `condition` holds, and give what it gave."""
    deadline = time.monotonic() + PATIENCE
    while not (result := condition()):
        if time.monotonic() > deadline:
            pytest.fail("it did not happen")
        time.sleep(0.01)
    return result


def settles(read: Callable[[], T], expected: T) -> None:
    """Wait until `read` gives what is expected; if it never does, show what it gives instead."""
    deadline = time.monotonic() + PATIENCE
    while (found := read()) != expected and time.monotonic() < deadline:
        time.sleep(0.01)
    assert found == expected


class Proxy:
    """A running proxy; `log` is the file that its log lines go to, `stdout` what it printed."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, stdout: Path) -> None:
        self.process = process
        self.pid = process.pid
        self.stdout = stdout
        self._log = log
        self.port = self._announced(r"listening for clients on 127\.0\.0\.1:(\d+)")
        self.http_port = self._announced(r"serving HTTP on http://127\.0\.0\.1:(\d+)/")
        # The ports are open a little before all the rest is there.
        assert self.get("/health") == (200, {"status": "OK!"})

    @property
    def log(self) -> str:
        """All log lines so far."""
        return self._log.read_text() if self._log.exists() else ""

    @property
    def printed(self) -> str:
        """All of standard output so far."""
        return self.stdout.read_text()

    @property
    def running(self) -> bool:
        """Whether the process lives; one that nobody has waited for yet does not."""
        try:
            return Path(f"/proc/{self.pid}/cmdline").read_bytes() != b""
        except OSError:
            return False

    def get(self, path: str) -> tuple[int, Any]:
        """Get a JSON resource; give its status and content."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=PATIENCE)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def stats(self, *names: str) -> dict[str, Any]:
        """Get the report, or some of its fields."""
        _, report = self.get("/stats")
        return {name: report[name] for name in names or report}

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Wait for the end, and give the exit status."""
        return self.process.wait(PATIENCE)

    def files(self) -> set[str]:
        """Name all that the process holds open."""
        names = set()
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                names.add(str(entry.readlink()))
            except FileNotFoundError:
                continue
        return names

    def memory(self, field: str) -> int:
        """Give a field of the process's memory (VmRSS: now, VmHWM: the most so far) in MB."""
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
    """Give the options of a proxy that has free ports, keeps its file in `folder`, and may have no upstream.

    What `more` has of these stands in their place.
    """
    usual = {
        "--listen": "127.0.0.1:0",
        "--http": "127.0.0.1:0",
        "--forward": f"127.0.0.1:{upstream}" if upstream else f"unix:{folder}/nobody",
        "--recovery-path": str(folder / "recovery.json"),
    }
    return [word for name, value in usual.items() if name not in more for word in (name, value)] + [*more]


@contextmanager
def fooproxy(
    folder: Path,
    *more: str,
    upstream: int | None = None,
    command: Sequence[str] = (*TWISTD, "-n"),
    log: str = "stderr",
    stdout: int | None = None,
    inherited: Sequence[int] = (),
) -> Iterator[Proxy]:
    """Run the proxy in `folder`, with `more` options; where it is told to log is said by `log`."""
    arguments = [*command, "fooproxy", *options(folder, upstream, *more)]
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=stdout or out,
            stderr=err,
            cwd=folder,
            env=ENVIRONMENT,
            pass_fds=inherited,
        )
    try:
        proxy = Proxy(process, folder / log, folder / "stdout")
        yield proxy
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(PATIENCE)
    assert "Traceback" not in proxy.log


def run(folder: Path, *arguments: str, command: Sequence[str] = TWISTD) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself, in `folder`."""
    return subprocess.run(
        [*command, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=folder,
        env=ENVIRONMENT,
        timeout=PATIENCE,
    )
