"""Latency: replies are matched in order, and percentiles are as exact as promised."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fooproxy.foo.latency import BUCKET_NAMES, Histogram, Latency, bounds, bucket
from tests.helpers.twins import counting


@given(st.integers(0, 1 << 27))
def test_a_bucket_holds_what_falls_into_it_and_is_narrow(microseconds: int) -> None:
    lower, upper = bounds(bucket(microseconds))
    assert lower <= microseconds < upper
    assert upper - lower == 1 or (upper - lower) / lower <= 1 / 16


def test_buckets_follow_each_other_without_a_gap() -> None:
    edges = [bounds(number) for number in range(len(BUCKET_NAMES) - 1)]
    assert edges[0][0] == 0
    assert all(before[1] == after[0] for before, after in itertools.pairwise(edges))


@given(st.lists(st.integers(1, 10**8), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99, 0.999]))
def test_percentiles_are_near_the_truth(latencies: list[int], share: float) -> None:
    total = Latency()
    for latency in latencies:
        total.add(latency, 1)
    histogram = total.answered
    truth = sorted(latencies)[math.ceil(share * len(latencies)) - 1] / 1e6
    assert histogram.quantile(share) == pytest.approx(truth, rel=0.035)
    summary = histogram.summary()
    assert summary["count"] == len(latencies)
    assert summary["max"] == max(latencies) / 1e6
    assert summary["mean"] == pytest.approx(sum(latencies) / len(latencies) / 1e6)


def test_without_latencies_there_is_nothing_to_tell_but_their_count() -> None:
    summary = Histogram().summary()
    assert summary.pop("count") == 0
    assert set(summary) == {"p50", "p90", "p99", "p999", "max", "mean"}
    assert set(summary.values()) == {None}
    assert Histogram().quantile(0.5) is None


def test_what_was_added_since_is_told_apart() -> None:
    total = Latency()
    total.add(5000, 10)
    earlier = total.answered
    assert total.answered.since(earlier).count == 0
    total.add(50_000, 2)
    later = total.answered.since(earlier)
    assert (later.count, later.sum, later.longest) == (2, 100_000, 50_000)
    assert earlier.count == 10


def test_a_histogram_comes_back_as_it_was() -> None:
    before, after = Latency(), Latency()
    before.add(17, 3)
    before.add(123_456, 1)
    after.ask(5)
    after.restore(before.answered)
    assert after.answered == before.answered
    assert after.in_flight == 0


def test_a_histogram_is_written_by_the_numbers_of_its_buckets() -> None:
    total = Latency()
    total.add(17, 3)
    total.add(40, 1)
    assert total.answered.state() == {"sum": 91, "longest": 40, "buckets": {"17": 3, "36": 1}}
    assert list(total.answered.upper_bounds()) == [(18e-6, 3), (42e-6, 1)]


def exchange() -> tuple[Any, Latency]:
    total = Latency()
    return counting().Exchange(total), total


@pytest.mark.usefixtures("twin")
def test_a_reply_belongs_to_the_oldest_open_request() -> None:
    session, total = exchange()
    session.request(1_000_000, 1)
    session.request(2_000_000, 1)
    session.reply(2_500_000, 1)
    assert total.answered.longest == 1_500_000
    assert session.in_flight == 1
    session.reply(2_500_000, 1)
    assert total.answered.summary()["mean"] == pytest.approx(1.0)
    assert session.in_flight == 0


@pytest.mark.usefixtures("twin")
def test_chunks_of_requests_and_of_replies_need_not_be_the_same() -> None:
    session, total = exchange()
    session.request(1_000_000, 3)
    session.request(2_000_000, 2)
    session.reply(3_000_000, 4)
    assert sorted(total.answered.buckets.values()) == [1, 3]
    session.reply(4_000_000, 1)
    assert total.answered.count == 5
    assert session.quantile(0.5) == total.answered.quantile(0.5)
    assert exchange()[0].quantile(0.5) is None
    assert (session.in_flight, total.unmatched) == (0, 0)


@pytest.mark.usefixtures("twin")
def test_a_reply_without_an_open_request_matches_nothing_and_no_later_one() -> None:
    session, total = exchange()
    session.reply(1_000_000, 2)
    session.request(2_000_000, 1)
    session.reply(1_500_000, 1)
    session.reply(3_000_000, 2)
    assert total.unmatched == 4
    assert total.answered.count == 1
    assert session.in_flight == 0


@pytest.mark.usefixtures("twin")
def test_requests_that_nobody_answers_take_bounded_memory_and_stay_counted() -> None:
    session, total = exchange()
    for number in range(10_000):
        session.request(number, 2)
    assert len(session.later or ()) <= 256
    assert session.in_flight == 20_000
    session.reply(10_000, 20_000)
    assert (session.in_flight, total.unmatched, total.answered.count) == (0, 0, 20_000)


@pytest.mark.usefixtures("twin")
def test_requests_beyond_what_is_kept_apart_join_the_newest_of_those() -> None:
    session, total = exchange()
    for time in range(1, 301):
        session.request(time, 1)
    # The oldest, and 256 others, of which the last has taken in the rest.
    assert [list(pair) for pair in session.later] == [*([time, 1] for time in range(2, 257)), [257, 44]]
    assert session.last == 300
    session.reply(1000, 300)
    assert total.answered.buckets[bucket(1000 - 257)] >= 44


@pytest.mark.usefixtures("twin")
def test_all_open_requests_are_given_up_at_the_end() -> None:
    session, total = exchange()
    session.request(1, 1)
    session.request(2, 3)
    session.end()
    assert total.given_up == 4


@pytest.mark.usefixtures("twin")
def test_when_the_last_request_came_is_known_after_all_have_become_late() -> None:
    session, _ = exchange()
    session.request(3, 1)
    session.request(5, 1)
    assert (session.last_request, session.last) == (5, 0)
    session.resumed()
    assert (session.last_request, session.last) == (0, 5)


@pytest.mark.usefixtures("twin")
@pytest.mark.parametrize("many", [2, 5, 20, 300])
def test_what_kept_open_requests_apart_does_so_again_after_none_was_left_or_all_were_late(many: int) -> None:
    session, total = exchange()
    time = 0
    for is_late in (False, True, False, True, True, False):
        for _ in range(many):
            time += 1000
            session.request(time, 1)
        if is_late:
            session.resumed()
            session.request(time + 1, 1)
            session.request(time + 2, 1)
            session.reply(time + 10, many + 1)
            assert session.in_flight == 1
        session.reply(time + 10, session.in_flight)
        assert (session.in_flight, total.unmatched) == (0, 0)
    assert (session.late, total.late) == (3 * many, 3 * many)
    assert (total.answered.buckets[8], total.answered.buckets[9], total.answered.count) == (3, 3, 3 * many + 6)


@pytest.mark.usefixtures("twin")
def test_a_session_of_which_many_requests_were_open_is_small_again_afterwards() -> None:
    total = Latency()
    sessions = [counting().Exchange(total) for _ in range(50)]
    tracemalloc.start()
    try:
        for session in sessions:
            for time in range(200):
                session.request(time, 1)
        many = tracemalloc.get_traced_memory()[0]
        for session in sessions:
            session.reply(200, 200)
        assert tracemalloc.get_traced_memory()[0] < many / 2
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("twin")
def test_what_was_seen_last_was_seen_last_whatever_the_clock_says() -> None:
    total = Latency()
    clients = counting().Analysis(total, True)
    client = counting().Analyzer(clients, counting().Exchange(total))
    for time in (7, 9, 8):
        client.feed(b"REQ 1\n", time)
        clients.catch_up()
    assert total.seen == 9


@pytest.mark.usefixtures("twin")
def test_open_requests_are_given_up_when_the_session_ends() -> None:
    session, total = exchange()
    other = counting().Exchange(total)
    session.request(1_000_000, 5)
    other.request(1_000_000, 1)
    session.end()
    assert (total.given_up, other.in_flight) == (5, 1)


@pytest.mark.usefixtures("twin")
def test_a_request_without_a_newline_is_in_flight_until_it_is_answered() -> None:
    session, total = exchange()
    session.cut_short(1_000_000)
    assert (session.in_flight, session.requests, total.asked, total.in_flight) == (1, 0, 1, 1)
    session.reply(1_000_005, 1)
    assert (session.in_flight, session.requests, total.asked, total.in_flight) == (0, 0, 1, 0)


@pytest.mark.usefixtures("twin")
def test_a_latency_beyond_all_bounds_counts_as_the_longest() -> None:
    session, total = exchange()
    session.request(0, 1)
    session.reply(1_000_000_000_000, 1)
    assert {str(number) for number in total.answered.buckets} <= BUCKET_NAMES
    assert total.answered.longest < 135_000_000


@pytest.mark.usefixtures("twin")
def test_a_session_goes_on_elsewhere_from_its_state_as_plain_data() -> None:
    total = Latency()
    clients = counting().Analysis(total, True)
    upstreams = counting().Analysis(total, False, clients)

    def session() -> tuple[Any, Any, Any]:
        exchange = counting().Exchange(total)
        return exchange, counting().Analyzer(clients, exchange), counting().Analyzer(upstreams, exchange)

    before, after = session(), session()
    before[1].feed(b"REQ 1\nREQ 2\nbad\n", 1)
    before[2].feed(b"ACK 1\nNAK 2 no", 5)
    before[1].feed(b"REQ 4\nREQ 5 half", 7)
    upstreams.catch_up()
    for old, new in zip(before, after, strict=True):
        new.restore(*old.state())
        assert new.state() == old.state()
    after[1].feed(b" a line\n", 8)
    after[2].feed(b"\nACK 4\n", 9)
    upstreams.catch_up()
    assert (after[1].req, after[1].invalid, after[2].ack, after[2].nak) == (4, 1, 2, 1)
    assert (after[0].in_flight, after[0].replies, total.unmatched, total.in_flight) == (2, 3, 0, 2)
    assert total.answered.buckets == {4: 1, 8: 2}


@pytest.mark.usefixtures("twin")
def test_a_watched_session_is_reported_whenever_it_becomes_settled() -> None:
    total = Latency()
    clients = counting().Analysis(total, True)
    upstreams = counting().Analysis(total, False, clients)
    watched, other = counting().Exchange(total), counting().Exchange(total)
    upstreams.watch(watched)

    def settled(analysis: Any, exchange: Any, chunk: bytes, time: int) -> list[Any]:
        legs[exchange, analysis].feed(chunk, time)
        upstreams.catch_up()
        found = {*upstreams.settled}
        upstreams.settled.clear()
        return list(found)

    pairs = [(exchange, analysis) for exchange in (watched, other) for analysis in (clients, upstreams)]
    legs = {(exchange, analysis): counting().Analyzer(analysis, exchange) for exchange, analysis in pairs}
    assert settled(clients, watched, b"REQ 1\nREQ 2\n", 1) == []
    assert settled(upstreams, watched, b"ACK 1\n", 2) == []
    assert settled(upstreams, watched, b"ACK 2", 3) == []
    assert settled(upstreams, watched, b"\n", 4) == [watched]
    assert settled(clients, watched, b"RE", 5) == []
    assert settled(upstreams, watched, b"NAK 0 unasked\n", 6) == []
    assert settled(clients, other, b"REQ 1\n", 7) + settled(upstreams, other, b"ACK 1\n", 8) == []
    upstreams.watch(watched, False)
    assert settled(clients, watched, b"Q 3\n", 9) + settled(upstreams, watched, b"ACK 3\n", 10) == []
