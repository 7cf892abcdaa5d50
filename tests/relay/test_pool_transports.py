"""A pool serves clients over every kind of transport, whether the pump relays for them or not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.helpers.anybed import KINDS
from tests.helpers.bed import until
from tests.helpers.poolbed import AnyPoolBed

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
