"""With ``--pool session``, clients that come one after the other share a link."""

from __future__ import annotations

import pytest_twisted

from fooproxy.relay.timeouts import Timeouts
from fooproxy.upstreams.pool import Limits
from tests.helpers.bed import until
from tests.helpers.poolbed import PoolBed, pool_bed

bed = pool_bed(Timeouts(client_fin=10.0), Limits(age=100.0, idle=20.0))


@pytest_twisted.ensureDeferred
async def test_a_client_that_says_nothing_has_no_link(bed: PoolBed) -> None:
    client = await bed.client()
    await until(lambda: bed.bridge.sessions)
    assert bed.session().state == "idle"
    await bed.leaves(client)
    assert not bed.upstreams.built
    assert bed.reasons() == {"client_closed": 1}


@pytest_twisted.ensureDeferred
async def test_the_next_client_gets_the_link_of_one_that_has_left(bed: PoolBed) -> None:
    for number in range(1, 6):
        client = await bed.client()
        link = await bed.exchange(client, number)
        assert bytes(client.received) == b"ACK %d\n" % number
        await bed.leaves(client)
        await bed.states(idle=1)
        assert link is bed.upstreams.built[0]
    assert bytes(link.received) == b"".join(b"REQ %d\n" % number for number in range(1, 6))
    assert bed.made == 1
    assert bed.stats.links_reused == 4
    assert bed.reasons() == {"client_closed": 5}
    assert bed.stats.latency_seconds.count == 5
    assert bed.stats.requests_in_flight == bed.stats.responses_unmatched == 0


@pytest_twisted.ensureDeferred
async def test_two_clients_at_once_have_two_links(bed: PoolBed) -> None:
    first, second = await bed.client(), await bed.client()
    links = [await bed.exchange(first), await bed.exchange(second)]
    assert links[0] is not links[1]
    await bed.states(in_use=2)
    await bed.leaves(first)
    await bed.states(idle=1, in_use=1)


@pytest_twisted.ensureDeferred
async def test_the_link_that_was_given_back_last_is_taken_first(bed: PoolBed) -> None:
    clients = [await bed.client() for _ in range(3)]
    links = [await bed.exchange(client) for client in clients]
    for client in (clients[1], clients[2], clients[0]):
        await bed.leaves(client)
    assert [await bed.exchange(await bed.client()) for _ in range(3)] == [links[0], links[2], links[1]]


@pytest_twisted.ensureDeferred
async def test_a_fin_between_two_lines_is_not_passed_on_and_replies_still_arrive(bed: PoolBed) -> None:
    client = await bed.client()
    link = await bed.asks(client)
    client.transport.loseWriteConnection()
    await until(lambda: bed.session().state == "half-closed")
    link.transport.write(b"ACK 1\n")
    await until(lambda: client.fin)
    assert bytes(client.received) == b"ACK 1\n"
    await bed.states(idle=1)
    assert not link.fin


@pytest_twisted.ensureDeferred
async def test_a_fin_in_mid_line_is_passed_on_and_spends_the_link(bed: PoolBed) -> None:
    client = await bed.client()
    link = await bed.asks(client, b"REQ 1")
    client.transport.loseWriteConnection()
    await until(lambda: link.fin)
    link.transport.write(b"ACK 1\n")
    await until(lambda: client.received == b"ACK 1\n")
    await until(lambda: bed.discarded() == {"unclean": 1})


@pytest_twisted.ensureDeferred
async def test_a_client_lost_in_mid_line_resets_its_link(bed: PoolBed) -> None:
    client = await bed.client()
    link = await bed.asks(client, b"REQ 1")
    client.reset()
    await until(lambda: bed.discarded() == {"unclean": 1})
    assert not link.fin


@pytest_twisted.ensureDeferred
async def test_outstanding_replies_of_a_client_that_left_are_dropped_and_then_the_link_is_used_again(
    bed: PoolBed,
) -> None:
    link = await bed.abandoned(b"REQ 1\nREQ 2\nREQ 3\n")
    link.transport.write(b"ACK 1\nNAK 2\n")
    await until(lambda: bed.stats.upstream.replies == 2)
    await bed.states(draining=1)
    link.transport.write(b"ACK 3\n")
    await bed.states(idle=1)
    assert not bed.bridge.sessions
    assert bed.stats.replies_dropped == 3
    assert bed.stats.latency_seconds.count == 3
    assert sum(bed.stats.requests_unanswered.values()) == 0
    assert bed.reasons() == {"client_reset": 1}
    other = await bed.client()
    assert await bed.exchange(other, 7) is link
    assert bytes(other.received) == b"ACK 7\n"


@pytest_twisted.ensureDeferred
async def test_a_link_whose_outstanding_replies_do_not_come_is_closed(bed: PoolBed) -> None:
    link = await bed.abandoned(b"REQ 1\nREQ 2\n")
    link.transport.write(b"ACK 1\n")
    await until(lambda: bed.stats.upstream.replies == 1)
    bed.clock.advance(9.0)
    await bed.states(draining=1)
    bed.clock.pump([1.0, 0.1, 0.1])
    await until(lambda: bed.discarded() == {"unclean": 1})
    assert bed.stats.requests_unanswered["client_reset"] == 1
    assert bed.stats.replies_dropped == 1


@pytest_twisted.ensureDeferred
async def test_a_reply_too_many_after_the_outstanding_ones_closes_the_link(bed: PoolBed) -> None:
    link = await bed.abandoned()
    link.transport.write(b"ACK 1\nACK 2\n")
    await until(lambda: bed.discarded() == {"unclean": 1})


@pytest_twisted.ensureDeferred
async def test_half_a_reply_too_many_closes_the_link(bed: PoolBed) -> None:
    link = await bed.abandoned()
    link.transport.write(b"ACK 1\nAC")
    await until(lambda: bed.stats.upstream.replies == 1)
    await bed.states(draining=1)
    link.transport.write(b"K 2\n")
    await until(lambda: bed.discarded() == {"unclean": 1})


@pytest_twisted.ensureDeferred
async def test_a_server_that_closes_while_replies_are_dropped_ends_the_session(bed: PoolBed) -> None:
    link = await bed.abandoned()
    link.transport.loseConnection()
    await until(lambda: not bed.bridge.sessions)
    assert bed.discarded() == {"closed": 1}
    assert bed.stats.requests_unanswered["client_reset"] == 1


@pytest_twisted.ensureDeferred
async def test_an_invalid_line_spends_the_link_but_the_client_keeps_it(bed: PoolBed) -> None:
    client = await bed.client()
    link = await bed.asks(client, b"what\n")
    link.transport.write(b"NAK 0 ERRDECODE\n")
    await until(lambda: client.received == b"NAK 0 ERRDECODE\n")
    assert await bed.exchange(client, 2) is link
    await bed.leaves(client)
    await until(lambda: bed.discarded() == {"unclean": 1})


@pytest_twisted.ensureDeferred
async def test_an_unmatched_reply_spends_the_link(bed: PoolBed) -> None:
    client = await bed.client()
    link = await bed.exchange(client)
    link.transport.write(b"ACK 9\n")
    await until(lambda: client.received.endswith(b"ACK 9\n"))
    await bed.leaves(client)
    await until(lambda: bed.discarded() == {"unclean": 1})


@pytest_twisted.ensureDeferred
async def test_a_byte_on_an_idle_link_closes_it(bed: PoolBed) -> None:
    client = await bed.client()
    link = await bed.exchange(client)
    await bed.leaves(client)
    await bed.states(idle=1)
    link.transport.write(b"A")
    await until(lambda: bed.discarded() == {"unsolicited": 1})
    assert bed.stats.upstream.bytes == len(b"ACK 1\n")


@pytest_twisted.ensureDeferred
async def test_a_fin_on_an_idle_link_closes_it(bed: PoolBed) -> None:
    client = await bed.client()
    link = await bed.exchange(client)
    await bed.leaves(client)
    await bed.states(idle=1)
    link.transport.loseWriteConnection()
    await until(lambda: bed.discarded() == {"closed": 1})


@pytest_twisted.ensureDeferred
async def test_a_reset_of_an_idle_link_closes_it(bed: PoolBed) -> None:
    client = await bed.client()
    link = await bed.exchange(client)
    await bed.leaves(client)
    await bed.states(idle=1)
    link.reset()
    await bed.states()
    assert bed.discarded() == {"closed": 1}


@pytest_twisted.ensureDeferred
async def test_idle_links_expire(bed: PoolBed) -> None:
    client = await bed.client()
    await bed.exchange(client)
    await bed.leaves(client)
    bed.clock.pump([1.0] * 19)
    await bed.states(idle=1)
    bed.clock.pump([1.0] * 2)
    await until(lambda: bed.discarded() == {"idle": 1})


@pytest_twisted.ensureDeferred
async def test_a_link_that_is_too_old_is_closed_when_its_client_leaves(bed: PoolBed) -> None:
    client = await bed.client()
    await bed.exchange(client)
    bed.pass_time(100.0)
    await bed.leaves(client)
    await until(lambda: bed.discarded() == {"age": 1})


@pytest_twisted.ensureDeferred
async def test_a_link_that_ends_before_anything_was_sent_on_it_is_replaced(bed: PoolBed) -> None:
    client = await bed.client()
    link = await bed.exchange(client)
    await bed.leaves(client)
    await bed.states(idle=1)
    other = await bed.client()
    await until(lambda: bed.bridge.sessions)
    session = bed.session()
    # As if the first byte had been seen, but not read yet.
    session.addressed()
    link.transport.loseConnection()
    await bed.states()
    assert await bed.exchange(other, 2) is bed.upstreams.built[1]
    assert bytes(other.received) == b"ACK 2\n"
    assert bed.discarded() == {"closed": 1}
    assert not bed.reasons().get("upstream_closed")


@pytest_twisted.ensureDeferred
async def test_a_new_link_that_ends_at_once_is_not_replaced(bed: PoolBed) -> None:
    client = await bed.client()
    await until(lambda: bed.bridge.sessions)
    bed.session().addressed()
    await until(lambda: bed.upstreams.built)
    bed.upstreams.built[0].transport.loseConnection()
    await until(lambda: client.fin)
    await bed.leaves(client)
    assert bed.reasons() == {"upstream_closed": 1}
    assert bed.made == 1


@pytest_twisted.ensureDeferred
async def test_a_link_that_others_have_used_is_not_replaced_once_a_request_was_sent_on_it(bed: PoolBed) -> None:
    first = await bed.client()
    await bed.exchange(first)
    await bed.leaves(first)
    await bed.states(idle=1)
    client = await bed.client()
    link = await bed.asks(client)
    link.transport.loseConnection()
    await until(lambda: client.fin)
    await bed.leaves(client)
    assert bed.reasons() == {"client_closed": 1, "upstream_closed": 1}
    assert bed.made == 1


@pytest_twisted.ensureDeferred
async def test_a_server_that_closes_a_link_in_use_ends_the_session(bed: PoolBed) -> None:
    client = await bed.client()
    link = await bed.exchange(client)
    link.transport.loseConnection()
    await until(lambda: client.fin)
    await bed.leaves(client)
    assert bed.reasons() == {"upstream_closed": 1}
    assert bed.discarded() == {"closed": 1}


@pytest_twisted.ensureDeferred
async def test_links_are_closed_when_they_are_given_back_while_the_proxy_stops(bed: PoolBed) -> None:
    client = await bed.client()
    await bed.exchange(client)
    bed.links.close()
    await bed.leaves(client)
    await until(lambda: bed.discarded() == {"stopped": 1})


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_held_keeps_no_links(bed: PoolBed) -> None:
    idle, busy = await bed.client(), await bed.client()
    await bed.exchange(idle)
    link = await bed.asks(busy)
    await bed.leaves(idle)
    await bed.states(idle=1, in_use=1)
    (server,) = bed.servers.servers
    bed.servers.hold(server, "paused", "root")
    await until(lambda: bed.discarded() == {"held": 1})
    link.transport.write(b"ACK 1\n")
    await until(lambda: busy.received == b"ACK 1\n")
    await bed.leaves(busy)
    await until(lambda: bed.discarded() == {"held": 2})
    bed.servers.release(server, "paused")
    later = await bed.client()
    await bed.exchange(later)
    await bed.leaves(later)
    await bed.states(idle=1)


@pytest_twisted.ensureDeferred
async def test_a_link_on_which_another_request_was_answered_is_closed(bed: PoolBed) -> None:
    client = await bed.client()
    link = await bed.asks(client, b"REQ 7\n")
    link.transport.write(b"ACK 8\n")
    await until(lambda: client.received == b"ACK 8\n")
    await bed.leaves(client)
    await until(lambda: bed.discarded() == {"unclean": 1})
