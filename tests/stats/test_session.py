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
