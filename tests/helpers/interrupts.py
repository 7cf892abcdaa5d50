"""Ends asynchronous tests that take too long, or that wait when the run is interrupted.

An exception that a signal handler raises while a test waits in the reactor ends in the reactor's log and nowhere else.
So such a test is cancelled, and cleans up as at any other failure.
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
        # Not before: the reactor sets a handler for SIGTERM when it starts.
        reactor.callWhenRunning(self._install)

    def cancellable(self, test: Callable[..., Any], limit: Callable[[], float]) -> Callable[..., Any]:
        """Make of an asynchronous test one that ends at an interrupt, and after `limit` seconds if that is not 0."""

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
        # pytest-twisted wraps the usual handler, so it is not to be recognized; ours for an ignored signal is.
        if signal.getsignal(signal.SIGINT) is not do_nothing:
            signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, *_: object) -> None:
        # A second time, whoever runs is interrupted wherever that is.
        if self._running is None or self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        reactor.callFromThread(self._running.cancel)


def ignore_no_signal() -> None:
    """Have children start with the default action of each signal, though this process ignores some.

    What is ignored stays so over an exec, and what is handled does not; so handle what is ignored, by doing nothing.
    A shell ignores SIGINT for what it runs in the background, and nohup ignores SIGHUP.
    """
    # Python ignores these two by itself, and subprocess gives its children the default.
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, do_nothing)


def do_nothing(*_: object) -> None:
    """Handle a signal."""
