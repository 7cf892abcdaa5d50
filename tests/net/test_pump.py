"""The pump relays batches by file descriptor, and says when each chunk came."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet import main

from fooproxy.net.pump import CLOSED, IN, LARGEST_READ, SMALLEST_READ, Pump

NOBODYS = 1 << 30
"""A file descriptor that nothing here has open, however many have been opened before."""


class Tap:
    """Keeps what it is shown."""

    def __init__(self, outlet: int) -> None:
        self.waiting: list[Any] = []
        self.outlet = outlet
        self.room = 0

    def feed(self, chunk: bytes, time: int) -> None:
        """Do nothing: pumps do not call this."""

    def times(self) -> list[tuple[bytes, int]]:
        return [(chunk[:5], time) for _, chunk, time in self.waiting]


class Sink:
    """Stands for the transport that is written to."""

    inflow = None


class Case:
    """A session's four sockets: a pump between the proxy's two, and the peers of both."""

    def __init__(self) -> None:
        self.client, self.client_leg = socket.socketpair()
        self.server, self.upstream_leg = socket.socketpair()
        self.client_leg.setblocking(False)
        self.upstream_leg.setblocking(False)
        ticks = itertools.count(1000)
        self.requests, self.replies = Tap(self.upstream_leg.fileno()), Tap(self.client_leg.fileno())
        self.sinks: list[Any] = [Sink(), Sink()]
        self.answer = b""
        self.use_clock(lambda: next(ticks))

    def use_clock(self, clock: Callable[[], int]) -> None:
        self.pump = Pump(self.look, clock)
        self.pump.start(self.client_leg.fileno(), self.sinks[0], self.requests)
        self.pump.start(self.upstream_leg.fileno(), self.sinks[1], self.replies)

    def look(self) -> None:
        """Be a server that answers at once, whenever the pump has written."""
        if self.answer:
            self.server.recv(1 << 16)
            self.server.sendall(self.answer)
            self.answer = b""

    def relay(self, now: int) -> Any:
        return self.pump.relay([(self.client_leg.fileno(), IN), (self.upstream_leg.fileno(), IN)], now)

    def close(self) -> None:
        for skt in (self.client, self.client_leg, self.server, self.upstream_leg):
            skt.close()


@pytest.fixture
def case() -> Iterator[Case]:
    case = Case()
    yield case
    case.close()


def test_what_a_batch_brought_is_relayed_and_shown_with_the_batchs_time(case: Case) -> None:
    case.client.sendall(b"REQ 1\n")
    case.server.sendall(b"ACK 0\n")
    assert case.relay(7) == ([], [])
    assert case.server.recv(100) == b"REQ 1\n"
    assert case.client.recv(100) == b"ACK 0\n"
    assert (case.requests.times(), case.replies.times()) == ([(b"REQ 1", 7)], [(b"ACK 0", 7)])


@pytest.mark.parametrize("clock", [lambda: 1000, lambda: 7], ids=["a clock", "a clock that stands still"])
def test_what_is_read_after_a_write_has_a_later_time_for_it_may_be_the_reply(case: Case, clock: Any) -> None:
    case.use_clock(clock)
    case.answer = b"ACK 1\n"
    case.server.sendall(b"ACK 0\n")
    case.client.sendall(b"REQ 1 " + b"x" * 5000 + b"\n")
    case.requests.room = 1 << 16
    client, upstream = case.client_leg.fileno(), case.upstream_leg.fileno()
    case.pump.relay([(upstream, IN), (client, IN), (upstream, IN)], 7)
    assert case.requests.times() == [(b"REQ 1", 7)]
    assert case.replies.times() == [(b"ACK 0", 7), (b"ACK 1", max(clock(), 8))]
    assert case.client.recv(100) == b"ACK 0\nACK 1\n"


def test_what_cannot_be_done_at_once_is_given_back_ends_first(case: Case) -> None:
    case.requests.outlet = CLOSED
    case.client.sendall(b"REQ 1\n")
    case.server.close()
    client, upstream = case.client_leg.fileno(), case.upstream_leg.fileno()
    others, stuck = case.pump.relay([(NOBODYS, IN), (client, IN | 4), (upstream, IN), (client, IN)], 7)
    assert others == [(upstream, IN, main.CONNECTION_DONE), (NOBODYS, IN, None), (client, IN | 4, None)]
    assert stuck == [(case.sinks[0], b"REQ 1\n")]


def test_what_is_not_relayed_any_more_is_not_read(case: Case) -> None:
    case.pump.stop(case.client_leg.fileno())
    case.client.sendall(b"REQ 1\n")
    others, stuck = case.relay(7)
    assert (others, stuck) == ([(case.client_leg.fileno(), IN, None)], [])
    assert case.sinks[0].inflow is None
    assert case.sinks[1].inflow is case.replies


# How much is asked for at once


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What each read asked for."""
    read, sizes = os.read, []

    def reading(fd: int, size: int) -> bytes:
        sizes.append(size)
        return read(fd, size)

    monkeypatch.setattr(os, "read", reading)
    return sizes


def pass_on(case: Case, asked: list[int], data: bytes) -> int:
    """Have the pump relay `data` from the client, and check that it arrives; give how many reads that took."""
    asked.clear()
    received = b""
    # Part by part: the sockets hold some hundred KB each.
    for start in range(0, len(data), 1 << 16):
        case.client.sendall(data[start : start + (1 << 16)])
        end = min(start + (1 << 16), len(data))
        while len(received) < end:
            others, stuck = case.pump.relay([(case.client_leg.fileno(), IN)], 7)
            assert (others, stuck) == ([], [])
            received += case.server.recv(1 << 20)
    assert received == data
    return len(asked)


def test_bulk_is_read_in_ever_larger_pieces_up_to_a_bound(case: Case, asked: list[int]) -> None:
    assert pass_on(case, asked, bytes(1 << 16)) == 3
    assert asked == [SMALLEST_READ, 8 * SMALLEST_READ, 64 * SMALLEST_READ]
    assert asked[-1] == LARGEST_READ
    # Socket pairs do not hold what fills such a read; one that is filled asks for no more than that.
    case.requests.room = 1 << 16
    pass_on(case, asked, bytes(1 << 16))
    assert case.requests.room == LARGEST_READ


def test_small_messages_are_soon_read_by_small_reads_and_a_large_one_by_large_reads_again(
    case: Case, asked: list[int]
) -> None:
    pass_on(case, asked, bytes(1 << 16))
    for _ in range(1000):
        assert pass_on(case, asked, b"REQ 1 a message\n") == 1
    assert asked == [SMALLEST_READ]
    assert pass_on(case, asked, bytes(1 << 16)) == 3
    assert pass_on(case, asked, bytes(1 << 16)) == 1


def test_of_many_bulk_transfers_each_is_read_a_fair_share_at_a_time(case: Case, asked: list[int]) -> None:
    many, few = [(NOBODYS, IN)] * 40, [(NOBODYS, IN)] * 7
    rooms = ((1 << 15, many, 1 << 16), (1 << 16, many, 1 << 16), (1 << 18, many, 1 << 16), (1 << 16, few, 1 << 17))
    for room, others, then in rooms:
        case.client.sendall(bytes(1 << 16))
        case.requests.room = room
        case.pump.relay([(case.client_leg.fileno(), IN), *others], 7)
        assert asked.pop() == min(room, then)
        assert case.requests.room == then
        case.pump.relay([(case.client_leg.fileno(), IN)], 7)
        case.server.recv(1 << 20)


def test_the_short_pieces_of_messages_do_not_have_the_long_ones_cut(case: Case, asked: list[int]) -> None:
    pieces = [b"REQ 1", b" " + bytes(10_000), b"\n"] * 500
    reads = sum(pass_on(case, asked, piece) for piece in pieces)
    assert len(pieces) <= reads < 1.02 * len(pieces)


def test_messages_of_one_size_are_read_whole(case: Case, asked: list[int]) -> None:
    pass_on(case, asked, bytes(1 << 16))
    for size in (600, 5000, 40_000):
        pass_on(case, asked, bytes(size))
        # Or of sizes that are not far apart.
        sizes = [size, size // 4 + size // 64 + 1] * 500
        assert [pass_on(case, asked, bytes(size)) for size in sizes] == [1] * 1000
