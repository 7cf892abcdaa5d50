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
        self.aborted = 0

    def drain(self) -> Deferred[None]:
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
    assert [line.partition(", whose")[0] for line in more] == said


def test_who_is_impatient_twice_aborts_once(lines: list[str]) -> None:
    bridge: Any = Bridge("draining")
    stopping = Stopping(bridge, 600, Clock())
    Deferred.fromCoroutine(stopping.drain())
    stopping.hurry()
    stopping.hurry()
    assert bridge.aborted == 1
