"""The history has a row for each of the last 900 seconds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fooproxy.foo.latency import Histogram
from fooproxy.stats.counters import Stats
from fooproxy.stats.history import LENGTH, Second, parse
from fooproxy.stats.reasons import FAILURES
from fooproxy.stats.session import SessionStats


class World:
    def __init__(self) -> None:
        self.now = 50.0
        self.stats = Stats(lambda: self.now)
        self.session = SessionStats(self.stats)
        self.history = self.stats.history
        self.history.begin()

    def second(self, requests: int = 0, delay: float = 0.001, naks: int = 0) -> None:
        """Advance by one second, in which `requests` requests are each answered after `delay` seconds."""
        if requests:
            self.session.client.feed(b"REQ 1\n" * requests, round(self.now * 1e6))
            self.session.upstream.feed(
                b"NAK 1\n" * naks + b"ACK 1\n" * (requests - naks), round((self.now + delay) * 1e6)
            )
        self.now += 1
        self.history.record()


def test_each_second_has_its_own_figures() -> None:
    world = World()
    world.second(5, 0.005, naks=2)
    world.second()
    world.second(1, 0.05)
    report = world.history.report(0, 1234.0)
    assert (report["last"], report["time"]) == (3, 1234.0)
    assert report["requests"] == report["responses"] == [5, 0, 1]
    assert report["naks"] == [2, 0, 0]
    assert report["sessions"] == [1, 1, 1]
    for name in ("p50", "p99"):
        assert report[name][1] is None
        assert report[name][::2] == pytest.approx([0.005, 0.05], rel=0.035)


def test_each_second_has_its_new_sessions_bytes_and_failures() -> None:
    world = World()
    world.second(1)
    SessionStats(world.stats).ended("upstream_refused")
    SessionStats(world.stats).ended("client_closed")
    world.second()
    world.second()
    report = world.history.report(0, 0.0)
    assert report["opened"] == [0, 2, 0]
    assert report["bytes_from_clients"] == report["bytes_from_upstream"] == [6, 0, 0]
    assert report["failures"] == {"upstream_refused": [0, 1, 0]}


def test_only_what_is_new_is_told_to_those_who_know_the_rest() -> None:
    world = World()
    for number in range(5):
        world.second(number + 1)
    assert world.history.report(3, 0.0)["requests"] == [4, 5]
    assert world.history.report(5, 0.0)["requests"] == []
    # A number beyond the newest second comes from an earlier run of the proxy.
    assert world.history.report(77, 0.0)["requests"] == [1, 2, 3, 4, 5]


def test_a_quarter_of_an_hour_is_kept_and_no_more() -> None:
    world = World()
    for _ in range(LENGTH + 50):
        world.second(1)
    report = world.history.report(0, 0.0)
    assert report["last"] == LENGTH + 50
    assert len(report["requests"]) == LENGTH
    assert len(world.history.state()) < 30 * LENGTH


def test_seconds_in_which_the_loop_was_blocked_are_not_left_out() -> None:
    world = World()
    world.second(1)
    world.now += 3
    world.second(7)
    assert world.history.report(0, 0.0)["requests"] == [1, 0, 0, 0, 7]


def test_stalls_of_half_seconds_do_not_make_it_run_ahead() -> None:
    world = World()
    for _ in range(10):
        world.now += 1.7
        world.history.record()
        world.now += 0.3
        world.history.record()
    assert world.history.last == 20


def test_recent_latencies_are_those_of_ten_seconds() -> None:
    world = World()
    world.second(4, 0.5)
    for number in range(10):
        assert world.history.recent().count == 4 + number
        world.second(1, 0.001)
    assert world.history.recent().count == 10
    assert world.stats.report()["latency_seconds"]["count"] == 14
    assert world.stats.report()["latency_seconds_10s"]["count"] == 10
    world.now += 20
    world.history.record()
    assert world.history.recent().count == 0


def test_what_came_before_the_first_record_belongs_to_no_second() -> None:
    world = World()
    fresh = Stats(lambda: world.now)
    fresh.restore(world.stats.counters() | {"client_req": 1000}, Histogram())
    fresh.history.record()
    world.now += 1
    fresh.history.record()
    assert fresh.history.report(0, 0.0)["requests"] == [0]


SECONDS = st.lists(
    st.builds(
        Second,
        st.integers(0, 10**6),
        st.integers(0, 10**6),
        st.integers(0, 10**6),
        st.none() | st.integers(0, 10**8),
        st.none() | st.integers(0, 10**8),
        st.integers(0, 10**5),
        st.integers(0, 10**5),
        st.integers(0, 10**12),
        st.integers(0, 10**12),
        st.dictionaries(st.sampled_from(FAILURES), st.integers(1, 10**5)),
    ),
    max_size=20,
)


@given(SECONDS)
def test_it_comes_back_as_it_was(seconds: list[Second]) -> None:
    before, after = World().history, World().history
    before.restore(seconds, 0.0)
    assert parse(before.state()) == seconds
    after.restore(parse(before.state()), 2.4)
    assert after.report(0, 0.0)["requests"] == [second.requests for second in seconds] + [0, 0]


TOO_MUCH = [
    "1" * 21 + ",2,3,,,4",
    "1,2,3,,,4,5,6",
    "1,2,3,,,4,5,6,7,8,9",
    "1,2,3,,,4,,,,idle_timeout",
    "1,2,3,,,4,,,,client_closed:1",
]


def test_what_an_earlier_version_saved_is_read_too() -> None:
    assert parse("1,2,3,,5,6") == [Second(1, 2, 3, None, 5, 6)]


@pytest.mark.parametrize(
    "text", ["x", "1,2,3", "1,2,3,,,x", "1,2,3,4,5,6,7", ",2,3,,,4", "-1,2,3,,,4", "1" * 30, ";", *TOO_MUCH]
)
def test_what_is_no_history_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(text)


def test_recent_rejections_are_not_hidden_by_what_was_before_a_stall() -> None:
    world = World()
    world.second(1)
    world.second(20, naks=20)
    assert world.history.rejections() == 0
    world.now += 11
    world.history.record()
    assert world.history.rejections() == 20


def test_it_covers_fifteen_minutes() -> None:
    assert LENGTH == 900


@pytest.mark.parametrize(("slow", "p50", "p99"), [(40, 0.001, 0.5), (2, 0.001, 0.5), (60, 0.5, 0.5)])
def test_the_quantiles_of_a_second_are_its_half_and_ninety_nine_of_a_hundred(slow: int, p50: float, p99: float) -> None:
    world = World()
    now = round(world.now * 1e6)
    for count, delay in ((100 - slow, 0.001), (slow, 0.5)):
        world.session.client.feed(b"REQ 1\n" * count, now)
        world.session.upstream.feed(b"ACK 1\n" * count, now + round(delay * 1e6))
    world.second()
    report = world.history.report(0, 0.0)
    assert (report["p50"], report["p99"]) == ([pytest.approx(p50, rel=0.035)], [pytest.approx(p99, rel=0.035)])


def test_of_a_longer_history_the_newest_seconds_are_read() -> None:
    text = ";".join(f"{number},0,0,,,0" for number in range(LENGTH + 1))
    assert [second.requests for second in parse(text)] == list(range(1, LENGTH + 1))


def test_an_acceptance_keeps_rejections_from_being_noticed_for_ten_seconds() -> None:
    world = World()
    world.second(1)
    for _ in range(9):
        world.second(1, naks=1)
        assert world.history.rejections() == 0
    world.second(1, naks=1)
    assert world.history.rejections() == 10


def test_a_beginning_forgets_what_was_counted_before() -> None:
    world = World()
    world.second(5)
    world.second(12, naks=12)
    world.history.begin()
    assert world.history.recent().count == 0
    assert world.history.rejections() == 0
    world.second(1, naks=1)
    assert world.history.rejections() == 1


def test_recent_latencies_include_those_since_the_last_second() -> None:
    world = World()
    world.session.client.feed(b"REQ 1\n", round(world.now * 1e6))
    world.session.upstream.feed(b"ACK 1\n", round(world.now * 1e6) + 1000)
    assert world.history.recent().count == 1


def test_a_rejection_after_a_long_silence_counts_at_once() -> None:
    world = World()
    world.second(12, naks=12)
    world.now += 100
    world.history.record()
    assert world.history.rejections() == 0
    world.session.client.feed(b"REQ 1\n", round(world.now * 1e6))
    world.session.upstream.feed(b"NAK 1\n", round(world.now * 1e6))
    assert world.history.rejections() == 13


def test_what_passed_since_a_save_is_rounded_to_seconds() -> None:
    world = World()
    world.history.restore([Second(1, 1, 0, None, None, 0)], 2.6)
    assert world.history.report(0, 0.0)["requests"] == [1, 0, 0, 0]


def test_a_second_has_the_messages_and_bytes_of_both_sides_each_in_its_place() -> None:
    world = World()
    now = round(world.now * 1e6)
    world.session.client.feed(b"REQ 1\nNAK 1\n", now)
    world.session.upstream.feed(b"NAK 1\nACK 1\nACK 22\n", now)
    world.second()
    report = world.history.report(0, 0.0)
    assert (report["requests"], report["responses"], report["naks"]) == ([1], [4], [2])
    assert (report["bytes_from_clients"], report["bytes_from_upstream"]) == ([12], [19])


def test_rejections_that_a_client_forges_do_not_count() -> None:
    world = World()
    world.session.client.feed(b"NAK 1\n" * 20, round(world.now * 1e6))
    assert world.history.rejections() == 0
