"""Signals: which of them the proxy handles, and how to set handlers that may interrupt any code.

They are handled here instead of by the reactor: after a SIGTERM handled by Twisted, the process would end by that
signal instead of with exit status 0, and a second SIGTERM would be ignored.  SIGHUP and SIGINT that are ignored at
start stay ignored, as ``nohup`` and shells mean it.

This module does not know what the answers do; the service passes them in.  `fooproxy.early` holds earlier signals.
"""

from __future__ import annotations

import signal
from functools import partial
from typing import TYPE_CHECKING, Any

from fooproxy.early import Held, is_free

if TYPE_CHECKING:
    from collections.abc import Callable


class Signals:
    """Sets the handlers; answers are called in the thread of `reactor`."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def report(self, answer: Callable[[], None]) -> None:
        """Call `answer` on SIGUSR2, and on SIGUSR1 unless that has another handler."""
        self._answer(signal.SIGUSR2, answer)
        # If there is a log file, twistd uses SIGUSR1 to rotate it.
        if is_free(signal.SIGUSR1):
            self._answer(signal.SIGUSR1, answer)

    def stop(self, answer: Callable[[str], None]) -> None:
        """Call `answer` with the signal's name on each SIGTERM, SIGINT and SIGHUP."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
                named = partial(answer, number.name)
                self._answer(number, named)
                # Set the handlers again once the reactor runs: it sets its own when it starts.
                self._reactor.callWhenRunning(self._answer, number, named)

    def _answer(self, number: signal.Signals, answer: Callable[[], None]) -> None:
        # A signal handler may interrupt any code, so it only schedules `answer`.
        before = signal.signal(number, lambda *_: self._reactor.callFromThread(answer))
        if isinstance(before, Held) and before.came:
            self._reactor.callWhenRunning(answer)
