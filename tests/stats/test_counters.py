"""Counters, the moving windows, and the report."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fooproxy import __version__
from fooproxy.foo.counting import PURE
from fooproxy.stats.counters import Stats
from fooproxy.stats.session import SessionStats
from fooproxy.stats.timetable import FRAME, INTERVAL, TimeTable
from tests.helpers.twins import counting


class Traffic:
    """Two counters and a clock, sampled the way the service does it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.requests = self.responses = 0
        self.table = TimeTable(lambda: self.now, lambda: (self.requests, self.responses))

    def run(self, seconds: float, rate: float, sampled: bool = True) -> None:
        """Advance by `seconds`, with `rate` requests and half as many responses per second."""
        steps = round(seconds / INTERVAL)
        before, half = self.requests, self.responses
        for step in range(1, steps + 1):
            self.now += INTERVAL
            self.requests = before + round(rate * step * INTERVAL)
            self.responses = half + round(rate * step * INTERVAL / 2)
            if sampled:
                self.table.sample()


@pytest.mark.parametrize("window", [1, 10])
def test_steady_traffic_gives_its_true_rate_in_both_windows(window: int) -> None:
    traffic = Traffic()
    traffic.run(12, rate=400)
    assert traffic.table.rates(window) == pytest.approx((400, 200), rel=0.01)


def test_a_burst_is_spread_over_the_window_it_lies_in() -> None:
    traffic = Traffic()
    traffic.run(3, rate=0)
    traffic.requests += 500
    traffic.table.sample()
    traffic.run(0.5, rate=0)
    assert traffic.table.rates(1)[0] == 500
    assert traffic.table.rates(10)[0] == 50


def test_rates_fall_to_exactly_zero_when_traffic_stops() -> None:
    traffic = Traffic()
    traffic.run(5, rate=333)
    traffic.run(1.1, rate=0)
    assert traffic.table.rates(1) == (0.0, 0.0)
    assert traffic.table.rates(10)[0] == pytest.approx(333 * 5 / 10, rel=0.01)
    traffic.run(9, rate=0)
    assert traffic.table.rates(10) == (0.0, 0.0)


@pytest.mark.parametrize("blocked", [0.3, 0.8, 3.0])
def test_rates_stay_true_when_the_loop_was_blocked(blocked: float) -> None:
    traffic = Traffic()
    traffic.run(12, rate=1000)
    # The loop wakes up: as in Twisted's reactors, timers run before the backlog is read.
    traffic.now += blocked
    traffic.table.sample()
    traffic.requests += round(1000 * blocked)
    assert traffic.table.rates(1)[0] == pytest.approx(1000, rel=0.05)
    traffic.run(2 * INTERVAL, rate=1000)
    assert traffic.table.rates(1)[0] == pytest.approx(1000, rel=0.05)
    assert traffic.table.rates(10)[0] == pytest.approx(1000, rel=0.05)


def test_a_loop_that_is_always_late_is_sampled_all_the_same() -> None:
    traffic = Traffic()
    for _ in range(40):
        traffic.run(4 * INTERVAL, rate=100, sampled=False)
        traffic.table.sample()
    traffic.run(1.5, rate=0, sampled=False)
    traffic.table.sample()
    traffic.table.sample()
    traffic.run(1.5, rate=0)
    assert traffic.table.rates(1) == (0.0, 0.0)


def test_sampling_may_rest_when_nothing_passed_for_a_second_and_goes_on_exactly() -> None:
    traffic = Traffic()
    traffic.run(3, rate=100)
    traffic.run(0.9, rate=0)
    assert not traffic.table.is_quiet
    traffic.run(0.2, rate=0)
    assert traffic.table.is_quiet
    traffic.now += 3
    assert traffic.table.rates(10)[0] == 30.0
    traffic.table.resume()
    traffic.requests += 50
    assert traffic.table.rates(1) == (50.0, 0.0)
    traffic.run(0.5, rate=0)
    assert traffic.table.rates(1) == (50.0, 0.0)
    assert not traffic.table.is_quiet
    traffic.run(0.6, rate=0)
    assert traffic.table.rates(1) == (0.0, 0.0)
    assert traffic.table.rates(10)[0] == 35.0
    traffic.now += 3600
    assert traffic.table.rates(10) == (0.0, 0.0)


def test_what_came_since_a_sample_that_was_late_is_not_taken_for_quiet() -> None:
    traffic = Traffic()
    traffic.run(FRAME + 1, rate=0)
    traffic.requests += 1
    traffic.now += 10 * INTERVAL
    traffic.table.sample()
    assert not traffic.table.is_quiet


def test_a_gap_is_not_taken_for_quiet_before_it_was_read() -> None:
    traffic = Traffic()
    traffic.run(3, rate=0)
    # The process was stopped; data that arrived meanwhile is read after the timers have run.
    traffic.now += 3
    traffic.table.sample()
    assert not traffic.table.is_quiet
    traffic.requests += 1500
    traffic.run(0.1, rate=0)
    assert traffic.table.rates(1)[0] == pytest.approx(500, rel=0.15)


def test_memory_is_bounded_by_the_frame() -> None:
    traffic = Traffic()
    traffic.run(120, rate=100)
    assert len(traffic.table._samples) <= FRAME / INTERVAL + 2


def test_seconds_are_ten_sums_the_oldest_first() -> None:
    traffic = Traffic()
    for rate in (20, 40, 60):
        traffic.run(1, rate)
    assert traffic.table.seconds() == ([0] * 7 + [20, 40, 60], [0] * 7 + [10, 20, 30])


SECONDS = st.lists(st.integers(0, 10**9), min_size=FRAME, max_size=FRAME)


@given(SECONDS, SECONDS)
def test_seconds_restored_at_once_are_the_seconds_saved(requests: list[int], responses: list[int]) -> None:
    traffic = Traffic()
    traffic.requests, traffic.responses = 7, 9
    traffic.table.restore(requests, responses, age=0)
    assert traffic.table.seconds() == (requests, responses)


@given(SECONDS, st.integers(0, 15))
def test_restored_seconds_move_by_the_time_that_passed(requests: list[int], age: int) -> None:
    traffic = Traffic()
    traffic.table.restore(requests, requests, age)
    assert traffic.table.seconds()[0] == (requests + [0] * age)[age : age + FRAME]


def test_restored_seconds_go_on_moving_with_the_clock() -> None:
    traffic = Traffic()
    traffic.table.restore([100] * FRAME, [50] * FRAME, age=2)
    assert traffic.table.rates(10) == pytest.approx((80, 40))
    assert traffic.table.rates(1) == (0.0, 0.0)
    traffic.run(3, rate=0)
    assert traffic.table.rates(10) == pytest.approx((50, 25))
    traffic.run(5.05, rate=0)
    assert traffic.table.rates(10) == (0.0, 0.0)


def stats() -> Stats:
    return Stats(itertools.count().__next__, twin=counting())


@pytest.mark.usefixtures("twin")
def test_the_report_begins_with_the_eight_keys_other_foo_proxies_have() -> None:
    report = stats().report()
    assert list(report)[:8] == [
        "msg_total",
        "msg_req",
        "msg_ack",
        "msg_nak",
        "request_rate_1s",
        "request_rate_10s",
        "response_rate_1s",
        "response_rate_10s",
    ]
    assert [type(value) for value in report.values()][:8] == [int] * 4 + [float] * 4
    assert report["version"] == __version__


@pytest.mark.usefixtures("twin")
def test_messages_count_by_type_whichever_leg_they_came_from() -> None:
    everything = stats()
    session = SessionStats(everything)
    session.client.feed(b"REQ 1\nREQ 2\nACK 1\nnoise\n", 0)
    session.upstream.feed(b"ACK 1\nNAK 2\nREQ 9\n\n", 1)
    report = everything.report()
    assert report["msg_total"] == 6
    assert (report["msg_req"], report["msg_ack"], report["msg_nak"]) == (3, 2, 1)
    assert report["msg_misdirected"] == 2
    assert report["msg_invalid"] == 2
    assert (report["bytes_from_clients"], report["bytes_from_upstream"]) == (24, 19)


@pytest.mark.usefixtures("twin")
def test_sessions_are_counted_while_they_are_open_and_ever_after() -> None:
    everything = stats()
    first, second = SessionStats(everything), SessionStats(everything)
    first.ended("upstream_refused")
    report = everything.report()
    assert (report["connections_active"], report["connections_total"]) == (1, 2)
    assert report["connections_closed"]["upstream_refused"] == report["upstream_connect_failures"] == 1
    second.ended("client_closed")
    report = everything.report()
    assert report["connections_active"] == 0
    assert sum(report["connections_closed"].values()) == 2
    failures = dict.fromkeys(["refused", "unresolved", "tls", "unreachable", "timeout"], 0)
    assert everything.upstream_connect_failures == {**failures, "refused": 1}


@pytest.mark.usefixtures("twin")
def test_a_client_that_is_not_allowed_counts_as_accepted_and_ended() -> None:
    everything = stats()
    everything.turned_away("not_allowed")
    report = everything.report()
    assert (report["connections_active"], report["connections_total"]) == (0, 1)
    assert report["connections_closed"]["not_allowed"] == 1


@pytest.mark.usefixtures("twin")
def test_the_end_of_a_session_is_told_with_its_reason_and_its_figures() -> None:
    told: list[tuple[str, str, int, int]] = []
    everything = Stats(
        lambda: 0.0,
        lambda session, reason: told.append((session.host, reason, session.client.req, session.exchange.in_flight)),
    )
    session = SessionStats(everything)
    session.accepted("[::1]:99")
    session.client.feed(b"REQ 1\nREQ 2\n", 0)
    session.upstream.feed(b"ACK 1\n", 1)
    session.ended("client_reset")
    assert told == [("[::1]", "client_reset", 2, 1)]
    assert everything.report()["requests_in_flight"] == 0


@pytest.mark.usefixtures("twin")
def test_a_session_tells_how_old_it_is_and_how_long_nothing_came() -> None:
    now = 100.0
    session = SessionStats(Stats(lambda: now, twin=counting()))
    now = 107.0
    assert (session.age, session.idle) == (7.0, 7.0)
    session.client.feed(b"REQ 1\n", 105_000_000)
    session.upstream.feed(b"AC", 106_000_000)
    assert session.settled is False
    assert (session.age, session.idle) == (7.0, 1.0)


@pytest.mark.usefixtures("twin")
def test_what_waits_is_counted_when_it_is_much_or_when_somebody_asks() -> None:
    everything = Stats(lambda: 100.0, twin=PURE)
    session = SessionStats(everything)
    session.client.feed(b"REQ 1\n", 0)
    for _ in range(40):
        session.upstream.feed(b"ACK 1\n", 1)
    everything.digest()
    # Requests are counted before the replies that may belong to them.
    assert (session.client.req, session.upstream.ack) == (1, 40)
    session.client.feed(b"REQ 2\n", 0)
    everything.digest()
    assert session.client.req == 1
    assert everything.msg_req == session.client.req == 2


@pytest.mark.usefixtures("twin")
def test_a_session_is_not_idle_however_many_requests_wait() -> None:
    now = 0.0
    stats = Stats(lambda: now, twin=counting())
    session = SessionStats(stats)
    for _ in range(400):
        now += 1
        session.client.feed(b"REQ 1\n", round(now * 1e6))
    stats.catch_up()
    assert session.idle == 0.0


@pytest.mark.usefixtures("twin")
def test_a_session_is_between_requests_when_its_client_has_sent_whole_lines_only() -> None:
    session = SessionStats(stats())
    assert session.between_requests
    session.client.feed(b"REQ 1\nRE", 0)
    assert not session.between_requests
    session.client.feed(b"Q 2\n", 1)
    assert session.between_requests


@pytest.mark.usefixtures("twin")
def test_the_last_chunk_of_a_client_counts_up_to_its_last_newline() -> None:
    everything = stats()
    session = SessionStats(everything)
    for chunk, whole in ((b"REQ 1\nREQ 2", 6), (b" no end", 0)):
        session.client.feed(chunk, 0)
        assert session.stop_after(chunk) == whole
    assert everything.msg_req == 1


@pytest.mark.usefixtures("twin")
def test_what_is_ignored_does_not_count() -> None:
    everything = stats()
    session = SessionStats(everything)
    session.ignored("upstream")
    session.client.feed(b"REQ 1\n", 0)
    session.upstream.feed(b"ACK 1\n", 1)
    assert (everything.msg_req, everything.msg_ack) == (1, 0)


@pytest.mark.usefixtures("twin")
def test_pauses_are_counted_by_leg() -> None:
    everything = stats()
    session = SessionStats(everything)
    for leg in ("client", "upstream", "client"):
        session.paused(leg)
    assert everything.report()["reads_paused"] == {"client": 2, "upstream": 1}


@pytest.mark.parametrize(
    ("sent", "answered", "settled"),
    [
        (b"", b"", True),
        (b"REQ 1\n", b"", False),
        (b"REQ 1\n", b"ACK 1", False),
        (b"REQ 1\n", b"ACK 1\n", True),
        (b"REQ 1\nREQ 2\n", b"ACK 1\n", False),
        (b"REQ 1\nREQ 2", b"ACK 1\n", False),
        (b"REQ 1\nREQ 2", b"ACK 1\nNAK 2\n", True),
        (b"noise\n", b"", False),
        (b"noise\n", b"NAK 0 ERRDECODE\n", True),
        (b"REQ 1\n", b"ACK 1\nACK 9", False),
    ],
)
@pytest.mark.usefixtures("twin")
def test_a_session_is_settled_when_every_line_of_the_client_was_answered(
    sent: bytes, answered: bytes, settled: bool
) -> None:
    session = SessionStats(Stats(lambda: 0.0, twin=counting()))
    session.client.feed(sent, 0)
    session.finished()
    session.upstream.feed(answered, 1)
    assert session.settled is settled


@pytest.mark.usefixtures("twin")
def test_a_reply_that_nobody_asked_for_settles_nothing() -> None:
    session = SessionStats(Stats(lambda: 1.0, twin=counting()))
    session.upstream.feed(b"ACK 0 hello\n", 1)
    session.client.feed(b"REQ 1 x", 500_000)
    assert not session.settled
    session.finished()
    assert not session.settled
    session.upstream.feed(b"ACK 1 x\n", 2_000_000)
    assert session.settled


@pytest.mark.usefixtures("twin")
def test_the_counters_to_save_include_what_waits_to_be_counted() -> None:
    everything = stats()
    SessionStats(everything).client.feed(b"REQ 1\n", 0)
    assert everything.counters()["client_req"] == 1


@pytest.mark.usefixtures("twin")
def test_counters_come_back_as_they_were() -> None:
    before, after = stats(), stats()
    session = SessionStats(before)
    session.client.feed(b"REQ 1\n??\n", 0)
    session.upstream.feed(b"NAK 1\n", 1)
    session.upstream.feed(b"NAK 2\n", 1)
    session.paused("client")
    before.recovery_saves["ok"] += 3
    before.accepts_paused["limit"] += 2
    before.turned_away("not_allowed")
    session.ended("send_timeout")
    after.restore(before.counters(), before.latency_seconds)
    assert before.report()["responses_unmatched"] == 0
    kept = [field.name for field in Stats.reported if field.kind == "counter"]
    assert {name: after.report()[name] for name in kept} == {name: before.report()[name] for name in kept}


@pytest.mark.usefixtures("twin")
def test_data_whose_time_is_a_little_ahead_of_the_clock_is_sampled_now() -> None:
    requests, now = 0, 1000.0
    table = TimeTable(lambda: now, lambda: (requests, 0), lambda: now + 0.5)
    requests, now = 10, now + 0.2
    table.mark()
    assert table.rates(1)[0] == 10
    now += 1.1
    assert table.rates(1)[0] == 0


@pytest.mark.parametrize(("requests", "responses"), [(1, 0), (0, 1)])
def test_requests_alone_or_replies_alone_are_not_taken_for_quiet(requests: int, responses: int) -> None:
    traffic = Traffic()
    traffic.run(2, rate=0)
    assert traffic.table.is_quiet
    traffic.requests += requests
    traffic.responses += responses
    assert not traffic.table.is_quiet


def test_a_sample_that_is_half_an_interval_late_is_taken() -> None:
    traffic = Traffic()
    traffic.run(2, rate=0)
    traffic.now += 1.5 * INTERVAL
    traffic.table.sample()
    assert traffic.table.is_quiet


def test_what_is_counted_after_a_restore_is_not_spread_over_the_time_before_it() -> None:
    traffic = Traffic()
    traffic.table.restore([0] * 10, [0] * 10, 5.0)
    traffic.requests += 10
    assert traffic.table.rates(1) == (10.0, 0.0)


def test_the_seconds_add_up_to_what_was_counted() -> None:
    traffic = Traffic()
    traffic.now += 10
    traffic.requests += 15
    traffic.responses += 25
    assert [sum(seconds) for seconds in traffic.table.seconds()] == [15, 25]
