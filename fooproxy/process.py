"""Settings of the process itself: standard output, the clock of timers, garbage collection, memory.

It knows nothing about the proxy.  The service calls it at start and to print reports.
"""

from __future__ import annotations

import atexit
import gc
import os
import select
import sys
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

from twisted.internet.base import ReactorBase

from fooproxy.logs.writer import Writer, write_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Printer:
    """Prints lines on the real standard output; twistd turns what `print` writes into log lines."""

    def __init__(self) -> None:
        # Keep one line at a time: reports that nobody reads are not worth keeping.
        self._writer = Writer("standard output", most=0)
        atexit.register(self._writer.close)

    def print_line(self, line: str, otherwise: Callable[[], object]) -> None:
        """Print `line`; call `otherwise`, from any thread, if standard output is not read or cannot be written.

        It never blocks: a reader that stopped reading must not stop the relay.
        """
        data = line.encode() + b"\n"

        def write() -> None:
            try:
                write_all(1, data)
            except OSError:
                otherwise()

        self._writer.start()
        if not _is_read() or not self._writer.put(write, len(data)):
            otherwise()


@contextmanager
def printing() -> Iterator[None]:
    """Run a command that prints; it ends as usual if its reader is gone, and with one line if a write fails.

    The command may raise `SystemExit`; its status stays, unless output was lost.
    """
    end = None
    try:
        try:
            yield
        except SystemExit as status:
            end = status
        # Flush here: at exit, the interpreter would only print a warning.
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader has read enough, as in "| head".
        _drop_the_rest()
        end = end or SystemExit(0)
    except OSError as error:
        _drop_the_rest()
        print(f"fooproxy: cannot write to standard output: {error.strerror}", file=sys.stderr)
        end = SystemExit(1)
    if end is not None:
        raise end


def _drop_the_rest() -> None:
    """Discard the rest of standard output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _is_read() -> bool:
    """Return whether standard output accepts data now."""
    if sys.__stdout__ is None:
        # Standard output was closed at start, so descriptor 1 may belong to something else by now.
        return False
    waiting = select.poll()
    waiting.register(1, select.POLLOUT)
    return waiting.poll(0) == [(1, select.POLLOUT)]


def keep_time(reactor: Any) -> None:
    """Make the timers of `reactor` use the monotonic clock.

    Twisted's timers use the wall clock: if that is set back by an hour, all timers run an hour late, including those
    for saves and samples.
    """
    # Timers that are already set would never run.
    if isinstance(reactor, ReactorBase) and not reactor.getDelayedCalls():
        reactor.seconds = monotonic


def spare_the_collector() -> None:
    """Keep garbage collections from delaying the relay.

    Objects that exist at start live as long as the process, so they are excluded.  Sessions leave no reference cycles,
    so collections can be rare.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def keep_large_blocks(size: int) -> None:
    """Make the C library keep freed blocks of up to `size` bytes in its heap.

    At first, glibc maps, zeroes and unmaps memory for every block of more than 128 KiB, which costs as much as filling
    it from a socket.  Once a larger block was freed, it raises that threshold.
    """
    bytes(2 * size)
