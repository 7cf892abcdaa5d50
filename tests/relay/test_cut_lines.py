"""A request that its client has not finished: only the client's own FIN lets a server take it for a whole one."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from fooproxy.relay.timeouts import Timeouts
from tests.helpers.anybed import KINDS, AnyBed, any_bed, only
from tests.helpers.bed import Peer, reactor, until
from tests.helpers.fooserver import FooServer, connect, reset
from tests.helpers.proxyprocess import fooproxy, settles

ensure = pytest_twisted.ensureDeferred

# Twisted causes this pyOpenSSL warning, not our code.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")

TIMEOUTS = Timeouts(idle=30.0, send=20.0)
CUT = b"REQ 7 transfer 100"


bed = any_bed(*KINDS, timeouts=TIMEOUTS)


async def sent(bed: AnyBed, data: bytes) -> tuple[Peer, Peer]:
    """Connect a client that sends `data`, and wait until its upstream has that."""
    client, upstream = await bed.pair()
    client.transport.write(data)
    await until(lambda: upstream.received == data)
    return client, upstream


async def outcome(bed: AnyBed, upstream: Peer) -> tuple[str, str]:
    """Return how the upstream's connection ended, and the reason that was counted."""
    await until(lambda: upstream.fin or upstream.lost)
    if not upstream.lost:
        upstream.transport.write(b"ACK 7\n")
    for peer in bed.clients.built:
        peer.transport.loseConnection()
    await until(lambda: not bed.bridge.sessions)
    (reason,) = [reason for reason, count in bed.stats.connections_closed.items() if count]
    return "FIN" if upstream.fin else "reset", reason


@ensure
@only("ours", "twisted's", "ssl", "haproxy")
async def test_a_reset_in_mid_line_is_passed_on_as_a_reset(bed: AnyBed) -> None:
    client, upstream = await sent(bed, CUT)
    client.reset()
    assert await outcome(bed, upstream) == ("reset", "client_reset")


@ensure
async def test_a_reply_that_cannot_be_written_in_mid_line_is_followed_by_a_reset(bed: AnyBed) -> None:
    client, upstream = await sent(bed, b"REQ 1\n" + CUT)
    transport = bed.session().client.transport
    transport.pauseProducing()
    client.reset()
    await until(lambda: client.lost)
    # The proxy notices only when it writes.
    while not (upstream.lost or upstream.fin):
        upstream.transport.write(b"ACK 1\n")
        received = bed.stats.upstream.bytes
        await until(lambda: bed.stats.upstream.bytes > received or upstream.lost or upstream.fin)  # noqa: B023
    assert (await outcome(bed, upstream))[0] == "reset"


@ensure
@only("ssl")
async def test_a_tls_client_that_goes_without_close_notify_in_mid_line_has_reset(bed: AnyBed) -> None:
    client, upstream = await sent(bed, CUT)
    tcp: Any = client.transport
    tcp.transport.loseConnection()
    assert await outcome(bed, upstream) == ("reset", "client_reset")


@ensure
async def test_a_clients_own_end_of_its_side_in_mid_line_is_passed_on_as_a_fin(bed: AnyBed) -> None:
    client, upstream = await sent(bed, CUT)
    client.transport.loseConnection()
    assert await outcome(bed, upstream) == ("FIN", "client_closed")


@ensure
@only("ours", "twisted's", "unix", "haproxy")
@pytest.mark.parametrize(("data", "end"), [(CUT, "reset"), (b"REQ 7 transfer 100\n", "FIN")], ids=["cut", "whole"])
async def test_an_idle_session_ends_by_a_reset_of_its_upstream_only_in_mid_line(
    bed: AnyBed, data: bytes, end: str
) -> None:
    _, upstream = await sent(bed, data)
    # What a kernel acknowledges late is not idle at once.
    session = bed.session()
    while session.state == "open":
        bed.pass_time(TIMEOUTS.interval)
        await deferLater(reactor, 0)
    assert await outcome(bed, upstream) == (end, "idle_timeout")


@ensure
@only("ours", "twisted's")
@pytest.mark.parametrize(("data", "end"), [(CUT, "reset"), (b"REQ 7 transfer 100\n", "FIN")], ids=["cut", "whole"])
async def test_a_client_that_does_not_read_ends_by_a_reset_of_its_upstream_only_in_mid_line(
    bed: AnyBed, data: bytes, end: str
) -> None:
    _, upstream = await sent(bed, data)
    session = bed.session()
    session.unread(session.client)
    assert await outcome(bed, upstream) == (end, "send_timeout")


@ensure
@only("ours", "twisted's")
async def test_an_upstream_that_has_closed_its_side_is_reset_if_its_client_never_finishes_its_line(bed: AnyBed) -> None:
    client, upstream = await sent(bed, CUT)
    upstream.transport.loseWriteConnection()
    await until(lambda: client.fin)
    bed.clock.advance(TIMEOUTS.client_fin)
    assert await outcome(bed, upstream) == ("reset", "upstream_closed")


@ensure
@only("ours", "twisted's")
async def test_a_reset_between_lines_still_lets_the_upstream_have_every_request(bed: AnyBed) -> None:
    client, upstream = await sent(bed, b"REQ 1\nREQ 2\n")
    client.reset()
    assert await outcome(bed, upstream) == ("FIN", "client_reset")


@pytest.mark.slow
@pytest.mark.parametrize(("end", "replies"), [(socket.socket.close, 1), (reset, 0)], ids=["FIN", "reset"])
def test_a_server_executes_a_last_request_without_newline_only_after_a_fin(
    tmp_path: Path, end: Callable[[socket.socket], object], replies: int
) -> None:
    with FooServer() as server, fooproxy(tmp_path, upstream=server.port) as proxy:
        client = connect(proxy.port)
        client.sendall(CUT)
        settles(lambda: server.received, [CUT])
        end(client)
        settles(lambda: proxy.stats("connections_active"), {"connections_active": 0})
        settles(lambda: server.sessions[0].thread.is_alive(), False)
        assert server.sessions[0].sent.count(b"\n") == replies
