"""The writer: a queue and a thread for calls that may block, so that no other thread has to wait for them.

A pipe that nobody reads, a disk that hangs and a syslog daemon that is stuck stop this thread, and nothing else.
This module knows nothing about log lines.  `logs.sinks` uses it for the log, and `process` for the reports.
"""

from __future__ import annotations

import os
import select
from collections import defaultdict
from queue import SimpleQueue
from threading import Event, Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST = 1 << 18
"""Bytes that may wait to be written."""

_STANDSTILL = 1.0
_LAST_WORDS = 5.0
"""Seconds to wait at the end until all is written: the limit without any progress, and the limit in total."""


class Writer:
    """Does jobs one after the other in a thread of its own; drops jobs beyond `most` bytes, and counts them.

    `put` never blocks, and may be called from signal handlers and several threads.
    """

    def __init__(self, name: str, most: int = _MOST) -> None:
        self._name = name
        self._most = most
        # Unlike a lock, this can be used by a signal handler that interrupts another use.
        self._jobs: SimpleQueue[tuple[Callable[[], object], int]] = SimpleQueue()
        # Each of these is changed by one thread only.
        self._put = self._done = 0
        self._dropped = self._failed = self._told = 0
        self._choked = False
        self._started = False

    def start(self) -> None:
        """Start the thread; jobs may be put before.  If the process forks afterwards, the child has no such thread."""
        if not self._started:
            self._started = True
            # A daemon thread, so that a stuck one does not keep the process from ending.
            Thread(target=self._run, name=self._name, daemon=True).start()

    def put(self, job: Callable[[], object], size: int) -> bool:
        """Queue `job`, which writes `size` bytes; return whether there was room for it.

        When there is no room, jobs are dropped until half of the queue is free, so that the log has few gaps.
        """
        held = self._put - self._done
        self._choked = held > self._most // 2 if self._choked else held > 0 and held + size > self._most
        if self._choked:
            self._dropped += 1
            return False
        self.order(job, size)
        return True

    def order(self, job: Callable[[], object], size: int = 0) -> None:
        """Queue `job` even if there is no room."""
        self._put += size
        self._jobs.put((job, size))

    def lost(self) -> int:
        """Return how many jobs were dropped or failed since the last call; 0 while there is no room to log that."""
        if self._put - self._done > self._most // 2:
            return 0
        lost = self._dropped + self._failed
        lost, self._told = lost - self._told, lost
        return lost

    def close(self) -> None:
        """Wait until everything put so far is done, but only for a limited time."""
        if not self._started:
            # When the interpreter exits, it is too late to start a thread.
            while not self._jobs.empty():
                self._do(*self._jobs.get())
            return
        done = Event()
        self.order(done.set)
        before, deadline = self._done, monotonic() + _LAST_WORDS
        while not done.wait(_STANDSTILL) and self._done != before and monotonic() < deadline:
            before = self._done

    def _run(self) -> None:
        while True:
            self._do(*self._jobs.get())

    def _do(self, job: Callable[[], object], size: int) -> None:
        try:
            job()
        except Exception:
            # The only place to report the failure is the one that failed.
            self._failed += 1
        self._done += size


_turns: defaultdict[tuple[int, int], Lock] = defaultdict(Lock)
"""A lock for each file, by its identity: the log and the reports may share a pipe, perhaps over two descriptors."""


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data` to a file descriptor, in one piece and however long that takes.

    :raises OSError: the data cannot be written.
    """
    file = os.fstat(descriptor)
    with _turns[file.st_dev, file.st_ino]:
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:
                # Another process that shares the pipe may have made it non-blocking.
                waiting = select.poll()
                waiting.register(descriptor, select.POLLOUT)
                waiting.poll()
