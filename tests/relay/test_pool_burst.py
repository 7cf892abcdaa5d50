"""With ``--pool burst``, a client has a link only while it has something to say or to hear."""

from __future__ import annotations

import pytest_twisted
from twisted.internet.task import deferLater

from fooproxy.relay.holding import Holding
from fooproxy.relay.timeouts import Timeouts
from fooproxy.upstreams.pool import Limits
from tests.helpers.bed import reactor, until
from tests.helpers.poolbed import PoolBed, pool_bed

bed = pool_bed(Timeouts(client_fin=10.0), Limits(age=1000.0, idle=500.0), burst=True)


@pytest_twisted.ensureDeferred
async def test_a_client_that_is_answered_has_no_link(bed: PoolBed) -> None:
    client = await bed.client()
    await bed.exchange(client)
    await bed.states(idle=1)
    assert bed.session().state == "idle"
    assert bed.session().upstream is None


@pytest_twisted.ensureDeferred
async def test_clients_take_turns_on_one_link(bed: PoolBed) -> None:
    clients = [await bed.client() for _ in range(5)]
    for number in range(1, 21):
        client = clients[number % 5]
        await bed.exchange(client, number)
        await bed.states(idle=1)
    assert len(bed.upstreams.built) == 1
    for place, client in enumerate(clients):
        numbers = [number for number in range(1, 21) if number % 5 == place]
        assert bytes(client.received) == b"".join(b"ACK %d\n" % number for number in numbers)
    assert bed.stats.latency_seconds.count == 20
    assert bed.stats.responses_unmatched == bed.stats.requests_in_flight == 0


@pytest_twisted.ensureDeferred
async def test_a_client_that_never_pauses_for_long_does_not_keep_a_link_that_is_too_old(bed: PoolBed) -> None:
    client = await bed.client()
    for number in range(1, 3):
        await bed.exchange(client, number)
    if bed.poller is not None:
        await until(lambda: bed.links.lingering)
    (link,) = bed.links.open
    link.expires = bed.clock.seconds()
    for number in range(3, 6):
        await bed.exchange(client, number)
        await until(lambda: bed.session().observer.settled)
        bed.clock.advance(0.005)
    await until(lambda: bed.discarded() == {"age": 1})
    assert len(bed.upstreams.built) == 2


@pytest_twisted.ensureDeferred
async def test_a_client_keeps_its_link_until_its_last_reply(bed: PoolBed) -> None:
    client = await bed.client()
    link = await bed.asks(client, b"REQ 1\nREQ 2\n")
    link.transport.write(b"ACK 1\n")
    await until(lambda: client.received == b"ACK 1\n")
    await bed.states(in_use=1)
    client.transport.write(b"REQ 3\n")
    await until(lambda: link.received.endswith(b"REQ 3\n"))
    link.transport.write(b"ACK 2\nAC")
    await until(lambda: client.received.endswith(b"AC"))
    link.transport.write(b"K 3")
    await until(lambda: client.received.endswith(b"K 3"))
    await bed.states(in_use=1)
    link.transport.write(b"\n")
    await bed.states(idle=1)
    await until(lambda: client.received == b"ACK 1\nACK 2\nACK 3\n")


@pytest_twisted.ensureDeferred
async def test_a_client_in_mid_line_keeps_its_link(bed: PoolBed) -> None:
    client = await bed.client()
    link = await bed.asks(client, b"REQ 1\nREQ")
    link.transport.write(b"ACK 1\n")
    await until(lambda: client.received == b"ACK 1\n")
    await bed.states(in_use=1)
    client.transport.write(b" 2\n")
    await until(lambda: link.received.endswith(b"REQ 2\n"))
    link.transport.write(b"ACK 2\n")
    await bed.states(idle=1)


@pytest_twisted.ensureDeferred
async def test_a_client_with_an_invalid_line_keeps_its_link_which_is_then_closed(bed: PoolBed) -> None:
    client, other = await bed.client(), await bed.client()
    link = await bed.asks(client, b"what\n")
    link.transport.write(b"NAK 0 ERRDECODE\n")
    await until(lambda: client.received)
    assert await bed.exchange(client, 2) is link
    assert await bed.exchange(other, 3) is not link
    await bed.states(in_use=1, idle=1)
    await bed.leaves(client)
    await until(lambda: bed.discarded() == {"unclean": 1})


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_in_a_burst_leaves_its_replies(bed: PoolBed) -> None:
    client, other = await bed.client(), await bed.client()
    link = await bed.exchange(client, 1)
    await bed.asks(client, b"REQ 2\nREQ 3\n")
    client.reset()
    await bed.states(draining=1)
    link.transport.write(b"ACK 2\nACK 3\n")
    await bed.states(idle=1)
    assert bed.stats.replies_dropped == 2
    assert await bed.exchange(other, 4) is link
    assert bytes(other.received) == b"ACK 4\n"


@pytest_twisted.ensureDeferred
async def test_a_link_that_ended_while_idle_costs_the_next_burst_nothing(bed: PoolBed) -> None:
    client = await bed.client()
    link = await bed.exchange(client, 1)
    await bed.states(idle=1)
    link.transport.loseConnection()
    await bed.states()
    assert await bed.exchange(client, 2) is not link
    assert bytes(client.received) == b"ACK 1\nACK 2\n"


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_read_its_replies_keeps_its_link(bed: PoolBed) -> None:
    client = await bed.client()
    client.shrink_buffers()
    client.transport.pauseProducing()
    link = await bed.asks(client)
    link.transport.write(b"ACK 1 " + b"x" * (20 << 20) + b"\n")
    await until(lambda: bed.session().paused == ["upstream"])
    assert bed.links.states["in_use"] == 1
    client.transport.resumeProducing()
    await bed.states(idle=1)
    await until(lambda: client.received.endswith(b"\n"))
    assert len(client.received) == (20 << 20) + 7


@pytest_twisted.ensureDeferred
async def test_who_holds_a_link_in_mid_line_while_others_wait_is_closed(bed: PoolBed) -> None:
    waiting = [True]
    holding = Holding(bed.bridge.sessions, 5.0, bed.clock, lambda: waiting[0])
    holding.start()
    client, other = await bed.client(), await bed.client()
    link = await bed.asks(client, b"REQ 1")
    await bed.asks(other, b"REQ 2\n")
    bed.clock.pump([0.5] * 8)
    client.transport.write(b"0")
    await until(lambda: link.received == b"REQ 10")
    bed.clock.pump([0.5] * 8)
    assert len(bed.bridge.sessions) == 2
    waiting[0] = False
    bed.clock.pump([0.5] * 40)
    assert len(bed.bridge.sessions) == 2
    waiting[0] = True
    bed.clock.pump([0.5] * 14)
    await until(lambda: bed.reasons() == {"hold_timeout": 1})
    assert bed.discarded() == {"unclean": 1}
    holding.stop()


@pytest_twisted.ensureDeferred
async def test_a_stop_ends_idle_clients_at_once_and_others_once_they_are_answered(bed: PoolBed) -> None:
    bed.clock.advance(1)
    silent, idle, busy = await bed.client(), await bed.client(), await bed.client()
    await bed.exchange(idle, 1)
    link = await bed.asks(busy, b"REQ 2\n")
    bed.bridge.drain()
    await until(lambda: silent.fin and idle.fin)
    assert not busy.fin
    link.transport.write(b"ACK 2\n")
    await until(lambda: busy.fin)
    assert bytes(busy.received) == b"ACK 2\n"
    while bed.bridge.sessions:
        bed.clock.advance(0.1)
        await deferLater(reactor, 0.001)
    assert bed.reasons() == {"drained": 3}


narrow = pool_bed(burst=True, most=1)
"""A bed with a single link."""


@pytest_twisted.ensureDeferred
async def test_the_wait_for_a_link_is_counted_apart_from_the_latency(narrow: PoolBed) -> None:
    bed = narrow
    first, second = await bed.client(), await bed.client()
    link = await bed.asks(first, b"REQ 1\n")
    second.transport.write(b"REQ 2\n")
    await until(lambda: len(bed.servers.waiting) == 1)
    for _ in range(30):
        bed.clock.advance(0.1)
        await deferLater(reactor, 0)
    assert [session.state for session in bed.bridge.sessions if session.upstream is None] == ["waiting"]
    link.transport.write(b"ACK 1\n")
    while not link.received.endswith(b"REQ 2\n"):
        bed.clock.advance(0.001)
        await deferLater(reactor, 0)
    link.transport.write(b"ACK 2\n")
    await until(lambda: second.received == b"ACK 2\n")
    waits, latencies = bed.stats.link_wait_seconds, bed.stats.latency_seconds
    assert waits.count == 2
    assert 3.0 <= waits.longest / 1e6 < 3.5
    assert latencies.count == 2
    assert 3.0 <= latencies.longest / 1e6 < 3.5
    assert latencies.quantile(0.5) is not None
    assert latencies.sum / 1e6 < 3.5


@pytest_twisted.ensureDeferred
async def test_a_server_that_closes_after_each_reply_costs_a_client_that_waits_for_it_nothing(bed: PoolBed) -> None:
    client = await bed.client()
    for number in range(1, 6):
        link = await bed.asks(client, b"REQ %d\n" % number)
        link.transport.write(b"ACK %d\n" % number)
        link.transport.loseConnection()
        await bed.states()
    await until(lambda: client.received == b"".join(b"ACK %d\n" % number for number in range(1, 6)))
    assert len(bed.upstreams.built) == 5
    assert bed.discarded() == {"closed": 5}
    assert bed.session().state == "idle"
    assert not bed.reasons()


@pytest_twisted.ensureDeferred
async def test_a_reply_to_no_request_of_its_client_does_not_set_its_link_free(bed: PoolBed) -> None:
    client, other = await bed.client(), await bed.client()
    link = await bed.asks(client, b"REQ 7\n")
    # Taken by its order, this is the reply; then the next client would get the real one.
    link.transport.write(b"ACK 999 unasked\n")
    await until(lambda: client.received == b"ACK 999 unasked\n")
    await bed.states(in_use=1)
    assert await bed.exchange(other, 8) is bed.upstreams.built[1]
    link.transport.write(b"ACK 7\n")
    await until(lambda: client.received == b"ACK 999 unasked\nACK 7\n")
    assert bytes(other.received) == b"ACK 8\n"
    await bed.leaves(client)
    await until(lambda: bed.discarded() == {"unclean": 1})
