"""The poller's turns: what a turn of the event loop does beside relaying is bounded in time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults

from tests.helpers.bed import Bed, until

ensure = pytest_twisted.ensureDeferred

MANY = 40


class SlowBed(Bed):
    """A bed on which every look at the clock takes a millisecond while it is `slow`."""

    slow = False

    def tick(self) -> int:
        self._ticks += 1000 * self.slow
        return super().tick()


@pytest_twisted.async_yield_fixture()
async def bed(twin: str) -> AsyncIterator[SlowBed]:
    bed = SlowBed("ours")
    await bed.start()
    yield bed
    bed.slow = False
    await bed.stop()


async def crowd(bed: Bed, count: int) -> list[Any]:
    """Connect `count` clients, and wait until their sessions relay."""
    clients = await gatherResults([Deferred.fromCoroutine(bed.client()) for _ in range(count)])
    await until(lambda: len(bed.upstreams.built) == count and all(peer.connected_ for peer in bed.upstreams.built))
    return list(clients)


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
