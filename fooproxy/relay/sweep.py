"""The sweep: a periodic check of all sessions, instead of a timer for each.

It finds idle sessions, requests that have waited for too long, and stalled peers (peers that do not read their waiting
data), and reports them to their session, which decides what happens.  It knows nothing about messages.
`fooproxy.parts` starts and stops it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from fooproxy.net.deadlines import read_first
from fooproxy.net.sockets import acknowledged, is_writing, unacknowledged
from fooproxy.net.turns import in_turns
from fooproxy.relay.interceptor import Interceptor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from twisted.internet.interfaces import IReactorTime

    from fooproxy.net.poller import Poller
    from fooproxy.relay.leg import Leg
    from fooproxy.relay.session import Session
    from fooproxy.relay.timeouts import Timeouts


_BUSY = ("open", "half-closed", "draining")
"""States of a session in which it waits for replies."""


class _Stuck(NamedTuple):
    """How much data the peer of a leg that cannot write had taken at the last sweep, and when it last took any."""

    session: Session[Any]
    taken: tuple[int, int]
    since: float


class Sweep:
    """Checks `sessions` every ``timeouts.interval`` seconds, and reports those that are idle and peers that stalled.

    `prepare` is called first, to bring the observers' `idle` up to date.  A peer has stalled if bytes wait here for it
    and its kernel has acknowledged none of them for ``timeouts.send`` seconds; a slow reader has not.

    If a `poller` with the transports of all sessions is passed, and there is no timeout for idle sessions or for
    replies, only sessions with bytes waiting are visited: this avoids touching the memory of ten thousand others.
    """

    log = Logger()

    def __init__(
        self,
        sessions: Collection[Session[Any]],
        timeouts: Timeouts,
        clock: IReactorTime,
        prepare: Callable[[], object],
        poller: Poller | None = None,
    ) -> None:
        self._sessions = sessions
        self._poller = poller
        self._timeouts = timeouts
        self._clock = clock
        self._prepare = prepare
        self._stuck: dict[Leg, _Stuck] = {}
        self._swept_at = 0.0
        self._looping = LoopingCall(self._sweep)
        self._looping.clock = clock

    def start(self) -> None:
        """Start; the first sweep is one interval from now."""
        self._swept_at = self._clock.seconds()
        self._looping.start(self._timeouts.interval, now=False)

    def stop(self) -> None:
        """Stop sweeping."""
        self._looping.stop()

    async def _sweep(self) -> None:
        # An exception would stop the LoopingCall.
        try:
            await self._visit_all()
        except Exception:
            self.log.failure("the check for idle sessions and stalled peers failed; trying again at the next sweep")

    async def _visit_all(self) -> None:
        now, last = self._clock.seconds(), self._swept_at
        self._swept_at = now
        await read_first(self._clock, now - last - self._timeouts.interval)
        self._prepare()
        if now - last > 2 * self._timeouts.interval:
            # The process was blocked, and what arrived in the meantime has not been read yet.
            return
        before = self._stuck
        stuck: dict[Leg, _Stuck] = {}
        limit = self._timeouts.idle
        async for session in in_turns(self._clock, self._in_question()):
            if self._timeouts.reply and session.observer.waited >= self._timeouts.reply and session.state in _BUSY:
                session.give_up_replies()
                continue
            is_idle = limit and session.observer.idle >= limit and self._is_idle(session, now)
            for leg in (session.client, session.upstream):
                if leg is None or leg.lost:
                    continue
                transport = leg.transport
                # Asking how much the kernel holds is a system call, made only for idle sessions and legs seen waiting.
                if is_writing(transport) or ((is_idle or leg in before) and unacknowledged(transport)):
                    is_idle = False
                    session.stirred = now
                    taken = _taken(leg, session)
                    same = leg in before and before[leg].taken == taken
                    stuck[leg] = before[leg] if same else _Stuck(session, taken, now)
            if is_idle:
                session.expire()
        self._stuck = stuck
        late = [(leg, at) for leg, at in stuck.items() if now - at.since >= self._timeouts.send]
        async for leg, at in in_turns(self._clock, late):
            # The peer may have read something since it was visited.
            if not leg.lost and at.taken == _taken(leg, at.session):
                at.session.unread(leg)

    def _in_question(self) -> list[Session[Any]]:
        """Return the sessions to check: all, or only those with bytes waiting now or at the last sweep."""
        if self._timeouts.idle or self._timeouts.reply or self._poller is None:
            return list(self._sessions)
        protocols = (getattr(writer, "protocol", None) for writer in self._poller.getWriters())
        writing = {protocol.wrapped.session for protocol in protocols if isinstance(protocol, Interceptor)}
        return list(writing.union(stuck.session for leg, stuck in self._stuck.items() if not leg.lost))

    def _is_idle(self, session: Session[Any], now: float) -> bool:
        """Return whether an open session had no traffic for too long; one that is ending has deadlines of its own."""
        return session.state in ("open", "idle") and now - session.stirred >= self._timeouts.idle


def _taken(leg: Leg, session: Session[Any]) -> tuple[int, int]:
    """Return a value that changes when the peer of `leg` takes data; a further pause shows that it has taken some."""
    return acknowledged(leg.transport), session.pauses
