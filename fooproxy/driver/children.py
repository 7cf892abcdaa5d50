"""Processes that the demo starts, listens to and stops: this interpreter, running a part of this project.

A child is stopped by its own process id, whatever ends the demo: SIGTERM first, SIGKILL when that does not help.
Knows nothing of servers and proxies; what their lines mean is the caller's business.
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

# A Ctrl-C goes to a terminal's whole process group; outside of it, a child ends when it is told to and not before.
_OWN_GROUP = "import os; os.setpgid(0, 0)"

# Seconds: a cold start on a slow machine takes a few, a clean end much less.
_PATIENCE = 15.0


class ChildError(Exception):
    """A child ended, or stayed silent, when something was expected of it."""


class Child(ProcessProtocol):
    """One child; `name` is what errors call it.

    With `forward`, its standard output is passed on to ours.  `status` is its exit status once it has `ended`; `None`
    stands for the death by a signal too.
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
        """Wait for a line of `stream` that holds `pattern`; lines that came before the call do not count.

        The Deferred fails with `ChildError` when the child ends before that or takes too long.
        """

        def explain(_: object, seconds: float) -> NoReturn:
            raise ChildError(f"{self._name} did not say {pattern!r} within {duration_text(seconds)}")

        line: Deferred[re.Match[str]] = Deferred(lambda _: self._expected.remove(expected))
        expected = (stream, re.compile(pattern), line)
        self._expected.append(expected)
        return line.addTimeout(_PATIENCE, self._clock, explain)

    async def stop(self) -> None:
        """End the child and wait until it is gone, also when cancelled meanwhile."""
        try:
            self.transport.signalProcess("TERM")
        except ProcessExitedAlready:
            return
        killing = self._clock.callLater(_PATIENCE, self.transport.signalProcess, "KILL")
        while not self.ended.called:
            # A signal that comes while we clean up must not cut that short.
            with suppress(CancelledError):
                await self._end()
        if killing.active():
            killing.cancel()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Cut what the child says into lines."""
        *lines, self._partial[childFD] = (self._partial[childFD] + data).split(b"\n")
        for line in lines:
            self._hear(childFD, line.decode("utf-8", "replace"))

    def processEnded(self, reason: Failure) -> None:
        """Disappoint whoever still expects a line."""
        self.status = getattr(reason.value, "exitCode", None)
        why = self._last_errors[-1] if self._last_errors else reason.getErrorMessage()
        for _, _, line in self._take_expected():
            line.errback(ChildError(f"{self._name} ended: {why}"))
        self.ended.callback(None)

    def _end(self) -> Deferred[None]:
        """Make a Deferred that fires with `ended`, and whose cancelling leaves `ended` alone."""
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
    """Run `code` with `arguments`, as this interpreter's ``-c`` does, for as long as the context lasts."""
    child = Child(reactor, name)
    argv = [sys.executable, "-c", f"{_OWN_GROUP}; {code}", *arguments]
    reactor.spawnProcess(child, sys.executable, argv, env=_environment())
    try:
        yield child
    finally:
        await child.stop()


def _environment() -> dict[str, str]:
    """Make the child find this very project, and twistd its plugin, also in a checkout that is not installed."""
    here = str(Path(__file__).resolve().parents[2])
    paths = [here, os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
