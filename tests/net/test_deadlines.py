"""Deadlines: each is kept, or taken back, and one timer serves them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.task import Clock

from fooproxy.net.deadlines import GRAIN, LATE, TURNS, Deadlines, Limit
from fooproxy.net.turns import SHARE


def case() -> tuple[Clock, Deadlines[str], list[str]]:
    clock = Clock()
    return clock, Deadlines(clock), []


def test_what_is_due_is_done_once_and_what_was_cleared_is_not() -> None:
    clock, deadlines, done = case()
    deadlines.set("a", 10, lambda: done.append("a"))
    deadlines.set("b", 10, lambda: done.append("b"))
    deadlines.clear("b")
    clock.advance(9.9)
    assert done == []
    assert "a" in deadlines and "b" not in deadlines
    clock.advance(0.1)
    clock.advance(60)
    assert done == ["a"]
    assert not clock.getDelayedCalls()


def test_a_deadline_can_be_put_off_and_brought_forward() -> None:
    clock, deadlines, done = case()
    deadlines.set("a", 10, lambda: done.append("a"))
    clock.advance(8)
    deadlines.set("a", 10, lambda: done.append("later"))
    clock.advance(8)
    assert done == []
    deadlines.set("a", 1, lambda: done.append("sooner"))
    clock.advance(1)
    assert done == ["sooner"]


def test_one_timer_serves_all_and_does_not_run_for_each() -> None:
    clock, deadlines, done = case()
    for number in range(1000):
        deadlines.set(str(number), 1 + number / 10_000, lambda: done.append("x"))
    assert len(clock.getDelayedCalls()) == 1
    clock.advance(1)
    assert len(done) == 1
    clock.advance(GRAIN)
    assert len(done) == 1000
    assert not clock.getDelayedCalls()


def test_what_is_done_may_set_and_clear_others() -> None:
    clock, deadlines, done = case()

    def first() -> None:
        done.append("first")
        deadlines.clear("second")
        deadlines.set("third", 1, lambda: done.append("third"))

    deadlines.set("first", 1, first)
    deadlines.set("second", 1, lambda: done.append("second"))
    clock.advance(1)
    clock.advance(1)
    assert done == ["first", "third"]


class Loop(Clock):
    """An event loop that does the next thing of `arriving` between its timers and those due at once."""

    def __init__(self, *arriving: Callable[[], object]) -> None:
        super().__init__()
        self.arriving = list(arriving)

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kw: object) -> Any:
        return super().callLater(delay, callable if delay else self._read, *(() if delay else (callable,)), *args, **kw)

    def _read(self, do: Callable[..., object], *args: object) -> None:
        if self.arriving:
            self.arriving.pop(0)()
        do(*args)


def test_what_arrives_in_the_last_turn_clears_a_deadline() -> None:
    clock, done = Loop(lambda: deadlines.clear("a")), list[str]()
    deadlines = Deadlines[str](clock)
    deadlines.set("a", 10, lambda: done.append("a"))
    deadlines.set("b", 10, lambda: done.append("b"))
    clock.advance(10)
    assert done == ["b"]


def test_what_arrived_while_the_process_was_held_up_has_many_turns_to_be_read() -> None:
    clock, done = Loop(), list[str]()
    deadlines = Deadlines[str](clock)
    clock.arriving += [lambda: None] * (TURNS - 1)
    clock.arriving.append(lambda: deadlines.set("a", 10, lambda: done.append("later")))
    deadlines.set("a", 10, lambda: done.append("a"))
    clock.advance(10 + 2 * LATE)
    assert done == []
    clock.advance(10)
    assert done == ["later"]


def test_a_limit_leaves_what_fires_in_the_last_turn_alone() -> None:
    waiting, results = Deferred[str](), list[Any]()
    clock = Loop(lambda: waiting.callback("just in time"))
    waiting.addTimeout(10, Limit(Deadlines(clock)))  # type: ignore[arg-type]
    waiting.addBoth(results.append)
    clock.advance(10)
    clock.advance(10)
    assert results == ["just in time"]


def test_a_limit_ends_what_does_not_fire() -> None:
    clock, waiting, results = Clock(), Deferred[str](), list[Any]()
    waiting.addTimeout(10, Limit(Deadlines(clock)))  # type: ignore[arg-type]
    waiting.addErrback(results.append)
    clock.advance(10)
    assert results[0].check(DeferredTimeout)


def test_thousands_that_are_due_at_once_are_done_in_several_turns() -> None:
    clock, deadlines, _ = case()
    left = 1000

    def slowly() -> None:
        nonlocal left
        left -= 1
        clock.rightNow += SHARE / 10

    for number in range(left):
        deadlines.set(str(number), 10, slowly)
    clock.rightNow += 10
    turns = 0
    while left:
        before = left
        turn: Any
        (turn,) = clock.getDelayedCalls()
        assert turn.getTime() <= clock.seconds()
        clock.calls.clear()
        turn.func(*turn.args)
        turns += 1
        assert before - left <= 12
    assert turns >= 50


def test_deadlines_that_are_set_while_others_are_done_share_their_timer() -> None:
    clock, deadlines, done = case()

    def again() -> None:
        clock.rightNow += 2 * SHARE
        deadlines.set("new", 5, lambda: done.append("new"))

    deadlines.set("a", 10, again)
    deadlines.set("b", 10, lambda: done.append("b"))
    clock.advance(10)
    assert len(clock.getDelayedCalls()) == 1
    clock.advance(0)
    assert done == ["b"]
    clock.advance(5)
    assert done == ["b", "new"]
    assert not clock.getDelayedCalls()


def test_what_is_put_off_by_what_is_done_before_it_waits() -> None:
    clock, deadlines, done = case()
    deadlines.set("a", 10, lambda: deadlines.set("b", 5, lambda: done.append("later")))
    deadlines.set("b", 10, lambda: done.append("b"))
    clock.advance(10)
    assert done == []
    clock.advance(5)
    assert done == ["later"]


def test_what_fails_keeps_nothing_else_from_being_done() -> None:
    clock, deadlines, done = case()

    def fail() -> None:
        raise RuntimeError

    deadlines.set("a", 10, fail)
    deadlines.set("b", 10, lambda: done.append("b"))
    clock.advance(10)
    assert done == ["b"]
