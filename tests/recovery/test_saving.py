"""Saves run one at a time, fail without harm, and never block a stop."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import formatEvent

from fooproxy.recovery.saver import InUse
from fooproxy.recovery.saving import LAST_SAVE_TIMEOUT, SAVE_INTERVAL, SLOW_SAVE, Saving
from fooproxy.recovery.state import Recovery
from fooproxy.stats.counters import Stats
from tests.helpers.bed import publisher
from tests.helpers.fooserver import PATIENCE


class Reactor(Clock):
    """A clock that the test advances; calls from threads run when the test waits for them."""

    def __init__(self) -> None:
        super().__init__()
        self._asked: SimpleQueue[Callable[[], Any]] = SimpleQueue()

    def callFromThread(self, callable: Callable[..., Any], *args: Any) -> None:
        self._asked.put(lambda: callable(*args))

    def hear_a_thread(self) -> None:
        self._asked.get(timeout=PATIENCE)()


class Disk:
    """A saver whose writes block until the test lets them go on, and then succeed or fail as set."""

    path = Path("state")

    def __init__(self) -> None:
        self.is_locked = True
        self.is_released = False
        self.claiming: Exception | None = None
        self.failing: Exception | None = None
        self.written: list[Any] = []
        self.begun = 0
        self.going = Event()
        self.going.set()

    def claim(self) -> None:
        if self.claiming:
            raise self.claiming

    def release(self) -> None:
        self.is_released = True

    def read(self) -> object:
        raise FileNotFoundError

    def write(self, content: object) -> None:
        self.begun += 1
        assert self.going.wait(PATIENCE)
        if self.failing:
            raise self.failing
        self.written.append(content)


class Bench:
    """A `Saving` with everything it needs."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.clock = 1e9
        """The wall clock at the start."""
        self.disk = Disk()
        self.stats = Stats(self.reactor.seconds)
        disk: Any = self.disk
        recovery = Recovery(self.stats, disk, lambda: self.clock + self.reactor.seconds(), 10)
        self.saving = Saving(recovery, disk, self.stats, self.reactor)
        self.lines: list[str] = []

    def observe(self, event: Any) -> None:
        self.lines.append(formatEvent(event))

    def start(self) -> None:
        self.saving.claim()
        self.saving.start()

    def save(self) -> None:
        """Advance by a second, and wait for the save that is due."""
        self.reactor.advance(SAVE_INTERVAL)
        self.reactor.hear_a_thread()

    def stop(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.saving.stop())

    def shown(self) -> tuple[bool, float | None]:
        report = self.saving.report()
        assert report["path"] == "state"
        assert report["failing"] == self.saving.failing
        return report["failing"], report["saved_seconds_ago"]


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    publisher.addObserver(bench.observe)
    yield bench
    publisher.removeObserver(bench.observe)
    bench.disk.going.set()
    if not bench.disk.is_released:
        bench.saving._thread.stop()


def no_room() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_it_saves_at_the_start_and_every_second(bench: Bench) -> None:
    bench.start()
    assert bench.shown() == (False, None)
    for _ in range(3):
        bench.save()
    assert [state["saved_at"] - 1e9 for state in bench.disk.written] == [0, 1, 2, 3]
    assert bench.stats.recovery_saves == {"ok": 3, "failed": 0}
    bench.reactor.advance(0.5)
    assert bench.shown() == (False, 0.5)
    assert bench.lines == []


def test_a_save_that_fails_is_logged_once_counted_and_shown_until_one_succeeds(bench: Bench) -> None:
    bench.start()
    bench.save()
    bench.disk.failing = no_room()
    for _ in range(3):
        bench.save()
    assert bench.shown() == (True, 3)
    assert bench.stats.recovery_saves == {"ok": 1, "failed": 3}
    bench.disk.failing = None
    bench.save()
    assert bench.shown() == (False, 0)
    (failing, again) = bench.lines
    assert "cannot save the statistics to state: [Errno 28] No space left on device;" in failing
    assert "saving statistics to state works again" in again


def test_of_saves_on_a_slow_disk_one_is_under_way_and_none_waits(bench: Bench) -> None:
    bench.start()
    bench.disk.going.clear()
    for _ in range(10):
        bench.reactor.advance(SAVE_INTERVAL)
    bench.disk.going.set()
    bench.reactor.hear_a_thread()
    # One save at the start, and the slow one.
    assert bench.disk.begun == len(bench.disk.written) == 2
    bench.save()
    assert bench.disk.begun == len(bench.disk.written) == 3
    assert bench.disk.written[-1]["saved_at"] == 1e9 + bench.reactor.seconds()


def test_a_disk_that_is_slow_each_time_is_told_once_and_until_it_is_quick(bench: Bench) -> None:
    bench.start()
    for _ in range(3):
        bench.disk.going.clear()
        bench.reactor.advance(SAVE_INTERVAL)
        bench.reactor.advance(SLOW_SAVE)
        assert bench.shown()[0]
        bench.disk.going.set()
        bench.reactor.hear_a_thread()
        assert bench.shown() == (True, 0)
    bench.save()
    assert bench.shown() == (False, 0)
    assert bench.stats.recovery_saves == {"ok": 4, "failed": 0}
    (failing, again) = bench.lines
    assert "the save has already taken 3 s" in failing
    assert "works again" in again


def test_a_state_that_cannot_be_told_is_a_save_that_fails(bench: Bench) -> None:
    bench.start()
    bench.clock = math.inf
    bench.reactor.advance(SAVE_INTERVAL)
    assert bench.shown() == (True, None)
    assert bench.stats.recovery_saves == {"ok": 0, "failed": 1}
    bench.clock = 1e9
    bench.save()
    assert bench.shown() == (False, 0)


def test_a_stop_saves_once_more(bench: Bench) -> None:
    bench.start()
    bench.reactor.advance(0.5)
    stopped = bench.stop()
    bench.reactor.hear_a_thread()
    assert stopped.called and bench.disk.is_released
    assert [state["saved_at"] - 1e9 for state in bench.disk.written] == [0, 0.5]
    assert bench.reactor.getDelayedCalls() == []


def test_a_stop_saves_once_more_after_the_save_that_is_under_way(bench: Bench) -> None:
    bench.start()
    bench.disk.going.clear()
    bench.reactor.advance(SAVE_INTERVAL)
    stopped = bench.stop()
    bench.reactor.advance(LAST_SAVE_TIMEOUT - 0.5)
    assert not stopped.called
    bench.disk.going.set()
    bench.reactor.hear_a_thread()
    bench.reactor.hear_a_thread()
    assert stopped.called
    assert [state["saved_at"] - 1e9 for state in bench.disk.written] == [0, 1, 1 + LAST_SAVE_TIMEOUT - 0.5]


@pytest.mark.parametrize("under_way", [True, False], ids=["a save that is under way", "the last save"])
def test_a_stop_does_not_wait_long_for_a_save_that_hangs(bench: Bench, under_way: bool) -> None:
    bench.start()
    bench.disk.going.clear()
    if under_way:
        bench.reactor.advance(SAVE_INTERVAL)
    stopped = bench.stop()
    bench.reactor.advance(LAST_SAVE_TIMEOUT)
    assert stopped.called
    assert "could not save the statistics to state in time" in bench.lines[-1]
    # Another process must not have the file while it is still being written.
    assert not bench.disk.is_released


def test_a_stop_ends_though_the_last_save_fails(bench: Bench) -> None:
    bench.start()
    bench.disk.failing = no_room()
    stopped = bench.stop()
    bench.reactor.hear_a_thread()
    assert stopped.called
    assert "cannot save the statistics" in bench.lines[-1]


def test_a_full_disk_is_no_reason_not_to_start(bench: Bench) -> None:
    bench.disk.claiming = bench.disk.failing = no_room()
    bench.start()
    assert bench.shown() == (True, None)
    assert bench.stats.recovery_saves["failed"] == 2
    bench.disk.failing = None
    bench.save()
    assert bench.shown() == (False, 0)
    assert ["No space left" in line for line in bench.lines] == [True, False]


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "no"), InUse("somebody has it")])
def test_a_file_that_cannot_be_had_is_a_reason_not_to_start(bench: Bench, error: Exception) -> None:
    bench.disk.claiming = bench.disk.failing = error
    with pytest.raises(type(error)):
        bench.saving.claim()
    with pytest.raises(type(error)):
        bench.saving.start()
    assert bench.lines == []


def test_a_file_system_without_locks_is_warned_of(bench: Bench) -> None:
    bench.disk.is_locked = False
    bench.start()
    (line,) = bench.lines
    assert "does not support locks" in line and "no other proxy" in line


def test_a_disk_quota_that_is_used_up_is_no_reason_not_to_start(bench: Bench) -> None:
    bench.disk.failing = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    bench.start()
    assert bench.shown() == (True, None)
