"""The poller's turns: what a turn of the event loop does beside relaying is bounded in time."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint

from fooproxy.net.sockets import bottom_of
from tests.helpers.anybed import AnyBed
from tests.helpers.bed import Bed, reactor, until

ensure = pytest_twisted.ensureDeferred

# Twisted causes this pyOpenSSL warning, not our code.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")

MANY = 40


MANY_MORE = 120
"""Several times what a turn serves on a slow bed."""


class Slow(Bed):
    """A bed on which every look at the clock takes a millisecond while it is `slow`."""

    slow = False

    def tick(self) -> int:
        self._ticks += 1000 * self.slow
        return super().tick()


class SlowBed(Slow):
    """Clients connect by TCP."""


class SlowAnyBed(Slow, AnyBed):
    """Clients connect by any transport."""


@pytest_twisted.async_yield_fixture()
async def bed(twin: str) -> AsyncIterator[SlowBed]:
    bed = SlowBed("ours")
    await bed.start()
    yield bed
    bed.slow = False
    await bed.stop()


@pytest_twisted.async_yield_fixture(params=["haproxy", "ssl", "haproxy, ssl"])
async def layered(request: Any, tmp_path: Path) -> AsyncIterator[SlowAnyBed]:
    """A bed whose client legs have layers above their transports, so that the pump does not relay."""
    bed = SlowAnyBed(request.param, tmp_path)
    await bed.start()
    yield bed
    bed.slow = False
    await bed.stop()


async def crowd(bed: Bed, count: int) -> list[Any]:
    """Connect `count` clients, and wait until their sessions relay; no more at a time than the backlogs hold."""
    built = bed.upstreams.built
    clients: list[Any] = []
    for there in range(0, count, MANY):
        some = min(count - there, MANY)
        clients += await gatherResults([Deferred.fromCoroutine(bed.client()) for _ in range(some)])
        await until(partial(_relay, built, there + some))
    return clients


def _relay(built: list[Any], count: int) -> bool:
    return len(built) == count and all(peer.connected_ for peer in built)


@ensure
async def test_a_request_does_not_wait_for_the_ends_of_many_sessions(bed: SlowBed) -> None:
    *leaving, staying = await crowd(bed, MANY)
    poller: Any = bed.poller
    for client in leaving:
        client.transport.getHandle().shutdown(1)
    staying.transport.getHandle().send(b"REQ 1\n")
    bed.slow = True
    poller.doRead()
    assert [session.state for session in bed.bridge.sessions].count("open") > MANY // 2
    assert bed.stats.bytes_from_clients == len(b"REQ 1\n")
    await until(lambda: any(peer.received == b"REQ 1\n" for peer in bed.upstreams.built))
    await until(lambda: len(bed.bridge.sessions) == 1)


@ensure
async def test_many_sessions_that_are_reset_at_once_all_end_as_resets(bed: SlowBed) -> None:
    clients = await crowd(bed, MANY)
    bed.slow = True
    for client in clients:
        client.reset()
    await until(lambda: not bed.bridge.sessions)
    assert bed.stats.connections_closed["client_reset"] == MANY
    assert bed.stats.requests_in_flight == 0


@ensure
async def test_what_is_set_aside_may_be_closed_or_paused_meanwhile(bed: SlowBed) -> None:
    clients = await crowd(bed, MANY)
    poller: Any = bed.poller
    for client in clients:
        client.transport.getHandle().shutdown(1)
    bed.slow = True
    poller.doRead()
    aborted, paused, *_ = reversed([session for session in bed.bridge.sessions if session.state == "open"])
    aborted.abort()
    paused.client.pauseProducing()
    paused.client.resumeProducing()
    await until(lambda: not bed.bridge.sessions)
    closed = bed.stats.connections_closed
    assert closed["aborted"] == 1 and closed["client_closed"] == MANY - 1


@ensure
async def test_a_port_accepts_once_in_a_turn_of_the_reactor(bed: SlowBed) -> None:
    poller: Any = bed.poller
    port: Any = bed.ports[1]
    reads = []
    read = port.doRead
    port.doRead = lambda: reads.append(1)
    waiting = [Deferred.fromCoroutine(bed.client()) for _ in range(3)]
    await until(lambda: len(reads) > 1)
    reads.clear()
    poller.doRead()
    assert len(reads) == 1
    port.doRead = read
    await gatherResults(waiting)
    await until(lambda: len(bed.bridge.sessions) == 3)


@ensure
async def test_a_request_does_not_wait_for_the_ends_of_many_sessions_above_layers_either(layered: SlowAnyBed) -> None:
    *leaving, staying = await crowd(layered, MANY_MORE)
    staying.transport.write(b"REQ 1\n")
    await until(lambda: any(peer.received == b"REQ 1\n" for peer in layered.upstreams.built))
    layered.slow = True
    for client in leaving:
        bottom_of(client.transport).socket.shutdown(socket.SHUT_WR)
    staying.transport.write(b"REQ 2\n")
    await until(lambda: any(peer.received == b"REQ 1\nREQ 2\n" for peer in layered.upstreams.built))
    assert [session.state for session in layered.bridge.sessions].count("open") > MANY_MORE // 2
    await until(lambda: len(layered.bridge.sessions) == 1)


@ensure
@pytest.mark.parametrize("layered", ["haproxy"], indirect=True)
async def test_a_request_does_not_wait_for_the_last_words_of_many_sessions(layered: SlowAnyBed) -> None:
    *leaving, staying = await crowd(layered, MANY_MORE)
    layered.slow = True
    for client in leaving:
        client.transport.socket.send(b"REQ 9\n")
        client.transport.socket.shutdown(socket.SHUT_WR)
    staying.transport.socket.send(b"REQ 1\n")
    await until(lambda: any(peer.received == b"REQ 1\n" for peer in layered.upstreams.built))
    assert [bytes(peer.received) for peer in layered.upstreams.built].count(b"REQ 9\n") < MANY_MORE // 2
    layered.slow = False
    await until(lambda: [bytes(peer.received) for peer in layered.upstreams.built].count(b"REQ 9\n") == len(leaving))


@ensure
@pytest.mark.parametrize("layered", ["ssl", "haproxy, ssl"], indirect=True)
async def test_a_request_does_not_wait_for_many_handshakes(layered: SlowAnyBed) -> None:
    (staying,) = await crowd(layered, 1)
    staying.transport.write(b"REQ 1\n")
    await until(lambda: layered.upstreams.built[0].received == b"REQ 1\n")
    address: Any = layered.ports[1].getHost()
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", address.port)
    newcomers: list[Any] = [await endpoint.connect(layered.clients) for _ in range(MANY_MORE)]
    await until(lambda: len(layered.bridge.sessions) == 1 + MANY_MORE)
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="x").do_handshake()
    hello = (layered.header if "haproxy" in layered.kind else b"") + outgoing.read()
    layered.slow = True
    for newcomer in newcomers:
        newcomer.transport.getHandle().send(hello)
    staying.transport.write(b"REQ 2\n")
    await until(lambda: layered.upstreams.built[0].received == b"REQ 1\nREQ 2\n")
    assert [bool(newcomer.received) for newcomer in newcomers].count(False) > MANY_MORE // 2
    await until(lambda: all(newcomer.received for newcomer in newcomers))
