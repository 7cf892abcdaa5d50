"""The bridge's turns: a stop with thousands of sessions does not end all of them in one."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock

from fooproxy.net.turns import SHARE
from fooproxy.relay.bridge import BridgeFactory


class Session:
    """A session that is not over when it is drained, and whose end takes a tenth of what a turn may."""

    def __init__(self, bridge: Any, clock: Clock) -> None:
        self._bridge, self._clock = bridge, clock
        self.done: list[str] = []

    def drain(self) -> None:
        self._clock.rightNow += SHARE / 10
        self.done.append("drain")

    def abort(self) -> None:
        self._clock.rightNow += SHARE / 10
        self.done.append("abort")
        self.end()

    def end(self) -> None:
        self._bridge.sessions.discard(self)
        self._bridge.session_ended()


def place(count: int) -> tuple[BridgeFactory[Any], Clock, list[Session]]:
    clock = Clock()
    nothing: Any = None
    bridge = BridgeFactory[Any](nothing, nothing, clock)
    sessions: list[Any] = [Session(bridge, clock) for _ in range(count)]
    bridge.sessions.update(sessions)
    return bridge, clock, sessions


def done(sessions: list[Session]) -> int:
    return sum(len(session.done) for session in sessions)


def test_many_sessions_are_drained_in_several_turns_and_the_first_ones_at_once() -> None:
    bridge, clock, sessions = place(100)
    drained = bridge.drain()
    turns = [done(sessions)]
    while done(sessions) < 100:
        before = done(sessions)
        # One turn: what it postpones to the next is not done yet.
        (call,) = clock.calls
        clock.calls.clear()
        call.func(*call.args)
        turns.append(done(sessions) - before)
    assert len(turns) >= 8 and max(turns) <= 12
    assert [session.done for session in sessions] == [["drain"]] * 100
    for session in sessions:
        assert not drained.called
        session.end()
    assert drained.called


def test_who_has_ended_by_its_turn_is_not_drained() -> None:
    bridge, clock, sessions = place(100)
    bridge.drain()
    gone = [session for session in sessions if not session.done]
    for session in gone:
        session.end()
    clock.pump([0] * 20)
    assert not done(gone)


def test_an_abort_takes_the_place_of_a_drain_that_is_not_through() -> None:
    bridge, clock, sessions = place(100)
    drained = bridge.drain()
    first = done(sessions)
    bridge.abort()
    clock.pump([0] * 30)
    assert drained.called and not bridge.sessions
    assert sum("drain" in session.done for session in sessions) == first
    assert all(session.done[-1] == "abort" for session in sessions)
