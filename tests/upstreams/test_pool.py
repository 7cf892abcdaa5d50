"""The pool by itself: which links it lends, how long it keeps them, and how it counts them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from twisted.internet.task import Clock

from fooproxy.upstreams.pool import Limits, Links


class Stats:
    def __init__(self) -> None:
        self.links_taken = self.links_reused = 0
        self.links_discarded: Counter[str] = Counter()


class Link:
    """A link whose connection ends when it is closed, unless that must wait for its peer."""

    expires = idle_since = 0.0
    seen = 0
    is_quiet = True
    is_clean = True

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.told: list[str] = []

    def lend(self, factory: Any) -> None:
        self.told.append("lend")

    def rest(self) -> None:
        self.told.append("rest")

    def close(self, why: str, at_once: bool = False) -> None:
        self.told.append(f"{why} at once" if at_once else why)
        self.pool.links.lost(self, why)

    def abort(self) -> None:
        self.told.append("abort")

    def let_go(self) -> bool:
        """As a session does: give the link back if it is clean."""
        if self.is_clean:
            self.pool.links.give_back(self)
        return self.is_clean


class Pool:
    def __init__(self, **limits: float) -> None:
        self.clock = Clock()
        self.stats = Stats()
        stats: Any = self.stats
        self.links = Links(self.clock, Limits(**limits), stats)
        self.freed: list[float] = []
        self.links.when_free = lambda: self.freed.append(self.clock.seconds())

    def made(self) -> Any:
        link = Link(self)
        self.links.made(link)
        return link

    def idle(self) -> Any:
        link = self.made()
        self.links.give_back(link)
        return link


@pytest.fixture
def pool() -> Pool:
    return Pool(idle=60.0)


def test_the_link_that_was_given_back_last_is_lent_first(pool: Pool) -> None:
    first, second = pool.idle(), pool.idle()
    assert [pool.links.take(), pool.links.take(), pool.links.take()] == [second, first, None]
    assert (pool.stats.links_taken, pool.stats.links_reused) == (4, 2)


def test_a_link_on_which_something_waits_is_not_lent(pool: Pool) -> None:
    good, bad = pool.idle(), pool.idle()
    bad.is_quiet = False
    assert pool.links.take() is good
    assert bad.told == ["rest", "closed at once"]
    assert pool.links.open == {good}
    assert pool.stats.links_discarded == {"closed": 1}


@pytest.mark.parametrize(("later", "kept"), [(59.9, True), (60.0, False)])
def test_a_link_that_was_idle_for_too_long_is_not_lent(pool: Pool, later: float, kept: bool) -> None:
    link = pool.idle()
    pool.clock.rightNow += later
    assert (pool.links.take() is link) == kept
    assert pool.stats.links_discarded == ({} if kept else {"idle": 1})


def test_a_link_that_is_too_old_is_neither_lent_nor_kept() -> None:
    pool = Pool(age=100.0, idle=1000.0)
    idle, lent = pool.idle(), pool.made()
    pool.clock.rightNow += 100
    assert pool.links.take() is None
    pool.links.give_back(lent)
    assert pool.links.idle == []
    assert (idle.told[1:], lent.told[1:]) == (["age at once"], ["age"])
    assert pool.freed == [0.0]


def test_links_that_are_made_together_do_not_end_together() -> None:
    pool = Pool(age=100.0)
    ages = {pool.made().expires for _ in range(20)}
    assert len(ages) == 20
    assert min(ages) >= 80
    assert max(ages) <= 100


def test_idle_links_are_looked_for_and_closed_for_as_long_as_there_are_any(pool: Pool) -> None:
    first = pool.idle()
    pool.clock.advance(30)
    second = pool.idle()
    pool.clock.pump([1.0] * 29)
    assert pool.links.idle == [first, second]
    pool.clock.advance(1)
    assert pool.links.idle == [second]
    pool.clock.pump([1.0] * 30)
    assert pool.links.idle == []
    assert pool.stats.links_discarded == {"idle": 2}
    assert pool.clock.getDelayedCalls() == []


def test_beyond_the_most_that_are_kept_the_one_that_was_idle_for_longest_is_closed(pool: Pool) -> None:
    links = [pool.idle() for _ in range(1025)]
    assert links[0].told == ["rest", "surplus"]
    assert pool.links.idle == links[1:]


def test_whoever_waits_is_told_of_a_link_that_is_free(pool: Pool) -> None:
    pool.clock.advance(3)
    pool.idle()
    assert pool.freed == [3]


def test_states_tell_links_in_use_from_idle_and_draining_ones(pool: Pool) -> None:
    pool.idle()
    _, lent, draining = pool.made(), pool.made(), pool.made()
    pool.links.linger(lent, lent.let_go)
    pool.links.drains(draining)
    assert pool.links.states == {"idle": 1, "in_use": 2, "draining": 1}
    # One that lingers is as good as idle.
    assert pool.links.lent == 2
    pool.links.give_back(draining)
    assert pool.links.states == {"idle": 2, "in_use": 2, "draining": 0}


def test_a_link_that_ends_is_forgotten_in_whatever_state_it_is(pool: Pool) -> None:
    idle, draining, lingering = pool.idle(), pool.made(), pool.made()
    pool.links.drains(draining)
    pool.links.linger(lingering, lingering.let_go)
    for link in (idle, draining, lingering):
        pool.links.lost(link, "closed")
    assert pool.links.states == {"idle": 0, "in_use": 0, "draining": 0}
    assert pool.links.lent == 0
    assert not pool.links.has_any
    assert pool.stats.links_discarded == {"closed": 3}


# Lingering


def test_a_link_lingers_for_one_or_two_moments_and_is_then_given_back(pool: Pool) -> None:
    link = pool.made()
    assert pool.links.linger(link, link.let_go)
    pool.clock.advance(0.005)
    assert pool.links.idle == []
    pool.clock.advance(0.005)
    assert pool.links.idle == [link]
    assert pool.links.lingering == {}


def test_a_link_that_is_used_again_meanwhile_lingers_anew(pool: Pool) -> None:
    link = pool.made()
    for _ in range(5):
        pool.links.linger(link, link.let_go)
        pool.clock.advance(0.005)
    assert pool.links.idle == []


def test_one_that_is_busy_again_is_left_to_its_session(pool: Pool) -> None:
    link = pool.made()
    link.is_clean = False
    pool.links.linger(link, link.let_go)
    pool.clock.pump([0.005] * 3)
    assert (pool.links.idle, pool.links.lingering, pool.links.lent) == ([], {}, 1)
    assert pool.clock.getDelayedCalls() == []


def test_one_that_grows_too_old_while_it_is_used_again_and_again_is_given_back() -> None:
    pool = Pool(age=1.0)
    link = pool.made()
    for _ in range(201):
        if link in pool.links.open:
            pool.links.linger(link, link.let_go)
        pool.clock.advance(0.005)
    assert pool.stats.links_discarded == {"age": 1}


@pytest.mark.parametrize("why", ["needed", "closing"])
def test_no_link_lingers_while_others_need_it_or_the_proxy_stops(pool: Pool, why: str) -> None:
    link = pool.made()
    pool.links.linger(link, link.let_go)
    if why == "needed":
        pool.links.are_needed = lambda: True
    else:
        pool.links.close()
    assert not pool.links.linger(link, link.let_go)
    assert pool.links.lingering == {}


def test_a_link_that_lingers_is_taken_from_its_session_if_none_is_idle(pool: Pool) -> None:
    busy, clean = pool.made(), pool.made()
    busy.is_clean = False
    pool.links.linger(clean, clean.let_go)
    pool.links.linger(busy, busy.let_go)
    assert pool.links.has_any
    assert pool.links.take() is clean
    assert pool.links.lent == 2


def test_all_that_linger_can_be_given_back_at_once(pool: Pool) -> None:
    links = [pool.made() for _ in range(3)]
    for link in links:
        pool.links.linger(link, link.let_go)
    pool.links.end_lingering()
    assert set(pool.links.idle) == set(links)


# Held, stopped


def test_a_server_that_an_operator_holds_keeps_no_links(pool: Pool) -> None:
    idle, lingering, lent = pool.idle(), pool.made(), pool.made()
    pool.links.linger(lingering, lingering.let_go)
    pool.links.hold(True)
    pool.links.give_back(lent)
    assert [link.told[-1] for link in (idle, lingering, lent)] == ["held"] * 3
    pool.links.hold(False)
    assert pool.idle() in pool.links.idle


def test_a_stop_closes_idle_links_at_once_and_the_others_as_they_are_given_back(pool: Pool) -> None:
    idle, lent, lingering = pool.idle(), pool.made(), pool.made()
    pool.links.linger(lingering, lingering.let_go)
    pool.links.close()
    assert (idle.told, lent.told) == (["rest", "stopped"], [])
    assert pool.clock.getDelayedCalls() == []
    pool.links.give_back(lent)
    assert lent.told == ["rest", "stopped"]


def test_a_link_whose_peer_does_not_let_it_close_is_aborted_in_the_end(pool: Pool) -> None:
    waiting, closed = pool.made(), pool.made()
    for link in (waiting, closed):
        pool.links.let_go_of(link)
    pool.links.lost(closed, "closed")
    pool.clock.advance(10)
    assert (waiting.told, closed.told) == (["abort"], [])
    pool.links.lost(waiting, "closed")


def test_a_link_that_speaks_while_it_is_idle_is_closed_once(pool: Pool) -> None:
    link = pool.idle()
    pool.links.discard(link, "unsolicited")
    assert pool.links.idle == []
    assert pool.stats.links_discarded == {"unsolicited": 1}
