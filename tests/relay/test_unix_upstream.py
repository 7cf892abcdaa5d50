"""An upstream on a unix socket gets and gives the same as one by TCP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest_twisted

from fooproxy.net.addresses import server_endpoint
from fooproxy.net.transport import Transport
from tests.helpers.bed import Bed, reactor, until

if TYPE_CHECKING:
    from twisted.internet.interfaces import IListeningPort
    from twisted.internet.protocol import Factory

ensure = pytest_twisted.ensureDeferred


class UnixBed(Bed):
    """A bed whose upstream and listener are unix sockets in `folder`."""

    def __init__(self, folder: Path) -> None:
        super().__init__("ours")
        self._folder = folder

    async def listen(self, factory: Factory) -> IListeningPort:
        port: IListeningPort = await server_endpoint(reactor, self.forward()).listen(factory)
        return port

    def forward(self) -> str:
        return f"unix:{self._folder}/foo.sock"


@pytest_twisted.async_yield_fixture
async def bed(twin: str, tmp_path: Path) -> AsyncIterator[UnixBed]:
    bed = UnixBed(tmp_path)
    await bed.start()
    yield bed
    await bed.stop()


@ensure
async def test_its_last_words_reach_a_client_that_writes_after_it_has_closed(bed: UnixBed) -> None:
    client, upstream = await bed.pair()
    leg: Any = bed.session().upstream
    leg.transport.pauseProducing()
    upstream.transport.write(b"NAK 0 goodbye\n")
    upstream.transport.loseConnection()
    await until(lambda: upstream.lost)
    client.transport.write(b"REQ 1\n")
    session = bed.session()
    await until(lambda: session.state != "open" or session.ending)
    if not leg.lost:
        leg.transport.resumeProducing()
    await until(lambda: client.fin)
    assert client.received == b"NAK 0 goodbye\n"


@ensure
async def test_it_is_pumped_to(bed: UnixBed) -> None:
    client, upstream = await bed.pair()
    leg: Any = bed.session().upstream
    assert isinstance(leg.transport, Transport)
    big = b"REQ 1 " + b"x" * 3_000_000 + b"\n"
    client.transport.write(big)
    upstream.transport.write(big)
    await until(lambda: len(upstream.received) >= len(big) and len(client.received) >= len(big))
    assert upstream.received == client.received == big
    client.transport.loseWriteConnection()
    await until(lambda: upstream.fin)
