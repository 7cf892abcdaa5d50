"""The compiled pump relays the batches that follow without Python, and leaves to it what it cannot do."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet import main

from fooproxy.net.poller import Poller
from fooproxy.net.pump import IN, compiled, microseconds
from tests.net.test_poller_turns import Unsendable
from tests.net.test_pump import Case

pytestmark = pytest.mark.parametrize("twin", ["compiled"], indirect=True)

LONG = 1 << 40


class Further(Case):
    """The same, polled by an epoll; its server answers each request before the next poll."""

    def __init__(self) -> None:
        super().__init__()
        self.epoll = select.epoll()
        self.watch(self.client_leg)
        self.watch(self.upstream_leg)
        self.step = 10
        self.works = 1 << 30
        """How often the clock works, before it fails once."""
        self.answers = 0

    def watch(self, skt: Any) -> None:
        self.epoll.register(skt.fileno(), IN)

    def clock(self) -> int:
        if not self.works:
            self.works = 1 << 30
            raise MemoryError
        self.works -= 1
        self.now += self.step
        # What was relayed before is answered.
        if self.answers:
            self.answers -= 1
            self.server.sendall(b"ACK 1\n")
            self.client.sendall(b"REQ 1\n")
        return self.now

    def go_on(self, last: int = 1000, end: int = LONG, silence: int = LONG) -> Any:
        return self.pump.go_on(self.epoll.fileno(), 64, 1, last, end, silence)


@pytest.fixture
def case(twin: str) -> Iterator[Further]:
    case = Further()
    yield case
    case.epoll.close()
    case.close()


def test_batches_are_relayed_and_counted_until_there_are_no_more(case: Further) -> None:
    case.answers = 5
    case.client.sendall(b"REQ 1\n")
    assert case.go_on() == ([], [], case.now)
    assert case.server.recv(1000) == b"REQ 1\n" * 6
    assert case.client.recv(1000) == b"ACK 1\n" * 5
    assert (case.latency.in_flight, case.latency.unmatched) == (1, 0)
    assert case.latency.answered.count == 5


def test_without_events_it_returns_at_once_with_the_time_it_was_given(case: Further) -> None:
    assert case.go_on(last=77) == ([], [], 77)


def test_without_a_clock_of_ours_it_reads_the_usual_one(case: Further) -> None:
    pump = compiled(lambda: None, microseconds)
    pump.start(case.client_leg.fileno(), case.sinks[0], case.requests)
    case.requests.outlet = case.upstream_leg.fileno()
    case.client.sendall(b"REQ 1\n")
    before = microseconds()
    _, _, now = pump.go_on(case.epoll.fileno(), 64, 0, 1, LONG, LONG)
    assert before <= now <= microseconds()
    assert case.latency.seen == now


def test_a_batch_with_anything_else_is_left_to_the_next_poll(case: Further) -> None:
    case.pump.stop(case.upstream_leg.fileno())
    case.client.sendall(b"REQ 1\n")
    case.server.sendall(b"ACK 1\n")
    assert case.go_on(last=77) == ([], [], 77)
    assert sorted(case.epoll.poll(0)) == sorted([(case.client_leg.fileno(), IN), (case.upstream_leg.fileno(), IN)])
    assert case.client_leg.recv(100) == b"REQ 1\n"


def test_the_end_of_a_connection_is_returned_after_what_came_before(case: Further) -> None:
    case.client.sendall(b"REQ 1\n")
    case.client.shutdown(socket.SHUT_WR)
    ends, stuck, _ = case.go_on()
    assert ends == [(case.client_leg.fileno(), IN, main.CONNECTION_DONE)]
    assert not stuck
    assert case.server.recv(100) == b"REQ 1\n"


def test_it_returns_when_the_time_is_over(case: Further) -> None:
    case.answers = 50
    case.client.sendall(b"REQ 1\n")
    _, _, now = case.go_on(end=1045)
    assert now == 1050
    assert case.answers == 45


def test_it_returns_before_a_batch_that_comes_after_a_silence(case: Further) -> None:
    case.step = 500
    case.client.sendall(b"REQ 1\n")
    assert case.go_on(silence=499) == ([], [], 1000)
    assert case.client_leg.recv(100) == b"REQ 1\n"


def test_what_cannot_be_written_is_returned(case: Further) -> None:
    case.requests.outlet = -1
    case.client.sendall(b"REQ 1\n")
    ends, stuck, _ = case.go_on()
    assert not ends
    assert stuck == [(case.sinks[0], b"REQ 1\n", None)]


def test_the_batch_that_failed_is_known_to_who_gives_it_up(case: Further) -> None:
    case.client.sendall(b"REQ 1 " + b"x" * 5000 + b"\n")
    case.requests.room = 1 << 16
    # The clock is read before the batch, and again after a large chunk.
    case.works = 1
    with pytest.raises(MemoryError):
        case.go_on()
    assert case.pump.batch() == [(case.client_leg.fileno(), IN)]


@pytest.mark.parametrize("arguments", [(), (1, 2), ("epoll", 64, 1, 1, 1, 1)])
def test_wrong_arguments_are_refused(case: Further, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        case.pump.go_on(*arguments)


def test_a_clock_that_fails_ends_it_and_leaves_it_usable(case: Further) -> None:
    case.works = 0
    case.client.sendall(b"REQ 1\n")
    with pytest.raises(MemoryError):
        case.go_on()
    # It had not been read.
    assert case.pump.batch() == []
    assert case.go_on() == ([], [], 1010)
    assert case.server.recv(100) == b"REQ 1\n"


def polling(pump: Any, clock: Any, epoll: Any) -> Poller:
    """Make a poller of a reactor that does nothing."""
    stub: Any = SimpleNamespace(callLater=lambda *_: None, addReader=lambda reader: None)
    poller = Poller(stub, 0.001, clock=clock, pump=lambda look, clock: pump)
    poller._epoll = epoll
    return poller


def test_the_poller_uses_it_and_does_what_is_due_each_turn_once(case: Further) -> None:
    poller = polling(case.pump, case.clock, case.epoll)
    case.answers = 5
    case.client.sendall(b"REQ 1\n")
    turns: list[int] = []
    poller.each_turn.append(lambda: turns.append(case.answers))
    poller.doRead()
    assert case.client.recv(1000) == b"ACK 1\n" * 5
    # After the first batch of the turn, and no other.
    assert turns == [4]


def test_the_poller_does_not_use_it_if_something_must_be_called_after_each_batch(case: Further) -> None:
    poller = polling(case.pump, case.clock, case.epoll)
    case.answers = 5
    case.client.sendall(b"REQ 1\n")
    batches: list[int] = []
    poller.afterwards.append(lambda: batches.append(case.answers))
    poller.doRead()
    assert case.client.recv(1000) == b"ACK 1\n" * 5
    assert batches == [4, 3, 2, 1, 0, 0]


@pytest.mark.parametrize(("delay", "answers"), [(None, 50), (600.0, 50), (0.02, 20)])
def test_in_the_reactors_place_the_poller_relays_until_the_next_timer_or_for_50_milliseconds(
    case: Further, delay: float | None, answers: int
) -> None:
    poller = polling(case.pump, case.clock, case.epoll)
    case.step = 1000

    def begin() -> None:
        case.answers = 100
        case.client.sendall(b"REQ 2\n")

    case.client.sendall(b"REQ 1\n")
    poller.each_turn.append(begin)
    poller.iterate(delay)
    assert abs(100 - case.answers - answers) <= 2


class Selectable:
    """Stands for a connection and for its sink, and remembers what happened to it."""

    disconnecting = False

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.happened: list[Any] = []

    def fileno(self) -> int:
        return self.fd

    def doRead(self) -> None:
        os.read(self.fd, 100)
        self.happened.append("read")

    def write(self, data: bytes) -> None:
        self.happened.append(data)

    def readConnectionLost(self, reason: Any) -> None:
        self.happened.append(reason.type)

    def give_up(self) -> bool:
        self.happened.append("given up")
        return True


class Scripted:
    """A pump that reads the one socket there is, and then does `further`."""

    def __init__(self, further: Callable[[], Any]) -> None:
        self.further = further
        self.events: list[tuple[int, int]] = []

    def relay(self, events: list[tuple[int, int]], now: int) -> Any:
        self.events = events
        for fd, _ in events:
            os.read(fd, 100)
        return [], []

    def go_on(self, *_: int) -> Any:
        return self.further()

    def batch(self) -> list[tuple[int, int]]:
        return self.events


def happened(case: Further, further: Callable[[Selectable], Any]) -> list[Any]:
    """Return what happens to the client leg when further batches bring `further`."""
    leg = Selectable(case.client_leg.fileno())
    case.epoll.unregister(leg)
    poller = polling(Scripted(lambda: further(leg)), lambda: 1, case.epoll)
    poller.addReader(leg)
    case.client.send(b"x")
    poller.doRead()
    return leg.happened


def test_the_poller_sends_what_further_batches_could_not_and_ends_connections_after_that(case: Further) -> None:
    done = main.CONNECTION_DONE
    assert happened(case, lambda leg: ([(leg.fd, IN, done)], [(leg, b"rest", None)], 2)) == [b"rest", type(done)]


def test_if_a_further_batch_fails_the_poller_gives_up_its_connections(case: Further) -> None:
    def fail(leg: Selectable) -> Any:
        raise MemoryError

    assert happened(case, fail) == ["given up"]
    assert happened(case, lambda leg: ([], Unsendable(), 2)) == ["given up"]


class Mixed(Scripted):
    """The same, but the first batch brings an event that is not the pump's."""

    def relay(self, events: list[tuple[int, int]], now: int) -> Any:
        if not self.events:
            self.events = events
            return [(fd, event, None) for fd, event in events], []
        return super().relay(events, now)


@pytest.mark.parametrize(("patience", "goes_on"), [(0.0, False), (0.001, True)])
def test_without_patience_the_poller_does_not_use_it_after_what_may_have_given_the_reactor_something_to_do(
    case: Further, patience: float, goes_on: bool
) -> None:
    asked: list[bool] = []

    def further() -> Any:
        asked.append(True)
        return [], [], 2

    leg = Selectable(case.client_leg.fileno())
    case.epoll.unregister(leg)
    poller = polling(Mixed(further), lambda: 1, case.epoll)
    poller.patience = patience
    poller.addReader(leg)
    poller.each_turn.append(lambda: case.client.sendall(b"y"))
    case.client.send(b"x")
    poller.iterate(600.0)
    assert (leg.happened, bool(asked)) == (["read"], goes_on)
