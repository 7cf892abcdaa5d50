"""The condition of a server by itself: what failures, successes, checks and operators make of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from fooproxy.upstreams.condition import Condition
from fooproxy.upstreams.standing import Standing

REFUSED = ConnectionRefusedError()


class Counts:
    def __init__(self) -> None:
        self.connect_failures: Counter[str] = Counter()
        self.checks: Counter[str] = Counter()
        self.ejections = self.load = self.in_flight = self.stuck = 0


class Case(Condition):
    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        super().__init__("foo", self.clock, 10)
        self.counted = Counts()
        self.counted_by(self.counted)
        self.told: list[str] = []
        self.when_failed = lambda: self.told.append("failed")
        self.when_opened = lambda: self.told.append("opened")

    def warm_up(self) -> None:
        self.clock.advance(10)
        assert self.share == self.weight

    def relapse(self, times: int) -> None:
        """Be taken out and come back so often."""
        for _ in range(times):
            self.eject("it failed", "upstream_stuck")
            self.succeeded(is_trial=True)


@pytest.fixture
def case() -> Case:
    return Case()


def test_a_failure_is_counted_and_told_and_the_server_is_not_usable(case: Case) -> None:
    case.failed(REFUSED)
    assert (case.is_usable, case.told, case.last) == (False, ["failed"], REFUSED)
    assert (case.failed_at, case.silence) == (1000, 0)
    assert case.counted.connect_failures == {"refused": 1}


def test_a_failed_check_is_no_failure_to_connect(case: Case) -> None:
    case.failed(REFUSED, is_counted=False)
    assert not case.counted.connect_failures
    case.checked("failed")
    assert case.counted.checks == {"failed": 1}


def test_a_server_is_down_from_the_failure_on_that_exhausts_the_patience(case: Case) -> None:
    case.patience = 3
    states = []
    for _ in range(3):
        case.failed(REFUSED)
        states.append(case.state)
    assert states == ["unknown", "unknown", "down"]


def test_a_success_in_between_restores_the_patience(case: Case) -> None:
    case.patience = 3
    for _ in range(3):
        case.failed(REFUSED)
        case.failed(REFUSED)
        case.succeeded()
    assert (case.state, case.told.count("opened")) == ("up", 3)


def test_a_single_failure_prolongs_an_episode_that_is_about_to_end(case: Case) -> None:
    case.patience = 3
    for _ in range(3):
        case.failed(REFUSED)
    case.succeeded()
    case.clock.advance(1.9)
    case.failed(ConnectionRefusedError("another"))
    case.clock.advance(10)
    assert case.state == "down"
    assert "another" in str(case.error)
    case.succeeded()
    case.clock.advance(2)
    assert (case.state, case.error, case.reason) == ("up", None, None)


def test_a_server_that_comes_back_grows_from_a_tenth_of_its_share(case: Case) -> None:
    case.failed(REFUSED)
    case.succeeded()
    assert case.share == pytest.approx(1)
    case.clock.advance(5)
    assert case.share == pytest.approx(5.5)
    case.warm_up()


def test_a_server_has_failed_within_some_seconds_those_included(case: Case) -> None:
    case.failed(REFUSED)
    case.clock.advance(5)
    assert case.unreachable(5) is not None
    assert case.unreachable(4.9) is None
    case.succeeded()
    assert case.unreachable(4.9) is None


def test_only_a_trial_brings_a_server_back_that_was_taken_out(case: Case) -> None:
    case.eject("it failed", "upstream_stuck")
    assert (case.told, case.counted.ejections, case.failed_at) == (["failed"], 1, 1000)
    case.succeeded()
    assert not case.is_usable
    case.succeeded(is_trial=True)
    assert (case.is_usable, case.ejected, case.told) == (True, False, ["failed", "opened"])


def test_a_server_that_is_taken_out_again_soon_rests_for_twice_as_long_up_to_a_minute(case: Case) -> None:
    rests = []
    for _ in range(7):
        case.eject("it failed", "upstream_stuck")
        rests.append(case.rest)
        case.succeeded(is_trial=True)
        case.clock.advance(59)
    assert rests == [2, 4, 8, 16, 32, 60, 60]


def test_a_server_that_was_good_for_long_rests_for_a_short_time_again(case: Case) -> None:
    case.relapse(2)
    case.clock.advance(61)
    case.eject("it failed", "upstream_stuck")
    assert case.rest == 2


def test_after_a_long_rest_a_server_must_be_good_for_twice_as_long(case: Case) -> None:
    case.relapse(6)
    case.clock.advance(119)
    case.eject("it failed", "upstream_stuck")
    assert case.rest == 60


def test_a_server_is_stuck_only_while_it_is_out(case: Case) -> None:
    case.counted.stuck = 1
    assert not case.is_stuck
    case.eject("it failed", "upstream_stuck")
    assert case.is_stuck


def test_others_are_preferred_to_a_server_in_doubt_and_even_more_to_one_that_is_gone(case: Case) -> None:
    found = [case.reluctance]
    case.doubt("it is slow")
    found.append(case.reluctance)
    case.is_back(False)
    assert [*found, case.reluctance] == [0, 1, 2]


def test_a_server_that_is_trusted_again_is_up_and_warms_up_and_those_who_wait_are_told(case: Case) -> None:
    case.succeeded()
    case.doubt("it is slow")
    assert (case.state, case.reason) == ("down", "upstream_check")
    case.trust()
    assert (case.state, case.told) == ("up", ["opened"])
    assert case.share == pytest.approx(1)
    case.trust()
    assert case.told == ["opened"]


def test_checks_that_pass_do_not_make_a_server_up_that_cannot_be_connected(case: Case) -> None:
    case.doubt("it is slow")
    case.failed(REFUSED)
    case.trust()
    assert (case.state, case.told) == ("down", ["failed"])


def test_a_server_in_doubt_is_not_up_because_it_can_be_connected(case: Case) -> None:
    case.failed(REFUSED)
    case.doubt("it is slow")
    case.succeeded()
    case.clock.advance(100)
    assert case.state == "down"
    assert case.is_usable


def test_a_server_works_only_if_it_did_the_last_time(case: Case) -> None:
    found = [case.is_proven]
    case.succeeded()
    found.append(case.is_proven)
    case.failed(REFUSED)
    assert [*found, case.is_proven] == [False, True, False]


def test_the_first_success_makes_the_state_of_a_server_new(case: Case) -> None:
    case.clock.advance(5)
    case.succeeded()
    assert (case.state, case.since) == ("up", 0)


def test_the_silence_ends_with_a_success(case: Case) -> None:
    case.succeeded()
    case.clock.advance(3)
    assert case.silence == 3


def test_a_hold_lasts_since_it_was_first_asked_for_by_whoever_did(case: Case) -> None:
    case.hold("paused", "first")
    case.clock.advance(5)
    case.hold("paused", "second")
    assert (case.state, case.since, case.held_by) == ("paused", 5, "first")
    case.hold("draining", "third")
    assert case.state == "paused"
    case.release("paused")
    assert (case.state, case.since, case.held_by) == ("draining", 0, "third")


def test_a_server_that_is_released_warms_up_and_its_state_is_new(case: Case) -> None:
    case.hold("paused", "somebody")
    case.clock.advance(5)
    case.release("paused")
    assert (case.state, case.since, case.held_by) == ("unknown", 0, "")
    assert case.share == pytest.approx(1)


def test_a_server_that_is_released_from_one_of_two_holds_does_not_warm_up_yet(case: Case) -> None:
    case.hold("paused", "somebody")
    case.hold("draining", "somebody")
    case.release("paused")
    assert case.share == 10


def test_a_release_of_what_is_not_held_changes_nothing(case: Case) -> None:
    case.clock.advance(5)
    case.release("paused")
    assert (case.since, case.share) == (5, 10)


def test_the_state_of_a_server_that_is_gone_or_back_is_new(case: Case) -> None:
    case.clock.advance(5)
    case.is_back(False)
    assert (case.state, case.since, case.gone) == ("draining", 0, True)
    case.clock.advance(5)
    case.is_back(False)
    assert case.since == 5
    case.is_back(True)
    assert (case.state, case.since, case.gone) == ("unknown", 0, False)


def test_nothing_is_said_or_counted_after_the_end() -> None:
    case = Case()
    with capturedLogs() as events:
        case.failed(REFUSED)
        case.succeeded()
        case.close()
        case.clock.advance(100)
        case.failed(REFUSED)
    assert len(events) == 1
    assert case.error is None
    assert case.counted.connect_failures == {"refused": 1}
    assert not case.clock.getDelayedCalls()


class Known(Standing):
    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        super().__init__("foo", self.clock)

    def episode(self) -> float:
        """Let the server be down; return after how many seconds without a failure it is up."""
        self.fall("refused", "upstream_refused", "down")
        self.rise_soon()
        began = self.clock.seconds()
        while self.state == "down":
            self.clock.advance(0.5)
        return self.clock.seconds() - began


def test_episodes_that_follow_soon_end_later_each_time_up_to_half_a_minute() -> None:
    known = Known()
    known.work()
    found = []
    for _ in range(6):
        found.append(known.episode())
        known.clock.advance(60)
    assert found == [2, 4, 8, 16, 30, 30]
    known.clock.advance(0.5)
    assert known.episode() == 2


def test_the_state_is_new_at_the_begin_and_at_the_end_of_an_episode_and_not_in_between() -> None:
    known = Known()
    known.clock.advance(1)
    known.fall("refused", "upstream_refused", "down")
    assert known.since == 1001
    known.clock.advance(1)
    known.fall("timeout", "upstream_timeout", "down")
    known.work()
    assert (known.since, known.error, known.reason) == (1001, "timeout", "upstream_timeout")
    known.clock.advance(1)
    known.rise_soon()
    known.clock.advance(2)
    assert (known.since, known.error, known.reason) == (1005, None, None)


def test_the_first_success_makes_the_state_new() -> None:
    known = Known()
    known.clock.advance(1)
    known.work()
    assert (known.state, known.since) == ("up", 1001)


def test_a_failure_after_an_episode_has_ended_cancels_nothing() -> None:
    known = Known()
    known.work()
    known.episode()
    known.fail()
    assert known.state == "up"


def test_an_episode_that_goes_on_has_one_line() -> None:
    known = Known()
    lines: Any
    with capturedLogs() as lines:
        for _ in range(3):
            known.fall("refused", "upstream_refused", "down")
            known.rise_soon()
            known.clock.advance(1)
    assert len(lines) == 1
