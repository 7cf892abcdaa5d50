"""Many clients over a few links: each gets the replies to what it has asked, whatever the others do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from fooproxy.relay.timeouts import Timeouts
from fooproxy.upstreams.pool import Limits
from tests.helpers.bed import Peer, Peers, reactor
from tests.helpers.fooserver import replies_to
from tests.helpers.poolbed import PoolBed

LINKS = 4


class Answering(Peer):
    """A server's end of a link: answers whole lines, a part of them at a time."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self.random = random
        self.answered = 0
        self.unsent = b""

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        whole = self.received.rfind(b"\n") + 1
        self.unsent += replies_to(bytes(self.received[self.answered : whole]))
        self.answered = whole

    def turn(self) -> None:
        size = self.random.randrange(len(self.unsent) + 1)
        if size and not self.lost:
            self.transport.write(self.unsent[:size])
            self.unsent = self.unsent[size:]


class Answerers(Peers):
    random = Random(1)
    most = 0

    def buildProtocol(self, addr: Any) -> Peer:
        peer = Answering(self.random)
        self.built.append(peer)
        self.most = max(self.most, sum(not (peer.lost or peer.fin) for peer in self.built))
        return peer


class CrowdBed(PoolBed):
    def __init__(self, transports: str, burst: bool) -> None:
        limits = Limits(age=1e6, idle=1e6)
        super().__init__(transports, Timeouts(client_fin=1e6, send=1e6), limits, burst=burst, most=LINKS)
        self.servers_end = self.upstreams = Answerers()

    async def turn(self) -> None:
        for peer in self.upstreams.built:
            assert isinstance(peer, Answering)
            peer.turn()
        self.clock.advance(0.0001)
        await deferLater(reactor, 0)


@pytest_twisted.async_yield_fixture(params=["ours", "twisted's"])
async def bed(twin: str, request: Any) -> AsyncIterator[CrowdBed]:
    burst = request.node.callspec.params.get("mode") == "burst"
    bed = CrowdBed(request.param, burst)
    await bed.start()
    yield bed
    await bed.stop()


class Asking:
    """One client: asks for its own seqs, a few at a time, and compares what it gets."""

    def __init__(self, peer: Peer, number: int, random: Random) -> None:
        self.peer = peer
        self.random = random
        self.first = 1000 * (number + 1)
        self.asked = 0
        self.rest = b""
        self.ends_by = ("leaving", "half a line", "noise", "outstanding")[number % 4] if number % 3 == 0 else "leaving"
        self.done = False

    @property
    def expected(self) -> bytes:
        return b"".join(b"ACK %d \n" % seq for seq in range(self.first, self.first + self.asked))

    def turn(self) -> None:
        received = bytes(self.peer.received)
        assert self.expected.startswith(received)
        if self.rest:
            size = self.random.randrange(1, len(self.rest) + 1)
            self.peer.transport.write(self.rest[:size])
            self.rest = self.rest[size:]
        elif self.asked < 12:
            if received == self.expected or self.random.random() < 0.2:
                for _ in range(self.random.randrange(1, 5)):
                    self.rest += b"REQ %d\n" % (self.first + self.asked)
                    self.asked += 1
        elif self.ends_by == "outstanding":
            self.peer.reset()
            self.done = True
        elif received == self.expected:
            if self.ends_by == "half a line":
                self.peer.transport.write(b"REQ 5")
                self.peer.reset()
            else:
                if self.ends_by == "noise":
                    self.peer.transport.write(b"noise\n")
                self.peer.transport.loseConnection()
            self.done = True


@pytest.mark.parametrize("mode", ["session", "burst"])
@pytest_twisted.ensureDeferred
async def test_sixty_clients_over_four_links_get_their_own_replies(bed: CrowdBed, mode: str) -> None:
    random = Random(2)
    clients = [Asking(await bed.client(), number, random) for number in range(60)]
    turns = 0
    while not all(client.done for client in clients) or bed.bridge.sessions:
        turns += 1
        assert turns < 20_000, bed.links.states
        for client in clients:
            if not client.done:
                client.turn()
        await bed.turn()
    assert 0 < bed.servers_end.most <= LINKS
    assert bed.stats.links_reused > 0
    assert bed.stats.responses_unmatched == 0
    assert bed.stats.requests_in_flight == 0
    answered = bed.stats.latency_seconds.count
    assert answered + sum(bed.stats.requests_unanswered.values()) == sum(bed.stats.msg_total.values()) - answered + 5
