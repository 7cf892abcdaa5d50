"""The time before the service runs: signals that arrive before it can act on them, and loading in little time.

Starting takes half a second, mostly for imports, and until then a SIGTERM or SIGINT would kill the process by that
signal, and so would a SIGUSR1 from logrotate.  So the command and the plugin call `hold` before anything else is
loaded, and the service asks each handler that it replaces whether its signal came.  This module imports only what is
loaded anyway, and knows nothing about the proxy.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_HELD = (*_STOPPING, signal.SIGUSR1, signal.SIGUSR2)


class Held:
    """A signal handler that only remembers that its signal came; a second one to stop ends the process at once.

    Loading may hang, on a file system that does not answer.
    """

    came = False

    def __call__(self, number: int, _: object) -> None:
        """Handle the signal."""
        if self.came and number in _STOPPING:
            with suppress(OSError):
                os.write(2, b"fooproxy: ended by a second signal, before it had started\n")
            os._exit(0)
        self.came = True


def hold() -> None:
    """Remember the signals from now on, except those that the parent process had us ignore."""
    # Only the main thread may do this, and only there does Python handle signals.
    if threading.current_thread() is threading.main_thread():
        for number in _HELD:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, Held())


def is_free(number: int) -> bool:
    """Return whether nobody handles a signal, or only we do until somebody will; one that is ignored is not free."""
    handler = signal.getsignal(number)
    return handler in (signal.SIG_DFL, None) or isinstance(handler, Held)


def let_go(interrupt: Any = signal.default_int_handler) -> list[int]:
    """Let the signals have their usual effect again, SIGINT that of `interrupt`: this process will not be the proxy.

    Return those to stop that have come.
    """
    came: list[int] = []
    for number in _HELD:
        handler = signal.getsignal(number)
        if isinstance(handler, Held):
            signal.signal(number, interrupt if number == signal.SIGINT else signal.SIG_DFL)
            if handler.came and number in _STOPPING:
                came.append(number)
    return came


@contextmanager
def loading() -> Iterator[None]:
    """Load modules without searching them for garbage: all of it stays, and that would take a tenth of the start."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
