"""Starts many proxies quickly: each is a fork of a process that has already imported the proxy's modules.

The rest is as with ``twistd -n``: the proxy has its own process, session, directory, environment and standard streams,
no other open files, and twistd's own runner, and it exits as the interpreter does.  Tests of the start itself use a
real command instead: `proxyprocess.TWISTD`.
"""

from __future__ import annotations

import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import IO

from tests.helpers.fooserver import PATIENCE
from tests.helpers.processes import environment

_LARGEST = 1 << 17


class Child:
    """A forked proxy, with those methods of `subprocess.Popen` that tests use."""

    def __init__(self, tie: socket.socket) -> None:
        self._tie = tie
        tie.settimeout(PATIENCE)
        self.pid = int(tie.recv(100))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status if the process has ended."""
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait until the process ends, and return its exit status."""
        if self.returncode is None:
            self._tie.settimeout(timeout)
            try:
                self.returncode = int(self._tie.recv(100))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired("twistd, forked", timeout) from None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The process that forks proxies; it starts when it is first needed."""

    def __init__(self) -> None:
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def started(
        self, arguments: Sequence[str], *, stdout: IO[bytes] | int, stderr: IO[bytes], cwd: Path
    ) -> Iterator[Child]:
        """Run twistd with `arguments` for as long as the context lasts; then its process group is killed."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                order = json.dumps({"arguments": arguments, "cwd": str(cwd), "environment": environment()})
                out = stdout if isinstance(stdout, int) else stdout.fileno()
                socket.send_fds(self._open(), [order.encode()], [theirs.fileno(), out, stderr.fileno()])
            child = Child(ours)
            try:
                yield child
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()

    def _open(self) -> socket.socket:
        if self._control is None:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", __name__],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    env=environment(),
                    start_new_session=True,
                )
        return self._control

    def close(self) -> None:
        """End the process, after its children have ended."""
        if self._control is not None and self._process is not None:
            self._control.close()
            self._process.wait(PATIENCE)
            self._control = None


NURSERY = Nursery()


def _load() -> None:
    # Klein imports the reactor, for features that we do not use; children must not share a reactor made here.
    stand_in = ModuleType("twisted.internet.reactor")
    sys.modules[stand_in.__name__] = stand_in
    gc.disable()
    for name in ("twisted.scripts.twistd", "twisted.plugins.fooproxy_plugin", "fooproxy.service"):
        import_module(name)
    gc.enable()
    del sys.modules[stand_in.__name__]


def _serve() -> bool:
    """Fork for each order; return true in a child, and false once no more orders can come."""
    control = socket.socket(fileno=os.dup(0))
    ties: dict[int, tuple[int, socket.socket]] = {}
    with selectors.DefaultSelector() as selector, control:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not control:
                    _tell_end(selector, key.fd, *ties.pop(key.fd))
                    continue
                order, files, _, _ = socket.recv_fds(control, _LARGEST, 3)
                if not order:
                    return False
                tie, out, err = files
                if (pid := os.fork()) == 0:
                    for pidfd, (_, other) in ties.items():
                        os.close(pidfd)
                        other.close()
                    _become(tie, out, err, **json.loads(order))
                    return True
                os.close(out)
                os.close(err)
                ties[pidfd := os.pidfd_open(pid)] = pid, socket.socket(fileno=tie)
                selector.register(pidfd, selectors.EVENT_READ)


def _tell_end(selector: selectors.BaseSelector, pidfd: int, pid: int, tie: socket.socket) -> None:
    selector.unregister(pidfd)
    os.close(pidfd)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with tie, suppress(OSError):
        tie.send(b"%d" % status)


def _become(tie: int, out: int, err: int, arguments: list[str], cwd: str, environment: dict[str, str]) -> None:
    os.setsid()
    with socket.socket(fileno=tie) as told:
        # Report the process only now that it has a process group to kill.
        told.send(b"%d" % os.getpid())
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in enumerate((nothing, out, err)):
        os.dup2(source, target)
        os.close(source)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = ["-c", *arguments]


if __name__ == "__main__":
    _load()
    if _serve():
        from twisted.scripts.twistd import run

        run()
