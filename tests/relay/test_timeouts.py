"""Idle sessions and stalled peers: what the sweep finds, and what it leaves alone."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater

from fooproxy.net.private import unsent, unsent_cleartext
from fooproxy.net.pump import LARGEST_READ
from fooproxy.net.sockets import TIMED_OUT, acknowledged, is_writing, unacknowledged
from fooproxy.relay.leg import Leg
from fooproxy.relay.session import FIN_TIMEOUT
from fooproxy.relay.sweep import Sweep
from fooproxy.relay.timeouts import Timeouts
from tests.helpers.anybed import KINDS, AnyBed, any_bed, only
from tests.helpers.backpressure import at_rest, clog, noise, stuck
from tests.helpers.bed import Peer, reactor, until
from tests.helpers.fooserver import FooServer, connect, exchange, read_to_end
from tests.helpers.proxyprocess import Proxy, fooproxy, settles

ensure = pytest_twisted.ensureDeferred

# Twisted causes this pyOpenSSL warning, not our code.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")

IDLE, CLIENT_FIN, SEND = 30.0, 3.0, 20.0
TIMEOUTS = Timeouts(idle=IDLE, client_fin=CLIENT_FIN, send=SEND)
LATE = 2 * TIMEOUTS.interval
"""Seconds by which a timeout may be noticed late."""


# Filling the kernel's buffers takes time, and with TLS each megabyte is encrypted and decrypted here too.
bed = any_bed(
    *(kind if kind == "ours" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS), timeouts=TIMEOUTS
)


async def clogged(bed: AnyBed, slow_side: str) -> tuple[Peer, Peer, Leg]:
    """Stop reading on `slow_side` and send from the other until backpressure holds; return reader, writer, sink leg."""
    client, upstream = await bed.pair()
    session = bed.session()
    assert session.upstream is not None
    reader, writer, source, sink = (
        (client, upstream, session.upstream, session.client)
        if slow_side == "client"
        else (upstream, client, session.client, session.upstream)
    )
    if bed.kind != "ssl":
        reader.shrink_buffers()
    reader.transport.pauseProducing()
    await clog(writer, source, sink)
    return reader, writer, sink


async def given_up(bed: AnyBed, sink: Leg, sending: Callable[[], Any] = lambda: None) -> None:
    """Let time pass until `sink` is aborted by the send timeout, and call `sending` in between.

    Window probes may move a little more data into the peer's kernel.  That is progress, and the only reason for which
    the leg may stay longer.
    """
    for _ in range(10):
        before = acknowledged(sink.transport)
        for _ in range(4):
            bed.pass_time((SEND + LATE) / 4)
            sending()
            await at_rest(sink)
        if sink.lost:
            return
        assert acknowledged(sink.transport) != before
    pytest.fail("it was not given up")


async def read_a_little(reader: Peer, sink: Leg) -> None:
    """Let the peer read until our side sees progress."""
    session: Any = sink.session
    before = acknowledged(sink.transport), session.pauses
    while (acknowledged(sink.transport), session.pauses) == before:
        received = len(reader.received)
        reader.transport.resumeProducing()
        await until(lambda: len(reader.received) > received)  # noqa: B023 (awaited in the same turn of the loop)
        reader.transport.pauseProducing()


# Idle sessions


@ensure
async def test_a_session_in_which_nothing_passes_is_ended(bed: AnyBed) -> None:
    client, upstream = await bed.pair()
    bed.pass_time(IDLE - 1)
    assert bed.session().state == "open"
    bed.pass_time(1 + LATE)
    await until(lambda: not bed.bridge.sessions)
    await until(lambda: (client.fin or client.lost) and (upstream.fin or upstream.lost))
    assert bed.reasons() == {"idle_timeout": 1}


@ensure
@only("ours", "twisted's")
@pytest.mark.parametrize("side", ["client", "upstream"])
async def test_what_either_side_sends_keeps_a_session_open(bed: AnyBed, side: str) -> None:
    client, upstream = await bed.pair()
    sender, receiver = (client, upstream) if side == "client" else (upstream, client)
    for count in range(1, 5):
        bed.pass_time(IDLE * 2 / 3)
        sender.transport.write(b"x")
        await until(lambda: len(receiver.received) == count)  # noqa: B023 (awaited in the same turn of the loop)
    assert bed.session().state == "open"


@ensure
@only("ours")
async def test_a_request_that_waits_for_its_reply_does_not_make_a_session_busy(bed: AnyBed) -> None:
    client, upstream = await bed.pair()
    client.transport.write(b"REQ 1\n")
    await until(lambda: upstream.received)
    bed.pass_time(IDLE + LATE)
    await until(lambda: not bed.bridge.sessions)
    assert bed.reasons() == {"idle_timeout": 1}


@ensure
@only("ours")
async def test_a_session_that_is_still_connecting_is_not_idle(bed: AnyBed) -> None:
    bed.gate = Deferred()
    await bed.client()
    await until(lambda: bed.bridge.sessions)
    bed.pass_time(3 * IDLE)
    assert bed.session().state == "connecting"
    bed.gate.callback(None)


@ensure
async def test_a_session_whose_peer_reads_slowly_is_neither_idle_nor_given_up(bed: AnyBed) -> None:
    reader, writer, sink = await clogged(bed, "client")
    for _ in range(4):
        bed.pass_time(SEND * 2 / 3)
        await read_a_little(reader, sink)
        upstream = bed.session().upstream
        assert upstream is not None
        await clog(writer, upstream, sink)
    assert bed.session().state == "open"
    assert not reader.lost


@ensure
@only("ours", "twisted's")
async def test_a_session_is_idle_only_from_when_its_peer_has_read_everything(bed: AnyBed) -> None:
    reader, _, sink = await clogged(bed, "client")
    bed.pass_time(SEND * 2 / 3)
    reader.transport.resumeProducing()
    await until(lambda: not (bed.session().paused or is_writing(sink.transport) or unacknowledged(sink.transport)))
    bed.pass_time(IDLE - LATE)
    assert bed.session().state == "open"
    bed.pass_time(2 * LATE)
    await until(lambda: not bed.bridge.sessions)
    assert bed.reasons() == {"idle_timeout": 1}


@ensure
@only("ours", "twisted's")
async def test_a_peer_that_leaves_what_the_kernel_holds_is_not_idle_but_does_not_read(bed: AnyBed) -> None:
    client, upstream = await bed.pair()
    sink, sent = bed.session().client, 0
    client.transport.pauseProducing()
    client.shrink_buffers()
    # More than the client's kernel takes or acknowledges late, but little enough for our kernel to hold the rest.
    while unacknowledged(sink.transport) < 200_000:
        upstream.transport.write(noise(20_000))
        sent += 20_000
        await until(lambda: bed.stats.upstream.bytes == sent)  # noqa: B023 (awaited in the same turn of the loop)
        if unacknowledged(sink.transport) >= 200_000:
            await at_rest(sink)
    assert not is_writing(sink.transport)
    bed.pass_time(IDLE + LATE)
    assert bed.session().state == "open"
    await given_up(bed, sink)
    await until(lambda: not bed.bridge.sessions)
    assert bed.reasons() == {"send_timeout": 1}


@ensure
@only("ours")
async def test_without_an_idle_timeout_sessions_stay(bed: AnyBed) -> None:
    await bed.pair()
    bed.sweep.stop()
    bed.sweep = Sweep(bed.bridge.sessions, Timeouts(), bed.clock, bed.stats.catch_up)
    bed.sweep.start()
    bed.pass_time(10_000)
    assert bed.session().state == "open"


# Stalled peers


@ensure
@pytest.mark.parametrize("slow_side", ["client", "upstream"])
async def test_what_is_held_for_a_peer_that_does_not_read_is_bounded(bed: AnyBed, slow_side: str) -> None:
    _, _, sink = await clogged(bed, slow_side)
    assert held(sink.transport) <= LARGEST_READ + FileDescriptor.bufferSize


def held(transport: Any) -> int:
    """Return the number of bytes that wait in `transport` and in the transports it wraps."""
    if hasattr(transport, "dataBuffer") and "transport" not in vars(transport):
        return unsent(transport)
    return unsent_cleartext(transport) + held(transport.transport)


@ensure
@pytest.mark.parametrize("slow_side", ["client", "upstream"])
async def test_a_peer_that_does_not_read_at_all_is_aborted_while_the_session_is_open(
    bed: AnyBed, slow_side: str
) -> None:
    reader, writer, sink = await clogged(bed, slow_side)
    bed.pass_time(SEND - 1)
    assert bed.session().state == "open"
    await given_up(bed, sink)
    if slow_side == "upstream":
        # The client gets time to read what remains, and to close.
        await until(lambda: not bed.bridge.sessions or bed.session().state == "closing")
        bed.pass_time(SEND + LATE if bed.kind == "ssl" else FIN_TIMEOUT)
    await until(lambda: not bed.bridge.sessions)
    assert bed.reasons() == {"send_timeout": 1}
    for peer in (reader, writer):
        peer.transport.resumeProducing()
    await until(lambda: (reader.lost or reader.fin) and (writer.lost or writer.fin))


@ensure
@only("ours")
@pytest.mark.parametrize("slow_side", ["client", "upstream"])
async def test_a_write_that_fails_because_the_peer_took_nothing_is_a_send_timeout(bed: AnyBed, slow_side: str) -> None:
    await bed.pair()
    session: Any = bed.session()
    session.client.transport.stop_pumping()
    session.upstream.transport.stop_pumping()
    # What the kernel says after TCP_USER_TIMEOUT.
    getattr(session, slow_side).transport.fail(TIMED_OUT)
    bed.pass_time(FIN_TIMEOUT + LATE)
    await until(lambda: not bed.bridge.sessions)
    assert bed.reasons() == {"send_timeout": 1}


@ensure
@only("ours", "twisted's", "unix")
async def test_a_peer_that_does_not_read_is_not_helped_by_one_that_goes_on_sending_a_little(bed: AnyBed) -> None:
    client, upstream = await bed.pair()
    sink = bed.session().client
    client.transport.pauseProducing()
    sent = 0
    while not is_writing(sink.transport):
        upstream.transport.write(noise(20_000))
        sent += 20_000
        await until(lambda: bed.stats.upstream.bytes == sent)  # noqa: B023 (awaited in the same turn of the loop)
        # Twisted's transports write in the next reactor turn.
        await deferLater(reactor, 0)
        await deferLater(reactor, 0)
        if is_writing(sink.transport):
            await at_rest(sink)
    assert not bed.session().paused
    # A unix socket reports only how much is unread, so further data would look like progress.
    await given_up(bed, sink, lambda: bed.kind == "unix" or upstream.transport.write(b"0123456789"))
    await until(lambda: not bed.bridge.sessions)
    assert bed.reasons() == {"send_timeout": 1}


@ensure
@only("ours", "twisted's")
async def test_closing_waits_for_a_peer_that_reads_slowly_and_not_for_one_that_does_not_read(bed: AnyBed) -> None:
    reader, _, sink = await clogged(bed, "client")
    # So much that the kernel cannot take all of it as soon as it has some room.
    sink.transport.write(noise(10_000_000))
    bed.session().close()
    for _ in range(4):
        bed.pass_time(SEND * 2 / 3)
        await read_a_little(reader, sink)
        assert bed.session().state == "closing"
    await given_up(bed, sink)
    await until(lambda: not bed.bridge.sessions)
    assert bed.reasons() == {"send_timeout": 1}


@ensure
@only("ssl")
async def test_a_client_that_does_not_take_leave_is_given_up(bed: AnyBed) -> None:
    client, _ = await bed.pair()
    bed.clients.built[0].transport.write(b"REQ 1\n")
    await until(lambda: bed.upstreams.built[0].received)
    # TLS waits for the client's close_notify, which does not come.
    client.transport.pauseProducing()
    bed.session().close()
    await until(lambda: bed.session().upstream.lost)  # type: ignore[union-attr]
    bed.pass_time(SEND + LATE)
    await until(lambda: not bed.bridge.sessions)


@ensure
@only("ssl")
async def test_a_client_that_was_not_read_when_its_session_closed_is_still_heard_taking_leave(bed: AnyBed) -> None:
    client, upstream = await bed.pair()
    client.transport.write(b"REQ 1\n")
    await until(lambda: upstream.received)
    drained = bed.bridge.drain()
    assert bed.session().client.paused
    upstream.transport.write(b"ACK 1\n")
    await drained
    assert client.received == b"ACK 1\n"
    assert bed.reasons() == {"drained": 1}


# Half-closed clients


@ensure
@only("ours", "twisted's", "unix")
async def test_a_client_that_has_closed_its_side_waits_so_long_for_each_reply(bed: AnyBed) -> None:
    client, upstream = await bed.pair()
    client.transport.write(b"REQ 1\nREQ 2\n")
    client.transport.loseWriteConnection()
    await until(lambda: upstream.fin)
    bed.pass_time(CLIENT_FIN * 2 / 3)
    upstream.transport.write(b"ACK 1\n")
    await until(lambda: client.received)
    bed.pass_time(CLIENT_FIN * 2 / 3)
    assert bed.session().state == "half-closed"
    bed.pass_time(CLIENT_FIN)
    await until(lambda: not bed.bridge.sessions)
    assert bed.reasons() == {"half_close_timeout": 1}


@ensure
@only("ours", "twisted's", "unix")
async def test_a_client_that_has_closed_its_side_and_reads_slowly_keeps_its_reason(bed: AnyBed) -> None:
    client, upstream = await bed.pair()
    client.transport.write(b"REQ 1\n")
    await until(lambda: upstream.received)
    session = bed.session()
    source = session.upstream
    assert source is not None
    client.transport.pauseProducing()
    # More than all buffers on the way hold, so that the upstream has some left while the client does not read.
    reply = b"ACK 1 ".ljust(20_000_000, b"x") + b"\n"
    upstream.transport.write(reply)
    await stuck(source, session.client)
    client.transport.loseWriteConnection()
    await until(lambda: upstream.fin)
    # It makes a little room.
    await stuck(source, session.client)
    for _ in range(3):
        bed.pass_time(CLIENT_FIN)
    assert session.state == "half-closed"
    client.transport.resumeProducing()
    await until(lambda: not bed.bridge.sessions)
    await until(lambda: len(client.received) == len(reply))
    assert bed.reasons() == {"client_closed": 1}


# The sweep itself


@pytest.mark.parametrize(
    ("timeouts", "interval"),
    [
        (Timeouts(), 5.0),
        (Timeouts(send=3600), 5.0),
        (Timeouts(idle=3600), 5.0),
        (Timeouts(idle=20), 2.0),
        (Timeouts(send=10), 1.0),
        (Timeouts(idle=0.5), 0.1),
        (Timeouts(client_fin=1), 5.0),
    ],
)
def test_a_timeout_is_noticed_within_a_tenth_of_it_and_five_seconds(timeouts: Timeouts, interval: float) -> None:
    assert timeouts.interval == interval


@ensure
@only("ours")
async def test_what_came_while_the_process_was_held_up_is_read_before_a_session_is_called_idle(bed: AnyBed) -> None:
    client, upstream = await bed.pair()
    bed.pass_time(LATE)
    client.transport.write(b"REQ 1\n")
    bed.clock.advance(10 * IDLE)
    assert bed.session().state == "open"
    await until(lambda: upstream.received and bed.stats.client.bytes)
    bed.pass_time(IDLE - LATE)
    assert bed.session().state == "open"
    bed.pass_time(2 * LATE)
    await until(lambda: not bed.bridge.sessions)


class Forgotten:
    """A session without legs that has always been idle."""

    client = upstream = None
    state = "open"
    stirred = float("-inf")
    observer: Any = SimpleNamespace(idle=float("inf"))

    def __init__(self, expired: list[Any]) -> None:
        self._expired = expired

    def expire(self) -> None:
        self._expired.append(self)


class TurningClock(Clock):
    """Counts how often the sweep yields to the reactor."""

    turns = 0

    def callLater(self, delay: float, callable: Any, *args: object, **kw: object) -> Any:
        self.turns += not delay
        return super().callLater(delay, callable, *args, **kw)


def test_a_session_is_called_idle_only_after_what_has_arrived_was_read() -> None:
    clock, expired = TurningClock(), list[Any]()
    session: Any = Forgotten(expired)
    sweep = Sweep({session}, TIMEOUTS, clock, lambda: setattr(session, "observer", SimpleNamespace(idle=read())))

    def read() -> float:
        return 0.0 if clock.turns else float("inf")

    sweep.start()
    # Late, but not so late that the sweep would rather wait for the next one.
    clock.advance(TIMEOUTS.interval * 1.5)
    assert not expired
    sweep.stop()


@ensure
@only("ours")
async def test_a_sweep_that_fails_is_not_the_last_one(bed: AnyBed) -> None:
    await bed.pair()
    bed.sweep.stop()
    failures = iter([RuntimeError("once")])

    def prepare() -> None:
        for failure in failures:
            raise failure

    bed.sweep = Sweep(bed.bridge.sessions, TIMEOUTS, bed.clock, prepare)
    bed.sweep.start()
    bed.pass_time(IDLE + LATE)
    await until(lambda: not bed.bridge.sessions)
    (failure,) = bed.failures
    assert "once" in failure
    bed.failures.clear()


# The real process


@pytest.mark.slow
def test_the_process_ends_a_session_in_which_nothing_passes(tmp_path: Path) -> None:
    with FooServer() as server, fooproxy(tmp_path, "--idle-timeout", "2", upstream=server.port) as proxy:
        with closing(connect(proxy.port)) as client:
            client.sendall(b"REQ 1 a\n")
            assert read_to_end(client) == b"ACK 1 a\n"
        settles(lambda: closed(proxy), {"idle_timeout": 1})
        proxy.says("ended: idle_timeout")


@pytest.mark.slow
def test_the_process_ends_a_session_whose_oldest_request_has_waited_for_too_long(tmp_path: Path) -> None:
    options = ("--reply-timeout", "0.5")
    with FooServer(holding=True) as server, fooproxy(tmp_path, *options, upstream=server.port) as proxy:
        with connect(proxy.port) as idle, connect(proxy.port) as client:
            client.sendall(b"REQ 1 a\nREQ 2 b\n")
            assert read_to_end(client) == b""
            settles(lambda: closed(proxy), {"reply_timeout": 1})
            proxy.says("ended: reply_timeout")
            # One that asks nothing waits for nothing.
            assert proxy.stats("connections_active") == {"connections_active": 1}
            idle.close()
            settles(lambda: closed(proxy), {"reply_timeout": 1, "client_closed": 1})
        assert proxy.stats("requests_unanswered")["requests_unanswered"]["reply_timeout"] == 2


@pytest.mark.slow
def test_the_process_gives_up_replies_that_do_not_come_for_a_client_that_has_closed_its_side(tmp_path: Path) -> None:
    options = ("--client-fin-timeout", "0.3")
    with FooServer(holding=True) as server, fooproxy(tmp_path, *options, upstream=server.port) as proxy:
        assert exchange(proxy.port, b"REQ 1 a\n") == b""
        settles(lambda: closed(proxy), {"half_close_timeout": 1})


def flooding(client: socket.socket) -> None:
    """Send requests until the connection ends."""
    with contextlib.suppress(OSError):
        while True:
            client.sendall(1000 * b"REQ 1 some-data\n")


@pytest.mark.slow
def test_the_process_gives_up_a_client_that_does_not_read(tmp_path: Path) -> None:
    with FooServer() as server, fooproxy(tmp_path, "--send-timeout", "0.3", upstream=server.port) as proxy:
        with closing(connect(proxy.port)) as client:
            flooding(client)
        settles(lambda: closed(proxy), {"send_timeout": 1})


@pytest.mark.slow
def test_the_process_gives_up_an_upstream_that_does_not_read(tmp_path: Path) -> None:
    with FooServer() as server, fooproxy(tmp_path, "--send-timeout", "0.3", upstream=server.port) as proxy:
        server.reading.clear()
        with closing(connect(proxy.port)) as client:
            sender = threading.Thread(target=flooding, args=(client,))
            sender.start()
            assert read_to_end(client) == b""
            client.shutdown(socket.SHUT_RDWR)
            sender.join()
        settles(lambda: closed(proxy), {"send_timeout": 1})


@pytest.mark.slow
@pytest.mark.parametrize("listen", ["127.0.0.1:0", "haproxy:tcp:0:interface=127.0.0.1"])
@pytest.mark.parametrize("goes_on", [False, True], ids=["silent", "sending"])
def test_the_process_gives_up_a_client_whose_replies_only_the_kernel_holds(
    tmp_path: Path, listen: str, goes_on: bool
) -> None:
    arguments = ("--send-timeout", "0.5", "--listen", listen)
    with (
        FooServer() as server,
        fooproxy(tmp_path, *arguments, upstream=server.port) as proxy,
        socket.socket() as client,
    ):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        client.connect(("127.0.0.1", proxy.port))
        if listen.startswith("haproxy"):
            client.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 5555 8002\r\n")
        with contextlib.suppress(OSError):
            # More than the client's kernel takes, but not more than the proxy's.
            for _ in range(20):
                client.sendall(b"REQ 1 ".ljust(10_000, b"x") + b"\n")
            while goes_on:
                client.sendall(b"REQ 2 y\n")
                time.sleep(0.02)
        settles(lambda: closed(proxy), {"send_timeout": 1})


@pytest.mark.slow
def test_the_process_gives_up_an_upstream_whose_requests_only_the_kernel_holds(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        server.bind(("127.0.0.1", 0))
        server.listen()
        options = ("--send-timeout", "0.5")
        with fooproxy(tmp_path, *options, upstream=server.getsockname()[1]) as proxy, connect(proxy.port) as client:
            client.sendall(b"REQ 1 ".ljust(200_000, b"x") + b"\n")
            assert read_to_end(client) == b""
            client.shutdown(socket.SHUT_RDWR)
            settles(lambda: closed(proxy), {"send_timeout": 1})


def closed(proxy: Proxy) -> dict[str, int]:
    """Return the number of ended sessions by reason."""
    found: dict[str, int] = proxy.stats("connections_closed")["connections_closed"]
    return {reason: count for reason, count in found.items() if count}


@ensure
@pytest.mark.parametrize("size", [40_000, 60_000, 4_000_000])
async def test_a_drain_that_is_cut_short_is_over_whatever_the_client_has_still_to_take(bed: AnyBed, size: int) -> None:
    client, upstream = await bed.pair()
    client.transport.write(b"REQ 1\n")
    await until(lambda: upstream.received == b"REQ 1\n")
    client.transport.pauseProducing()
    upstream.transport.write(b"ACK 1 ".ljust(size, b"x") + b"\n")
    session = bed.session()
    await until(lambda: session.observer.settled or session.paused)
    drained = bed.bridge.drain()
    await deferLater(reactor, 0.01)
    bed.bridge.abort()
    await until(lambda: drained.called)
    assert not bed.bridge.sessions


# Why sessions end, over each kind of transport


@ensure
async def test_a_client_that_closes_is_not_taken_for_one_that_resets(bed: AnyBed) -> None:
    client, _ = await bed.exchanged()
    client.transport.loseConnection()
    await until(lambda: not bed.bridge.sessions)
    assert bed.reasons() == {"client_closed": 1}


@ensure
@only("ours", "twisted's", "unix", "haproxy")
async def test_replies_arrive_after_the_clients_fin(bed: AnyBed) -> None:
    client, upstream = await bed.pair()
    client.transport.write(b"REQ 1\n")
    client.transport.loseWriteConnection()
    await until(lambda: upstream.fin)
    upstream.transport.write(b"ACK 1\n")
    await until(lambda: client.lost or client.fin)
    assert client.received == b"ACK 1\n"
    await until(lambda: not bed.bridge.sessions)
    assert bed.reasons() == {"client_closed": 1}


@ensure
async def test_a_client_that_resets_is_told_as_that(bed: AnyBed) -> None:
    client, _ = await bed.pair()
    client.reset()
    await until(lambda: not bed.bridge.sessions)
    assert bed.reasons() == {"client_closed" if bed.kind == "unix" else "client_reset": 1}
