"""Clients over TLS: their handshake comes first, and what comes with its end is not lost."""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionRefusedError
from twisted.logger import capturedLogs

from fooproxy.net.deadlines import GRAIN
from fooproxy.relay.opening import HANDSHAKE_TIMEOUT, LOOK_INTERVAL
from tests.helpers.anybed import AnyBed, any_bed
from tests.helpers.bed import reactor, until

ensure = pytest_twisted.ensureDeferred

# Twisted causes this pyOpenSSL warning, not our code.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


bed = any_bed("ssl", "haproxy, ssl")


async def connected(bed: AnyBed) -> Any:
    """Connect a client by TCP, behind a load balancer if the bed has one; nothing of TLS is sent."""
    address: Any = bed.ports[1].getHost()
    peer: Any = await TCP4ClientEndpoint(reactor, "127.0.0.1", address.port).connect(bed.clients)
    if "haproxy" in bed.kind:
        peer.transport.write(bed.header)
    return peer


@ensure
async def test_a_client_that_never_shakes_hands_has_no_upstream_leg_and_is_given_up(bed: AnyBed) -> None:
    silent = await connected(bed)
    await until(lambda: bed.bridge.sessions and not bed.session().client.awaits_header)
    bed.pass_time(HANDSHAKE_TIMEOUT - 1)
    assert bed.session().state == "connecting"
    assert not silent.lost
    bed.pass_time(1 + GRAIN)
    await until(lambda: silent.lost and not bed.bridge.sessions)
    assert bed.reasons() == {"client_tls": 1}
    assert not bed.upstreams.built


@ensure
async def test_a_client_that_does_not_speak_tls_ends_with_a_reason_of_its_own(bed: AnyBed) -> None:
    plain = await connected(bed)
    with capturedLogs() as events:
        plain.transport.write(b"REQ 1 in the clear\n")
        await until(lambda: (plain.fin or plain.lost) and not bed.bridge.sessions)
    assert bed.reasons() == {"client_tls": 1}
    assert not bed.upstreams.built
    assert [event["error"] for event in events if "client" in event] == ["wrong version number (does it speak TLS?)"]


@ensure
async def test_a_client_has_the_whole_time_to_connect_after_its_handshake(bed: AnyBed) -> None:
    bed.gate = Deferred()
    client = await bed.client()
    client.transport.write(b"REQ 1 a\n")
    await until(lambda: bed.session().client.holds)
    bed.pass_time(2 * HANDSHAKE_TIMEOUT)
    bed.gate.callback(None)
    await until(lambda: bed.upstreams.built and bed.upstreams.built[0].received == b"REQ 1 a\n")


class Shaker:
    """A TLS client without a socket of its own, so that the test decides what is sent in one write."""

    def __init__(self, wire: Any) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.wire = wire
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._taken = 0
        self.tls = context.wrap_bio(self._incoming, self._outgoing)

    def send(self) -> None:
        """Send all that TLS has to say."""
        self.wire.transport.write(self._outgoing.read())

    def shakes_hands(self) -> bool:
        """Go on with the handshake; once it is done, its last message is still to be sent."""
        received = bytes(self.wire.received)
        self._incoming.write(received[self._taken :])
        self._taken = len(received)
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            self.send()
            return False
        return True


async def shaking(bed: AnyBed) -> Shaker:
    """Connect a client whose last message of its handshake is still to be sent; the upstream has to be waited for."""
    bed.gate = Deferred()
    client = Shaker(await connected(bed))
    await until(client.shakes_hands)
    return client


@ensure
async def test_what_comes_with_the_end_of_the_handshake_is_forwarded_first(bed: AnyBed) -> None:
    client = await shaking(bed)
    sent = b"".join(b"REQ %d a\n" % seq for seq in range(5000))
    client.tls.write(sent)
    client.send()
    await until(lambda: bed.session().client.holds)
    assert not bed.upstreams.built
    client.tls.write(b"REQ 5000 last\n")
    client.send()
    bed.gate.callback(None)
    await until(lambda: bed.upstreams.built and bed.upstreams.built[0].received.endswith(b"last\n"))
    assert bed.upstreams.built[0].received == sent + b"REQ 5000 last\n"
    assert bed.stats.report()["msg_req"] == 5001


@ensure
@pytest.mark.parametrize("how", ["abortConnection", "loseConnection"])
async def test_a_client_whose_connection_breaks_while_the_upstream_is_down_is_noticed(bed: AnyBed, how: str) -> None:
    client = await shaking(bed)
    client.send()
    await until(lambda: bed.session().state == "connecting" and bed.session().is_connecting)
    getattr(client.wire.transport, how)()

    def gone() -> bool:
        bed.pass_time(LOOK_INTERVAL + GRAIN)
        return not bed.bridge.sessions

    await until(gone)
    assert bed.reasons() == {"client_reset": 1}


@ensure
@pytest.mark.parametrize("how", ["connected", "failed", "drained", "aborted"])
async def test_a_client_that_has_left_with_its_handshake_is_still_forwarded(bed: AnyBed, how: str) -> None:
    client = await shaking(bed)
    client.tls.write(b"REQ 1 a\n")
    with suppress(ssl.SSLWantReadError):
        client.tls.unwrap()
    client.send()
    await until(lambda: bed.session().client.lost)
    if how == "connected":
        bed.gate.callback(None)
        await until(lambda: bed.upstreams.built and bed.upstreams.built[0].fin)
        assert bed.upstreams.built[0].received == b"REQ 1 a\n"
        bed.upstreams.built[0].transport.loseConnection()
    elif how == "failed":
        bed.gate.errback(ConnectionRefusedError())
        bed.gate.addErrback(lambda _: None)
    elif how == "drained":
        bed.bridge.drain()
    else:
        bed.bridge.abort()
    await until(lambda: not bed.bridge.sessions)
    assert bed.reasons() == {"client_closed": 1}
