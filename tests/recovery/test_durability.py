"""A crash at any instant, by kill -9 or by a power failure, leaves either the old state or the new one, complete."""

from __future__ import annotations

import ast
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest

from fooproxy.recovery.saver import Saver
from fooproxy.recovery.state import SavedState
from tests.helpers.fooserver import PATIENCE, FooServer
from tests.helpers.processes import completed, started
from tests.helpers.proxyprocess import fooproxy
from tests.recovery.test_crash import load

pytestmark = pytest.mark.slow

SAVE_FOR_EVER = """
import os, sys
from pathlib import Path
from fooproxy.recovery.saver import Saver

for line in sys.stdin:
    began, number = os.pipe(), int(line)
    child = os.fork()
    if not child:
        saver = Saver(Path("recovery.json"))
        saver.claim()
        while True:
            number += 1
            saver.write({"number": number, "filler": str(number) * (number % 7 * 3000)})
            os.write(1, b"%d %d\\n" % (os.getpid(), number))
    os.waitpid(child, 0)
    os.write(1, b"over\\n")
"""
"""For each number read, starts a child that saves increasing numbers and prints each saved one until it is killed."""


def content(path: Path) -> int:
    """Return the saved number, after checking that the file is complete."""
    content: Any = Saver(path).read()
    number: int = content["number"]
    assert content == {"number": number, "filler": str(number) * (number % 7 * 3000)}
    return number


@contextmanager
def nursery(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", SAVE_FOR_EVER]
    with started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        yield process


def test_kill_9_at_any_instant_of_a_save_leaves_the_last_state_or_the_next(tmp_path: Path) -> None:
    chance = random.Random(1)
    path, number = tmp_path / "recovery.json", 0
    between = 0
    with nursery(tmp_path) as process:
        assert process.stdin is not None and process.stdout is not None
        for _ in range(100):
            print(number, file=process.stdin, flush=True)
            child, said = map(int, process.stdout.readline().split())
            # Any instant will do; this is no synchronisation.
            time.sleep(chance.uniform(0, 0.01))
            os.kill(child, signal.SIGKILL)
            while (line := process.stdout.readline()) != "over\n":
                said = int(line.split()[1])
            number = content(path)
            assert number in (said, said + 1)
            between += path.with_name("recovery.json.new").exists()
    # Some kills did hit a save in the middle, so this was not just luck.
    assert between


def test_kill_9_of_a_proxy_that_is_saving_leaves_a_state_that_goes_on(tmp_path: Path) -> None:
    path, new = tmp_path / "recovery.json", tmp_path / "recovery.json.new"
    before = 0
    for _ in range(3):
        with (
            FooServer() as server,
            fooproxy(tmp_path, upstream=server.port) as proxy,
            load(proxy.port),
        ):
            # No pause: a save takes only a few milliseconds.
            deadline = time.monotonic() + PATIENCE
            while not new.exists() or SavedState(Saver(path).read()).counters["client_req"] <= before:
                assert time.monotonic() < deadline
            proxy.signal(signal.SIGKILL)
            proxy.wait()
        state = SavedState(Saver(path).read())
        assert state.counters["client_req"] > before
        before = state.counters["client_req"]
        assert not list(tmp_path.glob("*.unusable")) and not list(tmp_path.glob("*.old"))


class Disk:
    """A model of what survives a power failure: everything synced, and any part of the rest.

    Unsynced content is torn; each unsynced change of a name may or may not have happened.
    """

    def __init__(self, folder: Path) -> None:
        directories = [folder, *folder.parents]
        self._nodes = len(directories)
        self._names = {str(path): node for node, path in enumerate(directories)}
        self._durable = self._names.copy()
        self._pending: list[dict[str, int | None]] = []
        self._written: dict[int, bytes] = {}
        self._synced: dict[int, bytes] = {}

    def make(self, path: str) -> None:
        """Create a file or a directory."""
        self._nodes += 1
        self._written[self._nodes] = b""
        self._change({path: self._nodes})

    def open(self, path: str, flags: str) -> None:
        if path not in self._names:
            assert "O_CREAT" in flags
            self.make(path)
        elif "O_TRUNC" in flags:
            self._written[self._names[path]] = b""

    def empty(self, path: str) -> None:
        self._written[self._names[path]] = b""

    def unlink(self, path: str) -> None:
        self._change({path: None})

    def rename(self, old: str, new: str) -> None:
        self._change({new: self._names[old], old: None})

    def write(self, path: str, data: str) -> None:
        self._written[self._names[path]] += ast.literal_eval(f"b{data}")

    def sync(self, path: str) -> None:
        """Sync the content of a file, or the names in a directory, to disk."""
        node = self._names[path]
        self._synced[node] = self._written.get(node, b"")
        for change in self._pending.copy():
            if any(str(Path(name).parent) == path for name in change):
                self._pending.remove(change)
                _apply(self._durable, change)

    def left(self, path: Path) -> set[bytes | None]:
        """Return every content the file may have if power fails now; `None` stands for a missing file."""
        subsets = chain.from_iterable(combinations(self._pending, n) for n in range(len(self._pending) + 1))
        return {self._left(path, subset) for subset in subsets}

    def _left(self, path: Path, happened: tuple[dict[str, int | None], ...]) -> bytes | None:
        names = self._durable.copy()
        for change in happened:
            _apply(names, change)
        if any(str(name) not in names for name in (path, *path.parents)):
            return None
        node = names[str(path)]
        return self._written[node] if self._synced.get(node) == self._written[node] else b"torn"

    def _change(self, names: dict[str, int | None]) -> None:
        self._pending.append(names)
        _apply(self._names, names)


def _apply(names: dict[str, int], change: dict[str, int | None]) -> None:
    for name, node in change.items():
        names.pop(name, None)
        if node is not None:
            names[name] = node


SAVE_THRICE = """
import os, sys
from pathlib import Path
from fooproxy.recovery.saver import Saver

saver = Saver(Path(sys.argv[1]))
os.write(1, b"begin")
saver.claim()
for number in (1, 2, 3):
    saver.write(number)
    os.write(1, b"saved %d" % number)
"""

CALLS = "openat,write,fsync,rename,mkdir,unlink,pwrite64,fdatasync,ftruncate,link,renameat,renameat2,mkdirat,unlinkat"


@pytest.fixture
def trace(tmp_path: Path) -> list[str]:
    """The system calls of a process that saves three times, first into a directory that it must create."""
    if not shutil.which("strace"):
        pytest.skip("needs strace")
    program = [sys.executable, "-c", SAVE_THRICE, str(tmp_path / "new" / "data" / "state")]
    command = ["strace", "-f", "-y", "-s", "100", "-o", str(tmp_path / "trace"), "-e", f"trace={CALLS}"]
    end = completed([*command, *program])
    if "PTRACE" in end.stderr:
        pytest.skip("strace may not trace here")
    assert end.stdout == "beginsaved 1saved 2saved 3", end.stderr
    lines = (tmp_path / "trace").read_text().splitlines()
    return lines[next(n for n, line in enumerate(lines) if '"begin"' in line) + 1 :]


def do(disk: Disk, call: str) -> None:
    """Apply a system call to the model; fail if the model does not support it."""
    name, arguments = re.fullmatch(r"(?:\d+ +)?(\w+)\((.*)\) += \d.*", call).groups()  # type: ignore[union-attr]
    quoted = re.findall(r'"((?:[^"\\]|\\.)*)"', arguments)
    opened = re.match(r"\d+<([^>]*)>", arguments)
    match name:
        case "openat" if "O_DIRECTORY" not in arguments and not Path(quoted[0]).is_dir():
            disk.open(quoted[0], arguments)
        case "openat":
            pass
        case "ftruncate" if arguments.endswith(", 0"):
            assert opened
            disk.empty(opened[1])
        # The lock's only writes are at its start, after it has been emptied.
        case "write" | "pwrite64":
            assert opened
            disk.write(opened[1], f'"{quoted[0]}"')
        case "fsync":
            assert opened
            disk.sync(opened[1])
        case "rename":
            disk.rename(*quoted)
        case "mkdir":
            disk.make(quoted[0])
        case "unlink":
            disk.unlink(quoted[0])
        case _:
            pytest.fail(f"what does {call} do to a disk?")


def lost(folder: Path, trace: list[str]) -> str | None:
    """Let power fail after each call; return the first call after which the state may be wrong, if any."""
    disk, path = Disk(folder), folder / "new" / "data" / "state"
    saved: bytes | None = None
    for call in trace:
        said = re.search(r'"saved (\d)"', call)
        if said:
            saved = said[1].encode()
            right = {saved}
        elif re.search(r"\) += \d", call) and str(folder) in call:
            do(disk, call)
            right = {saved, b"%d" % (int(saved or b"0") + 1)}
        if not disk.left(path) <= right:
            return call
    assert saved == b"3"
    return None


def test_a_loss_of_power_at_any_instant_leaves_the_last_state_or_the_next(tmp_path: Path, trace: list[str]) -> None:
    assert lost(tmp_path, trace) is None


@pytest.mark.parametrize(
    ("where", "after"),
    [("new/data/state.new", "rename"), ("new/data", "saved 1"), ("new", "saved 1"), (".", "saved 1")],
    ids=["the file", "its directory", "the directory above", "the one above that"],
)
def test_the_power_would_be_lost_too_soon_without_the_sync_of(
    tmp_path: Path, trace: list[str], where: str, after: str
) -> None:
    sync = f"<{tmp_path / where}>"
    found = lost(tmp_path, [call for call in trace if "fsync" not in call or sync not in call])
    assert found is not None and after in found
