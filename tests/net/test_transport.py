"""Our TCP transports keep the contracts of Twisted's: the same tests run over both, but where ours promise more."""

from __future__ import annotations

import random
import select
import socket
import struct
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import error
from twisted.internet.address import UNIXAddress
from twisted.internet.protocol import Factory
from twisted.internet.tcp import Port
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher
from twisted.protocols.basic import FileSender

from fooproxy.foo.latency import Latency
from fooproxy.net.addresses import client_endpoint, server_endpoint
from fooproxy.net.endpoints import Listener
from fooproxy.net.poller import Poller
from fooproxy.net.private import unsent
from fooproxy.net.pump import IN
from fooproxy.net.sockets import set_options
from fooproxy.net.transport import Transport
from tests.helpers.bed import Peer, Peers, reactor, until
from tests.helpers.fooserver import PATIENCE
from tests.helpers.twins import counting, pump

ensure = pytest_twisted.ensureDeferred


class End(Peer):
    """Remembers why it was lost, and does as the test says on each chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.reason: Any = None
        self.on_data: Any = lambda data: None

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self.on_data(data)

    def connectionLost(self, reason: Any = None) -> None:
        super().connectionLost(reason)
        self.reason = reason


class Ends(Peers):
    def buildProtocol(self, addr: Any) -> End:
        end = End()
        self.built.append(end)
        return end


class Wire:
    """A listener under test and a raw socket at the other end of each connection."""

    def __init__(self, poller: Poller | None, address: str = "0") -> None:
        self.poller = poller
        self.address = address
        self.ends = Ends()
        self.sockets: list[socket.socket] = []
        self.port: Any = None

    async def start(self) -> None:
        self.port = await server_endpoint(reactor, self.address, "127.0.0.1", self.poller).listen(self.ends)

    async def stop(self) -> None:
        for end in self.ends.built:
            if not end.lost:
                end.transport.abortConnection()
        for skt in self.sockets:
            skt.close()
        await self.port.stopListening()
        await until(lambda: all(end.lost for end in self.ends.built))

    @property
    def reached(self) -> str:
        """The address that reaches the listener."""
        return str(self.port.getHost().port) if self.address == "0" else self.address

    async def connect(self) -> tuple[End, socket.socket]:
        seen = len(self.ends.built)
        host = self.port.getHost()
        skt = socket.socket(socket.AF_INET if self.address == "0" else socket.AF_UNIX)
        skt.settimeout(PATIENCE)
        skt.connect(("127.0.0.1", host.port) if self.address == "0" else host.name)
        self.sockets.append(skt)
        await until(lambda: len(self.ends.built) > seen and self.ends.built[-1].connected_)
        end = self.ends.built[-1]
        assert isinstance(end, End)
        return end, skt


@pytest_twisted.async_yield_fixture(params=["ours", "ours, unix", "twisted's"])
async def wire(twin: str, request: Any, tmp_path: Path) -> Any:
    address = f"unix:{tmp_path}/foo.sock" if "unix" in request.param else "0"
    wire = Wire(None if request.param == "twisted's" else Poller(reactor, pump=pump()), address)
    await wire.start()
    yield wire
    await wire.stop()


def over(*kinds: str) -> Any:
    return pytest.mark.parametrize("wire", kinds, indirect=True)


@pytest_twisted.async_yield_fixture
async def our_wire(twin: str) -> Any:
    wire = Wire(Poller(reactor, pump=pump()))
    await wire.start()
    yield wire
    await wire.stop()


async def read_all(skt: socket.socket) -> bytes:
    """Read to the FIN without blocking the reactor."""
    skt.setblocking(False)
    received = bytearray()
    finished = False

    def more() -> bool:
        nonlocal finished
        with suppress(BlockingIOError):
            while not finished:
                data = skt.recv(1 << 20)
                received.extend(data)
                finished = not data
        return finished

    await until(more)
    return bytes(received)


BIG = bytes(range(256)) * 32768


@ensure
async def test_a_write_is_sent_before_it_returns(our_wire: Wire) -> None:
    end, skt = await our_wire.connect()
    end.transport.write(b"ACK 1\n")
    assert skt.recv(100) == b"ACK 1\n"


@ensure
async def test_what_the_kernel_does_not_take_follows_in_order(wire: Wire) -> None:
    end, skt = await wire.connect()
    # No two parts of it are the same, so that none can take the place of another.
    pieces = [random.Random(number).randbytes(1 << 24) for number in range(4)]
    received = b""
    for piece in pieces:
        end.transport.write(piece)
        # Twisted's transports write later; ours have filled the kernel, where now there is room for short writes.
        await until(lambda: readable(skt))
        for _ in range(4):
            received += skt.recv(1 << 20) if readable(skt) else b""
        end.transport.write(b"and more")
        end.transport.writeSequence([b"!", b"?"])
    assert unsent(end.transport)
    end.transport.loseConnection()
    assert received + await read_all(skt) == b"".join(piece + b"and more!?" for piece in pieces)
    await until(lambda: end.lost)
    assert end.reason.check(error.ConnectionDone)


@ensure
async def test_sequences_and_single_writes_keep_their_order(wire: Wire) -> None:
    end, skt = await wire.connect()
    end.transport.writeSequence([b"a", b"b"])
    end.transport.write(b"c")
    end.transport.writeSequence([b"d"])
    end.transport.loseConnection()
    assert await read_all(skt) == b"abcd"


@ensure
async def test_a_producer_may_be_pulled(wire: Wire) -> None:
    end, skt = await wire.connect()
    file = BytesIO(BIG)
    sender = FileSender()
    sending = sender.beginFileTransfer(file, end.transport)
    sending.addCallback(lambda _: end.transport.loseConnection())
    assert await read_all(skt) == BIG


@ensure
async def test_only_bytes_can_be_written(wire: Wire) -> None:
    end, _ = await wire.connect()
    with pytest.raises(TypeError):
        end.transport.write("text")


@ensure
async def test_writing_nothing_does_nothing(wire: Wire) -> None:
    end, skt = await wire.connect()
    end.transport.write(b"")
    end.transport.write(b"x")
    end.transport.loseConnection()
    assert await read_all(skt) == b"x"


@ensure
async def test_a_producer_is_paused_while_the_peer_does_not_read(wire: Wire) -> None:
    end, skt = await wire.connect()
    producer = StringTransport()
    end.transport.registerProducer(producer, True)
    end.transport.write(BIG)
    assert producer.producerState == "paused"
    end.transport.write(b"the rest")
    skt.setblocking(False)
    received = bytearray()

    def resumed() -> bool:
        with suppress(BlockingIOError):
            received.extend(skt.recv(1 << 20))
        return producer.producerState == "producing"

    await until(resumed)
    end.transport.unregisterProducer()
    end.transport.loseConnection()
    assert bytes(received) + await read_all(skt) == BIG + b"the rest"


@ensure
async def test_a_producer_is_told_when_the_connection_is_lost(wire: Wire) -> None:
    end, _ = await wire.connect()
    producer = StringTransport()
    end.transport.registerProducer(producer, True)
    end.transport.abortConnection()
    await until(lambda: end.lost)
    assert producer.producerState == "stopped"


@ensure
async def test_a_half_closed_transport_sends_a_fin_after_its_data_and_still_reads(wire: Wire) -> None:
    end, skt = await wire.connect()
    end.transport.write(BIG)
    end.transport.loseWriteConnection()
    assert await read_all(skt) == BIG
    skt.setblocking(True)
    skt.sendall(b"still here")
    await until(lambda: end.received == b"still here")
    end.transport.write(b"too late")
    skt.shutdown(socket.SHUT_WR)
    await until(lambda: end.fin)
    assert not end.lost
    end.transport.loseConnection()
    await until(lambda: end.lost)


@ensure
async def test_a_fin_is_told_once_and_resuming_does_not_repeat_it(our_wire: Wire) -> None:
    end, skt = await our_wire.connect()
    fins: list[str] = []
    end.readConnectionLost = lambda: fins.append("fin")  # type: ignore[method-assign]
    skt.shutdown(socket.SHUT_WR)
    await until(lambda: fins)
    end.transport.pauseProducing()
    end.transport.resumeProducing()
    end.transport.write(b"x")
    end.transport.loseConnection()
    assert await read_all(skt) == b"x"
    await until(lambda: end.lost)
    assert fins == ["fin"]


@ensure
async def test_a_paused_transport_reads_nothing(wire: Wire) -> None:
    end, skt = await wire.connect()
    other, other_skt = await wire.connect()
    end.transport.pauseProducing()
    skt.sendall(b"wait")
    other_skt.sendall(b"go")
    await until(lambda: other.received == b"go")
    assert end.received == b""
    end.transport.resumeProducing()
    await until(lambda: end.received == b"wait")


@ensure
@over("ours", "twisted's")
async def test_an_aborted_connection_is_reset(wire: Wire) -> None:
    end, skt = await wire.connect()
    end.transport.abortConnection()
    end.transport.abortConnection()
    end.transport.write(b"nobody gets this")
    await until(lambda: end.lost)
    assert end.reason.check(error.ConnectionAborted)
    with pytest.raises(ConnectionResetError):
        skt.recv(1)


@ensure
@over("ours", "twisted's")
async def test_a_reset_by_the_peer_is_told(wire: Wire) -> None:
    end, skt = await wire.connect()
    skt.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    skt.close()
    await until(lambda: end.lost)
    assert end.reason.check(error.ConnectionLost)


@ensure
@pytest.mark.parametrize("how", ["loseConnection", "abortConnection"])
async def test_a_protocol_may_close_while_it_gets_data(wire: Wire, how: str) -> None:
    end, skt = await wire.connect()
    end.on_data = lambda data: getattr(end.transport, how)()
    skt.sendall(b"x")
    await until(lambda: end.lost)


@ensure
async def test_a_protocol_that_fails_loses_its_connection_and_no_other(wire: Wire) -> None:
    end, skt = await wire.connect()
    other, other_skt = await wire.connect()

    def fail(data: bytes) -> None:
        raise RuntimeError("a defect")

    said: Any = []
    end.on_data = fail
    globalLogPublisher.addObserver(said.append)
    try:
        skt.sendall(b"x")
        await until(lambda: end.lost)
    finally:
        globalLogPublisher.removeObserver(said.append)
    assert end.reason.check(RuntimeError)
    assert said
    other_skt.sendall(b"y")
    await until(lambda: other.received == b"y")


@ensure
@over("ours", "twisted's")
async def test_a_protocol_that_fails_at_its_end_hurts_no_other(wire: Wire) -> None:
    end, skt = await wire.connect()
    other, other_skt = await wire.connect()
    ends: list[str] = []

    def fail(reason: Any = None) -> None:
        end.lost = True
        ends.append("told")
        raise RuntimeError("a defect")

    end.connectionLost = fail  # type: ignore[method-assign]
    skt.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    skt.close()
    await until(lambda: ends)
    other_skt.sendall(b"y")
    await until(lambda: other.received == b"y")
    await wire.connect()


@ensure
@over("ours", "ours, unix")
async def test_what_the_peer_sent_before_a_failed_write_is_still_read(wire: Wire) -> None:
    end, skt = await wire.connect()
    end.transport.pauseProducing()
    skt.sendall(b"last words")
    end.transport.write(b"unread")
    # Closing with something unread resets the connection.
    skt.close()
    for _ in range(3):
        end.transport.write(b"into the void")
    end.transport.resumeProducing()
    await until(lambda: end.lost)
    assert end.received == b"last words"
    assert end.reason.check(error.ConnectionLost)


@ensure
@over("ours", "ours, unix")
async def test_a_failed_write_leaves_nothing_unsent_and_a_close_that_closes_at_once(wire: Wire) -> None:
    end, skt = await wire.connect()
    end.transport.pauseProducing()
    end.transport.write(BIG)
    assert unsent(end.transport)
    skt.close()
    await until(lambda: not unsent(end.transport))
    end.transport.write(b"into the void")
    assert not unsent(end.transport)
    assert not end.lost
    end.transport.loseConnection()
    assert end.lost


@ensure
async def test_a_second_fin_is_not_taken_for_a_failed_write(our_wire: Wire) -> None:
    end, skt = await our_wire.connect()
    end.transport.loseWriteConnection()
    assert await read_all(skt) == b""
    end.transport.loseWriteConnection()
    skt.sendall(b"still read")
    skt.shutdown(socket.SHUT_WR)
    await until(lambda: end.fin or end.lost)
    assert (bytes(end.received), end.lost) == (b"still read", False)


@ensure
async def test_a_number_that_is_in_use_again_within_a_batch_harms_nobody(our_wire: Wire) -> None:
    first, first_skt = await our_wire.connect()
    second, second_skt = await our_wire.connect()
    fds = {first: first.transport.fileno(), second: second.transport.fileno()}
    made: list[Any] = []

    def replace(which: End) -> Any:
        def on_data(data: bytes) -> None:
            if made:
                return
            victim = second if which is first else first
            victim.transport.connectionLost(_failure(error.ConnectionDone()))
            client_endpoint(reactor, str(our_wire.port.getHost().port), our_wire.poller).connect(Ends()).addCallback(
                made.append
            )
            assert made[0].transport.fileno() == fds[victim]

        return on_data

    first.on_data, second.on_data = replace(first), replace(second)
    # Both are readable before the poller looks.
    first_skt.sendall(b"x")
    second_skt.sendall(b"y")
    await until(lambda: made and len(our_wire.ends.built) == 3 and our_wire.ends.built[2].connected_)
    newcomer = made[0]
    our_wire.ends.built[2].transport.write(b"hello")
    await until(lambda: newcomer.received == b"hello")
    assert not newcomer.lost
    newcomer.transport.abortConnection()
    await until(lambda: newcomer.lost)


def _failure(exception: Exception) -> Any:
    from twisted.python.failure import Failure

    return Failure(exception)


@ensure
async def test_a_busy_connection_does_not_starve_another(wire: Wire) -> None:
    quiet, quiet_skt = await wire.connect()
    busy, busy_skt = await wire.connect()
    chunks: list[bytes] = []
    heard_after: list[int] = []
    busy.on_data = chunks.append
    quiet.on_data = lambda data: heard_after.append(len(chunks))
    busy.transport.pauseProducing()
    busy_skt.setblocking(False)
    # As much as the kernel holds, which the poller finds before the ping.
    with suppress(BlockingIOError):
        while True:
            busy_skt.send(bytes(1 << 20))
    busy.transport.resumeProducing()
    quiet_skt.sendall(b"ping")
    await until(lambda: heard_after)
    # In each batch of events, the busy one has its turn once, and all others too.
    assert heard_after[0] <= 2
    assert busy.received


@ensure
@pytest.mark.parametrize("poller", ["ours", "twisted's"])
async def test_a_refused_connection_fails(poller: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        text = f"127.0.0.1:{free.getsockname()[1]}"
        endpoint = client_endpoint(reactor, text, Poller(reactor) if poller == "ours" else None)
        with pytest.raises(error.ConnectionRefusedError):
            await endpoint.connect(Ends())


def full_listener() -> socket.socket:
    """Give a listener whose backlog is full, so that a further connection stays half-made."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    return listener


@ensure
async def test_a_connection_that_takes_its_time_is_waited_for_and_can_be_cancelled(our_wire: Wire) -> None:
    with full_listener() as listener:
        address = listener.getsockname()
        filler = socket.create_connection(address)
        endpoint = client_endpoint(reactor, f"127.0.0.1:{address[1]}", our_wire.poller)
        ends = Ends()
        waiting = endpoint.connect(ends)
        while waiting.called:
            waiting = endpoint.connect(ends)
        failures: list[Any] = []
        waiting.addErrback(failures.append)
        waiting.cancel()
        assert len(failures) == 1
        later = endpoint.connect(ends)
        assert not later.called
        # Room in the backlog lets the kernel's next SYN through.
        listener.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                listener.accept()[0].close()
        end: Any = await later
        assert isinstance(end.transport, Transport)
        filler.close()
        for built in ends.built:
            if not built.lost:
                built.transport.abortConnection()
        await until(lambda: all(built.lost for built in ends.built))


@ensure
@over("ours", "twisted's")
async def test_addresses_are_told_like_twisteds(wire: Wire) -> None:
    end, skt = await wire.connect()
    peer, host = end.transport.getPeer(), end.transport.getHost()
    assert (peer.host, peer.port) == skt.getsockname()
    assert (host.host, host.port) == skt.getpeername()
    assert end.transport.getHandle().fileno() == end.transport.fileno()


@ensure
@over("ours, unix")
async def test_unix_sockets_have_our_transports_and_twisteds_addresses(wire: Wire, tmp_path: Path) -> None:
    near: Any = await client_endpoint(reactor, wire.reached, wire.poller).connect(Ends())
    await until(lambda: wire.ends.built and wire.ends.built[0].connected_)
    far: Any = wire.ends.built[0]
    path = UNIXAddress(f"{tmp_path}/foo.sock")
    assert [type(end.transport) for end in (near, far)] == [Transport, Transport]
    assert (near.transport.getPeer(), far.transport.getHost()) == (path, path)
    assert (near.transport.getHost(), far.transport.getPeer()) == (UNIXAddress(None), UNIXAddress(None))
    near.transport.setTcpNoDelay(True)
    near.transport.abortConnection()
    await until(lambda: near.lost)


@ensure
@pytest.mark.parametrize("ours", [True, False])
async def test_a_unix_socket_that_nobody_listens_on_refuses(tmp_path: Path, ours: bool) -> None:
    endpoint = client_endpoint(reactor, f"unix:{tmp_path}/nobody", Poller(reactor) if ours else None)
    with pytest.raises(error.ConnectError):
        await endpoint.connect(Ends())


@ensure
async def test_ipv6_works_too() -> None:
    poller = Poller(reactor)
    ends = Ends()
    port: Any = await server_endpoint(reactor, "[::1]:0", poller=poller).listen(ends)
    client: Any = await client_endpoint(reactor, f"[::1]:{port.getHost().port}", poller).connect(Ends())
    await until(lambda: ends.built and ends.built[0].connected_)
    assert client.transport.getPeer() == port.getHost()
    assert isinstance(ends.built[0].transport, Transport)
    assert ends.built[0].transport.getPeer() == client.transport.getHost()
    for end in (client, ends.built[0]):
        end.transport.abortConnection()
    await until(lambda: client.lost and ends.built[0].lost)
    await port.stopListening()


def test_nothing_is_opened_before_it_is_needed() -> None:
    """Twistd forks between makeService and the start."""
    poller = Poller(reactor)
    assert poller._epoll is None
    server_endpoint(reactor, "0", "127.0.0.1", poller)
    client_endpoint(reactor, "127.0.0.1:1", poller)
    assert poller._epoll is None


@pytest_twisted.async_yield_fixture(params=["opened", "inherited"])
async def port(request: Any) -> Any:
    """A listening port of ours, and what its connections are built by."""
    ends = Ends()
    listener = Listener(reactor, Poller(reactor))
    with socket.create_server(("127.0.0.1", 0)) as holder:
        if request.param == "inherited":
            holder.setblocking(False)
            port: Any = listener.adoptStreamPort(holder.fileno(), socket.AF_INET, ends)
        else:
            port = listener.listenTCP(0, ends, interface="127.0.0.1")
        yield port, ends
        await port.stopListening()


def options(transport: Any) -> tuple[bool, bool, int]:
    limit = transport.getHandle().getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    return transport.getTcpNoDelay(), transport.getTcpKeepAlive(), limit


@ensure
async def test_connections_have_the_options_of_their_port_without_being_asked(port: Any) -> None:
    listening, ends = port
    set_options(listening, 7.0)
    with socket.create_connection(("127.0.0.1", listening.getHost().port)):
        await until(lambda: ends.built and ends.built[-1].connected_)
        transport = ends.built[-1].transport
        assert options(transport) == (True, True, 7000)
        transport.setTcpNoDelay(False)
        set_options(transport, 7.0)
        assert options(transport) == (False, True, 7000)
        set_options(transport, 8.0)
        assert options(transport) == (True, True, 8000)
        transport.loseConnection()
    await until(lambda: ends.built[-1].lost)


@ensure
async def test_connections_get_options_that_their_port_does_not_have(wire: Wire) -> None:
    end, _ = await wire.connect()
    set_options(end.transport, 7.0)
    if wire.address == "0":
        assert options(end.transport) == (True, True, 7000)


@ensure
async def test_tls_is_refused_and_not_circumvented(our_wire: Wire) -> None:
    end, _ = await our_wire.connect()
    with pytest.raises(NotImplementedError):
        end.transport.startTLS(None)


@ensure
async def test_a_port_in_use_is_told(our_wire: Wire) -> None:
    endpoint = server_endpoint(reactor, str(our_wire.port.getHost().port), "127.0.0.1", our_wire.poller)
    with pytest.raises(error.CannotListenError):
        await endpoint.listen(Factory())


async def pumping(wire: Wire) -> tuple[Any, End, socket.socket, End, socket.socket]:
    """Connect two ends, and have the first one's transport pump to the second's, and show an analyzer what it pumps."""
    twin, latency = counting(), Latency()
    analysis = twin.Analysis(latency, requests=True)
    tap = twin.Analyzer(analysis, twin.Exchange(latency))
    source, source_skt = await wire.connect()
    sink, sink_skt = await wire.connect()
    protocol: Any = source
    protocol.tap = tap
    assert wire.poller is not None
    wire.poller.afterwards.append(analysis.catch_up)
    source.transport.pump(sink.transport)
    return tap, source, source_skt, sink, sink_skt


@ensure
async def test_what_is_pumped_goes_to_the_sink_and_the_tap_but_not_to_the_protocol(our_wire: Wire) -> None:
    tap, source, source_skt, _, sink_skt = await pumping(our_wire)
    for word in (b"one ", b"two ", b"three ", b"four "):
        source_skt.sendall(word)
        await until(partial(readable, sink_skt))
        assert sink_skt.recv(100) == word
    assert tap.bytes == len(b"one two three four ")
    assert not source.received
    source.transport.stop_pumping()
    source_skt.sendall(b"five")
    await until(lambda: source.received == b"five")


def readable(skt: socket.socket) -> bool:
    return bool(select.select([skt], [], [], 0)[0])


@ensure
async def test_large_chunks_are_shown_at_once_and_all_that_is_pumped_arrives_in_order(our_wire: Wire) -> None:
    tap, source, source_skt, sink, sink_skt = await pumping(our_wire)
    pauses: list[None] = []
    pause = source.transport.pauseProducing
    source.transport.pauseProducing = lambda: pauses.append(pause())
    sink.transport.registerProducer(source.transport, True)
    sending = Thread(target=source_skt.sendall, args=(BIG,))
    sending.start()
    await until(lambda: pauses)
    assert 0 < tap.bytes < len(BIG)
    received = bytearray()
    sink_skt.setblocking(False)

    def all_here() -> bool:
        with suppress(BlockingIOError):
            received.extend(sink_skt.recv(1 << 20))
        return len(received) == len(BIG)

    await until(all_here)
    sending.join()
    assert received == BIG
    assert tap.counts.bytes == len(BIG)


@ensure
async def test_what_is_pumped_is_written_before_another_end_of_the_batch_is_told(our_wire: Wire) -> None:
    _, _, source_skt, _, sink_skt = await pumping(our_wire)
    other, other_skt = await our_wire.connect()
    order: list[bool] = []
    other.readConnectionLost = lambda: order.append(readable(sink_skt))  # type: ignore[method-assign]
    # Both are there before the poller looks, and it finds the end first.
    other_skt.shutdown(socket.SHUT_WR)
    source_skt.sendall(b"before")
    await until(lambda: order)
    assert order == [True]


@ensure
async def test_what_the_kernel_takes_in_part_is_not_lost_if_its_batch_closes_the_sink(our_wire: Wire) -> None:
    tap, _, source_skt, sink, sink_skt = await pumping(our_wire)
    other, other_skt = await our_wire.connect()
    other.readConnectionLost = lambda: sink.transport.loseConnection()  # type: ignore[method-assign]
    sink.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sink_skt.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    tap.room = 1 << 16
    chunk = random.Random(1).randbytes(60_000)
    other_skt.shutdown(socket.SHUT_WR)
    source_skt.sendall(chunk)
    assert await read_all(sink_skt) == chunk


@ensure
async def test_what_is_pumped_to_a_sink_with_bytes_waiting_arrives_last(our_wire: Wire) -> None:
    tap, _, source_skt, sink, sink_skt = await pumping(our_wire)
    sink.transport.write(BIG)
    assert unsent(sink.transport)
    # The peer makes room in the kernel, which is not for what comes later.
    skipped = len(sink_skt.recv(1 << 20))
    source_skt.sendall(b"last")
    await until(lambda: tap.bytes == len(b"last"))
    sink.transport.loseConnection()
    assert await read_all(sink_skt) == BIG[skipped:] + b"last"


@ensure
async def test_closing_waits_for_a_producer(wire: Wire) -> None:
    end, skt = await wire.connect()
    end.transport.registerProducer(StringTransport(), True)
    end.transport.loseConnection()
    end.transport.write(b"still produced")
    end.transport.unregisterProducer()
    assert await read_all(skt) == b"still produced"


class AlwaysReady:
    """A descriptor that can be read, however often it is."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.reads = 0

    def fileno(self) -> int:
        return self.fd

    def doRead(self) -> None:
        self.reads += 1


class AlwaysKnocking(AlwaysReady, Port):
    """A port at which clients wait, however many it accepts."""


@pytest.mark.parametrize(
    ("tick", "patience", "newcomers", "batches"),
    [(20_000, 0.001, False, 2), (100, 0.001, False, 102), (100, 0.001, True, 8), (100, 0.0, False, 8)],
)
def test_the_poller_returns_to_the_reactor_in_time(tick: int, patience: float, newcomers: bool, batches: int) -> None:
    near, far = socket.socketpair()
    stub: Any = SimpleNamespace(callLater=None, addReader=lambda reader: None)
    now = 1
    poller = Poller(stub, patience, clock=lambda: now)

    def pass_time() -> None:
        nonlocal now
        now += tick

    poller.afterwards.append(pass_time)
    with near, far:
        far.send(b"x")
        ready = AlwaysReady(near.fileno())
        poller.addReader(ready)
        if newcomers:
            near.send(b"x")
            port = AlwaysKnocking(far.fileno())
            poller.addReader(port)
        poller.doRead()
        assert ready.reads == batches
        assert not newcomers or port.reads == 1
        poller.forget(ready)


@pytest.mark.parametrize(("delay", "batches"), [(None, 102), (600.0, 102), (0.005, 52), (0, 8)])
def test_in_the_reactors_place_it_returns_for_timers_in_time(delay: float | None, batches: int) -> None:
    near, far = socket.socketpair()
    stub: Any = SimpleNamespace(callLater=None, addReader=lambda reader: None)
    now = 1
    poller = Poller(stub, 0.001, clock=lambda: now)

    def pass_time() -> None:
        nonlocal now
        now += 100

    poller.afterwards.append(pass_time)
    with near, far:
        far.send(b"x")
        ready = AlwaysReady(near.fileno())
        poller.addReader(ready)
        poller.iterate(delay)
        assert ready.reads == batches
        poller.forget(ready)


@pytest.mark.parametrize(("is_relayed", "wait"), [(True, 0.05), (False, 0.001)])
def test_in_the_reactors_place_it_waits_for_long_only_after_mere_relaying(is_relayed: bool, wait: float) -> None:
    stub: Any = SimpleNamespace(callLater=None, addReader=lambda reader: None)
    pump = SimpleNamespace(relay=lambda events, now: ([] if is_relayed else [(0, IN, None)], []))
    poller = Poller(stub, 0.001, clock=lambda: 1, pump=lambda look, clock: pump)
    waits: list[float] = []
    batches: list[Any] = [[(0, IN)], []]

    def poll(timeout: float, most: int) -> Any:
        waits.append(timeout)
        return batches.pop(0)

    poller._epoll = SimpleNamespace(poll=poll, register=lambda fd, events: None)
    poller.addReader(AlwaysReady(0))
    poller.iterate(600.0)
    assert waits == [600.0, wait]


@pytest.mark.timeout(20)
def test_the_poller_returns_soon_for_what_was_postponed() -> None:
    near, far = socket.socketpair()
    stub: Any = SimpleNamespace(callLater=lambda delay, do: None, addReader=lambda reader: None)
    poller = Poller(stub, 0.001, clock=lambda: 1)
    with near, far:
        far.send(b"x")
        ready = AlwaysReady(near.fileno())
        poller.addReader(ready)
        poller.soon(lambda: None)
        poller.doRead()
        assert ready.reads == 8
        poller.forget(ready)


@ensure
async def test_an_end_that_its_own_batch_brings_about_is_no_failure(our_wire: Wire) -> None:
    _, source, source_skt, sink, sink_skt = await pumping(our_wire)
    sink.transport.registerProducer(source.transport, True)
    source.transport.stopProducing = sink.transport.abortConnection
    logged: Any = []
    globalLogPublisher.addObserver(logged.append)
    try:
        # The chunk is read first; then it is written to a connection that has just been reset, before that is told.
        source_skt.sendall(b"nobody gets this")
        sink_skt.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sink_skt.close()
        await until(lambda: sink.lost)
    finally:
        globalLogPublisher.removeObserver(logged.append)
    assert not [event for event in logged if event.get("log_failure")]


@ensure
async def test_after_a_silence_something_may_be_done_before_anything_is_read(our_wire: Wire) -> None:
    poller = our_wire.poller
    assert poller is not None
    end, skt = await our_wire.connect()
    said: list[bytes] = []
    now = 10_000_000
    poller._clock = lambda: now
    skt.sendall(b"a")
    await until(lambda: end.received == b"a")
    poller.after_silence.append(lambda: said.append(bytes(end.received)))
    for later, text in ((100_000, b"ab"), (100_001, b"abc"), (5, b"abcd")):
        now += later
        skt.sendall(text[-1:])
        await until(lambda: end.received == text)  # noqa: B023 (awaited in the same turn of the loop)
    assert said == [b"ab"]


@ensure
async def test_after_each_batch_follows_what_was_asked_for_and_may_fail(our_wire: Wire) -> None:
    poller = our_wire.poller
    assert poller is not None
    said: list[Any] = []

    def fail() -> None:
        raise RuntimeError("a defect")

    end, skt = await our_wire.connect()
    poller.afterwards += [fail, lambda: said.append("done")]
    logged: Any = []
    globalLogPublisher.addObserver(logged.append)
    try:
        skt.sendall(b"x")
        await until(lambda: said)
    finally:
        globalLogPublisher.removeObserver(logged.append)
        poller.afterwards.clear()
    assert end.received == b"x"
    assert any(event.get("log_failure") for event in logged)
