"""The pump relays batches by file descriptor, and says when each chunk came."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet import main

from fooproxy.pump import CLOSED, IN, Pump


class Tap:
    """Keeps what it is shown."""

    def __init__(self, outlet: int) -> None:
        self.waiting: list[Any] = []
        self.outlet = outlet

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
        self.pump = Pump(self.look, lambda: next(ticks))
        self.requests, self.replies = Tap(self.upstream_leg.fileno()), Tap(self.client_leg.fileno())
        self.sinks: list[Any] = [Sink(), Sink()]
        self.pump.start(self.client_leg.fileno(), self.sinks[0], self.requests)
        self.pump.start(self.upstream_leg.fileno(), self.sinks[1], self.replies)
        self.answer = b""

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


def test_what_is_read_after_a_write_has_a_later_time_for_it_may_be_the_reply(case: Case) -> None:
    case.answer = b"ACK 1\n"
    case.server.sendall(b"ACK 0\n")
    case.client.sendall(b"REQ 1 " + b"x" * 5000 + b"\n")
    case.relay(7)
    assert case.requests.times() == [(b"REQ 1", 7)]
    ((_, time),) = case.replies.times()
    assert time > 7
    assert case.client.recv(100) == b"ACK 0\nACK 1\n"


def test_what_cannot_be_done_at_once_is_given_back_ends_first(case: Case) -> None:
    case.requests.outlet = CLOSED
    case.client.sendall(b"REQ 1\n")
    case.server.close()
    client, upstream = case.client_leg.fileno(), case.upstream_leg.fileno()
    others, stuck = case.pump.relay([(99, IN), (client, IN | 4), (upstream, IN), (client, IN)], 7)
    assert others == [(upstream, IN, main.CONNECTION_DONE), (99, IN, None), (client, IN | 4, None)]
    assert stuck == [(case.sinks[0], b"REQ 1\n")]


def test_what_is_not_relayed_any_more_is_not_read(case: Case) -> None:
    case.pump.stop(case.client_leg.fileno())
    case.client.sendall(b"REQ 1\n")
    others, stuck = case.relay(7)
    assert (others, stuck) == ([(case.client_leg.fileno(), IN, None)], [])
    assert case.sinks[0].inflow is None
    assert case.sinks[1].inflow is case.replies
