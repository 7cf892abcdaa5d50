"""Taking out servers that can be connected, but fail their clients."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.logger import capturedLogs

from fooproxy.upstreams.ejection import IN_A_ROW, Ejection
from tests.upstreams.test_servers import World


class Case(World):
    """Servers that can all be connected; the test says what happens to their sessions."""

    def __init__(self, count: int = 2) -> None:
        super().__init__(*["up"] * count)
        self.ejection = Ejection(self.servers, self.counts, self.clock.seconds)
        self.ejection.start(self.clock)

    def drop(self, number: int, times: int = 1) -> None:
        """Let a server drop sessions."""
        for _ in range(times):
            self.ejection.ended(number, True, float("-inf"))

    def serve(self, number: int) -> None:
        """Let a server answer a session, which then ends."""
        self.ejection.ended(number, False, self.clock.seconds())

    def until_back(self, number: int) -> float:
        """Let time pass until a server is used again; return how long that was."""
        before = self.clock.seconds()
        while self.servers[number].ejected:
            assert self.clock.seconds() - before < 200
            self.pass_time(0.05)
        return self.clock.seconds() - before

    @property
    def out(self) -> list[int]:
        return [number for number, server in enumerate(self.servers) if server.ejected]


def test_three_dropped_sessions_in_a_row_take_a_server_out() -> None:
    with capturedLogs() as events:
        case = Case()
        case.drop(0, IN_A_ROW - 1)
        assert not case.out
        case.drop(0)
    assert case.out == [0]
    assert (case.states[0], case.servers[0].reason) == ("down", "upstream_drops_requests")
    assert case.counts[0].ejections == 1
    assert [event["log_format"] for event in events] == ["taking out upstream {upstream}: {error}"]
    case.join(10)
    assert case.served == [0, 10]


def test_a_session_that_was_served_in_between_ends_the_row() -> None:
    case = Case()
    for _ in range(5):
        case.drop(0, IN_A_ROW - 1)
        case.pass_time(0.1)
        case.serve(0)
    assert not case.out


def test_failures_while_other_sessions_are_answered_are_not_in_a_row() -> None:
    case = Case()
    for _ in range(20):
        case.drop(0)
        case.pass_time(0.1)
        case.counts[0].replied = case.clock.seconds()
    assert not case.out


def test_a_server_that_is_out_is_tried_and_then_comes_back_slowly() -> None:
    case = Case()
    case.join(20)
    case.drop(0, IN_A_ROW)
    tries = len(case.endpoints[0].tries)
    assert 1 <= case.until_back(0) <= 3
    assert len(case.endpoints[0].tries) == tries + 1
    before = case.served[0]
    for count in case.counts:
        count.load = 20
    case.join(10)
    assert case.served[0] - before <= 2
    case.pass_time(10)
    case.counts[0].load, case.counts[1].load = 20, 20
    case.join(20)
    assert case.served[0] - before >= 8


def test_a_server_that_comes_back_and_fails_at_once_is_out_for_longer_each_time() -> None:
    case = Case()
    case.drop(0, IN_A_ROW)
    rests = [case.until_back(0)]
    for _ in range(6):
        case.drop(0)
        assert case.out == [0]
        rests.append(case.until_back(0))
    due = [2, 4, 8, 16, 32, 60, 60]
    assert all(longest / 2 <= rest <= longest + 0.5 for rest, longest in zip(rests, due, strict=True))
    case.serve(0)
    case.pass_time(200)
    case.drop(0, IN_A_ROW)
    assert case.until_back(0) <= 3


def test_a_connection_that_was_under_way_does_not_bring_a_server_back() -> None:
    case = Case()
    case.endpoints[0].mode = "slow"
    while not case.endpoints[0].slow:
        case.join()
    case.drop(0, IN_A_ROW)
    case.endpoints[0].answer()
    assert case.out == [0]
    assert case.failed == 0


@pytest.mark.parametrize(("count", "most"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)])
def test_never_more_than_half_of_the_servers_are_taken_out(count: int, most: int) -> None:
    case = Case(count)
    for number in range(count):
        case.drop(number, IN_A_ROW + 2)
    assert case.out == list(range(most))


def test_the_last_server_that_can_be_connected_is_never_taken_out() -> None:
    case = Case(4)
    for number in (1, 2, 3):
        case.endpoints[number].mode = "down"
    while not all(server.failing for server in case.servers[1:]):
        case.join(stay=False)
    case.drop(0, IN_A_ROW)
    assert not case.out
    case.join(5)
    assert case.failed == 0


def test_when_no_other_server_is_left_one_that_was_taken_out_is_used_again() -> None:
    case = Case()
    case.drop(0, IN_A_ROW)
    case.endpoints[1].mode = "down"
    case.join(10)
    case.pass_time(2)
    assert (case.served, case.failed) == ([10, 0], 0)


def test_sessions_that_wait_in_vain_count_as_failures_every_ten_seconds() -> None:
    case = Case()
    case.counts[0].stuck, case.counts[0].waits = 1, 1
    case.pass_time(19)
    assert not case.out
    case.pass_time(3)
    assert case.out == [0]
    assert case.servers[0].reason == "upstream_stuck"


def test_three_sessions_that_wait_in_vain_take_a_server_out_at_once() -> None:
    case = Case()
    case.counts[0].stuck, case.counts[0].waits = 1, 3
    case.pass_time(1.1)
    assert case.out == [0]


def test_a_server_that_answers_nobody_is_not_tried_while_requests_still_wait_there() -> None:
    case = Case()
    case.counts[0].stuck, case.counts[0].waits = 1, 3
    case.pass_time(1.1)
    tries = len(case.endpoints[0].tries)
    case.pass_time(30)
    assert len(case.endpoints[0].tries) == tries
    case.counts[0].stuck = case.counts[0].waits = 0
    assert case.until_back(0) <= 3


def test_a_single_server_is_never_looked_at() -> None:
    case = Case(1)
    ejection = Ejection(case.servers, [], case.clock.seconds)
    ejection.start(case.clock)
    ejection.stop()
    case.ejection.stop()
    assert not case.clock.getDelayedCalls()


def test_a_server_that_nobody_watches_any_more_is_not_taken_out() -> None:
    case = Case(3)
    case.ejection.leave(case.servers[0])
    case.counts[0].stuck, case.counts[0].waits = 1, 5
    case.pass_time(20)
    assert not case.out


def test_servers_that_join_later_are_looked_at_too() -> None:
    case = World("up", "up")
    ejection = Ejection([], case.counts, case.clock.seconds)
    ejection.start(case.clock)
    assert not case.clock.getDelayedCalls()
    ejection._servers = case.servers
    for server in case.servers:
        ejection.join(server)
    case.counts[0].stuck, case.counts[0].waits = 1, 3
    case.pass_time(1.1)
    assert case.servers[0].ejected


def test_nothing_is_looked_at_after_the_end() -> None:
    case = Case()
    case.ejection.stop()
    case.ejection.join(case.servers[0])
    assert not case.clock.getDelayedCalls()


def test_a_session_whose_last_reply_came_before_the_failures_does_not_end_the_row() -> None:
    case = Case()
    case.serve(0)
    case.pass_time(1)
    case.drop(0, IN_A_ROW - 1)
    case.ejection.ended(0, False, 0.5)
    case.drop(0)
    assert case.out == [0]


def test_the_row_begins_with_its_first_failure() -> None:
    case = Case()
    case.pass_time(1)
    case.drop(0)
    case.pass_time(1)
    case.ejection.ended(0, False, 1.5)
    case.drop(0, IN_A_ROW - 1)
    assert not case.out


def test_sessions_that_wait_on_a_server_that_answers_others_are_no_failures() -> None:
    case = Case()
    case.counts[0].waits = 5
    case.pass_time(30)
    assert not case.out


def test_only_those_who_have_waited_for_long_are_counted() -> None:
    case = Case()
    asked: list[float] = []
    case.counts[0].stuck = 1
    record: Any = case.counts[0]

    def waiting(since: float) -> int:
        asked.append(case.clock.seconds() - since)
        return 0

    record.waiting = waiting
    case.pass_time(1.1)
    assert asked == [10]


def test_failures_are_not_counted_while_a_server_is_out() -> None:
    case = Case()
    case.drop(0, 2 * IN_A_ROW)
    assert case.counts[0].ejections == 1
    case.counts[0].stuck, case.counts[0].waits = 1, 5
    case.pass_time(5)
    assert case.counts[0].ejections == 1


def test_one_failure_takes_a_server_out_that_has_come_back() -> None:
    case = Case()
    case.drop(0, IN_A_ROW)
    case.until_back(0)
    case.drop(0)
    assert case.out == [0]


def test_a_server_that_is_gone_or_fails_its_checks_takes_nobodys_place() -> None:
    case = Case()
    case.servers[1].is_back(False)
    case.drop(0, IN_A_ROW)
    assert not case.out
    case.servers[1].is_back(True)
    case.servers[1].doubt("it is slow")
    case.drop(0)
    assert not case.out
    case.servers[1].trust()
    case.drop(0)
    assert case.out == [0]


def test_three_who_wait_are_enough_soon_after_one_was_counted() -> None:
    case = Case()
    case.counts[0].stuck, case.counts[0].waits = 1, 1
    case.pass_time(1.1)
    case.counts[0].waits = IN_A_ROW
    case.pass_time(1)
    assert case.out == [0]


def test_a_row_begins_anew_after_failures_while_others_were_answered() -> None:
    case = Case()
    case.drop(0)
    case.pass_time(0.1)
    case.counts[0].replied = case.clock.seconds()
    case.drop(0, IN_A_ROW - 1)
    case.pass_time(0.1)
    case.drop(0, IN_A_ROW - 1)
    assert not case.out
    case.drop(0)
    assert case.out == [0]
