"""A poller in the lead waits in the reactor's place, and misses nothing that the reactor waits for."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from twisted.internet.base import ReactorBase
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.pollreactor import PollReactor
from twisted.internet.selectreactor import SelectReactor

from fooproxy.net.lead import Lead
from fooproxy.net.poller import Poller
from fooproxy.net.pump import IN

pytestmark = pytest.mark.timeout(20)

LONG = 600.0
"""Seconds: a wait that nobody sees the end of."""


class Reader:
    """One end of a pair of sockets, which calls `do` for each byte that the other end has sent."""

    brings_traffic = True

    def __init__(self, do: Callable[[], Any] = lambda: None) -> None:
        self.socket, self.far = socket.socketpair()
        self.do = do
        self.reads = 0

    def fileno(self) -> int:
        return self.socket.fileno()

    def doRead(self) -> None:
        self.socket.recv(1)
        self.reads += 1
        self.do()

    def logPrefix(self) -> str:
        return "reader"

    def send(self) -> None:
        self.far.send(b"x")

    def close(self) -> None:
        self.socket.close()
        self.far.close()


class Bed:
    """A reactor that does not run by itself, and a poller; each has a reader."""

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self.poller = Poller(reactor)
        self.lead = Lead(reactor, self.poller)
        self.polled, self.http = Reader(), Reader()
        self.poller.addReader(self.polled)
        reactor.addReader(self.http)

    def turn(self) -> None:
        """Do what the reactor's main loop does, once."""
        self.reactor.doIteration(self.reactor.timeout())
        self.reactor.runUntilCurrent()

    def until(self, come: Callable[[], Any]) -> None:
        while not come():
            self.turn()

    def close(self) -> None:
        self.lead.give_back()
        self.poller.removeReader(self.polled)
        self.polled.close()
        self.reactor.removeAll()
        self.http.close()
        for skt in (self.reactor.waker.i, self.reactor.waker.o):
            with suppress(OSError):
                os.close(skt)


@pytest.fixture
def bed() -> Iterator[Bed]:
    bed = Bed(EPollReactor())
    bed.lead.take()
    yield bed
    bed.close()


def test_it_serves_what_is_the_pollers_and_what_is_the_reactors(bed: Bed) -> None:
    bed.polled.send()
    bed.http.send()
    bed.until(lambda: bed.polled.reads and bed.http.reads)


def test_one_of_the_reactors_readers_ends_the_wait(bed: Bed) -> None:
    bed.reactor.callLater(LONG, lambda: None)
    bed.http.send()
    bed.turn()
    assert bed.http.reads == 1


def test_it_ends_a_turn_of_traffic_too(bed: Bed) -> None:
    bed.polled.do = bed.polled.send
    bed.polled.send()
    bed.http.send()
    bed.turn()
    assert (bed.polled.reads, bed.http.reads) == (1, 1)


def test_what_is_only_the_reactors_is_no_batch_of_traffic(bed: Bed) -> None:
    called: list[str] = []
    bed.poller.after_silence.append(lambda: called.append("silence"))
    bed.poller.afterwards.append(lambda: called.append("batch"))
    bed.http.send()
    bed.turn()
    assert called == []
    bed.polled.send()
    bed.turn()
    assert called == ["silence", "batch"]


def test_a_reader_that_joins_the_reactor_while_the_poller_waits_is_served(bed: Bed) -> None:
    late = Reader()
    bed.polled.do = lambda: bed.reactor.addReader(late)
    late.send()
    bed.polled.send()
    bed.until(lambda: late.reads)
    bed.reactor.removeReader(late)
    late.close()


def test_a_call_from_a_thread_ends_the_wait(bed: Bed) -> None:
    called: list[int] = []
    threading.Timer(0.05, bed.reactor.callFromThread, (called.append, 1)).start()
    bed.until(lambda: called)


def test_a_timer_ends_the_wait(bed: Bed) -> None:
    called: list[int] = []
    bed.reactor.callLater(LONG, called.append, 2)
    bed.reactor.callLater(0.01, called.append, 1)
    bed.until(lambda: called)
    assert called == [1]


def test_a_timer_that_an_event_has_set_ends_the_wait_after_it(bed: Bed) -> None:
    called: list[int] = []
    bed.reactor.callLater(LONG, called.append, 2)
    bed.polled.do = lambda: bed.reactor.callLater(0, called.append, 1)
    bed.polled.send()
    bed.until(lambda: called)
    assert called == [1]


class Waits:
    """An epoll that remembers for how long each poll may have waited."""

    def __init__(self, epoll: Any) -> None:
        self._epoll = epoll
        self.seconds: list[float] = []

    def poll(self, timeout: float, most: int) -> Any:
        self.seconds.append(timeout)
        return self._epoll.poll(timeout, most)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)


@pytest.mark.parametrize("patience", [0.0, 0.001])
def test_after_an_event_that_may_have_given_the_reactor_something_to_do_the_wait_is_what_the_poller_has_patience_for(
    bed: Bed, patience: float
) -> None:
    # As Twisted's TLS does with what it sends.
    bed.polled.do = lambda: bed.reactor.callLater(0, lambda: None)
    bed.poller.patience = patience
    waits = bed.poller._epoll = Waits(bed.poller._epoll)
    bed.polled.send()
    bed.turn()
    assert waits.seconds[1:] == [patience]


def test_what_was_set_aside_and_is_served_later_is_followed_by_what_is_due_each_turn(bed: Bed) -> None:
    served: list[int] = []
    bed.poller.each_turn.append(lambda: served.append(late.reads))
    late = Reader()
    late.brings_traffic = False
    bed.poller.addReader(late)
    bed.poller._set_aside(late.fileno(), IN, None)
    late.send()
    bed.until(lambda: late.reads)
    assert served == [1]
    bed.poller.forget(late)
    late.close()


def test_what_is_the_reactors_is_not_set_aside_behind_many_ends(bed: Bed) -> None:
    # Each look at the clock finds the share of the turn used up.
    ticks = iter(range(0, 1 << 40, 5000))
    bed.poller._clock = lambda: next(ticks)
    many = [Reader() for _ in range(20)]
    for reader in many:
        reader.brings_traffic = False
        bed.poller.addReader(reader)
        reader.send()
    bed.http.send()
    bed.turn()
    assert bed.http.reads == 1
    assert sum(reader.reads for reader in many) < len(many)
    for reader in many:
        bed.poller.forget(reader)
        reader.close()


def test_after_it_is_given_back_the_reactor_waits_for_both(bed: Bed) -> None:
    bed.http.send()
    bed.turn()
    bed.lead.give_back()
    bed.lead.give_back()
    assert "doIteration" not in vars(bed.reactor)
    bed.polled.send()
    bed.until(lambda: bed.polled.reads)
    bed.http.send()
    bed.until(lambda: bed.http.reads == 2)


def test_it_can_be_taken_before_there_is_anything_to_poll() -> None:
    reactor: Any = EPollReactor()
    poller = Poller(reactor)
    lead = Lead(reactor, poller)
    lead.take()
    reader = Reader()
    poller.addReader(reader)
    reader.send()
    reactor.doIteration(LONG)
    assert reader.reads == 1
    lead.give_back()
    poller.forget(reader)
    reader.close()


def test_a_second_poller_is_a_reader_of_the_reactor_as_before(bed: Bed) -> None:
    other = Poller(bed.reactor)
    lead = Lead(bed.reactor, other)
    reader = Reader()
    other.addReader(reader)
    lead.take()
    assert not lead.taken
    reader.send()
    bed.until(lambda: reader.reads)
    lead.give_back()
    assert bed.lead.taken
    other.removeReader(reader)
    bed.reactor.removeReader(other)
    reader.close()


@pytest.mark.parametrize("kind", [PollReactor, SelectReactor])
def test_with_another_reactor_all_stays_as_it_was(kind: type[ReactorBase]) -> None:
    bed = Bed(kind())
    bed.lead.take()
    assert not bed.lead.taken
    bed.polled.send()
    bed.until(lambda: bed.polled.reads)
    bed.http.send()
    bed.until(lambda: bed.http.reads)
    bed.close()
