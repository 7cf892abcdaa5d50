"""The sweep's turns: thousands of sessions that are idle at the same time are not closed in one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.internet.task import Clock

from fooproxy.relay.sweep import Sweep
from fooproxy.relay.timeouts import Timeouts


class IdleSession:
    """A session that is idle, and takes a millisecond to close."""

    client: Any = None
    upstream: Any = None
    state = "open"
    stirred = float("-inf")
    idle = 100.0
    pauses = 0

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


class Unread:
    """A leg whose peer takes nothing of what waits for it."""

    lost = False
    transport = SimpleNamespace(disconnecting=True)


class UnreadSession(IdleSession):
    """A session whose client takes nothing."""

    idle = 0.0

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.client = Unread()

    def unread(self, leg: Any) -> None:
        assert leg is self.client
        leg.lost = True
        self.expire()


def test_a_turn_gives_up_only_some_of_many_peers_that_do_not_read() -> None:
    clock = Clock()
    sessions: list[Any] = [UnreadSession(clock) for _ in range(50)]
    sweep = Sweep(sessions, Timeouts(send=10), clock, lambda: None)
    sweep.start()
    for _ in range(10):
        clock.advance(1)
    assert not any(session.expired for session in sessions)
    sessions[7].pauses += 1
    turns = []
    clock.rightNow += 1
    while calls := [call for call in clock.calls if call.getTime() <= clock.seconds()]:
        before = sum(session.expired for session in sessions)
        clock.calls.remove(calls[0])
        calls[0].func(*calls[0].args)
        turns.append(sum(session.expired for session in sessions) - before)
        # Who reads between two turns is let be.
        sessions[-1].pauses = len(turns)
    assert max(turns) <= 4
    assert [session.expired for session in sessions] == [n not in (7, 49) for n in range(50)]
    sweep.stop()
