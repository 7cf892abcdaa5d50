"""Comparing the seqs of replies with those of requests, whatever passes and however it is cut."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fooproxy.foo.latency import Latency
from fooproxy.foo.pairing import Pairs
from tests.foo.test_analyzer import NEARLY, WELL_FORMED
from tests.helpers.twins import counting, each_twin, twin

__all__ = ["twin"]

LINES = st.lists(WELL_FORMED | NEARLY | st.binary(max_size=5), max_size=8).map(b"".join)
CUTS = st.lists(st.integers(0, 200), max_size=6)


class Legs:
    """A session whose seqs are compared."""

    def __init__(self) -> None:
        total = Latency()
        self.requests = counting().Analysis(total, True)
        self.replies = counting().Analysis(total, False, self.requests)
        self.exchange = counting().Exchange(total)
        self.requests.pair(self.exchange)
        self.client = counting().Analyzer(self.requests, self.exchange)
        self.upstream = counting().Analyzer(self.replies, self.exchange)

    def unpaired(self, requests: bytes, replies: bytes) -> Any:
        self.client.feed(requests, 1)
        self.upstream.feed(replies, 2)
        self.replies.catch_up()
        return self.exchange.unpaired


@pytest.mark.usefixtures("twin")
@pytest.mark.parametrize(
    ("requests", "replies"),
    [
        (b"REQ 1\n", b"ACK 1\n"),
        (b"REQ 1 x\nREQ 2\n", b"NAK 1 ERR\nACK 2 y z\n"),
        (b"REQ 1\nREQ 2\n", b"ACK 2\nACK 1\n"),
        (b"REQ 007\nREQ  +8\r\n", b"ACK 7\nACK 8\n"),
        (b"REQ -3\n", b"ACK\t-3\n"),
        (b"REQ 5\nREQ 5\n", b"ACK 5\nACK 5\n"),
        (b"REQ 1234567890123456789012\n", b"ACK 1234567890123456789012\n"),
        (b"REQ 1\nREQ ", b"ACK 1\nAC"),
    ],
)
def test_replies_with_the_seqs_of_the_requests_belong_to_them(requests: bytes, replies: bytes) -> None:
    assert Legs().unpaired(requests, replies) == 0


@pytest.mark.usefixtures("twin")
@pytest.mark.parametrize(
    ("requests", "replies"),
    [
        (b"REQ 1\n", b"ACK 999 unasked\n"),
        (b"REQ 1\n", b"ACK 2\n"),
        (b"REQ 3\n", b"ACK -3\n"),
        (b"REQ 3\nREQ 4\n", b"ACK 2\nACK 5\n"),
        (b"REQ 5\nREQ 5\n", b"ACK 5\nACK 6\n"),
        (b"REQ 1\n", b"ACK 1 x\nACK 1 x\n"),
        (b"REQ 1\n", b"what do you mean\n"),
    ],
)
def test_replies_with_other_seqs_do_not(requests: bytes, replies: bytes) -> None:
    assert Legs().unpaired(requests, replies) != 0


@pytest.mark.usefixtures("twin")
def test_a_line_that_was_taken_back_is_not_compared() -> None:
    legs = Legs()
    legs.unpaired(b"REQ 1\nREQ 17", b"ACK 1\n")
    legs.client.take_back(6)
    assert legs.unpaired(b"REQ 3\n", b"ACK 3\n") == 0


@pytest.mark.usefixtures("twin")
def test_nothing_is_compared_unless_that_is_asked_for() -> None:
    legs = Legs()
    legs.exchange = counting().Exchange(Latency())
    legs.client = counting().Analyzer(legs.requests, legs.exchange)
    legs.upstream = counting().Analyzer(legs.replies, legs.exchange)
    assert legs.unpaired(b"REQ 1\n", b"ACK 2\n") == 0
    legs.unpaired(b"REQ 17", b"")
    legs.client.take_back(6)


@given(LINES, CUTS, LINES, CUTS)
def test_it_makes_no_difference_how_the_streams_are_cut(
    requests: bytes, cuts: list[int], replies: bytes, others: list[int]
) -> None:
    whole = Pairs()
    whole.feed(True, requests)
    whole.feed(False, replies)
    for _ in each_twin():
        legs = Legs()
        for leg, stream, places in ((legs.client, requests, cuts), (legs.upstream, replies, others)):
            begin = 0
            for end in (*sorted(places), len(stream)):
                leg.feed(stream[begin:end], 1)
                begin = max(begin, end)
        legs.replies.catch_up()
        assert legs.exchange.unpaired == whole.unpaired
