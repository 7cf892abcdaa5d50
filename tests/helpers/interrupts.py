"""Ends asynchronous tests that take too long, or that wait when the run is interrupted.

If a signal handler raises an exception while a test waits in the reactor, the reactor only logs it.  So such a test is
cancelled instead, and cleans up as after any other failure.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import CancelledError, Deferred

reactor: Any = _reactor


class Interrupts:
    """Knows which asynchronous test runs, and ends it at SIGINT and SIGTERM."""

    def __init__(self) -> None:
        self._running: Deferred[Any] | None = None
        self._interrupted = False
        # Set the handler only now: the reactor sets one for SIGTERM when it starts.
        reactor.callWhenRunning(self._install)

    def cancellable(self, test: Callable[..., Any], limit: Callable[[], float]) -> Callable[..., Any]:
        """Make an asynchronous test end at an interrupt, and after `limit` seconds if that is not 0."""

        @functools.wraps(test)
        async def run(*arguments: Any, **named: Any) -> None:
            self._running = Deferred.fromCoroutine(test(*arguments, **named))
            if limit():
                self._running.addTimeout(limit(), reactor)
            try:
                await self._running
            except CancelledError:
                if self._interrupted:
                    raise KeyboardInterrupt from None
                raise
            finally:
                self._running = None

        return run

    def _install(self) -> None:
        signal.signal(signal.SIGTERM, self._interrupt)
        # pytest-twisted wraps the usual handler, so only our handler for an ignored signal can be recognized.
        if signal.getsignal(signal.SIGINT) is not do_nothing:
            signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, *_: object) -> None:
        # Without such a test, or at a second interrupt, interrupt whatever runs.
        if self._running is None or self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        reactor.callFromThread(self._running.cancel)


def ignore_no_signal() -> None:
    """Make children start with the default action of each signal, even if this process ignores some.

    Ignored signals stay ignored across an exec, and handled ones do not; so handle the ignored ones by doing nothing.
    A shell makes background jobs ignore SIGINT, and nohup makes its command ignore SIGHUP.
    """
    # Python ignores these two by itself, and subprocess gives its children the default.
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, do_nothing)


def do_nothing(*_: object) -> None:
    """Handle a signal."""
