"""Saving: when the statistics are restored and saved, and what is reported when that fails.

The disk may be full, read-only, slow or hung.  Saves run in a thread of their own, one at a time and without a queue:
a slow disk delays only the recovery file, never the relay, and a stop waits for it only for a limited time.

The service calls this module, which does not know about signals or sockets.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred, TimeoutError, maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from fooproxy.text import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fooproxy.recovery.saver import Saver
    from fooproxy.recovery.state import Recovery
    from fooproxy.stats.counters import Stats

SAVE_INTERVAL = 1.0
"""Seconds between two saves of the statistics; a crash can lose these, plus the duration of a save."""

SLOW_SAVE = 3.0
"""Seconds after which a save that has not finished is reported as failing."""

LAST_SAVE_TIMEOUT = 5.0
"""Seconds to wait when stopping, first for the save in progress and then again for the last one."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a full disk: they can go away by themselves, so they must not prevent the start."""


class Saving:
    """Restores `recovery` once, and writes it with `saver` every second; counts the saves in `stats`."""

    log = Logger()

    def __init__(self, recovery: Recovery, saver: Saver, stats: Stats, reactor: Any) -> None:
        self._recovery = recovery
        self._saver = saver
        self._stats = stats
        self._reactor = reactor
        self._loop = LoopingCall(self._save)
        self._loop.clock = reactor
        self._stopped: Deferred[LoopingCall] = Deferred()
        self._saved_at: float | None = None
        self.failing = False
        """Whether the statistics cannot be saved at present, so that a crash would lose counts."""
        # Not the reactor's thread pool: slow name lookups may keep that busy.
        self._thread = ThreadPool(0, 1, "saving")
        # A daemon thread, so that a hung disk does not keep the process from exiting.
        self._thread.threadFactory = partial(Thread, daemon=True)  # type: ignore[assignment]

    def claim(self) -> None:
        """Lock the file for this process, and check that it can be written; its content does not change.

        A full disk is only logged.

        :raises fooproxy.recovery.saver.InUse: another process uses the file.
        :raises OSError: the file cannot be locked or written.
        """
        with self._unless_full():
            self._saver.claim()
            if not self._saver.is_locked:
                self.log.warn(
                    "the file system of {path} does not support locks; make sure that no other proxy uses this file",
                    path=one_line(str(self._saver.path)),
                )

    def start(self) -> None:
        """Restore the saved statistics, save for the first time, and then save every second.

        :raises fooproxy.recovery.saver.InUse: another process uses the file.
        :raises OSError: the file cannot be written, for another reason than a full disk.
        """
        self._recovery.load()
        with self._unless_full():
            self._saver.write(self._recovery.state())
        self._thread.start()
        self._stopped = self._loop.start(SAVE_INTERVAL, now=False)

    async def stop(self) -> None:
        """Save once more after the save in progress; give up on each after `LAST_SAVE_TIMEOUT`."""
        self._loop.stop()
        try:
            await self._stopped.addTimeout(LAST_SAVE_TIMEOUT, self._reactor)
            await self._save().addTimeout(LAST_SAVE_TIMEOUT, self._reactor)
        except TimeoutError:
            self.log.error(
                "could not save the statistics to {path} in time; counts since the last save may be lost",
                path=one_line(str(self._saver.path)),
            )
        else:
            self._thread.stop()
            self._saver.release()

    def report(self) -> dict[str, Any]:
        """Return the path of the file, whether saves fail, and the age of the last save in seconds."""
        age = None if self._saved_at is None else self._stats.clock() - self._saved_at
        return {"path": one_line(str(self._saver.path)), "failing": self.failing, "saved_seconds_ago": age}

    @contextmanager
    def _unless_full(self) -> Iterator[None]:
        """Treat a full disk as a failed save: it must not keep the proxy from relaying."""
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self._not_saved(Failure())

    def _save(self) -> Deferred[Any]:
        # An exception here would stop the loop.
        saving = maybeDeferred(self._write)
        slow = self._reactor.callLater(SLOW_SAVE, self._failing, f"the save has already taken {SLOW_SAVE:g} s")

        def returned(result: Any) -> Any:
            if slow.active():
                slow.cancel()
            return result

        def saved(result: None) -> None:
            self._stats.recovery_saves["ok"] += 1
            self._saved_at = self._stats.clock()
            # A slow save that succeeds in the end does not mean that the disk is well again.
            if self.failing and not slow.called:
                self.failing = False
                self.log.info("saving statistics to {path} works again", path=one_line(str(self._saver.path)))

        return saving.addBoth(returned).addCallbacks(saved, self._not_saved)

    def _write(self) -> Deferred[Any]:
        state = self._recovery.state()
        written: Deferred[Any] = deferToThreadPool(self._reactor, self._thread, self._saver.write, state)
        return written

    def _not_saved(self, failure: Failure) -> Failure | None:
        if failure.check(CancelledError):
            # The stop has given up waiting for this save.
            return failure
        self._stats.recovery_saves["failed"] += 1
        self._failing(one_line(failure.getErrorMessage()))
        return None

    def _failing(self, why: str) -> None:
        if not self.failing:
            self.failing = True
            self.log.error(
                "cannot save the statistics to {path}: {error}; a crash would now lose the counts since the last save",
                path=one_line(str(self._saver.path)),
                error=why,
            )
