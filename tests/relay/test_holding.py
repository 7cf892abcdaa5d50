"""Clients that hold a link without progress while others wait: which of them are closed, and when."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.abstract import FileDescriptor
from twisted.internet.task import Clock

from fooproxy.relay.holding import Holding
from tests.helpers.bed import publisher


class Transport(FileDescriptor):
    """The bottom of a transport, of whose bytes some are left to be sent."""

    socket: Any = None

    def __init__(self) -> None:
        super().__init__(Clock())  # type: ignore[arg-type]

    def fileno(self) -> int:
        return -1

    def getsockopt(self, *args: int) -> bytes:
        raise OSError("not TCP")


class Holder:
    """A session that holds a link and waits for its client."""

    holds_up = True

    def __init__(self) -> None:
        transport = Transport()
        transport.socket = transport
        transport.dataBuffer = b"ACK 1\n"
        self.client = SimpleNamespace(transport=transport)
        self.observer = SimpleNamespace(passed=0)
        self.closed = 0

    def hold_no_longer(self) -> None:
        self.closed += 1


class World:
    """One such session with a timeout of 5 seconds, on a clock that a test advances."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.holder = Holder()
        self.others_wait = True
        self.holding = Holding([self.holder], 5.0, self.clock, lambda: self.others_wait)
        self.holding.start()

    def wait(self, seconds: float) -> None:
        self.clock.pump([0.5] * round(seconds * 2))

    def is_closed_by_the_next_look(self) -> None:
        assert self.holder.closed == 0
        self.wait(0.5)
        assert self.holder.closed == 1


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.holding.stop()
    assert not world.clock.calls


def test_who_makes_no_progress_is_closed_after_exactly_the_timeout(world: World) -> None:
    # It is first seen half a second after the start.
    world.wait(5)
    world.is_closed_by_the_next_look()


def test_who_sends_or_is_sent_anything_has_the_whole_timeout_again(world: World) -> None:
    world.wait(5)
    world.holder.observer.passed += 1
    world.wait(5)
    world.is_closed_by_the_next_look()


def test_who_reads_what_waits_for_it_has_the_whole_timeout_again(world: World) -> None:
    world.wait(5)
    world.holder.client.transport.dataBuffer = b"1\n"
    world.wait(5)
    world.is_closed_by_the_next_look()


def test_who_waits_for_its_server_in_between_has_the_whole_timeout_again(world: World) -> None:
    world.wait(5)
    world.holder.holds_up = False
    world.wait(5)
    assert world.holder.closed == 0
    world.holder.holds_up = True
    world.wait(5)
    world.is_closed_by_the_next_look()


def test_the_time_in_which_nobody_else_waits_does_not_count(world: World) -> None:
    world.wait(5)
    world.others_wait = False
    world.wait(10)
    world.others_wait = True
    world.wait(5)
    world.is_closed_by_the_next_look()


@pytest.mark.parametrize(("timeout", "interval"), [(0.5, 0.1), (5.0, 0.5), (60.0, 1.0)])
def test_it_looks_ten_times_in_a_timeout_and_every_second_at_least(timeout: float, interval: float) -> None:
    clock = Clock()
    holding = Holding([], timeout, clock, lambda: False)
    holding.start()
    (call,) = clock.getDelayedCalls()
    assert call.getTime() == interval
    holding.stop()


def test_a_look_that_fails_is_logged_and_not_the_last(world: World) -> None:
    failures: list[Any] = []
    publisher.addObserver(failures.append)
    del world.holder.observer.passed
    world.wait(0.5)
    world.holder.observer.passed = 0
    publisher.removeObserver(failures.append)
    world.wait(5.5)
    assert world.holder.closed == 1
    assert len(failures) == 1


def test_it_can_be_stopped_before_it_began() -> None:
    Holding([], 5.0, Clock(), lambda: False).stop()
