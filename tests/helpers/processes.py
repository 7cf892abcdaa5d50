"""The processes that tests start: each has ended when its context ends, however that happens.

A `Watch` is for processes that no context ends: it outlives the test run, even a killed one, and then kills every
process that the run started, by a mark in their environment.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.helpers.fooserver import PATIENCE

ROOT = Path(__file__).resolve().parents[2]

GRACE = 15.0
"""Seconds for a program that has processes of its own to stop."""

# The name must not begin with FOOPROXY_: tests/conftest.py deletes such variables.
_MARK = "TEST_RUN_MARK"

ENDING = "TEST_RUN_ENDING"
"""The environment variable with the seconds that processes have to end after a run; usually 10."""


def environment() -> dict[str, str]:
    """Return the environment for a child; the checkout need not be installed."""
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@contextmanager
def started(command: Sequence[str | Path], *, grace: float = 0.0, **how: Any) -> Iterator[subprocess.Popen[Any]]:
    """Run `command` for as long as the context lasts; `how` is for `subprocess.Popen`.

    At the end its process group is killed.  A program that must stop processes outside its group first gets a SIGTERM
    and up to `grace` seconds.
    """
    how = {"stdin": subprocess.DEVNULL, "env": environment(), **how}
    # In a session of its own, so that its process group is its own and Ctrl-C reaches the test run alone.
    process: subprocess.Popen[Any] = subprocess.Popen(command, start_new_session=True, **how)
    try:
        yield process
    finally:
        if grace and process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def completed(
    command: Sequence[str | Path], *, timeout: float = PATIENCE, given: str | None = None, **how: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself; `given` is its standard input."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    stdin = subprocess.DEVNULL if given is None else subprocess.PIPE
    with started(command, stdin=stdin, text=True, **pipes, **how) as process:
        out, err = process.communicate(given, timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


_WATCH = r"""
import os, signal, sys, time

def left():
    parents, found = {}, set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/environ", "rb") as environ, open(f"/proc/{name}/stat", "rb") as stat:
                # The name in parentheses may hold anything.
                parents[int(name)] = int(stat.read().rpartition(b")")[2].split()[1])
                if sys.argv[1].encode() in environ.read().split(b"\0"):
                    found.add(int(name))
        except OSError:
            continue
    # Some programs write over their environment.
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found

sys.stdin.read()
give_up = time.monotonic() + float(sys.argv[2])
while left() and time.monotonic() < give_up:
    time.sleep(0.05)
for _ in range(100):
    for pid in (pids := left()):
        try:
            with open(f"/proc/{pid}/cmdline") as cmdline:
                line = f"{pid} {cmdline.read()}".replace("\0", " ")
            os.kill(pid, signal.SIGKILL)
            # Last, since there may be nobody left to tell.
            print(line, flush=True)
        except OSError:
            pass
    if not pids:
        break
    time.sleep(0.05)
"""


class Watch:
    """Marks all processes that are started from now on, and kills them when this process is gone."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", "-c", _WATCH),
                *(f"{_MARK}={(mark := secrets.token_hex(8))}", os.environ.get(ENDING, "10")),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # The watch itself is not marked, not even by a run that started this one.
            env={name: value for name, value in os.environ.items() if name != _MARK},
        )
        os.environ[_MARK] = mark

    def end(self) -> list[str]:
        """Kill the processes that do not end in time; return their IDs and command lines."""
        told, _ = self._process.communicate()
        return sorted(set(told.splitlines()))
