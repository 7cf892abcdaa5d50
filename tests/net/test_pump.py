"""The pump relays batches by file descriptor, and says when each chunk came."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet import main

from fooproxy.foo.latency import Latency
from fooproxy.net.pump import CLOSED, IN, LARGEST_READ, SMALLEST_READ
from tests.helpers.fooserver import reset, tcp_pair
from tests.helpers.twins import One, counting, pump

NOBODYS = 1 << 30
"""A file descriptor that nothing here has open, however many have been opened before."""


class Sink:
    """Stands for the transport that is written to."""

    inflow: Any = None


class Case:
    """A session's four sockets: a pump between the proxy's two, and the peers of both."""

    def __init__(self) -> None:
        self.client, self.client_leg = socket.socketpair()
        self.server, self.upstream_leg = socket.socketpair()
        self.client_leg.setblocking(False)
        self.upstream_leg.setblocking(False)
        twin = counting()
        self.latency = Latency()
        clients = twin.Analysis(self.latency, requests=True)
        self.analysis = twin.Analysis(self.latency, requests=False, before=clients)
        exchange = twin.Exchange(self.latency)
        self.requests, self.replies = twin.Analyzer(clients, exchange), twin.Analyzer(self.analysis, exchange)
        self.sinks: list[Any] = [Sink(), Sink()]
        self.now = 1000
        self.answer = b""
        self.pump = pump()(self.analysis.catch_up, self.clock)
        self.pump.start(self.client_leg.fileno(), self.sinks[0], self.requests)
        self.pump.start(self.upstream_leg.fileno(), self.sinks[1], self.replies)
        self.requests.outlet, self.replies.outlet = self.upstream_leg.fileno(), self.client_leg.fileno()

    def clock(self) -> int:
        """Be a server that answers at once: the pump looks at the clock whenever it has written a large chunk."""
        if self.answer:
            self.server.recv(1 << 16)
            self.server.sendall(self.answer)
            self.answer = b""
        return self.now

    def relay(self, now: int) -> Any:
        return self.pump.relay([(self.client_leg.fileno(), IN), (self.upstream_leg.fileno(), IN)], now)

    def close(self) -> None:
        for skt in (self.client, self.client_leg, self.server, self.upstream_leg):
            skt.close()


@pytest.fixture
def case(twin: str) -> Iterator[Case]:
    case = Case()
    yield case
    case.close()


def test_what_a_batch_brought_is_relayed_and_counted_with_the_batchs_time(case: Case) -> None:
    case.client.sendall(b"REQ 1\n")
    case.server.sendall(b"ACK 0\n")
    assert case.relay(7) == ([], [])
    assert case.server.recv(100) == b"REQ 1\n"
    assert case.client.recv(100) == b"ACK 0\n"
    case.analysis.catch_up()
    # What has the time of a request is not its reply.
    assert (case.latency.unmatched, case.latency.in_flight, case.latency.seen) == (1, 1, 7)
    case.server.sendall(b"ACK 1\n")
    assert case.relay(17) == ([], [])
    case.analysis.catch_up()
    assert case.latency.answered.buckets == {10: 1}


@pytest.mark.parametrize("clock", [1000, 7], ids=["a clock", "a clock that stands still"])
def test_what_is_read_after_a_write_has_a_later_time_for_it_may_be_the_reply(case: Case, clock: int) -> None:
    case.now = clock
    case.answer = b"ACK 1\n"
    case.server.sendall(b"ACK 0\n")
    case.client.sendall(b"REQ 1 " + b"x" * 5000 + b"\n")
    case.requests.room = 1 << 16
    client, upstream = case.client_leg.fileno(), case.upstream_leg.fileno()
    case.pump.relay([(upstream, IN), (client, IN), (upstream, IN)], 7)
    case.analysis.catch_up()
    assert (case.latency.unmatched, case.latency.answered.sum) == (1, max(clock - 7, 1))
    assert case.client.recv(100) == b"ACK 0\nACK 1\n"


def test_what_cannot_be_done_at_once_is_given_back_ends_first(case: Case) -> None:
    case.requests.outlet = CLOSED
    case.client.sendall(b"REQ 1\n")
    case.server.close()
    client, upstream = case.client_leg.fileno(), case.upstream_leg.fileno()
    others, stuck = case.pump.relay([(NOBODYS, IN), (client, IN | 4), (upstream, IN), (client, IN)], 7)
    assert others == [(upstream, IN, main.CONNECTION_DONE), (NOBODYS, IN, None), (client, IN | 4, None)]
    assert stuck == [(case.sinks[0], b"REQ 1\n", None)]


def test_what_the_kernel_takes_in_part_is_given_back_from_there(case: Case) -> None:
    case.upstream_leg.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 12)
    case.requests.room = 1 << 16
    chunk = random.Random(1).randbytes(60_000)
    case.client.sendall(chunk)
    others, ((sink, rest, why),) = case.relay(7)
    assert (others, sink, why) == ([], case.sinks[0], None)
    assert 0 < len(rest) < len(chunk)
    assert case.server.recv(1 << 17) + rest == chunk


def test_all_chunks_of_a_batch_arrive_as_they_were_however_large_and_small_ones_follow_each_other(case: Case) -> None:
    twin, sizes = counting(), [60_000, 60_000, 10, 60_000, 4096, 10, 4096, 4097] * 4
    with contextlib.ExitStack() as sockets:
        events, ends = [], []
        for size in sizes:
            far, near, out, end = map(sockets.enter_context, (*socket.socketpair(), *socket.socketpair()))
            near.setblocking(False)
            tap = twin.Analyzer(case.analysis, twin.Exchange(case.latency))
            case.pump.start(near.fileno(), Sink(), tap)
            tap.outlet, tap.room = out.fileno(), 1 << 16
            chunk = random.Random(size).randbytes(size)
            far.sendall(chunk)
            events.append((near.fileno(), IN))
            ends.append((end, chunk))
        assert case.pump.relay(events, 7) == ([], [])
        assert [end.recv(1 << 17) for end, _ in ends] == [chunk for _, chunk in ends]


def test_a_write_that_fails_is_given_back_with_the_loss_that_the_kernel_tells_once(case: Case) -> None:
    client = case.client_leg.fileno()
    case.server.close()
    case.client.sendall(b"REQ 1\n")
    others, stuck = case.pump.relay([(client, IN)], 7)
    assert (others, stuck) == ([], [(case.sinks[0], b"REQ 1\n", main.CONNECTION_LOST)])


def test_what_is_written_to_a_connection_that_was_reset_is_given_back_with_the_loss(case: Case) -> None:
    far, near = tcp_pair()
    with near:
        reset(far)
        case.requests.outlet = near.fileno()
        case.client.sendall(b"REQ 1\n")
        others, stuck = case.pump.relay([(case.client_leg.fileno(), IN)], 7)
        assert (others, stuck) == ([], [(case.sinks[0], b"REQ 1\n", main.CONNECTION_LOST)])


def test_an_event_without_data_is_passed_over(case: Case) -> None:
    case.server.sendall(b"ACK 0\n")
    assert case.relay(7) == ([], [])
    assert case.client.recv(100) == b"ACK 0\n"


def test_a_reset_is_given_back_as_the_loss_that_it_is(case: Case) -> None:
    far, near = tcp_pair()
    with near:
        case.pump.start(near.fileno(), Sink(), case.requests)
        reset(far)
        others, stuck = case.pump.relay([(near.fileno(), IN)], 7)
        assert others == [(near.fileno(), IN, main.CONNECTION_LOST)]
    assert stuck == []


def test_what_is_not_relayed_any_more_is_not_read(case: Case) -> None:
    case.pump.stop(case.client_leg.fileno())
    case.client.sendall(b"REQ 1\n")
    others, stuck = case.relay(7)
    assert (others, stuck) == ([(case.client_leg.fileno(), IN, None)], [])
    assert case.sinks[0].inflow is None
    assert case.sinks[1].inflow is case.replies


def test_a_source_is_paired_anew_with_another_sink_and_tap(case: Case) -> None:
    client, third = case.client_leg.fileno(), Sink()
    case.pump.start(client, third, case.replies)
    assert case.sinks[0].inflow is None
    assert third.inflow is case.replies
    case.client.sendall(b"ACK 1\n")
    case.replies.outlet = CLOSED
    others, stuck = case.pump.relay([(client, IN)], 7)
    assert (others, stuck) == ([], [(third, b"ACK 1\n", None)])
    case.pump.stop(client)
    case.pump.stop(client)
    assert third.inflow is None


@pytest.mark.parametrize("twin", ["compiled"], indirect=True)
def test_an_event_whose_numbers_could_change_the_batch_is_refused_by_the_compiled_pump(case: Case) -> None:
    events: list[Any] = []
    for event in ((One(events.clear), IN), (NOBODYS, One(lambda: events.extend([(NOBODYS, IN)] * 1000)))):
        events[:] = [event, (NOBODYS, IN)]
        with pytest.raises(TypeError, match="pair of integers"):
            case.pump.relay(events, 7)
        assert len(events) == 2


@pytest.mark.parametrize("twin", ["compiled"], indirect=True)
def test_the_compiled_pump_goes_on_after_any_allocation_has_failed(case: Case) -> None:
    memory: Any = pytest.importorskip("_testcapi")
    client = case.client_leg.fileno()
    chunks: list[bytes] = []

    def relay(events: int) -> Any:
        chunks.append(b"REQ %d %s\n" % (len(chunks), bytes(5000)))
        case.client.sendall(chunks[-1])
        case.requests.room = 1 << 16
        return lambda: case.pump.relay([(client, IN), (NOBODYS, IN)] * events, 7)

    def start(events: int) -> Any:
        return lambda: case.pump.start(client << events, Sink(), case.replies)

    failed = 0
    for what in (relay, start):
        case.requests.outlet = CLOSED
        for number in range(12):
            do = what(number + 1)
            memory.set_nomemory(number, number + 1)
            try:
                do()
            except MemoryError:
                failed += 1
            finally:
                memory.remove_mem_hooks()
            case.requests.outlet = case.upstream_leg.fileno()
            case.pump.relay([(client, IN), (case.upstream_leg.fileno(), IN)] * (number + 1), 7)
            case.pump.stop(NOBODYS)
    assert failed > 6
    assert case.requests.exchange.requests == len(chunks)


@pytest.mark.parametrize("twin", ["compiled"], indirect=True)
@pytest.mark.parametrize("kinds", ["SR", "CW", "CWW"])
def test_of_a_batch_that_fails_for_lack_of_memory_the_compiled_pump_says_just_that(case: Case, kinds: str) -> None:
    memory: Any = pytest.importorskip("_testcapi")
    failed = 0
    for number in range(100):
        with contextlib.ExitStack() as sockets:
            events = [(source_of(case, kind, sockets), IN) for kind in kinds]
            memory.set_nomemory(number, number + 1)
            try:
                case.pump.relay(events, 7)
            except MemoryError:
                failed += 1
            else:
                break
            finally:
                memory.remove_mem_hooks()
    assert 3 < failed < 100


def source_of(case: Case, kind: str, sockets: contextlib.ExitStack) -> int:
    """Return a source with an event: S relays, R was reset, C must wait with what it relays, and W cannot write it."""
    (peer, source), (out, end) = (map(sockets.enter_context, pair) for pair in (tcp_pair(), tcp_pair()))
    tap = counting().Analyzer(case.analysis, counting().Exchange(case.latency))
    case.pump.start(source.fileno(), Sink(), tap)
    tap.outlet = CLOSED if kind == "C" else out.fileno()
    if kind == "R":
        reset(peer)
        return source.fileno()
    peer.sendall(b"ACK 1\n")
    if kind == "W":
        reset(end)
    return source.fileno()


# How much is asked for at once


def pass_on(case: Case, data: bytes) -> list[int]:
    """Have the pump relay `data` from the client, and check that it arrives; return how much each read asked for."""
    asked = []
    received = b""
    # Part by part: the sockets hold some hundred KB each.
    for start in range(0, len(data), 1 << 16):
        case.client.sendall(data[start : start + (1 << 16)])
        end = min(start + (1 << 16), len(data))
        while len(received) < end:
            asked.append(case.requests.room)
            others, stuck = case.pump.relay([(case.client_leg.fileno(), IN)], 7)
            assert (others, stuck) == ([], [])
            received += case.server.recv(1 << 20)
    assert received == data
    return asked


def test_bulk_is_read_in_ever_larger_pieces_up_to_a_bound(case: Case) -> None:
    assert pass_on(case, bytes(1 << 16)) == [SMALLEST_READ, 8 * SMALLEST_READ, 64 * SMALLEST_READ]
    assert case.requests.room < LARGEST_READ == 64 * SMALLEST_READ
    # Socket pairs do not hold what fills such a read; one that is filled asks for no more than that.
    case.requests.room = 1 << 16
    pass_on(case, bytes(1 << 16))
    assert case.requests.room == LARGEST_READ


def test_small_messages_are_soon_read_by_small_reads_and_a_large_one_by_large_reads_again(case: Case) -> None:
    pass_on(case, bytes(1 << 16))
    for _ in range(1000):
        asked = pass_on(case, b"REQ 1 a message\n")
        assert len(asked) == 1
    assert asked == [SMALLEST_READ]
    assert len(pass_on(case, bytes(1 << 16))) == 3
    assert len(pass_on(case, bytes(1 << 16))) == 1


def test_of_many_bulk_transfers_each_is_read_a_fair_share_at_a_time(case: Case) -> None:
    many, few = [(NOBODYS, IN)] * 40, [(NOBODYS, IN)] * 7
    rooms = ((1 << 15, many, 1 << 16), (1 << 16, many, 1 << 16), (1 << 18, many, 1 << 16), (1 << 16, few, 1 << 17))
    for room, others, then in rooms:
        case.client.sendall(bytes(1 << 16))
        case.requests.room = room
        case.pump.relay([(case.client_leg.fileno(), IN), *others], 7)
        assert len(case.server.recv(1 << 20)) == min(room, then)
        assert case.requests.room == then
        case.pump.relay([(case.client_leg.fileno(), IN)], 7)
        with contextlib.suppress(BlockingIOError):
            case.server.recv(1 << 20, socket.MSG_DONTWAIT)


def test_the_short_pieces_of_messages_do_not_have_the_long_ones_cut(case: Case) -> None:
    pieces = [b"REQ 1", b" " + bytes(10_000), b"\n"] * 500
    reads = sum(len(pass_on(case, piece)) for piece in pieces)
    assert len(pieces) <= reads < 1.02 * len(pieces)


def test_messages_of_one_size_are_read_whole(case: Case) -> None:
    pass_on(case, bytes(1 << 16))
    for size in (600, 5000, 40_000):
        pass_on(case, bytes(size))
        # Or of sizes that are not far apart.
        sizes = [size, size // 4 + size // 64 + 1] * 500
        assert [len(pass_on(case, bytes(size))) for size in sizes] == [1] * 1000
