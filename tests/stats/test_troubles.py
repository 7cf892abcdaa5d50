"""What the statistics say when something is wrong: requests without replies, late replies, stalls, crashes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fooproxy.recovery.saver import Saver
from fooproxy.recovery.state import Recovery
from fooproxy.stats.counters import MANY_NAKS, Stats
from fooproxy.stats.session import SessionStats
from fooproxy.stats.troubles import STUCK_AFTER
from fooproxy.web.exposition import exposition
from tests.helpers.twins import counting

pytestmark = pytest.mark.usefixtures("twin")


class World:
    """Statistics on a clock that a test advances."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.stats = Stats(lambda: self.now, twin=counting())
        self.stats.history.begin()

    def session(self) -> SessionStats:
        return SessionStats(self.stats)

    def ask(self, session: SessionStats, requests: int = 1) -> None:
        session.client.feed(b"REQ 1\n" * requests, round(self.now * 1e6))

    def answer(self, session: SessionStats, replies: int = 1, word: bytes = b"ACK") -> None:
        session.upstream.feed((word + b" 1\n") * replies, round(self.now * 1e6))

    def report(self, name: str) -> Any:
        return self.stats.report()[name]


@pytest.fixture
def world() -> World:
    return World()


def test_a_reply_that_had_to_wait_for_a_slow_client_is_late_and_has_no_latency(world: World) -> None:
    session = world.session()
    world.ask(session, 3)
    session.paused("upstream")
    world.now += 20
    session.resumed("upstream")
    world.answer(session, 3)
    world.ask(session)
    world.now += 0.5
    world.answer(session)
    assert world.report("replies_late") == 3
    latency = world.report("latency_seconds")
    assert (latency["count"], latency["max"]) == (1, 0.5)


def test_late_replies_count_everywhere_else_as_replies(world: World) -> None:
    session = world.session()
    world.ask(session, 3)
    session.resumed("upstream")
    world.now += 1
    world.answer(session, 2)
    report = world.stats.report()
    assert (report["msg_req"], report["msg_ack"], report["responses_unmatched"]) == (3, 2, 0)
    assert (report["requests_in_flight"], session.exchange.in_flight) == (1, 1)
    assert (session.client.req, session.upstream.ack) == (3, 2)
    assert session.exchange.replies == 2
    assert not session.settled
    world.answer(session)
    assert session.settled
    assert world.report("requests_in_flight") == 0


def test_only_the_requests_read_before_the_leg_was_resumed_are_late(world: World) -> None:
    session = world.session()
    world.ask(session)
    world.now += 1
    session.resumed("upstream")
    world.now += 1
    world.ask(session, 2)
    world.now += 1
    world.answer(session, 3)
    assert world.report("replies_late") == 1
    assert world.report("latency_seconds")["count"] == 2
    assert world.report("latency_seconds")["max"] == 1.0


def test_a_client_leg_that_is_resumed_makes_no_reply_late(world: World) -> None:
    session = world.session()
    world.ask(session)
    session.paused("client")
    session.resumed("client")
    world.now += 1
    world.answer(session)
    assert (world.report("replies_late"), world.report("latency_seconds")["count"]) == (0, 1)


def test_a_leg_that_is_resumed_with_nothing_open_changes_nothing(world: World) -> None:
    session = world.session()
    session.resumed("upstream")
    world.answer(session)
    assert (world.report("replies_late"), world.report("responses_unmatched")) == (0, 1)


def test_a_session_with_late_requests_only_is_idle_since_data_last_arrived(world: World) -> None:
    session = world.session()
    world.ask(session)
    world.stats.catch_up()
    world.now += 3
    session.resumed("upstream")
    world.now += 2
    assert session.idle == 5.0


def test_requests_that_are_never_answered_count_by_the_reason_of_the_end(world: World) -> None:
    first, second, third = world.session(), world.session(), world.session()
    world.ask(first, 2)
    world.ask(second)
    world.ask(third)
    world.now += 1
    world.answer(second)
    first.ended("upstream_closed")
    second.ended("client_closed")
    third.ended("client_closed")
    unanswered = {reason: count for reason, count in world.report("requests_unanswered").items() if count}
    assert unanswered == {"upstream_closed": 2, "client_closed": 1}


def test_an_upstream_that_drops_requests_is_noticed_for_ten_seconds(world: World) -> None:
    session, other = world.session(), world.session()
    assert not world.stats.drops_requests
    world.ask(other)
    other.ended("client_reset")
    assert not world.stats.drops_requests
    world.ask(session)
    session.ended("upstream_closed")
    assert world.stats.drops_requests
    world.now += 10
    assert not world.stats.drops_requests


def test_an_upstream_is_stuck_when_requests_wait_and_no_reply_is_read_for_ten_seconds(world: World) -> None:
    session = world.session()
    world.ask(session)
    world.now += STUCK_AFTER - 0.1
    assert world.report("upstream_stuck") == 0
    world.now += 0.1
    assert world.report("upstream_stuck") == 1
    world.answer(session)
    assert world.report("upstream_stuck") == 0


def test_an_upstream_that_answers_somebody_is_not_stuck(world: World) -> None:
    slow, busy = world.session(), world.session()
    world.ask(slow)
    for _ in range(30):
        world.ask(busy)
        world.now += 1
        world.answer(busy)
        assert world.report("upstream_stuck") == 0


def test_one_slow_request_among_others_is_not_exposed_as_a_stuck_upstream(world: World) -> None:
    slow, busy = world.session(), world.session()
    world.ask(slow)
    for expected in (0.0, 1.0):
        world.now += STUCK_AFTER
        if not expected:
            world.ask(busy)
            world.now += 0.001
            world.answer(busy)
        found = exposition(world.stats, True, "text/plain")
        assert found is not None
        assert f"\nfooproxy_upstream_stuck {expected}\n" in found[1].decode()


def test_a_request_after_a_long_silence_does_not_make_the_upstream_stuck(world: World) -> None:
    session = world.session()
    world.ask(session)
    world.now += 0.001
    world.answer(session)
    world.now += 3600
    world.ask(session)
    world.now += 1
    assert world.report("upstream_stuck") == 0


def test_a_reply_that_a_client_forges_does_not_hide_a_stuck_upstream(world: World) -> None:
    session = world.session()
    world.ask(session)
    for _ in range(3):
        world.now += 5
        session.client.feed(b"ACK 1\n", round(world.now * 1e6))
    assert world.report("upstream_stuck") == 1


def test_a_client_that_does_not_read_does_not_make_the_upstream_stuck(world: World) -> None:
    session = world.session()
    world.ask(session)
    session.paused("upstream")
    world.now += 60
    assert world.report("upstream_stuck") == 0
    session.resumed("upstream")
    world.now += 60
    assert world.report("upstream_stuck") == 1


def give_up(world: World, seconds: float, reason: str = "client_closed") -> None:
    """Have a client send a request, wait for so many seconds in vain, and leave."""
    session = world.session()
    world.ask(session)
    world.now += seconds
    session.ended(reason)


def test_clients_that_give_up_and_try_again_do_not_hide_a_stuck_upstream(world: World) -> None:
    for _ in range(3):
        give_up(world, 3)
        assert world.report("upstream_stuck") == 0
    give_up(world, 3)
    assert world.report("upstream_stuck") == 1
    world.ask(session := world.session())
    assert world.report("upstream_stuck") == 1
    world.now += 0.001
    world.answer(session)
    assert world.report("upstream_stuck") == 0


def test_a_stuck_upstream_is_remembered_for_half_a_minute_after_the_last_client_left(world: World) -> None:
    give_up(world, 12)
    world.now += 29
    assert world.report("upstream_stuck") == 1
    world.now += 2
    assert world.report("upstream_stuck") == 0
    # And then it has to be seen again.
    give_up(world, 3)
    assert world.report("upstream_stuck") == 0


def test_clients_that_leave_at_once_or_do_not_read_do_not_make_the_upstream_stuck(world: World) -> None:
    for _ in range(30):
        give_up(world, 0.9)
        slow = world.session()
        world.ask(slow)
        slow.paused("upstream")
        world.now += 5
        slow.ended("client_closed")
        assert world.report("upstream_stuck") == 0


def test_requests_given_up_before_the_last_reply_do_not_make_the_upstream_stuck(world: World) -> None:
    world.ask(busy := world.session())
    hung = world.session()
    world.ask(hung)
    world.now += 20
    world.answer(busy)
    world.now += 2
    hung.ended("client_closed")
    world.now += 9
    assert world.report("upstream_stuck") == 0


@pytest.mark.parametrize("reason", ["half_close_timeout", "idle_timeout", "reply_timeout"])
def test_an_upstream_that_is_silent_until_a_timeout_drops_requests(world: World, reason: str) -> None:
    give_up(world, 3, reason)
    assert world.stats.drops_requests


def test_a_client_that_does_not_read_until_it_is_idle_for_too_long_is_not_dropped(world: World) -> None:
    session = world.session()
    world.ask(session)
    session.paused("upstream")
    session.ended("idle_timeout")
    assert not world.stats.drops_requests


@pytest.mark.parametrize("reason", ["upstream_closed", "upstream_reset"])
def test_an_upstream_that_leaves_at_once_without_a_word_drops_its_clients(world: World, reason: str) -> None:
    pooled = world.session()
    world.now += 60
    pooled.ended(reason)
    world.ask(served := world.session())
    world.now += 0.01
    world.answer(served)
    served.ended(reason)
    assert not world.stats.drops_requests
    assert world.report("upstream_failing") == 0
    world.session().ended(reason)
    assert world.stats.drops_requests
    assert world.report("upstream_failing") == 1


def test_an_upstream_that_rejects_everything_is_noticed(world: World) -> None:
    session = world.session()
    for _ in range(MANY_NAKS):
        assert not world.stats.only_naks
        world.ask(session)
        world.now += 0.5
        world.answer(session, word=b"NAK")
        world.stats.history.record()
    assert world.stats.only_naks
    world.ask(session)
    world.now += 0.1
    world.answer(session)
    assert not world.stats.only_naks
    for _ in range(11):
        world.now += 1
        world.stats.history.record()
        world.ask(session, MANY_NAKS)
        world.now += 0.001
        world.answer(session, MANY_NAKS, word=b"NAK")
    assert world.stats.only_naks


def test_replies_are_exposed_as_the_upstream_sent_them(world: World) -> None:
    session = world.session()
    world.ask(session, 3)
    session.client.feed(b"ACK 7\n", round(world.now * 1e6))
    world.now += 1
    world.answer(session)
    world.answer(session, word=b"NAK")
    assert world.stats.replies == {"ack": 1, "nak": 1}


def exposed(stats: Stats, series: str) -> float:
    text = exposition(stats, True, "text/plain")
    assert text is not None
    (value,) = (line.split()[1] for line in text[1].decode().splitlines() if line.startswith(series + " "))
    return float(value)


def test_what_prometheus_scrapes_starts_from_zero_after_a_crash_and_the_report_goes_on(tmp_path: Path) -> None:
    before, after = World(), World()
    session = before.session()
    before.ask(session, 5)
    before.now += 1
    before.answer(session, 4)
    saver = Saver(tmp_path / "recovery.json")
    saver.write(Recovery(before.stats, saver, lambda: 1e9, 10).state())
    Recovery(after.stats, saver, lambda: 1e9, 10).load()
    assert after.report("msg_req") == 5
    assert after.report("connections_closed")["crashed"] == 1
    assert exposed(after.stats, 'fooproxy_messages_total{type="req"}') == 0
    assert exposed(after.stats, 'fooproxy_connections_closed_total{reason="crashed"}') == 0
    assert exposed(after.stats, "fooproxy_request_duration_seconds_count") == 0
    again = after.session()
    after.ask(again, 2)
    after.now += 1
    after.answer(again)
    assert after.report("msg_req") == 7
    assert exposed(after.stats, 'fooproxy_messages_total{type="req"}') == 2
    assert exposed(after.stats, "fooproxy_request_duration_seconds_count") == 1
    assert exposed(after.stats, "fooproxy_requests_in_flight") == 1
    assert exposed(after.stats, "fooproxy_connections_active") == 1


class Stalled:
    """A process that is stopped for a while, a few milliseconds after the last data was read."""

    def __init__(self, rate: int) -> None:
        self.world = World()
        self.session = self.world.session()
        step = 1 / rate
        for number in range(rate * 2):
            self.world.now += step
            self.world.ask(self.session)
            if number % (rate // 20) == 0:
                self.world.stats.times.sample()
        self.world.now += 0.003
        self.world.now += 1.5

    def wake(self) -> None:
        for _ in range(3):
            self.world.stats.times.sample()
            self.world.now += 0.05


@pytest.mark.parametrize("rate", [100, 10_000])
def test_what_was_read_before_a_stall_belongs_before_it(rate: int) -> None:
    stalled = Stalled(rate)
    stalled.wake()
    assert stalled.world.report("request_rate_1s") == 0.0
    stalled.world.now += 8.5
    stalled.world.stats.times.sample()
    stalled.world.stats.times.sample()
    assert stalled.world.report("request_rate_10s") == 0.0


def test_what_was_read_between_two_stalls_belongs_between_them(world: World) -> None:
    times, session = world.stats.times, world.session()
    times.sample()
    world.now += 0.2
    world.ask(session, 1000)
    # Late, so it is left out: there may be more to read.
    times.sample()
    world.now += 1.5
    times.sample()
    assert world.report("request_rate_1s") == 0.0
    assert world.report("request_rate_10s") == pytest.approx(100.0)


def test_what_is_read_first_after_a_stall_belongs_to_the_stall() -> None:
    stalled = Stalled(100)
    before = stalled.world.stats.msg_req
    # As the poller does it: first the mark, then the batch, then the timers.
    stalled.world.stats.times.mark()
    stalled.world.ask(stalled.session, 1500)
    stalled.wake()
    assert stalled.world.stats.msg_req == before + 1500
    assert stalled.world.report("request_rate_1s") == pytest.approx(900, rel=0.1)


def test_the_exposed_histogram_counts_each_latency_from_its_own_bound_on(world: World) -> None:
    for microseconds in (63, 64, 65, 127, 128, 1 << 26, (1 << 26) + (1 << 22)):
        world.stats.latency.add(microseconds, 1)
    bucket = 'fooproxy_request_duration_seconds_bucket{le="%s"}'
    counts = {bound: exposed(world.stats, bucket % bound) for bound in ("6.4e-05", "0.000128", "0.000256", "67.108864")}
    assert counts == {"6.4e-05": 1, "0.000128": 4, "0.000256": 5, "67.108864": 5}
    assert exposed(world.stats, bucket % "+Inf") == 7


def test_an_upstream_that_rejects_everything_is_noticed_with_few_requests_too_and_forgotten_after_a_minute(
    world: World,
) -> None:
    session = world.session()
    for word in (b"ACK", *[b"NAK"] * MANY_NAKS):
        assert not world.stats.only_naks
        world.ask(session)
        world.now += 0.5
        world.answer(session, word=word)
        for _ in range(5):
            world.now += 1
            world.stats.history.record()
    assert world.stats.only_naks
    assert world.report("upstream_failing") == 1
    for _ in range(54):
        world.now += 1
        world.stats.history.record()
    assert world.stats.only_naks
    world.now += 5
    world.stats.history.record()
    assert not world.stats.only_naks


def test_a_session_says_how_long_its_oldest_request_has_waited_for_the_server(world: World) -> None:
    session = world.session()
    assert session.waited == 0
    world.ask(session)
    world.now += 3
    world.ask(session)
    world.stats.catch_up()
    assert session.waited == 3
    session.paused("upstream")
    assert session.waited == 0
    session.resumed("upstream")
    world.now += 1
    world.answer(session, 2)
    world.stats.catch_up()
    assert session.waited == 0


@pytest.mark.parametrize(("patience", "is_stuck"), [(0.9, 0), (1.0, 1)])
def test_clients_that_wait_for_a_second_before_they_give_up_show_that_the_upstream_is_stuck(
    world: World, patience: float, is_stuck: int
) -> None:
    for _ in range(12):
        session = world.session()
        world.ask(session)
        world.now += patience
        session.ended("client_closed")
    assert world.report("upstream_stuck") == is_stuck
