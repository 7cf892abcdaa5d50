"""Starts programs pinned to cores and stops them by pid, whatever happens in between; knows no proxy."""

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
    """A run failed; the message says what happened, for people."""


class Cores(NamedTuple):
    """Where the proxy runs, and where the load generator and the server run: apart if there are two cores."""

    proxy: frozenset[int]
    load: frozenset[int]


def divide_cores() -> Cores:
    """Give the proxy the first core this process may use, and all others to the load."""
    available = frozenset(os.sched_getaffinity(0))
    first = frozenset([min(available)])
    return Cores(first, available - first or first)


def raise_file_limit() -> int:
    """Raise this process's (and its children's) limit of open files as far as it may go; gives the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def free_port() -> int:
    """Find a port of 127.0.0.1 for a program that cannot choose one itself and tell it."""
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

    Standard error goes to `log`; so does standard output, unless it and standard input are to be `piped`.
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
                start_new_session=True,  # Ctrl-C is for us; we stop our children.
            )
        yield process
    finally:
        if process is not None:
            _stop(process)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Take signals to stop only afterwards: one that comes before a new process is known would leave it behind."""
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # What is ignored or kills stays as it is, since the new process inherits it.
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
    """Have what is started here run on `cores`: a child inherits them, and so do all its threads."""
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

    :raises Failed: it ended instead; the message is what it wrote to its `log`.
    """
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise Failed(log.read_text().strip() or f"it ended with status {process.wait()}")
    return line.strip()


def end_of(log: Path) -> str:
    """Read the last lines of `log`, to follow a message; nothing when there is none."""
    if not log.exists():
        return ""
    lines = log.read_text(errors="replace").splitlines()[-5:]
    return "".join(f"\n    {line}" for line in lines)
