"""The end of all sessions when the proxy stops: how long to wait for them, and what to log.

The service calls this when no more clients are accepted, and again if the operator is impatient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.task import deferLater
from twisted.logger import Logger

from fooproxy.net.deadlines import Deadlines

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from fooproxy.relay.bridge import BridgeFactory

LAST_LOOK = 0.05
"""Seconds to read what clients sent before the stop."""


class Stopping:
    """Drains the sessions of `bridge`, and aborts those that are left after `patience` seconds."""

    log = Logger()

    def __init__(self, bridge: BridgeFactory[Any], patience: float, clock: IReactorTime) -> None:
        self._bridge = bridge
        self._patience = patience
        self._clock = clock

    async def drain(self) -> None:
        """End all sessions."""
        if self._bridge.sessions:
            await deferLater(self._clock, LAST_LOOK)
        if self._bridge.sessions and self._patience:
            count = len(self._bridge.sessions)
            self.log.info(
                f"stopping: waiting up to {{seconds:g}} s for {{sessions}} {_noun(count)} to finish",
                seconds=self._patience,
                sessions=count,
            )
        deadlines: Deadlines[Stopping] = Deadlines(self._clock)
        deadlines.set(self, self._patience, self._cut_short)
        await self._bridge.drain()
        deadlines.clear(self)

    def hurry(self) -> None:
        """Abort the remaining sessions; further calls do nothing."""
        if self._patience:
            self._patience = 0.0
            self._cut_short()

    def _cut_short(self) -> None:
        left = len(self._bridge.sessions)
        closing = sum(session.state == "closing" for session in self._bridge.sessions)
        if left > closing:
            self.log.warn(f"aborting {{sessions}} busy {_noun(left - closing)}", sessions=left - closing)
        if closing:
            self.log.info(
                f"not waiting any longer for {{sessions}} {_noun(closing)} to close; the last replies may still be on "
                "their way",
                sessions=closing,
            )
        self._bridge.abort()


def _noun(number: int) -> str:
    return "session" if number == 1 else "sessions"
