"""What the proxy does with its own process: standard output, time, memory.  The service calls it."""

from __future__ import annotations

import gc
import os
import select
import sys
from time import monotonic
from typing import Any

from twisted.internet.base import ReactorBase

_PATIENCE = 50
"""Milliseconds that the log may hold up everything when its reader, who has taken all so far, is slow."""


def print_line(line: str) -> bool:
    """Write `line` to the real standard output; `print` would be turned into a log line by twistd.

    `False` when nobody takes it: a reader that has stopped reading must not stop the relay.
    """
    if sys.__stdout__ is None:
        # It was closed from the start, and its number belongs to something else by now.
        return False
    return _write(1, line.encode() + b"\n")


class StandardError:
    """The real standard error as the file of a log: lines that nobody takes are dropped, and told of later."""

    def __init__(self) -> None:
        self._dropped = 0

    def write(self, text: str) -> None:
        """Write `text`, whole lines, if somebody takes them."""
        if sys.__stderr__ is None:
            return
        if self._dropped:
            text = f"(log entries dropped, since nobody took them: {self._dropped})\n{text}"
        data = text.encode(errors="backslashreplace")
        # As many bytes at a time as a pipe takes whole if it takes any.
        pieces = (data[start : start + select.PIPE_BUF] for start in range(0, len(data), select.PIPE_BUF))
        # A reader that is there may need a moment; one that is not costs that once.
        patience = 0 if self._dropped else _PATIENCE
        self._dropped = 0 if all(_write(2, piece, patience) for piece in pieces) else self._dropped + 1

    def flush(self) -> None:
        """Do nothing; nothing is held."""


def _write(fd: int, data: bytes, patience: int = 0) -> bool:
    """Write `data`, at most `select.PIPE_BUF` bytes, unless that would block for more than `patience` milliseconds."""
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
    """Have the timers of `reactor` run on the monotonic clock.

    Twisted's run on the wall clock: when that is set back by an hour, whatever is due comes an hour late, saves and
    samples too.
    """
    # Timers that are set already would never be due.
    if isinstance(reactor, ReactorBase) and not reactor.getDelayedCalls():
        reactor.seconds = monotonic


def spare_the_collector() -> None:
    """Keep garbage collections from holding the relay up.

    What is there at the start stays, and need not be looked at again; what a session leaves needs no collector.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def keep_large_blocks(size: int) -> None:
    """Have the C library keep freed blocks of up to `size` bytes in its heap.

    Until one as large has been freed once, glibc has memory mapped, zeroed and unmapped again for each block of more
    than 128 KiB, which costs as much as reading it full.
    """
    bytes(2 * size)
