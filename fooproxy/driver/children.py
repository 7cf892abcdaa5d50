"""Child processes of the demo: each is this Python interpreter running a part of this project.

However the demo ends, it stops each child by process ID: with SIGTERM, then with SIGKILL if the child does not exit.
This module knows nothing of servers and proxies; callers interpret the lines that children print.
"""

from __future__ import annotations

import os
import re
import sys
from collections import deque
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol

from fooproxy.driver.figures import duration_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from typing import NoReturn

    from twisted.internet.interfaces import IReactorTime
    from twisted.python.failure import Failure

STDOUT, STDERR = 1, 2

# Ctrl-C reaches the terminal's whole process group.  A child in a group of its own ends only when we stop it.
_OWN_GROUP = "import os; os.setpgid(0, 0)"

# Seconds.  A cold start on a slow machine takes a few, a clean exit much less.
_PATIENCE = 15.0


class ChildError(Exception):
    """A child exited, or printed nothing, while a line was expected from it."""


class Child(ProcessProtocol):
    """A child process; errors call it `name`.

    With `forward`, its standard output is copied to ours.  `ended` fires when it has exited; `status` is then its exit
    status, or `None` if a signal killed it.
    """

    forward = False
    status: int | None = None
    transport: Any

    def __init__(self, clock: IReactorTime, name: str) -> None:
        self.ended: Deferred[None] = Deferred()
        self._clock = clock
        self._name = name
        self._partial = {STDOUT: b"", STDERR: b""}
        self._expected: list[tuple[int, re.Pattern[str], Deferred[re.Match[str]]]] = []
        self._last_errors: deque[str] = deque(maxlen=1)

    def expect(self, stream: int, pattern: str) -> Deferred[re.Match[str]]:
        """Wait for a line on `stream` that matches `pattern`; earlier lines do not count.

        The Deferred fails with `ChildError` if the child exits first or takes too long.
        """

        def explain(_: object, seconds: float) -> NoReturn:
            raise ChildError(f"{self._name} did not print {pattern!r} within {duration_text(seconds)}")

        line: Deferred[re.Match[str]] = Deferred(lambda _: self._expected.remove(expected))
        expected = (stream, re.compile(pattern), line)
        self._expected.append(expected)
        return line.addTimeout(_PATIENCE, self._clock, explain)

    async def stop(self) -> None:
        """Stop the child and wait until it has exited, even if cancelled meanwhile."""
        try:
            self.transport.signalProcess("TERM")
        except ProcessExitedAlready:
            return
        killing = self._clock.callLater(_PATIENCE, self.transport.signalProcess, "KILL")
        while not self.ended.called:
            # A signal that arrives during cleanup must not cut it short.
            with suppress(CancelledError):
                await self._end()
        if killing.active():
            killing.cancel()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Split the child's output into lines."""
        *lines, self._partial[childFD] = (self._partial[childFD] + data).split(b"\n")
        for line in lines:
            self._hear(childFD, line.decode("utf-8", "replace"))

    def processEnded(self, reason: Failure) -> None:
        """Fail all expectations that are still open."""
        self.status = getattr(reason.value, "exitCode", None)
        why = self._last_errors[-1] if self._last_errors else reason.getErrorMessage()
        for _, _, line in self._take_expected():
            line.errback(ChildError(f"{self._name} ended: {why}"))
        self.ended.callback(None)

    def _end(self) -> Deferred[None]:
        """Return a Deferred that fires with `ended`; cancelling it leaves `ended` alone."""
        end: Deferred[None] = Deferred()
        self.ended.addCallback(end.callback)
        return end

    def _hear(self, stream: int, text: str) -> None:
        if stream == STDERR and text.strip():
            self._last_errors.append(text.strip())
        if stream == STDOUT and self.forward:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()
        for expected in self._take_expected():
            match = expected[1].search(text) if expected[0] == stream else None
            if match:
                expected[2].callback(match)
            else:
                self._expected.append(expected)

    def _take_expected(self) -> list[tuple[int, re.Pattern[str], Deferred[re.Match[str]]]]:
        expected, self._expected = self._expected, []
        return expected


@asynccontextmanager
async def running(reactor: Any, name: str, code: str, arguments: Sequence[str]) -> AsyncIterator[Child]:
    """Run `code` with `arguments` in a new interpreter (``-c``) until the context ends."""
    child = Child(reactor, name)
    argv = [sys.executable, "-c", f"{_OWN_GROUP}; {code}", *arguments]
    reactor.spawnProcess(child, sys.executable, argv, env=_environment())
    try:
        yield child
    finally:
        await child.stop()


def _environment() -> dict[str, str]:
    """Let the child find this project, even in a checkout that is not installed, and no options of another proxy."""
    here = str(Path(__file__).resolve().parents[2])
    paths = [here, os.environ.get("PYTHONPATH", "")]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FOOPROXY_")}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
