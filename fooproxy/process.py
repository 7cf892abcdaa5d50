"""What the proxy does with its own process: standard output, time, memory.  The service calls it."""

from __future__ import annotations

import gc
import os
import select
import sys
from time import monotonic
from typing import Any

from twisted.internet.base import ReactorBase


def print_line(line: str) -> bool:
    """Write `line` to the real standard output; `print` would be turned into a log line by twistd.

    `False` when nobody takes it: a reader that has stopped reading must not stop the relay.
    """
    if sys.__stdout__ is None:
        # It was closed from the start, and its number belongs to something else by now.
        return False
    try:
        waiting = select.poll()
        waiting.register(1, select.POLLOUT)
        if not waiting.poll(0):
            return False
        os.write(1, line.encode() + b"\n")
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
