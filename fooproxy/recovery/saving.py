"""Saving: when the statistics are restored and saved, and what is told when that fails.

The disk may be full, read-only, slow or hung.  Saves are made in a thread of their own, one at a time and none waiting:
what is slow costs the recovery alone, never the relay, and a stop waits for it a bounded time only.

The service calls it.  It knows no signals and no sockets.
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

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fooproxy.recovery.saver import Saver
    from fooproxy.recovery.state import Recovery
    from fooproxy.stats.counters import Stats

SAVE_INTERVAL = 1.0
"""Seconds between two saves of the statistics, and so what a crash may cost."""

SLOW_SAVE = 3.0
"""Seconds after which a save that has not returned is told as failing."""

LAST_SAVE_TIMEOUT = 5.0
"""Seconds that a stop waits for the save that is under way, and again for the last one."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
"""What comes and goes by itself: no reason not to start."""


class Saving:
    """Has `recovery` restored once, and saved by `saver` every second; `stats` counts that."""

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
        """Whether the statistics cannot be saved, so that a crash would lose them."""
        # One of its own: the reactor's may be busy with look-ups of names for as long as those take.
        self._thread = ThreadPool(0, 1, "saving")
        # Nor must a disk that hangs keep the process from ending.
        self._thread.threadFactory = partial(Thread, daemon=True)  # type: ignore[assignment]

    def claim(self) -> None:
        """Take the file for this process, and see whether it can be written; its content stays as it is.

        :raises fooproxy.recovery.saver.InUse: another process has it.
        :raises OSError: it cannot be had.
        """
        with self._unless_full():
            self._saver.claim()
            if not self._saver.is_locked:
                self.log.warn(
                    "the file system of {path} knows no locks; make sure that no other proxy uses this file",
                    path=str(self._saver.path),
                )

    def start(self) -> None:
        """Restore what was saved, save for the first time, and go on with that every second.

        :raises fooproxy.recovery.saver.InUse: another process has the file.
        :raises OSError: it cannot be written.
        """
        self._recovery.load()
        with self._unless_full():
            self._saver.write(self._recovery.state())
        self._thread.start()
        self._stopped = self._loop.start(SAVE_INTERVAL, now=False)

    async def stop(self) -> None:
        """Save once more after the save that is under way; a disk that hangs is not waited for."""
        self._loop.stop()
        try:
            await self._stopped.addTimeout(LAST_SAVE_TIMEOUT, self._reactor)
            await self._save().addTimeout(LAST_SAVE_TIMEOUT, self._reactor)
        except TimeoutError:
            self.log.error("the statistics could not be saved to {path} in time", path=str(self._saver.path))
        else:
            self._thread.stop()
            self._saver.release()

    def report(self) -> dict[str, Any]:
        """Tell how it stands with the file."""
        age = None if self._saved_at is None else self._stats.clock() - self._saved_at
        return {"path": str(self._saver.path), "failing": self.failing, "saved_seconds_ago": age}

    @contextmanager
    def _unless_full(self) -> Iterator[None]:
        """Let a full disk pass as a save that has failed: it must not keep the proxy from relaying."""
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self._not_saved(Failure())

    def _save(self) -> Deferred[Any]:
        # Whatever is wrong, the loop must go on.
        saving = maybeDeferred(self._write)
        slow = self._reactor.callLater(SLOW_SAVE, self._failing, f"it has taken {SLOW_SAVE:g} s already")

        def returned(result: Any) -> Any:
            if slow.active():
                slow.cancel()
            return result

        def saved(result: None) -> None:
            self._stats.recovery_saves["ok"] += 1
            self._saved_at = self._stats.clock()
            # A disk that is slow each time is not well again each time.
            if self.failing and not slow.called:
                self.failing = False
                self.log.info("the statistics are saved again to {path}", path=str(self._saver.path))

        return saving.addBoth(returned).addCallbacks(saved, self._not_saved)

    def _write(self) -> Deferred[Any]:
        state = self._recovery.state()
        written: Deferred[Any] = deferToThreadPool(self._reactor, self._thread, self._saver.write, state)
        return written

    def _not_saved(self, failure: Failure) -> Failure | None:
        if failure.check(CancelledError):
            # Nobody waits for it any more.
            return failure
        self._stats.recovery_saves["failed"] += 1
        self._failing(failure.getErrorMessage())
        return None

    def _failing(self, why: str) -> None:
        if not self.failing:
            self.failing = True
            self.log.error(
                "cannot save the statistics to {path}: {why}; a crash now loses what was counted since",
                path=str(self._saver.path),
                why=why,
            )
