"""What the log says of sessions that are left when a stop is cut short."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from fooproxy.stopping import LAST_LOOK, Stopping
from tests.helpers.bed import publisher


class Bridge:
    """A bridge whose sessions, in these states, never end by themselves."""

    def __init__(self, *states: str) -> None:
        self.sessions = [SimpleNamespace(state=state) for state in states]
        self.done: Deferred[None] = Deferred()
        self.drained = self.aborted = 0

    def drain(self) -> Deferred[None]:
        self.drained += 1
        return self.done

    def abort(self) -> None:
        self.aborted += 1
        self.sessions.clear()
        self.done.callback(None)


@pytest.fixture
def lines() -> Iterator[list[str]]:
    found: list[str] = []

    def observe(event: Any) -> None:
        if event.get("log_namespace", "").startswith("fooproxy.stopping"):
            found.append(f"{event['log_level'].name}: {event['log_format'].format(**event)}")

    publisher.addObserver(observe)
    yield found
    publisher.removeObserver(observe)


def stopped(*states: str) -> Bridge:
    bridge: Any = Bridge(*states)
    clock = Clock()
    done = Deferred.fromCoroutine(Stopping(bridge, 3, clock).drain())
    for _ in range(5):
        clock.advance(LAST_LOOK if clock.seconds() < LAST_LOOK else 3)
    assert done.called
    found: Bridge = bridge
    return found


@pytest.mark.parametrize(
    ("states", "said"),
    [
        (["draining"], ["warn: aborting 1 busy session"]),
        (
            ["draining", "closing"],
            ["warn: aborting 1 busy session", "info: not waiting any longer for 1 session to close"],
        ),
        (["closing"], ["info: not waiting any longer for 1 session to close"]),
        (
            ["draining", "closing", "half-closed", "closing"],
            ["warn: aborting 2 busy sessions", "info: not waiting any longer for 2 sessions to close"],
        ),
    ],
)
def test_a_session_that_is_drained_and_only_has_to_close_is_not_called_busy(
    lines: list[str], states: list[str], said: list[str]
) -> None:
    assert stopped(*states).aborted == 1
    first, *more = lines
    assert first.startswith("info: stopping: waiting up to 3 s for ")
    assert [line.partition("; the last replies")[0] for line in more] == said


def test_who_is_impatient_twice_aborts_once(lines: list[str]) -> None:
    bridge: Any = Bridge("draining")
    stopping = Stopping(bridge, 600, Clock())
    Deferred.fromCoroutine(stopping.drain())
    stopping.hurry()
    stopping.hurry()
    assert bridge.aborted == 1


def stopping(bridge: Any, patience: float) -> tuple[Clock, Stopping, Deferred[None]]:
    """Begin to stop, and return what it takes to go on."""
    clock = Clock()
    stops = Stopping(bridge, patience, clock)
    return clock, stops, Deferred.fromCoroutine(stops.drain())


def test_what_clients_have_just_sent_is_read_before_they_are_drained() -> None:
    bridge = Bridge("open")
    clock, _, _ = stopping(bridge, 3)
    assert bridge.drained == 0
    clock.advance(0.05)
    assert bridge.drained == 1


def test_a_stop_without_sessions_waits_for_nothing_and_says_nothing(lines: list[str]) -> None:
    bridge = Bridge()
    bridge.done.callback(None)
    _, _, done = stopping(bridge, 3)
    assert done.called
    assert not lines


def test_a_stop_without_patience_aborts_at_once_and_does_not_speak_of_waiting(lines: list[str]) -> None:
    bridge = Bridge("draining")
    clock, _, done = stopping(bridge, 0)
    clock.pump([LAST_LOOK, 0, 0])
    assert done.called
    assert bridge.aborted == 1
    assert lines == ["warn: aborting 1 busy session"]


def test_a_stop_whose_sessions_have_ended_leaves_no_timer() -> None:
    bridge = Bridge("draining")
    clock, _, done = stopping(bridge, 600)
    clock.advance(LAST_LOOK)
    bridge.sessions.clear()
    bridge.done.callback(None)
    clock.pump([1] * 3)
    assert done.called and not bridge.aborted
    clock.pump([600] * 3)
    assert not bridge.aborted


def test_who_is_impatient_with_a_stop_that_has_no_patience_changes_nothing() -> None:
    bridge = Bridge("draining")
    _, stops, _ = stopping(bridge, 0)
    stops.hurry()
    assert not bridge.aborted
