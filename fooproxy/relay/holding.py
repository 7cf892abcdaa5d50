"""Closes clients that hold a link without making progress while other clients wait for one.

A client may hold a link as long as its server owes it a reply.  But one whose line stays unfinished, or that
does not read its replies, keeps others waiting for no reason.  This module knows nothing about messages or queues;
`fooproxy.parts` starts and stops `Holding`, and tells it whether clients wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from fooproxy.net.sockets import acknowledged

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from twisted.internet.interfaces import IReactorTime

    from fooproxy.relay.pooled import PooledSession

_SHARE = 10
_LONGEST_INTERVAL = 1.0
_SHORTEST_INTERVAL = 0.1


class Holding:
    """Closes each of `sessions` that has held a link for `timeout` seconds without progress while `others_wait`."""

    log = Logger()

    def __init__(
        self,
        sessions: Collection[Any],
        timeout: float,
        clock: IReactorTime,
        others_wait: Callable[[], bool],
    ) -> None:
        self._sessions = sessions
        self._timeout = timeout
        self._clock = clock
        self._others_wait = others_wait
        self._seen: dict[PooledSession[Any], tuple[tuple[int, int], float]] = {}
        """For each session that makes no progress: how far it had come, and when it was first seen there."""
        self._looping = LoopingCall(self._look)
        self._looping.clock = clock

    def start(self) -> None:
        """Start the regular check."""
        self._looping.start(min(max(self._timeout / _SHARE, _SHORTEST_INTERVAL), _LONGEST_INTERVAL), now=False)

    def stop(self) -> None:
        """Stop the regular check."""
        if self._looping.running:
            self._looping.stop()

    def _look(self) -> None:
        # An exception would stop the LoopingCall.
        try:
            self._seen = self._visit_all() if self._others_wait() else {}
        except Exception:
            self.log.failure("the check for clients that hold links failed; trying again")

    def _visit_all(self) -> dict[PooledSession[Any], tuple[tuple[int, int], float]]:
        now = self._clock.seconds()
        seen = {}
        for session in list(self._sessions):
            if not session.holds_up:
                continue
            progress = session.observer.passed, acknowledged(session.client.transport)
            before, since = self._seen.get(session, (progress, now))
            if before != progress:
                since = now
            if now - since >= self._timeout:
                session.hold_no_longer()
            else:
                seen[session] = (progress, since)
        return seen
