"""The sweep's turns: thousands of sessions that are idle at the same time are not closed in one."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock

from fooproxy.relay.sweep import Sweep
from fooproxy.relay.timeouts import Timeouts


class IdleSession:
    """A session that is idle, and takes a millisecond to close."""

    client = upstream = None
    state = "open"
    stirred = float("-inf")
    idle = 100.0

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.observer = self
        self.expired = False

    def expire(self) -> None:
        self.expired = True
        self._clock.rightNow += 0.001


def test_a_turn_closes_only_some_of_many_idle_sessions() -> None:
    clock = Clock()
    sessions: list[Any] = [IdleSession(clock) for _ in range(50)]
    timeouts = Timeouts(idle=10)
    sweep = Sweep(sessions, timeouts, clock, lambda: None)
    sweep.start()
    clock.rightNow += timeouts.interval
    # The first turn lets the event loop read what has arrived.
    for _ in range(2):
        turn: Any
        (turn,) = clock.getDelayedCalls()
        clock.calls.clear()
        turn.func(*turn.args)
    assert 1 <= sum(session.expired for session in sessions) <= 4
    clock.advance(0)
    assert all(session.expired for session in sessions)
    sweep.stop()
