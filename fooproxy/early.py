"""The time before the service runs: signals that arrive before it can handle them, and faster loading.

Starting takes half a second, mostly for imports; meanwhile, a SIGTERM, a SIGINT or a SIGUSR1 from logrotate would kill
the process.  So the command and the plugin call `hold` before anything else is loaded, and when the service replaces a
handler, it asks the old one whether its signal came.  This module imports only modules that are loaded anyway, and
knows nothing about the proxy.
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
    """A signal handler that only remembers its signal; a second SIGTERM, SIGINT or SIGHUP ends the process at once.

    Without that, loading from a file system that hangs could not be interrupted.
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
    """Remember signals from now on, except those that the parent process has set to be ignored."""
    # Python sets and runs signal handlers only in the main thread.
    if threading.current_thread() is threading.main_thread():
        for number in _HELD:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, Held())


def is_free(number: int) -> bool:
    """Return whether a signal has no handler but the default or `Held`; an ignored signal is not free."""
    handler = signal.getsignal(number)
    return handler in (signal.SIG_DFL, None) or isinstance(handler, Held)


def let_go(interrupt: Any = signal.default_int_handler) -> list[int]:
    """Restore the default handlers (`interrupt` for SIGINT), since this process will not run the proxy.

    Return the signals to stop that have arrived meanwhile.
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
    """Load modules without garbage collections, which would find nothing and take a tenth of the start."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
