"""The sweep: one visit to all sessions every now and then, in place of a timer for each.

It finds the sessions in which nothing passes, and the peers that do not read.  What becomes of them is the session's
business.  It knows nothing of messages.  The service starts and stops it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from fooproxy.net.sockets import acknowledged, is_writing, unacknowledged
from fooproxy.relay.interceptor import Interceptor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from twisted.internet.interfaces import IReactorTime

    from fooproxy.net.poller import Poller
    from fooproxy.relay.leg import Leg
    from fooproxy.relay.session import Session
    from fooproxy.relay.timeouts import Timeouts

_SLICE = 1000
"""Sessions that are visited before everything else has its turn: about a millisecond."""


class _Stuck(NamedTuple):
    """What the peer of a leg that cannot write had taken at a sweep, and since when it has taken no more."""

    session: Session
    taken: tuple[int, int]
    since: float


class Sweep:
    """Visits `sessions` every ``timeouts.interval`` seconds, and ends those that are idle, and legs that do not read.

    `prepare` is called before, to have their `idle` up to date.  A peer does not read when bytes wait here for it, and
    its kernel has acknowledged none from one sweep to the next: one that reads slowly is left in peace.

    With a `poller` that has all their transports, only sessions where bytes wait are visited, unless idle ones are
    sought: the memory of ten thousand others need not be fetched.
    """

    log = Logger()

    def __init__(
        self,
        sessions: Collection[Session],
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
        """Begin; the first sweep is an interval away."""
        self._swept_at = self._clock.seconds()
        self._looping.start(self._timeouts.interval, now=False)

    def stop(self) -> None:
        """Sweep no more."""
        self._looping.stop()

    async def _sweep(self) -> None:
        # An exception would be the end of the looping.
        try:
            await self._visit_all()
        except Exception:
            self.log.failure("looking for idle sessions and peers that do not read failed; it is tried again")

    async def _visit_all(self) -> None:
        self._prepare()
        now, last = self._clock.seconds(), self._swept_at
        self._swept_at = now
        if now - last > 2 * self._timeouts.interval:
            # The process was held up, and what came meanwhile has not been read yet.
            return
        before = self._stuck
        stuck: dict[Leg, _Stuck] = {}
        limit = self._timeouts.idle
        for number, session in enumerate(self._in_question(), 1):
            if not number % _SLICE:
                await deferLater(self._clock, 0)
            is_idle = limit and session.observer.idle >= limit and self._is_idle(session, now)
            for leg in (session.client, session.upstream):
                if leg is None or leg.lost:
                    continue
                transport = leg.transport
                # What only the kernel holds is worth a system call when the session would else be ended.
                if is_writing(transport) or ((is_idle or leg in before) and unacknowledged(transport)):
                    is_idle = False
                    session.stirred = now
                    # A leg that is paused once more had room to write in between.
                    taken = (acknowledged(transport), session.pauses)
                    same = leg in before and before[leg].taken == taken
                    stuck[leg] = before[leg] if same else _Stuck(session, taken, now)
            if is_idle:
                session.expire()
        self._stuck = stuck
        for leg, (session, _, since) in stuck.items():
            if now - since >= self._timeouts.send and not leg.lost:
                session.unread(leg)

    def _in_question(self) -> list[Session]:
        """Give the sessions to visit: all, or those where bytes wait or have waited."""
        if self._timeouts.idle or self._poller is None:
            return list(self._sessions)
        protocols = (getattr(writer, "protocol", None) for writer in self._poller.getWriters())
        writing = {protocol.wrapped.session for protocol in protocols if isinstance(protocol, Interceptor)}
        return list(writing.union(stuck.session for leg, stuck in self._stuck.items() if not leg.lost))

    def _is_idle(self, session: Session, now: float) -> bool:
        """Tell whether nothing has passed for too long; a session that is ending has time limits of its own."""
        return session.state == "open" and now - session.stirred >= self._timeouts.idle
