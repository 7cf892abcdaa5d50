"""The statistics of one session: what the relay asks of them when links are lent, and what it tells them."""

from __future__ import annotations

import pytest

from fooproxy.foo.counting import PURE
from fooproxy.stats.counters import SLOW, Stats
from fooproxy.stats.session import SessionStats
from tests.helpers.twins import counting

SECOND = 1_000_000


class World:
    """Statistics on a clock in seconds that a test advances, and one session."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.stats = Stats(lambda: self.now, twin=counting())
        self.session = SessionStats(self.stats)
        self.told = 0

    def tell(self) -> None:
        self.told += 1

    def client_says(self, data: bytes) -> None:
        self.session.client.feed(data, round(self.now * SECOND))

    def server_says(self, data: bytes) -> None:
        self.now += 0.001
        self.session.upstream.feed(data, round(self.now * SECOND))


@pytest.fixture
def world(twin: str) -> World:
    return World()


def test_who_waits_for_it_is_told_once_each_time_that_the_session_has_become_settled(world: World) -> None:
    world.session.when_settled(world.tell)
    for number in (1, 2):
        world.client_says(b"REQ 1\n")
        world.stats.tell_settled()
        world.server_says(b"ACK 1\n")
        world.stats.tell_settled()
        world.stats.tell_settled()
        assert world.told == number


def test_nobody_is_told_of_a_session_that_is_not_settled_any_more(world: World) -> None:
    world.session.when_settled(world.tell)
    world.client_says(b"REQ 1\n")
    world.server_says(b"ACK 1\n")
    world.client_says(b"REQ 2\n")
    world.stats.tell_settled()
    assert world.told == 0


def test_who_has_ceased_to_wait_is_told_nothing(world: World) -> None:
    other = SessionStats(world.stats)
    other.when_settled(lambda: None)
    world.session.when_settled(world.tell)
    world.client_says(b"REQ 1\n")
    world.server_says(b"ACK 1\n")
    world.stats.catch_up()
    world.session.when_settled(None)
    world.stats.tell_settled()
    assert world.told == 0


@pytest.mark.parametrize("noise", [b"nonsense\n", b"ACK 1\n", b"NAK 1\n"])
def test_a_client_that_says_anything_but_requests_is_not_regular(world: World, noise: bytes) -> None:
    world.client_says(b"REQ 1\n")
    assert world.session.is_regular
    world.client_says(noise)
    assert not world.session.is_regular


@pytest.mark.parametrize("noise", [b"nonsense\n", b"REQ 1\n", b"ACK 1\nACK 1\n"])
def test_a_server_that_says_anything_but_replies_is_not_regular(world: World, noise: bytes) -> None:
    world.client_says(b"REQ 1\n")
    world.server_says(noise)
    assert not world.session.is_regular


@pytest.mark.parametrize(("replies", "is_paired"), [(b"ACK 1\nNAK 2\n", True), (b"ACK 7\nACK 1\n", False)])
def test_replies_are_compared_with_the_requests_once_that_is_asked_for(
    world: World, replies: bytes, is_paired: bool
) -> None:
    world.session.pair()
    world.client_says(b"REQ 1\nREQ 2\n")
    world.server_says(replies)
    assert world.session.settled
    assert world.session.is_paired is is_paired


def test_what_has_passed_are_the_bytes_of_both_legs(world: World) -> None:
    assert world.session.passed == 0
    world.client_says(b"REQ 1\nREQ")
    world.server_says(b"ACK")
    assert world.session.passed == 9 + 3


def test_the_wait_for_a_link_is_none_of_the_latency(world: World) -> None:
    world.session.forwarded()
    world.client_says(b"REQ 1\nREQ 2\n")
    world.now += 5
    world.session.forwarded()
    world.server_says(b"ACK 1\nACK 2\n")
    latency = world.stats.latency_seconds
    assert latency.count == 2
    assert latency.quantile(1.0) == pytest.approx(0.001)


def test_how_long_clients_wait_for_links_has_buckets_of_its_own(world: World) -> None:
    world.session.got_link()
    world.session.needs_link()
    world.now += 0.01
    world.session.needs_link()
    world.now += 0.01
    world.session.got_link()
    assert world.stats.link_wait_seconds.count == 1
    assert world.stats.link_wait_seconds.quantile(1.0) == pytest.approx(0.02, rel=0.01)
    assert world.stats.latency_seconds.count == 0


def test_replies_that_come_after_the_client_has_left_are_counted_as_dropped(world: World) -> None:
    world.client_says(b"REQ 1\nREQ 2\nREQ 3\n")
    world.server_says(b"ACK 1\n")
    world.session.abandoned()
    world.server_says(b"ACK 2\nNAK 3\n")
    world.session.ended("client_closed")
    assert world.stats.replies_dropped == 2
    assert world.stats.requests_unanswered["client_closed"] == 0


def test_a_session_of_a_single_server_can_be_released(world: World) -> None:
    world.session.released()
    world.client_says(b"REQ 1\n")
    assert world.stats.msg_req == 1


def test_replies_are_slow_if_one_in_a_hundred_is(world: World) -> None:
    assert not world.stats.is_slow
    world.stats.history.record()
    world.client_says(b"REQ 1\n")
    world.now += 2 * SLOW
    world.server_says(b"ACK 1\n")
    world.stats.history.record()
    assert world.stats.is_slow
    world.stats.slow = 3 * SLOW
    assert not world.stats.is_slow
    world.stats.slow = 0
    assert not world.stats.is_slow


def test_while_nobody_waits_for_it_no_chunk_is_counted_early() -> None:
    stats = Stats(lambda: 1.0, twin=PURE)
    session = SessionStats(stats)
    session.client.feed(b"REQ 1\n", 0)
    stats.tell_settled()
    assert session.client.waiting


def test_a_last_request_without_a_newline_is_not_regular(world: World) -> None:
    world.client_says(b"REQ 1")
    world.session.finished()
    world.server_says(b"ACK 1\n")
    assert not world.session.is_regular


def test_a_last_request_without_a_newline_waits_from_the_end_of_its_client_on(world: World) -> None:
    world.client_says(b"REQ 1")
    world.now += 1
    world.session.finished()
    world.server_says(b"ACK 1\n")
    assert world.stats.latency_seconds.quantile(1.0) == pytest.approx(0.001, rel=0.05)


def test_a_client_that_ends_after_a_whole_line_has_asked_nothing_more(world: World) -> None:
    world.client_says(b"REQ 1\n")
    world.session.finished()
    world.server_says(b"ACK 1\n")
    assert world.session.settled
    assert world.session.is_regular


@pytest.mark.parametrize(("reply", "is_paired"), [(b"ACK 1\n", True), (b"ACK 2\n", False)])
def test_replies_are_compared_with_requests_if_that_is_asked_for(world: World, reply: bytes, is_paired: bool) -> None:
    world.session.pair()
    world.client_says(b"REQ 1\n")
    world.server_says(reply)
    assert world.session.is_paired is is_paired


def test_a_link_that_is_replaced_was_waited_for_once(world: World) -> None:
    world.session.needs_link()
    world.session.got_link()
    world.session.got_link()
    assert world.stats.link_wait_seconds.count == 1


def test_a_last_chunk_without_a_newline_keeps_its_bytes(world: World) -> None:
    world.client_says(b"REQ")
    assert world.session.stop_after(b"REQ") == 0
    assert world.stats.bytes_from_clients == 3


def test_what_follows_the_last_newline_of_the_last_chunk_is_taken_off_the_bytes(world: World) -> None:
    world.client_says(b"REQ 1\nREQ")
    assert world.session.stop_after(b"REQ 1\nREQ") == 6
    assert world.stats.bytes_from_clients == 6
    assert world.session.between_requests


def test_a_paused_client_leg_does_not_hold_up_the_replies(world: World) -> None:
    world.session.paused("client")
    assert not world.session.is_held_up


@pytest.mark.parametrize(("age", "is_dropped"), [(0.9, True), (1.0, False)])
def test_an_upstream_that_ends_a_silent_session_after_a_second_is_not_to_blame(
    world: World, age: float, is_dropped: bool
) -> None:
    world.now += age
    world.session.ended("upstream_closed")
    assert world.stats.drops_requests is is_dropped


def test_messages_of_either_leg_count_by_type_and_by_what_is_wrong_with_them(world: World) -> None:
    world.client_says(b"REQ 1\nNAK 1\nACK 1\nACK 1\n\n")
    world.server_says(b"NAK 1\nACK 1\nREQ 1\n\n\n")
    report = world.stats.report()
    assert (report["msg_req"], report["msg_ack"], report["msg_nak"]) == (2, 3, 2)
    assert world.stats.msg_total == {"req": 2, "ack": 3, "nak": 2}
    assert world.stats.msg_invalid == {"client": 1, "upstream": 2}
    assert world.stats.replies == {"ack": 1, "nak": 1}
    assert report["msg_misdirected"] == 4
    assert world.stats.bytes_received == {"client": 25, "upstream": 20}


def test_rates_are_those_of_requests_and_of_replies_over_one_second_and_ten(world: World) -> None:
    for step in range(100):
        world.now += 0.05
        if step == 40:
            world.client_says(b"REQ 1\n" * 40)
            world.server_says(b"ACK 1\n" * 20)
        if step == 90:
            world.client_says(b"REQ 1\n" * 4)
            world.server_says(b"NAK 1\n" * 2)
        world.stats.times.sample()
    report = world.stats.report()
    rates = [report[f"{what}_rate_{window}"] for what in ("request", "response") for window in ("1s", "10s")]
    assert rates == pytest.approx([4, 4.4, 2, 2.2])
    assert report["uptime_seconds"] == pytest.approx(5, abs=0.01)


def test_what_others_know_is_in_the_report(world: World) -> None:
    world.stats.queue = lambda: (3, 7.5)
    world.stats.unfound = lambda: 2
    world.stats.reachable = lambda: (4, 5)
    report = world.stats.report()
    assert (report["clients_waiting"], report["oldest_wait_seconds"], report["lookups_failing"]) == (3, 7.5, 2)
    assert (report["upstreams_up"], report["upstreams_total"]) == (4, 5)


def test_more_ends_than_sessions_in_a_recovery_file_make_no_negative_crashes(world: World) -> None:
    world.session.ended("client_closed")
    counters = world.stats.counters()
    fresh = Stats(lambda: world.now)
    fresh.restore({**counters, "connections_total": 0}, world.stats.latency_seconds)
    assert fresh.connections_closed["crashed"] == 0


def test_a_session_whose_data_is_a_little_ahead_of_the_clock_is_not_idle(world: World) -> None:
    world.session.client.feed(b"REQ 1\n", round(world.now * SECOND) + 1000)
    world.stats.catch_up()
    assert world.session.idle == 0.0


def test_a_session_is_idle_since_its_last_request_too(world: World) -> None:
    world.client_says(b"REQ 1\n")
    world.server_says(b"ACK 1\n")
    world.now += 5
    world.client_says(b"REQ 2\n")
    world.stats.catch_up()
    world.now += 2
    assert world.session.idle == pytest.approx(2)


@pytest.mark.parametrize(("rejected", "is_noticed"), [(9, False), (10, True)])
def test_ten_rejections_without_an_acceptance_are_noticed(world: World, rejected: int, is_noticed: bool) -> None:
    world.stats.history.begin()
    world.client_says(b"REQ 1\n" * rejected)
    world.server_says(b"NAK 1\n" * rejected)
    assert world.stats.only_naks is is_noticed


@pytest.mark.parametrize(("slow", "delay", "is_slow"), [(3, 1.5, True), (3, 0.8, False), (0, 1.5, False)])
def test_replies_are_slow_from_a_second_on_if_more_than_one_in_a_hundred_is(
    world: World, slow: int, delay: float, is_slow: bool
) -> None:
    world.stats.history.begin()
    world.client_says(b"REQ 1\n" * 100)
    world.server_says(b"ACK 1\n" * (100 - slow))
    world.now += delay
    world.server_says(b"ACK 1\n" * slow)
    assert world.stats.is_slow is is_slow


def test_replies_of_clients_count_as_responses_too(world: World) -> None:
    world.client_says(b"ACK 1\nNAK 1\n")
    world.server_says(b"ACK 1\n")
    assert world.stats.responses == 3
