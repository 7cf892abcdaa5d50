"""Sampling rests while there is no traffic, and misses nothing because of that."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from fooproxy.foo.counting import PURE
from fooproxy.stats.counters import Stats
from fooproxy.stats.sampling import Sampling
from fooproxy.stats.session import SessionStats


class Case:
    """Statistics and their sampling, on a clock that the test advances."""

    def __init__(self, may_rest: bool = True) -> None:
        self.clock = Clock()
        self.stats = Stats(self.clock.seconds, lambda *_: None)
        self.session = SessionStats(self.stats)
        self.sampling = Sampling(self.stats, self.clock, may_rest)

    def pass_time(self, seconds: float) -> None:
        self.clock.pump([0.05] * round(seconds * 20))

    def ask(self, requests: int) -> None:
        self.session.client.feed(b"REQ 1\n" * requests, 0)
        self.sampling.look()
        self.stats.catch_up()

    def wakes_up(self) -> int:
        """Return the number of pending timers; one of them is the history's."""
        return len(self.clock.getDelayedCalls())


@pytest.fixture
def case() -> Any:
    case = Case()
    case.sampling.start()
    return case


def test_it_rests_after_a_second_without_traffic_and_goes_on_with_the_next_chunk(case: Case) -> None:
    case.ask(1)
    case.pass_time(0.9)
    assert case.wakes_up() == 2
    case.pass_time(1.0)
    assert case.wakes_up() == 1
    case.ask(1)
    assert case.wakes_up() == 2


def test_what_comes_after_a_rest_came_then_and_not_during_the_rest(case: Case) -> None:
    case.pass_time(60)
    case.ask(10)
    case.pass_time(0.5)
    assert case.stats.report()["request_rate_1s"] == pytest.approx(10.0)
    case.pass_time(0.6)
    assert case.stats.report()["request_rate_1s"] == 0.0
    assert case.stats.report()["request_rate_10s"] == pytest.approx(1.0)


def test_it_does_not_rest_where_it_is_not_told_of_all_traffic() -> None:
    case = Case(may_rest=False)
    case.sampling.start()
    case.pass_time(5)
    assert case.wakes_up() == 2


def test_told_to_stay_awake_it_wakes_up_and_rests_no_more(case: Case) -> None:
    case.pass_time(5)
    case.sampling.stay_awake()
    case.pass_time(5)
    assert case.wakes_up() == 2


def test_staying_awake_changes_nothing_while_it_is_awake(case: Case) -> None:
    case.sampling.stay_awake()
    case.pass_time(5)
    assert case.wakes_up() == 2


def test_neither_before_its_start_nor_after_its_stop_it_leaves_a_timer(case: Case) -> None:
    case.sampling.stop()
    case.ask(1)
    assert case.wakes_up() == 0
    early = Case()
    early.ask(1)
    early.sampling.stay_awake()
    early.sampling.stop()
    assert early.wakes_up() == 0


def test_a_look_counts_the_chunks_of_the_pure_twin_when_many_wait() -> None:
    stats = Stats(Clock().seconds, lambda *_: None, twin=PURE)
    session, sampling = SessionStats(stats), Sampling(stats, Clock(), may_rest=False)
    for _ in range(40):
        session.client.feed(b"REQ 1\n", 0)
    assert session.client.waiting
    sampling.look()
    assert not session.client.waiting


def test_the_history_begins_at_the_start_and_has_a_row_for_each_second_even_at_rest(case: Case) -> None:
    case.pass_time(3.1)
    assert case.stats.history.last == 3
    case.pass_time(60)
    assert case.stats.history.last == 63
