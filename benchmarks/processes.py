"""Starts programs pinned to cores, and always stops them, by process ID; knows no proxy."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

START_TIMEOUT = 20.0
STOP_TIMEOUT = 5.0
POLL = 0.01

T = TypeVar("T")


class Failed(Exception):
    """A run failed; the message says what happened."""


class Cores(NamedTuple):
    """The cores of the proxy, and those of the load generator and the server; separate if there are two or more."""

    proxy: frozenset[int]
    load: frozenset[int]


def divide_cores() -> Cores:
    """Give the proxy the first core this process may use, and all others to the load."""
    available = frozenset(os.sched_getaffinity(0))
    first = frozenset([min(available)])
    return Cores(first, available - first or first)


def raise_file_limit() -> int:
    """Raise this process's (and its children's) limit of open files to the maximum; return the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def free_port() -> int:
    """Return a free port of 127.0.0.1, for a program that cannot choose and report one itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(
    command: Sequence[str | Path],
    cores: frozenset[int],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    piped: bool = False,
) -> Iterator[subprocess.Popen[str]]:
    """Run `command` on `cores` for as long as the context lasts.

    Standard error goes to `log`; so does standard output, unless it and standard input are `piped`.
    """
    process = None
    try:
        with log.open("w") as out, _on(cores), _uninterrupted():
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else out,
                stderr=out,
                text=True,
                # A proxy must not take the options of another one.
                env={k: v for k, v in os.environ.items() if not k.startswith("FOOPROXY_")} | dict(environment or {}),
                start_new_session=True,  # Ctrl-C must reach only this process, which stops its children.
            )
        yield process
    finally:
        if process is not None:
            _stop(process)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delay signals to stop until the context ends, so that none arrives between a fork and the note of it."""
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # Signals that are ignored or have the default action stay so, since the new process inherits that.
    handled = {number: handler for number, handler in handlers.items() if callable(handler)}
    if threading.current_thread() is not threading.main_thread():
        handled = {}
    for number in handled:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
    for one in came:
        signal.raise_signal(one)


@contextmanager
def _on(cores: frozenset[int]) -> Iterator[None]:
    """Run processes that are started in this context on `cores`, which they and their threads inherit."""
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()


def wait_for(find: Callable[[], T | None], process: subprocess.Popen[str], log: Path) -> T:
    """Ask `find` until it finds something.

    :raises Failed: `process` ended or took too long; the message ends with the last lines of its `log`.
    """
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        found = find()
        if found is not None:
            return found
        if process.poll() is not None:
            raise Failed(f"it ended with status {process.returncode} instead of listening{end_of(log)}")
        time.sleep(POLL)
    raise Failed(f"it does not listen after {START_TIMEOUT:.0f} s{end_of(log)}")


def read_line(process: subprocess.Popen[str], log: Path) -> str:
    """Read the next line that the piped `process` prints.

    :raises Failed: it ended instead; the message has the end of its `log`.
    """
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise Failed(log.read_text().strip() or f"it ended with status {process.wait()}")
    return line.strip()


def end_of(log: Path) -> str:
    """Return the last lines of `log`, to follow a message; empty if there are none."""
    if not log.exists():
        return ""
    lines = log.read_text(errors="replace").splitlines()[-5:]
    return "".join(f"\n    {line}" for line in lines)
