"""The relay: every byte, in order, once; and every way in which a session can end."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError

from fooproxy.net.private import unsent
from fooproxy.net.pump import LARGEST_READ
from fooproxy.net.sockets import unacknowledged
from fooproxy.relay.leg import Leg
from fooproxy.relay.opening import LOOK_INTERVAL
from fooproxy.relay.session import FIN_TIMEOUT, LINGER_TIMEOUT, TAKEN_INTERVAL, Session
from tests.helpers.backpressure import clog, flood, noise
from tests.helpers.bed import TIMEOUTS, Bed, Peer, until

ensure = pytest_twisted.ensureDeferred


@ensure
@pytest.mark.parametrize("size", [1, 70_000, 3_000_000])
async def test_bytes_arrive_unchanged_in_both_directions_at_once(bed: Bed, size: int) -> None:
    client, upstream = await bed.pair()
    there, back = noise(size), noise(size + 1)
    client.transport.write(there)
    upstream.transport.write(back)
    await until(lambda: len(upstream.received) >= size and len(client.received) > size)
    assert upstream.received == there
    assert client.received == back
    assert bed.stats.report()["bytes_from_clients"] == size
    assert bed.stats.report()["bytes_from_upstream"] == size + 1


@ensure
async def test_no_direction_waits_for_the_other(bed: Bed) -> None:
    client, upstream = await bed.pair()
    for seq in range(1, 1001):
        client.transport.write(b"REQ %d\n" % seq)
    await until(lambda: bed.stats.report()["msg_req"] == 1000)
    upstream.transport.write(b"NAK 0 unasked\n")
    await until(lambda: client.received == b"NAK 0 unasked\n")
    assert upstream.received == b"".join(b"REQ %d\n" % seq for seq in range(1, 1001))


@ensure
async def test_part_of_a_message_is_passed_on_at_once(bed: Bed) -> None:
    client, upstream = await bed.pair()
    for part in (b"REQ 1", b" da", b"ta\n"):
        client.transport.write(part)
        await until(lambda: upstream.received.endswith(part))  # noqa: B023 (awaited in the same turn of the loop)
    assert upstream.received == b"REQ 1 data\n"
    assert bed.stats.report()["msg_req"] == 1


@ensure
async def test_both_legs_send_small_messages_at_once_and_notice_dead_peers(bed: Bed) -> None:
    await bed.pair()
    session = bed.session()
    assert session.upstream is not None
    for leg in (session.client, session.upstream):
        assert leg.transport.getTcpNoDelay()
        assert leg.transport.getTcpKeepAlive()


@ensure
async def test_a_client_is_not_read_before_its_upstream_is_connected(bed: Bed) -> None:
    bed.gate = Deferred()
    client = await bed.client()
    client.transport.write(noise(1_000_000))
    await until(lambda: bed.bridge.sessions)
    assert bed.stats.report()["bytes_from_clients"] == 0
    bed.gate.callback(None)
    await until(lambda: bed.upstreams.built and len(bed.upstreams.built[0].received) == 1_000_000)
    assert bed.upstreams.built[0].received == noise(1_000_000)


@ensure
async def test_a_client_that_sent_and_left_before_the_upstream_was_there_is_served(bed: Bed) -> None:
    bed.gate = Deferred()
    client = await bed.client()
    client.transport.write(b"REQ 1\n")
    client.transport.loseWriteConnection()
    await until(lambda: bed.bridge.sessions)
    bed.gate.callback(None)
    await until(lambda: bed.upstreams.built and bed.upstreams.built[0].fin)
    bed.upstreams.built[0].transport.write(b"ACK 1\n")
    await until(lambda: client.lost or client.fin)
    assert client.received == b"ACK 1\n"


@ensure
async def test_an_upstream_that_cannot_be_connected_closes_the_client_and_is_counted(bed: Bed) -> None:
    bed.gate = Deferred()
    client = await bed.client()
    await until(lambda: bed.bridge.sessions)
    bed.gate.errback(ConnectionRefusedError())
    await until(lambda: client.fin or client.lost)
    client.transport.loseConnection()
    await until(lambda: not bed.bridge.sessions)
    assert bed.stats.report()["upstream_connect_failures"] == 1
    bed.gate = Deferred()
    bed.gate.callback(None)
    await bed.pair()


@ensure
async def test_a_client_that_leaves_while_connecting_is_noticed_and_counts_as_no_failure(bed: Bed) -> None:
    bed.gate = Deferred()
    closing, resetting, waiting = [await bed.client() for _ in range(3)]
    await until(lambda: len(bed.bridge.sessions) == 3)
    closing.transport.loseConnection()
    resetting.reset()
    waiting.transport.write(b"REQ 1\n")
    waiting.transport.loseWriteConnection()
    await until(lambda: closing.lost and resetting.lost)
    bed.clock.advance(LOOK_INTERVAL)
    await until(lambda: len(bed.bridge.sessions) == 1)
    bed.clock.advance(LOOK_INTERVAL)
    assert not waiting.lost
    report = bed.stats.report()
    assert (report["connections_closed"]["client_closed"], report["connections_closed"]["client_reset"]) == (1, 1)
    bed.gate.callback(None)
    await until(lambda: bed.upstreams.built and bed.upstreams.built[0].received == b"REQ 1\n")


@ensure
async def test_a_connect_that_fails_after_the_client_left_is_no_failure(bed: Bed) -> None:
    bed.gate = Deferred()
    client = await bed.client()
    await until(lambda: bed.bridge.sessions)
    client.reset()
    await until(lambda: client.lost)
    bed.gate.errback(ConnectionRefusedError())
    await until(lambda: not bed.bridge.sessions)
    report = bed.stats.report()
    assert (report["upstream_connect_failures"], report["connections_closed"]["client_reset"]) == (0, 1)


# Half-close, and clients that close first


@ensure
async def test_outstanding_replies_arrive_after_the_clients_fin_from_a_server_that_never_closes(bed: Bed) -> None:
    client, upstream = await bed.pair()
    client.transport.write(b"REQ 1\nREQ 2\n")
    client.transport.loseWriteConnection()
    await until(lambda: upstream.fin)
    upstream.transport.write(b"ACK 1\nAC")
    await until(lambda: client.received == b"ACK 1\nAC")
    assert bed.bridge.sessions
    upstream.transport.write(b"K 2\n")
    await until(lambda: not bed.bridge.sessions)
    await until(lambda: client.fin)
    assert client.received == b"ACK 1\nACK 2\n"


@ensure
async def test_a_last_request_without_newline_is_waited_for(bed: Bed) -> None:
    client, upstream = await bed.pair()
    client.transport.write(b"REQ 1")
    client.transport.loseWriteConnection()
    await until(lambda: upstream.fin)
    upstream.transport.write(b"ACK 1\n")
    await until(lambda: not bed.bridge.sessions)
    await until(lambda: client.received == b"ACK 1\n")


@ensure
async def test_a_client_that_waits_for_nothing_ends_the_session_by_its_fin(bed: Bed) -> None:
    client, upstream = await bed.pair()
    client.transport.write(b"REQ 1\n")
    await until(lambda: upstream.received)
    upstream.transport.write(b"ACK 1\n")
    await until(lambda: client.received)
    client.transport.loseWriteConnection()
    await until(lambda: not bed.bridge.sessions)
    await until(lambda: upstream.fin and client.fin)


@ensure
async def test_replies_that_never_come_are_waited_for_until_the_deadline(bed: Bed) -> None:
    client, upstream = await bed.pair()
    client.transport.write(b"REQ 1\nREQ 2\n")
    client.transport.loseWriteConnection()
    await until(lambda: upstream.fin)
    bed.clock.advance(FIN_TIMEOUT - 1)
    upstream.transport.write(b"ACK 1\n")
    await until(lambda: client.received)
    bed.clock.advance(FIN_TIMEOUT - 1)
    assert bed.bridge.sessions
    bed.clock.advance(1)
    await until(lambda: not bed.bridge.sessions)


@ensure
async def test_a_client_reset_takes_the_upstream_leg_with_it(bed: Bed) -> None:
    client, upstream = await bed.pair()
    client.transport.write(b"REQ 1\n")
    await until(lambda: upstream.received)
    client.reset()
    await until(lambda: not bed.bridge.sessions)
    await until(lambda: upstream.fin or upstream.lost)


@ensure
async def test_a_client_that_resets_while_connecting_leaves_nothing(bed: Bed) -> None:
    bed.gate = Deferred()
    client = await bed.client()
    await until(lambda: bed.bridge.sessions)
    client.reset()
    bed.gate.callback(None)
    await until(lambda: not bed.bridge.sessions)
    await until(lambda: all(peer.fin or peer.lost for peer in bed.upstreams.built))


# Upstreams that close first


@ensure
async def test_all_that_the_upstream_sent_reaches_the_client_before_its_fin(bed: Bed) -> None:
    client, upstream = await bed.pair()
    upstream.transport.write(noise(2_000_000))
    upstream.transport.loseConnection()
    await until(lambda: client.fin)
    assert client.received == noise(2_000_000)
    client.transport.loseConnection()
    await until(lambda: not bed.bridge.sessions)


@ensure
async def test_an_upstream_that_only_half_closed_can_still_be_sent_to(bed: Bed) -> None:
    client, upstream = await bed.pair()
    upstream.transport.loseWriteConnection()
    await until(lambda: client.fin)
    client.transport.write(noise(100_000))
    client.transport.loseWriteConnection()
    await until(lambda: upstream.fin)
    assert upstream.received == noise(100_000)
    await until(lambda: not bed.bridge.sessions)


@ensure
async def test_an_upstream_reset_lets_the_client_read_what_had_come(bed: Bed) -> None:
    client, upstream = await bed.pair()
    upstream.transport.write(b"ACK 1\n")
    await until(lambda: client.received)
    upstream.reset()
    await until(lambda: client.fin)
    client.transport.write(b"REQ 2\n")
    client.transport.loseConnection()
    await until(lambda: not bed.bridge.sessions)
    assert client.received == b"ACK 1\n"


@ensure
async def test_a_client_that_ignores_the_end_of_its_upstream_is_closed_at_the_deadline(bed: Bed) -> None:
    client, upstream = await bed.pair()
    upstream.reset()
    await until(lambda: client.fin)
    bed.clock.advance(FIN_TIMEOUT)
    await until(lambda: not bed.bridge.sessions)


@ensure
async def test_an_upstream_that_resets_after_its_fin_leaves_the_client_its_time_to_close(bed: Bed) -> None:
    client, upstream = await bed.pair()
    upstream.transport.write(b"ACK 1\n")
    upstream.transport.loseWriteConnection()
    await until(lambda: client.fin)
    session = bed.session()
    upstream.reset()
    # The proxy notices the reset when it writes to the upstream.
    client.transport.write(b"REQ 1\n")
    await until(lambda: session.state == "closing")
    client.transport.write(b"REQ 2\n")
    bed.clock.advance(FIN_TIMEOUT / 2)
    await until(lambda: not unacknowledged(client.transport))
    assert bed.bridge.sessions
    assert not client.lost
    client.transport.loseConnection()
    await until(lambda: not bed.bridge.sessions)
    # Data that is read only to be dropped does not count.
    assert bed.stats.report()["msg_req"] == 1


@ensure
async def test_both_ends_may_go_at_the_same_time(bed: Bed) -> None:
    for end in (Peer.reset, lambda peer: peer.transport.loseConnection()):
        client, upstream = await bed.pair()
        end(client)
        end(upstream)
        await until(lambda: not bed.bridge.sessions)


@ensure
@pytest.mark.parametrize("last", ["upstream resets", "upstream closes", "replies only"])
async def test_a_client_that_leaves_its_replies_behind_ends_its_session_alone(bed: Bed, last: str) -> None:
    bystander, other = await bed.pair()
    client, upstream = await bed.pair()
    client.transport.write(b"REQ 1\nREQ 2\nREQ 3\n")
    client.transport.loseWriteConnection()
    await until(lambda: upstream.fin)
    # From now on, data sent to the client causes a reset.
    client.transport.loseConnection()
    upstream.transport.write(b"ACK 1\n")
    await until(lambda: bed.stats.report()["msg_ack"] == 1)
    upstream.transport.write(b"ACK 2\n")
    if last == "upstream resets":
        upstream.reset()
    elif last == "upstream closes":
        upstream.transport.loseConnection()
    else:
        upstream.transport.write(b"ACK 3\n")
    await until(lambda: len(bed.bridge.sessions) == 1)
    bystander.transport.write(b"REQ 1\n")
    await until(lambda: other.received)
    await bed.pair()


# Backpressure


@ensure
@pytest.mark.parametrize("slow_side", ["client", "upstream"])
async def test_a_peer_that_does_not_read_stops_the_reading_of_the_other(bed: Bed, slow_side: str) -> None:
    client, upstream = await bed.pair()
    session = bed.session()
    assert session.upstream is not None
    reader, writer = (client, upstream) if slow_side == "client" else (upstream, client)
    source = session.upstream if slow_side == "client" else session.client
    sink = session.client if slow_side == "client" else session.upstream
    # After this, the adaptive read size is at its maximum.
    bulk = noise(1 << 22)
    writer.transport.write(bulk)
    await until(lambda: len(reader.received) >= len(bulk))
    reader.shrink_buffers()
    reader.transport.pauseProducing()
    sent = bulk + await flood(writer, source, 1 << 20)
    assert unsent(sink.transport) <= LARGEST_READ + sink.transport.bufferSize
    reader.transport.resumeProducing()
    await until(lambda: len(reader.received) >= len(sent))
    assert reader.received == sent
    assert not source.paused


@ensure
@pytest.mark.parametrize("gone", ["client", "upstream"])
async def test_a_reset_ends_a_session_in_which_nobody_reads(bed: Bed, gone: str) -> None:
    client, upstream = await bed.pair()
    session = bed.session()
    assert session.upstream is not None
    for peer in (client, upstream):
        peer.shrink_buffers()
        peer.transport.pauseProducing()
    await flood(upstream, session.upstream)
    await flood(client, session.client)
    (client if gone == "client" else upstream).reset()
    # The other peer still does not read; its leg is closed at its deadline.
    await until(lambda: len(list(session._left())) < 2 or session.ending)
    bed.pass_time(FIN_TIMEOUT + 2 * TIMEOUTS.send)
    await until(lambda: not bed.bridge.sessions)


@ensure
async def test_a_slow_reader_gets_everything_though_its_upstream_has_closed(bed: Bed) -> None:
    client, upstream = await bed.pair()
    source = bed.session().upstream
    assert source is not None
    client.shrink_buffers()
    client.transport.pauseProducing()
    sent = await flood(upstream, source)
    upstream.transport.loseConnection()
    client.transport.resumeProducing()
    await until(lambda: client.fin)
    assert client.received == sent


@ensure
async def test_a_peer_that_never_reads_is_aborted_at_the_deadline(bed: Bed) -> None:
    client, upstream = await bed.pair()
    source = bed.session().upstream
    assert source is not None
    client.shrink_buffers()
    client.transport.pauseProducing()
    await flood(upstream, source)
    bed.session().close()
    bed.pass_time(2 * TIMEOUTS.send)
    await until(lambda: not bed.bridge.sessions)


@ensure
async def test_replies_that_wait_for_a_slow_client_are_not_taken_for_a_silent_upstream(bed: Bed) -> None:
    client, upstream = await bed.pair()
    session = bed.session()
    assert session.upstream is not None
    client.transport.write(b"REQ 1\n")
    await until(lambda: upstream.received)
    client.shrink_buffers()
    client.transport.pauseProducing()
    client.transport.loseWriteConnection()
    await until(lambda: upstream.fin)
    sent = await clog(upstream, session.upstream, session.client)
    bed.clock.advance(FIN_TIMEOUT)
    assert session.state == "half-closed"
    client.transport.resumeProducing()
    await until(lambda: len(client.received) == len(sent))


# Draining


@ensure
async def test_a_session_that_had_to_wait_for_its_connect_has_no_deadline_left_of_it(bed: Bed) -> None:
    bed.gate = Deferred()
    client = await bed.client()
    client.transport.write(b"REQ 1\n")
    await until(lambda: bed.bridge.sessions)
    bed.gate.callback(None)
    await until(lambda: bed.upstreams.built and bed.upstreams.built[0].received == b"REQ 1\n")
    upstream = bed.upstreams.built[0]
    drained = bed.bridge.drain()
    upstream.transport.write(b"ACK ")
    await until(lambda: client.received == b"ACK ")
    bed.clock.advance(FIN_TIMEOUT)
    upstream.transport.write(b"1\n")
    await until(lambda: client.fin)
    assert client.received == b"ACK 1\n"
    client.transport.loseConnection()
    await drained


@ensure
async def test_draining_closes_idle_sessions_and_waits_for_replies(bed: Bed) -> None:
    idle, _ = await bed.pair()
    busy, upstream = await bed.pair()
    busy.transport.write(b"REQ 1\n")
    await until(lambda: upstream.received)
    drained = bed.bridge.drain()
    await until(lambda: idle.fin)
    assert not drained.called
    upstream.transport.write(b"ACK 1\n")
    await until(lambda: busy.fin)
    assert busy.received == b"ACK 1\n"
    bed.clock.advance(LINGER_TIMEOUT)

    def is_over() -> bool:
        bed.clock.advance(TAKEN_INTERVAL)
        return drained.called

    await until(is_over)


@ensure
async def test_draining_lets_a_half_sent_request_be_completed(bed: Bed) -> None:
    client, upstream = await bed.pair()
    client.transport.write(b"REQ 1 ha")
    await until(lambda: upstream.received)
    drained = bed.bridge.drain()
    client.transport.write(b"lf\n")
    await until(lambda: upstream.received == b"REQ 1 half\n")
    upstream.transport.write(b"ACK 1\n")
    await until(lambda: client.fin)
    assert client.received == b"ACK 1\n"
    client.transport.loseConnection()
    await drained


@ensure
async def test_draining_stops_at_the_last_whole_request_of_a_client_that_always_sends_more(bed: Bed) -> None:
    client, upstream = await bed.pair()
    client.transport.write(b"REQ 1 ha")
    await until(lambda: upstream.received)
    drained = bed.bridge.drain()
    client.transport.write(b"lf\nREQ 2\nREQ 3 not any mo")
    await until(lambda: upstream.received == b"REQ 1 half\nREQ 2\n")
    client.transport.write(b"re\n")
    upstream.transport.write(b"ACK 1\nACK 2\n")
    await until(lambda: client.fin)
    assert client.received == b"ACK 1\nACK 2\n"
    assert upstream.received == b"REQ 1 half\nREQ 2\n"
    client.transport.loseConnection()
    await drained
    report = bed.stats.report()
    assert (report["msg_req"], report["bytes_from_clients"], report["connections_closed"]["drained"]) == (2, 17, 1)


@ensure
async def test_draining_takes_no_new_requests_and_loses_no_reply_to_a_client_that_keeps_sending(bed: Bed) -> None:
    client, upstream = await bed.pair()
    client.transport.write(b"REQ 1\n")
    await until(lambda: upstream.received)
    drained = bed.bridge.drain()
    assert bed.session().client.paused
    client.transport.write(b"REQ 2\n" * 10_000)
    upstream.transport.write(b"ACK 1\n")
    await until(lambda: client.fin)
    assert client.received == b"ACK 1\n"
    assert upstream.received == b"REQ 1\n"
    client.transport.loseConnection()
    await drained


@ensure
async def test_draining_gives_up_sessions_that_are_still_connecting(bed: Bed) -> None:
    bed.gate = Deferred()
    client = await bed.client()
    await until(lambda: bed.bridge.sessions)
    await bed.bridge.drain()
    await until(lambda: client.fin or client.lost)
    assert bed.stats.report()["upstream_connect_failures"] == 0


@ensure
async def test_draining_is_over_at_once_without_sessions(bed: Bed) -> None:
    await bed.bridge.drain()


@ensure
async def test_aborting_ends_what_draining_waits_for(bed: Bed) -> None:
    client, upstream = await bed.pair()
    client.transport.write(b"REQ 1\n")
    await until(lambda: upstream.received)
    drained = bed.bridge.drain()
    bed.bridge.abort()
    await drained
    await until(lambda: client.lost and upstream.lost)


# Cleanup


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def ours() -> int:
    gc.collect()
    return sum(isinstance(thing, (Session, Leg)) for thing in gc.get_objects())


async def one_exchange(bed: Bed, end: str) -> None:
    """Exchange one message each way in a new session, and end it in the way named by `end`."""
    client, upstream = await bed.pair()
    client.transport.write(b"REQ 1\n")
    await until(lambda: upstream.received)
    upstream.transport.write(b"ACK 1\n")
    await until(lambda: client.received)
    if end == "fin":
        client.transport.loseWriteConnection()
    elif end == "close":
        client.transport.loseConnection()
    elif end == "reset":
        client.reset()
    elif end == "upstream closes":
        upstream.transport.loseConnection()
    else:
        upstream.reset()
    if end in ("fin", "upstream closes", "upstream resets"):
        await until(lambda: client.fin)
        client.transport.loseConnection()


@ensure
@pytest.mark.parametrize("end", ["fin", "close", "reset", "upstream closes", "upstream resets"])
async def test_no_object_and_no_fd_is_left_behind(bed: Bed, end: str) -> None:
    before, fds = ours(), open_fds()
    for _ in range(20):
        await one_exchange(bed, end)
    await until(lambda: not bed.bridge.sessions)
    for peer in bed.upstreams.built + bed.clients.built:
        if not peer.lost:
            peer.transport.loseConnection()
    await until(lambda: all(peer.lost for peer in bed.upstreams.built + bed.clients.built))
    await until(lambda: open_fds() <= fds)
    assert ours() == before
    assert bed.stats.report()["connections_active"] == 0
    assert bed.stats.report()["connections_total"] == 20
    assert bed.stats.report()["msg_total"] == 40
