"""Clients behind a load balancer that sends PROXY headers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint

from fooproxy.net.deadlines import GRAIN
from fooproxy.net.sockets import bottom_of, has_fin, is_writing
from fooproxy.relay.opening import HANDSHAKE_TIMEOUT, LOOK_INTERVAL
from fooproxy.web.overview import clients
from tests.helpers.anybed import AnyBed, any_bed
from tests.helpers.bed import reactor, until
from tests.helpers.fooserver import FooServer, connect, read_lines
from tests.helpers.proxyprocess import fooproxy, settles

ensure = pytest_twisted.ensureDeferred

# Twisted causes this pyOpenSSL warning, not our code.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


bed = any_bed("haproxy", "haproxy, ssl")


def hosts(bed: AnyBed) -> dict[str, int]:
    """Return the open sessions of each client, as ``/clients`` has them."""
    return {row["client"]: row["connections_active"] for row in clients(bed.stats, 10)["clients"]}


@ensure
async def test_the_client_is_shown_and_not_the_load_balancer_from_when_its_header_has_come(bed: AnyBed) -> None:
    client, _ = await bed.exchanged()
    assert hosts(bed) == {"192.0.2.7": 1}
    assert bed.session().client.peer == "192.0.2.7:5555"
    client.transport.loseConnection()
    await until(lambda: not bed.bridge.sessions)
    assert hosts(bed) == {"192.0.2.7": 0}
    assert bed.reasons() == {"client_closed": 1}


@ensure
async def test_a_client_that_resets_is_told_as_that(bed: AnyBed) -> None:
    client, upstream = await bed.exchanged()
    client.transport.write(b"REQ 2 cut")
    await until(lambda: upstream.received.endswith(b"cut"))
    client.reset()
    await until(lambda: upstream.lost)
    assert not upstream.fin
    assert bed.reasons() == {"client_reset": 1}


@ensure
@pytest.mark.parametrize("bed", ["haproxy, ssl"], indirect=True)
async def test_tls_ends_by_a_close_notify_or_is_a_reset(bed: AnyBed) -> None:
    client, _ = await bed.exchanged()
    tls: Any = client.transport
    await until(lambda: not is_writing(tls))
    tls.protocol.transport.loseConnection()
    await until(lambda: not bed.bridge.sessions)
    assert bed.reasons() == {"client_reset": 1}


@ensure
@pytest.mark.parametrize(
    "start", [b"REQ 1\n", b"PROXY TCP9 a b c d\r\n", b"PROXY TCP4 192."], ids=["none", "malformed", "cut"]
)
@pytest.mark.parametrize("bed", ["haproxy"], indirect=True)
async def test_a_connection_without_a_valid_header_ends_for_that_reason(bed: AnyBed, start: bytes) -> None:
    bed.header = start
    client = await bed.client()
    if start == b"PROXY TCP4 192.":
        client.transport.loseConnection()
    await until(lambda: client.fin or client.lost)
    await until(lambda: not bed.bridge.sessions)
    assert bed.reasons() == {"proxy_header": 1}
    assert not bed.upstreams.built


@ensure
@pytest.mark.parametrize("header", [b"", b"PROXY TCP4 192.0.2.7 "], ids=["none", "half"])
async def test_a_connection_without_a_whole_header_holds_no_upstream_leg_and_is_given_up(
    bed: AnyBed, header: bytes
) -> None:
    bed.header = header
    address: Any = bed.ports[1].getHost()
    client: Any = await TCP4ClientEndpoint(reactor, "127.0.0.1", address.port).connect(bed.clients)
    client.transport.write(header)
    await until(lambda: bed.bridge.sessions)
    bed.pass_time(HANDSHAKE_TIMEOUT - 1)
    assert bed.session().state == "connecting"
    assert not client.lost
    bed.pass_time(1 + GRAIN)
    await until(lambda: (client.fin or client.lost) and not bed.bridge.sessions)
    assert bed.reasons() == {"proxy_header": 1}
    assert not bed.upstreams.built


@ensure
@pytest.mark.parametrize("bed", ["haproxy"], indirect=True)
async def test_a_client_that_leaves_while_the_upstream_is_down_is_noticed(bed: AnyBed) -> None:
    bed.gate = Deferred()
    client = await bed.client()
    await until(lambda: hosts(bed) == {"192.0.2.7": 1})
    client.transport.loseConnection()

    def gone() -> bool:
        bed.pass_time(LOOK_INTERVAL + GRAIN)
        return not bed.bridge.sessions

    await until(gone)
    assert bed.reasons() == {"client_closed": 1}


@ensure
@pytest.mark.parametrize("bed", ["haproxy"], indirect=True)
async def test_a_client_whose_request_came_with_its_header_may_finish_while_the_upstream_is_down(bed: AnyBed) -> None:
    bed.gate = Deferred()
    bed.header += b"REQ 1\n"
    client = await bed.client()
    await until(lambda: bed.bridge.sessions and bed.session().client.holds)
    client.transport.loseWriteConnection()
    skt = bottom_of(bed.session().client.transport).socket
    await until(lambda: has_fin(skt))
    bed.pass_time(2 * LOOK_INTERVAL)
    bed.gate.callback(None)
    await until(lambda: bed.upstreams.built and bed.upstreams.built[0].fin)
    assert bed.upstreams.built[0].received == b"REQ 1\n"


@ensure
@pytest.mark.parametrize("bed", ["haproxy"], indirect=True)
async def test_a_health_check_of_the_load_balancer_is_a_client_that_closes(bed: AnyBed) -> None:
    bed.header = b""
    (await bed.client()).transport.loseConnection()
    await until(lambda: any(bed.reasons().values()))
    assert bed.reasons() == {"client_closed": 1}


@pytest.mark.slow
def test_a_wrong_header_is_logged_without_its_bytes(tmp_path: Path) -> None:
    listen = ("--listen", "haproxy:tcp:0:interface=127.0.0.1")
    with FooServer() as server, fooproxy(tmp_path, *listen, upstream=server.port) as proxy:
        with connect(proxy.port) as client:
            client.sendall(b"PROXY secret\r\n")
            settles(lambda: proxy.stats("connections_closed")["connections_closed"]["proxy_header"], 1)
        with connect(proxy.port) as client:
            client.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.1 5555 8002\r\nREQ 1 a\n")
            assert read_lines(client, 1) == b"ACK 1 a\n"
            (row,) = [row for row in proxy.get("/clients")[1]["clients"] if row["connections_active"]]
            assert row["client"] == "192.0.2.7"
        proxy.says("ended: proxy_header")
        assert "secret" not in proxy.log
