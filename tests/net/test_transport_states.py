"""What a transport does in states that a real connection passes too fast, or too seldom, to be met in them."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet import main
from twisted.internet.address import UNIXAddress
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from fooproxy.net.private import unsent
from fooproxy.net.pump import CLOSED
from fooproxy.net.sockets import TIMED_OUT
from fooproxy.net.transport import Transport, kept
from tests.helpers.fooserver import reset, tcp_pair


class Loop:
    """In the place of the poller: what it would poll, do later, and pump."""

    def __init__(self) -> None:
        self.readers: set[Any] = set()
        self.writers: set[Any] = set()
        self.addReader, self.removeReader = self.readers.add, self.readers.discard
        self.addWriter, self.removeWriter = self.writers.add, self.writers.discard
        self.later: list[Callable[[], Any]] = []
        self.soon = self.later.append
        self.pumped: set[int] = set()
        self.pump = SimpleNamespace(start=lambda fd, *_: self.pumped.add(fd), stop=self.pumped.discard)

    def callLater(self, delay: float, do: Callable[..., Any], *arguments: Any) -> None:
        self.later.append(partial(do, *arguments))

    def forget(self, transport: Any) -> None:
        self.readers.discard(transport)
        self.writers.discard(transport)

    def run(self) -> None:
        later, self.later[:] = self.later[:], []
        for do in later:
            do()


@implementer(IHalfCloseableProtocol)
class End(Protocol):
    def __init__(self) -> None:
        self.data = b""
        self.fins = 0
        self.lost: list[Exception] = []
        self.tap = object()
        self.waits = 0

    def dataWaits(self) -> None:
        self.waits += 1

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def readConnectionLost(self) -> None:
        self.fins += 1

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Any = None) -> None:
        self.lost.append(reason.value)


class Producer:
    """A producer that notes what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.pauseProducing = partial(self.told.append, "pause")
        self.resumeProducing = partial(self.told.append, "resume")
        self.stopProducing = partial(self.told.append, "stop")


class Failing:
    """A socket whose next sends fail, each with one of `errors`."""

    def __init__(self, skt: socket.socket, *errors: int) -> None:
        self._socket = skt
        self._errors = list(errors)

    def send(self, data: bytes) -> int:
        if self._errors:
            raise OSError(self._errors.pop(0), "as the test says")
        return self._socket.send(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class Wire:
    """A transport under test, and the socket at the other end."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.peer, skt = socket.socketpair()
        skt.setblocking(False)
        self.peer.setblocking(False)
        self.end = End()
        self.made: list[Transport] = []
        self.transport = self.over(skt, self.end)
        self.number = self.transport.fileno()

    def over(self, skt: Any, protocol: Any) -> Transport:
        poller: Any = self.loop
        transport = Transport(skt, protocol, kept(""), poller)
        protocol.transport = transport
        self.made.append(transport)
        return transport

    def close(self) -> None:
        self.peer.close()
        for transport in self.made:
            transport.connectionLost(Failure(ConnectionDone()))

    def fails(self, *errors: int) -> None:
        skt: Any = Failing(self.transport.socket, *errors)
        self.transport.socket = skt

    def fill(self) -> bytes:
        """Write until something is left unsent, and return all of it."""
        written = b""
        while self.transport.clear:
            written += bytes(1 << 16)
            self.transport.write(bytes(1 << 16))
        return written

    def received(self) -> bytes:
        """Have the transport write as long as it wants to, and return what arrives."""
        data = b""
        while True:
            try:
                while chunk := self.peer.recv(1 << 20):
                    data += chunk
                return data
            except BlockingIOError:
                if self.transport not in self.loop.writers:
                    return data
                self.transport.doWrite()


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


def tap() -> Any:
    return SimpleNamespace(outlet=CLOSED)


def test_the_pump_writes_to_a_transport_only_while_it_is_clear(wire: Wire) -> None:
    inflow = tap()
    wire.transport.inflow = inflow
    assert inflow.outlet == wire.number
    written = wire.fill()
    assert inflow.outlet == CLOSED
    assert wire.received() == written
    assert inflow.outlet == wire.number
    wire.fill()
    late = tap()
    wire.transport.inflow = late
    assert late.outlet == CLOSED


def test_a_tap_that_is_replaced_does_not_lead_here_any_more(wire: Wire) -> None:
    before, after = tap(), tap()
    wire.transport.inflow = before
    wire.transport.inflow = after
    assert (before.outlet, after.outlet) == (CLOSED, wire.number)
    wire.transport.inflow = None
    assert after.outlet == CLOSED


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.ENOBUFS])
def test_a_kernel_that_takes_nothing_for_now_is_tried_again(wire: Wire, error: int) -> None:
    wire.fails(error, error)
    wire.transport.write(b"REQ 1\n")
    assert wire.transport.doWrite() is None
    assert wire.transport in wire.loop.writers
    assert wire.received() == b"REQ 1\n"
    assert wire.transport.clear


def test_any_other_error_of_a_write_leaves_only_reading(wire: Wire) -> None:
    wire.fails(errno.EHOSTUNREACH)
    wire.transport.write(b"REQ 1\n")
    wire.transport.write(b"REQ 2\n")
    assert wire.received() == b""
    assert not wire.end.lost
    wire.peer.send(b"ACK 0\n")
    wire.transport.doRead()
    assert wire.end.data == b"ACK 0\n"
    wire.transport.readConnectionLost(Failure(ConnectionDone()))
    assert wire.end.fins == 0
    assert wire.end.lost == [main.CONNECTION_LOST]


@pytest.mark.parametrize(("error", "timed_out"), [(errno.ETIMEDOUT, True), (errno.EPIPE, False)])
@pytest.mark.parametrize("is_buffered", [False, True])
def test_a_write_that_timed_out_is_told_from_other_losses(
    wire: Wire, error: int, timed_out: bool, is_buffered: bool
) -> None:
    wire.peer.close()
    wire.peer, near = tcp_pair()
    wire.transport = wire.over(near, wire.end)
    # Nobody takes it.
    near.send(bytes(1 << 22))
    assert not wire.transport.timed_out
    wire.fails(*[errno.EAGAIN] * is_buffered, error)
    wire.transport.write(b"REQ 1\n")
    if is_buffered:
        assert wire.transport.doWrite() is None
    assert wire.transport.timed_out == timed_out
    wire.transport.readConnectionLost(Failure(ConnectionDone()))
    assert (wire.end.lost == [TIMED_OUT]) == timed_out


def test_a_failed_write_drops_what_waits_and_stops_the_producer_once(wire: Wire) -> None:
    producer = Producer()
    wire.fill()
    wire.transport.registerProducer(producer, True)
    for why in (main.CONNECTION_LOST, TIMED_OUT):
        wire.transport.fail(why)
    assert producer.told == ["stop"]
    assert unsent(wire.transport) == 0
    assert wire.transport not in wire.loop.writers
    assert not wire.transport.timed_out


@pytest.mark.parametrize("ending", ["fin", "close"])
def test_a_write_that_fails_when_nothing_is_left_to_read_ends_the_connection(wire: Wire, ending: str) -> None:
    wire.fill()
    if ending == "fin":
        wire.transport.readConnectionLost(Failure(ConnectionDone()))
    else:
        wire.transport.loseConnection()
    wire.transport.fail(main.CONNECTION_LOST)
    assert not wire.end.lost
    wire.loop.run()
    assert wire.end.lost == [main.CONNECTION_LOST]


def test_a_close_waits_for_the_producer_that_was_paused(wire: Wire) -> None:
    producer = Producer()
    wire.transport.registerProducer(producer, True)
    written = wire.fill() + bytes(1 << 17)
    wire.transport.write(bytes(1 << 17))
    wire.transport.loseConnection()
    assert wire.received() == written
    assert producer.told == ["pause", "resume"]
    assert wire.transport not in wire.loop.writers
    wire.transport.unregisterProducer()
    assert wire.transport in wire.loop.writers
    assert wire.transport.doWrite() is main.CONNECTION_DONE


def test_a_close_is_not_at_once_while_somebody_produces(wire: Wire) -> None:
    wire.transport.registerProducer(Producer(), True)
    wire.transport.loseConnection()
    wire.loop.run()
    assert not wire.end.lost


def test_nothing_is_sent_after_our_fin(wire: Wire) -> None:
    inflow = tap()
    wire.transport.inflow = inflow
    wire.transport.loseWriteConnection()
    assert inflow.outlet == CLOSED
    wire.transport.doWrite()
    assert inflow.outlet == CLOSED
    wire.transport.write(b"REQ 9\n")
    assert not wire.transport.timed_out
    assert wire.peer.recv(100) == b""


def test_a_transport_that_failed_to_write_sends_no_fin_and_closes_at_once(wire: Wire) -> None:
    wire.transport.fail(main.CONNECTION_LOST)
    wire.transport.loseWriteConnection()
    assert wire.transport not in wire.loop.writers
    wire.transport.loseConnection()
    assert [type(why) for why in wire.end.lost] == [ConnectionDone]


def test_a_pull_producer_is_asked_for_more_only_after_a_write_has_waited(wire: Wire) -> None:
    producer = Producer()
    inflow = tap()
    wire.transport.inflow = inflow
    wire.transport.registerProducer(producer, False)
    assert producer.told == ["resume"]
    wire.transport.write(b"REQ 1\n")
    wire.transport.doWrite()
    assert producer.told == ["resume"] * 2
    # The pump must not overtake what it produces.
    assert inflow.outlet == CLOSED
    assert not wire.transport.clear


def test_the_end_stops_the_producer_and_the_pump(wire: Wire) -> None:
    producer = Producer()
    wire.transport.registerProducer(producer, True)
    wire.transport.pump(wire.over(socket.socket(), End()))
    assert wire.loop.pumped == {wire.number}
    wire.transport.connectionLost(Failure(ConnectionDone()))
    wire.transport.connectionLost(Failure(ConnectionDone()))
    assert producer.told == ["stop"]
    assert wire.loop.pumped == set()
    assert wire.transport not in wire.loop.readers
    assert len(wire.end.lost) == 1


def test_a_close_that_need_not_wait_neither_reads_nor_pumps_any_more(wire: Wire) -> None:
    inflow = tap()
    wire.transport.inflow = inflow
    wire.transport.pump(wire.over(socket.socket(), End()))
    wire.transport.loseConnection()
    assert wire.loop.pumped == set()
    assert wire.transport not in wire.loop.readers
    assert inflow.outlet == CLOSED
    assert not wire.end.lost
    wire.loop.run()
    assert [type(why) for why in wire.end.lost] == [ConnectionDone]


def test_what_is_aborted_is_not_written_to(wire: Wire) -> None:
    inflow = tap()
    wire.transport.inflow = inflow
    wire.transport.abortConnection()
    assert inflow.outlet == CLOSED
    wire.transport.write(b"REQ 9\n")
    wire.loop.run()
    assert [type(why) for why in wire.end.lost] == [ConnectionAborted]
    assert wire.peer.recv(100) == b""


def test_what_is_given_up_resets_both_connections_the_sink_first() -> None:
    source, sink = Wire(), Wire()
    ends: list[str] = []
    for name, wire in (("source", source), ("sink", sink)):
        wire.end.connectionLost = lambda reason, name=name: ends.append(name)  # type: ignore[method-assign,assignment,misc]
    assert not source.transport.give_up()
    source.transport.pump(sink.transport)
    assert source.transport.give_up()
    assert ends == ["sink", "source"]
    assert source.loop.pumped == set()
    for wire in (source, sink):
        wire.close()


def test_one_that_awaits_data_is_not_pumped_and_leaves_the_data_in_the_kernel(wire: Wire) -> None:
    wire.transport.pump(wire.over(socket.socket(), End()))
    wire.transport.await_data()
    assert wire.loop.pumped == set()
    assert not wire.transport.is_pumped
    # An event without data is none.
    assert wire.transport.doRead() is None
    assert wire.end.waits == 0
    wire.peer.send(b"REQ 1\n")
    assert wire.transport.doRead() is None
    assert (wire.end.waits, wire.end.data) == (1, b"")
    wire.transport.stop_pumping()
    wire.transport.doRead()
    assert (wire.end.waits, wire.end.data) == (1, b"REQ 1\n")


def test_an_end_is_told_to_one_that_awaits_data(wire: Wire) -> None:
    wire.transport.await_data()
    wire.peer.shutdown(socket.SHUT_WR)
    assert wire.transport.doRead() is main.CONNECTION_DONE
    assert wire.end.waits == 0


def test_a_reset_is_told_to_one_that_awaits_data(wire: Wire) -> None:
    far, near = tcp_pair()
    transport = wire.over(near, End())
    transport.await_data()
    reset(far)
    assert transport.doRead() is main.CONNECTION_LOST


@pytest.mark.parametrize("kind", ["relays", "awaits data", "neither"])
def test_what_brings_traffic_is_something_to_relay_that_no_fin_follows(wire: Wire, kind: str) -> None:
    far, near = tcp_pair()
    transport = wire.over(near, End())
    transport.relays = kind == "relays"
    if kind == "awaits data":
        transport.await_data()
    assert not transport.brings_traffic
    far.send(b"REQ 1\n")
    assert transport.brings_traffic == (kind != "neither")
    far.shutdown(socket.SHUT_WR)
    assert not transport.brings_traffic
    far.close()


def test_reading_is_not_resumed_after_the_peers_fin(wire: Wire) -> None:
    wire.transport.pauseProducing()
    wire.transport.readConnectionLost(Failure(ConnectionDone()))
    wire.loop.removeReader(wire.transport)
    wire.transport.resumeProducing()
    assert wire.transport not in wire.loop.readers
    assert wire.end.fins == 1


def test_a_closed_transport_has_no_number(wire: Wire) -> None:
    wire.transport.connectionLost(Failure(ConnectionDone()))
    assert wire.transport.fileno() == -1


def test_a_unix_socket_without_a_name_has_an_address_and_ignores_what_is_for_tcp(wire: Wire) -> None:
    wire.transport.setTcpNoDelay(True)
    assert wire.transport.getPeer() == wire.transport.getHost() == UNIXAddress(None)
