"""A pool serves clients over every kind of transport, whether the pump relays for them or not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.endpoints import SSL4ServerEndpoint
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory
from twisted.internet.ssl import PrivateCertificate

from tests.helpers.anybed import KINDS, certificate
from tests.helpers.bed import reactor, until
from tests.helpers.poolbed import AnyPoolBed, PoolBed

pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


@pytest_twisted.async_yield_fixture(params=[*KINDS, "haproxy, ssl"])
async def bed(twin: str, request: Any, tmp_path: Path) -> AsyncIterator[AnyPoolBed]:
    bed = AnyPoolBed(request.param, tmp_path, request.node.callspec.params["mode"] == "burst")
    await bed.start()
    yield bed
    await bed.stop()


async def talk(bed: AnyPoolBed, number: int, mode: str) -> None:
    """Have a client ask two things at once, then a third, and leave."""
    client = await bed.client()
    link = await bed.asks(client, b"REQ %d\nREQ %d\n" % (number, number))
    link.transport.write(b"ACK %d\n" % number)
    await until(lambda: client.received == b"ACK %d\n" % number)
    await bed.states(in_use=1)
    link.transport.write(b"ACK %d\n" % number)
    await until(lambda: client.received.count(b"\n") == 2)
    if mode == "burst":
        await bed.states(idle=1)
    await bed.exchange(client, number + 10)
    client.transport.loseConnection()
    await until(lambda: not bed.bridge.sessions)
    await bed.states(idle=1)
    assert bytes(client.received) == b"ACK %d\nACK %d\nACK %d\n" % (number, number, number + 10)


@pytest.mark.parametrize("mode", ["session", "burst"])
@pytest_twisted.ensureDeferred
async def test_clients_that_come_one_after_the_other_share_a_link(bed: AnyPoolBed, mode: str) -> None:
    for number in range(1, 4):
        await talk(bed, number, mode)
    assert len(bed.upstreams.built) == 1
    assert bed.stats.latency_seconds.count == 9


@pytest.mark.parametrize("mode", ["session", "burst"])
@pytest_twisted.ensureDeferred
async def test_what_a_client_sent_last_is_answered_though_it_has_no_link_yet(bed: AnyPoolBed, mode: str) -> None:
    client = await bed.client()
    client.transport.write(b"REQ 1\n")
    await until(lambda: bed.upstreams.built and bed.upstreams.built[0].received)
    client.transport.loseConnection()
    bed.upstreams.built[0].transport.write(b"ACK 1\n")
    await until(lambda: not bed.bridge.sessions)
    await bed.states(idle=1)
    assert bed.stats.requests_in_flight == 0


class SecureBed(PoolBed):
    """A bed with a pool whose links are over TLS."""

    async def listen(self, factory: Factory) -> IListeningPort:
        options = PrivateCertificate.loadPEM(certificate()).options()
        port: IListeningPort = await SSL4ServerEndpoint(reactor, 0, options, interface="127.0.0.1").listen(factory)
        return port

    def forward(self) -> str:
        return f"ssl:127.0.0.1:{super().forward()}"


@pytest_twisted.async_yield_fixture(params=["ours", "twisted's"])
async def secure(request: Any) -> AsyncIterator[SecureBed]:
    bed = SecureBed(request.param, burst=request.node.callspec.params["mode"] == "burst")
    await bed.start()
    yield bed
    await bed.stop()


@pytest.mark.parametrize("mode", ["session", "burst"])
@pytest_twisted.ensureDeferred
async def test_a_link_over_tls_serves_one_client_after_the_other(secure: SecureBed, mode: str) -> None:
    for _ in range(3):
        client = await secure.client()
        for number in range(1, 4):
            await secure.exchange(client, number)
        await secure.leaves(client)
        await secure.states(idle=1)
    assert len(secure.upstreams.built) == secure.made == 1


@pytest.mark.parametrize("mode", ["session"])
@pytest_twisted.ensureDeferred
async def test_the_place_of_a_link_over_tls_that_is_too_old_is_free_when_the_next_one_is_made(
    secure: SecureBed, mode: str
) -> None:
    first = await secure.client()
    await secure.exchange(first)
    await secure.leaves(first)
    await secure.states(idle=1)
    (link,) = secure.links.open
    link.expires = secure.clock.seconds()
    others, making = [], secure.links.making

    def make(factory: Any) -> Any:
        others.append(len(secure.links.open))
        return making(factory)

    secure.links.making = make  # type: ignore[method-assign]
    await secure.exchange(await secure.client())
    assert others == [0]
    assert secure.discarded() == {"age": 1}
