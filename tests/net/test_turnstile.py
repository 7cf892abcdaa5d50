"""The turnstile: what a turn of the event loop accepts is bounded in time, on a fake port and on real ones."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock

from fooproxy.net.turns import SHARE
from fooproxy.net.turnstile import Turnstile
from tests.helpers.anybed import KINDS, AnyBed, any_bed
from tests.helpers.bed import until

# Twisted causes this pyOpenSSL warning, not our code.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


class Port:
    """A port and its socket in one: accepts `waiting` connections in each turn, and takes `cost` seconds for each."""

    def __init__(self, clock: Clock, waiting: int, cost: float) -> None:
        self.socket: Any = self
        self._clock, self.waiting, self._cost = clock, waiting, cost
        self.accepted = 0
        self.reading, self.closed = True, False

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True

    def close(self) -> None:
        self.closed = True

    def accept(self) -> Any:
        if not self.waiting:
            raise BlockingIOError(errno.EAGAIN, "nobody")
        self.waiting -= 1
        return "client", "address"

    def getsockname(self) -> str:
        return "the socket's own"

    def doRead(self) -> None:
        self.accepted = 0
        while True:
            try:
                self.socket.accept()
            except BlockingIOError as error:
                assert error.errno == errno.EAGAIN
                return
            self.accepted += 1
            self._clock.advance(self._cost)


def port_with(waiting: int, cost: float, clock: Clock | None = None, rest: float = 0.0) -> Port:
    clock = clock or Clock()
    port = Port(clock, waiting, cost)
    Turnstile(port, clock, rest)
    return port


def test_a_turn_accepts_no_more_than_its_time_allows_and_the_next_turn_goes_on() -> None:
    port = port_with(waiting=25, cost=SHARE / 10)
    turns = []
    while port.waiting:
        port.doRead()
        turns.append(port.accepted)
    assert turns == [10, 10, 5]


def test_a_connection_that_alone_takes_longer_than_a_turn_may_is_accepted() -> None:
    port = port_with(waiting=3, cost=100 * SHARE)
    port.doRead()
    assert port.accepted == 1


def test_connections_that_cost_nothing_are_all_accepted_at_once() -> None:
    port = port_with(waiting=1000, cost=0)
    port.doRead()
    assert port.accepted == 1000


def test_a_port_may_rest_after_a_turn_that_was_cut_short() -> None:
    clock = Clock()
    port = port_with(12, SHARE / 10, clock, rest=1)
    port.doRead()
    assert not port.reading
    clock.advance(1)
    assert port.reading
    port.doRead()
    assert port.reading and not port.waiting


def test_a_port_that_rests_can_be_closed() -> None:
    clock = Clock()
    port = port_with(100, SHARE, clock, rest=1)
    port.doRead()
    port.socket.close()
    assert port.closed and not port.reading
    assert not clock.getDelayedCalls()


def test_the_turnstile_is_the_socket_in_everything_else() -> None:
    assert port_with(0, 0).socket.getsockname() == "the socket's own"


bed = any_bed(*KINDS)


@pytest_twisted.ensureDeferred
async def test_every_kind_of_port_goes_on_accepting_in_later_turns(bed: AnyBed) -> None:
    port: Any = bed.ports[1]
    clock = Clock()
    Turnstile(port, clock)
    turns: list[int] = []
    build, read = port.factory.buildProtocol, port.doRead

    def slowly(address: Any) -> Any:
        clock.advance(SHARE)
        turns[-1] += 1
        return build(address)

    def turn() -> Any:
        turns.append(0)
        return read()

    port.factory.buildProtocol, port.doRead = slowly, turn
    clients = await gatherResults([Deferred.fromCoroutine(bed.client()) for _ in range(5)])
    await until(lambda: len(bed.bridge.sessions) == len(clients))
    assert turns.count(1) == len(clients)
