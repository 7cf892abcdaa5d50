"""The end of sessions over TLS, where closing is a question that some peers never answer."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted

from fooproxy.net.deadlines import GRAIN
from fooproxy.net.private import Secured
from fooproxy.net.sockets import bottom_of, is_writing
from fooproxy.relay.session import FIN_TIMEOUT, LINGER_TIMEOUT
from fooproxy.relay.timeouts import Timeouts
from tests.helpers.anybed import AnyBed, any_bed
from tests.helpers.bed import Peer, until

ensure = pytest_twisted.ensureDeferred

# Twisted causes this pyOpenSSL warning, not our code.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


bed = any_bed("ssl", "haproxy, ssl", timeouts=Timeouts(send=1000))


async def absent_minded(bed: AnyBed) -> tuple[Peer, Peer]:
    """Connect a client that has had its reply and, like one in a pool, reads nothing until its next request."""
    client, upstream = await bed.exchanged()
    client.transport.pauseProducing()
    return client, upstream


@ensure
async def test_a_drain_waits_a_second_and_no_longer_for_a_client_to_answer_the_close(bed: AnyBed) -> None:
    client, _ = await absent_minded(bed)
    drained = bed.bridge.drain()
    bed.pass_time(LINGER_TIMEOUT - 0.1)
    assert not drained.called

    def over() -> bool:
        # The client's kernel takes a moment to acknowledge the close_notify.
        bed.pass_time(LINGER_TIMEOUT + GRAIN)
        return drained.called

    await until(over)
    assert bed.reasons() == {"drained": 1}
    client.transport.resumeProducing()
    await until(lambda: client.lost)


@ensure
async def test_a_client_learns_at_once_that_its_upstream_has_closed(bed: AnyBed) -> None:
    client, upstream = await bed.pair()
    client.transport.write(b"REQ 1\n")
    await until(lambda: upstream.received == b"REQ 1\n")
    upstream.transport.write(b"ACK 1\n")
    upstream.transport.loseConnection()
    await until(lambda: client.lost and not bed.bridge.sessions)
    assert client.received == b"ACK 1\n"
    assert bed.reasons() == {"upstream_closed": 1}


@ensure
async def test_a_client_that_does_not_answer_the_close_is_let_go_after_its_upstream_has_closed(bed: AnyBed) -> None:
    client, upstream = await absent_minded(bed)
    upstream.transport.write(b"NAK 0 last words\n")
    upstream.transport.loseConnection()
    await until(lambda: bed.session().state == "closing")
    bed.pass_time(FIN_TIMEOUT - 1)
    assert bed.bridge.sessions

    def over() -> bool:
        bed.pass_time(FIN_TIMEOUT + GRAIN)
        return not bed.bridge.sessions

    await until(over)
    assert bed.reasons() == {"upstream_closed": 1}
    client.transport.resumeProducing()
    await until(lambda: client.lost)
    assert client.received == b"ACK 1\nNAK 0 last words\n"


@ensure
async def test_a_client_that_reads_slowly_is_not_let_go_before_it_has_everything(bed: AnyBed) -> None:
    client, upstream = await absent_minded(bed)
    upstream.transport.write(b"ACK 2 " + b"x" * (1 << 24) + b"\n")
    upstream.transport.loseConnection()
    client.transport.resumeProducing()
    await until(lambda: len(client.received) > 1 << 16)
    client.transport.pauseProducing()
    await until(lambda: bed.session().paused == ["upstream"])
    bed.pass_time(3 * FIN_TIMEOUT)
    assert bed.bridge.sessions
    client.transport.resumeProducing()
    await until(lambda: len(client.received) == len(b"ACK 1\nACK 2 \n") + (1 << 24))
    await until(lambda: not bed.bridge.sessions)


def secured() -> list[Any]:
    return [thing for thing in gc.get_objects() if isinstance(thing, Secured)]


@pytest.fixture
def rare_collections() -> Iterator[None]:
    """Collect no garbage, as happens seldom in the proxy, but drop what there is before."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@ensure
@pytest.mark.parametrize("end", ["close", "reset", "cut"])
async def test_an_end_leaves_no_garbage_to_collect(bed: AnyBed, end: str, rare_collections: None) -> None:
    # What earlier tests have left in sight is none of this one's.
    before = {id(thing) for thing in secured()}
    client, _ = await bed.exchanged()
    tls: Any = client.transport
    await until(lambda: not is_writing(tls))
    assert {id(thing) for thing in secured()} - before
    if end == "close":
        client.transport.loseConnection()
    elif end == "reset":
        client.reset()
    else:
        # Below TLS, whichever way the client has it there.
        (tls.protocol.transport if tls is bottom_of(tls) else bottom_of(tls)).loseConnection()
    await until(lambda: not bed.bridge.sessions)
    await until(lambda: not {id(thing) for thing in secured()} - before)
