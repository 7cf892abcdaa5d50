"""Settings of the process itself: standard output and error, the clock of timers, garbage collection, memory.

It knows nothing about the proxy.  The service calls it at start and to print reports; `launch` logs through
`StandardError`.
"""

from __future__ import annotations

import gc
import os
import select
import sys
from time import monotonic
from typing import Any

from twisted.internet.base import ReactorBase

_PATIENCE = 50
"""Milliseconds that writing a log line may block the proxy while its reader keeps up."""


def print_line(line: str) -> bool:
    """Write `line` to the real standard output; twistd turns what `print` writes into log lines.

    Returns whether the line was written.  It never blocks: a reader that stopped reading must not stop the relay.
    """
    if sys.__stdout__ is None:
        # It was closed at start, so descriptor 1 may belong to something else by now.
        return False
    return _write(1, line.encode() + b"\n")


class StandardError:
    """The real standard error as a log file: drops lines when nobody reads them, and later says how many."""

    def __init__(self) -> None:
        self._dropped = 0

    def write(self, text: str) -> None:
        """Write `text`, which consists of whole lines, or drop it if standard error is not being read."""
        if sys.__stderr__ is None:
            return
        if self._dropped:
            text = f"(log entries dropped because standard error was not read: {self._dropped})\n{text}"
        data = text.encode(errors="backslashreplace")
        # A pipe takes up to PIPE_BUF bytes either whole or not at all.
        pieces = (data[start : start + select.PIPE_BUF] for start in range(0, len(data), select.PIPE_BUF))
        # A slow reader gets a moment; one that stopped reading costs that delay only once.
        patience = 0 if self._dropped else _PATIENCE
        self._dropped = 0 if all(_write(2, piece, patience) for piece in pieces) else self._dropped + 1

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""


def _write(fd: int, data: bytes, patience: int = 0) -> bool:
    """Write `data`, at most `select.PIPE_BUF` bytes, and return whether this worked within `patience` milliseconds."""
    try:
        waiting = select.poll()
        waiting.register(fd, select.POLLOUT)
        if not waiting.poll(patience):
            return False
        os.write(fd, data)
    except OSError:
        return False
    return True


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
