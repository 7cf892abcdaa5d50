"""Deadlines: each is kept, or taken back, and one timer serves them all."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock

from fooproxy.net.deadlines import GRAIN, SHARE, Deadlines


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
