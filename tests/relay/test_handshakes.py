"""Clients over TLS: their handshake comes first, and what comes with its end is not lost."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint

from fooproxy.net.deadlines import GRAIN
from fooproxy.relay.session import HANDSHAKE_TIMEOUT
from tests.helpers.anybed import AnyBed
from tests.helpers.bed import reactor, until

ensure = pytest_twisted.ensureDeferred

# Twisted causes this pyOpenSSL warning, not our code.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


@pytest_twisted.async_yield_fixture(params=["ssl", "haproxy:ssl"])
async def bed(request: Any, tmp_path: Path) -> AsyncIterator[AnyBed]:
    """A relay whose clients connect over TLS."""
    bed = AnyBed(request.param, tmp_path)
    await bed.start()
    yield bed
    await bed.stop()


def reasons(bed: AnyBed) -> dict[str, int]:
    """Return the number of ended sessions by reason."""
    return {reason: count for reason, count in bed.stats.report()["connections_closed"].items() if count}


def header(bed: AnyBed) -> bytes:
    return b"PROXY TCP4 192.0.2.7 192.0.2.1 5555 8002\r\n" if bed.kind == "haproxy:ssl" else b""


@ensure
async def test_a_client_that_never_shakes_hands_has_no_upstream_leg_and_is_given_up(bed: AnyBed) -> None:
    address: Any = bed.ports[1].getHost()
    silent: Any = await TCP4ClientEndpoint(reactor, "127.0.0.1", address.port).connect(bed.clients)
    await until(lambda: bed.bridge.sessions)
    bed.pass_time(HANDSHAKE_TIMEOUT - 1)
    assert bed.session().state == "connecting"
    assert not silent.lost
    bed.pass_time(1 + GRAIN)
    await until(lambda: silent.lost and not bed.bridge.sessions)
    assert reasons(bed) == {"client_tls": 1}
    assert not bed.upstreams.built


@ensure
async def test_a_client_that_does_not_speak_tls_ends_with_a_reason_of_its_own(bed: AnyBed) -> None:
    address: Any = bed.ports[1].getHost()
    plain: Any = await TCP4ClientEndpoint(reactor, "127.0.0.1", address.port).connect(bed.clients)
    plain.transport.write(b"REQ 1 in the clear\n")
    await until(lambda: (plain.fin or plain.lost) and not bed.bridge.sessions)
    assert reasons(bed) == {"client_tls": 1}
    assert not bed.upstreams.built


@ensure
async def test_a_client_has_the_whole_time_to_connect_after_its_handshake(bed: AnyBed) -> None:
    bed.gate = Deferred()
    client = await bed.client()
    client.transport.write(header(bed) + b"REQ 1 a\n")
    await until(lambda: bed.session().client._held is not None)
    bed.pass_time(2 * HANDSHAKE_TIMEOUT)
    bed.gate.callback(None)
    await until(lambda: bed.upstreams.built and bed.upstreams.built[0].received == b"REQ 1 a\n")


@ensure
async def test_what_comes_with_the_end_of_the_handshake_is_forwarded_first(bed: AnyBed) -> None:
    bed.gate = Deferred()
    address: Any = bed.ports[1].getHost()
    # A client without a socket of its own, so that its last message of the handshake and its first data are one write.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    wire: Any = await TCP4ClientEndpoint(reactor, "127.0.0.1", address.port).connect(bed.clients)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing)
    taken = 0

    def shakes_hands() -> bool:
        nonlocal taken
        incoming.write(bytes(wire.received[taken:]))
        taken = len(wire.received)
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            wire.transport.write(outgoing.read())
            return False
        return True

    await until(shakes_hands)
    sent = b"".join(b"REQ %d a\n" % seq for seq in range(5000))
    client.write(header(bed) + sent)
    wire.transport.write(outgoing.read())
    await until(lambda: bed.session().client._held)
    assert not bed.upstreams.built
    client.write(b"REQ 5000 last\n")
    wire.transport.write(outgoing.read())
    bed.gate.callback(None)
    await until(lambda: bed.upstreams.built and bed.upstreams.built[0].received.endswith(b"last\n"))
    assert bed.upstreams.built[0].received == sent + b"REQ 5000 last\n"
    assert bed.stats.report()["msg_req"] == 5001
