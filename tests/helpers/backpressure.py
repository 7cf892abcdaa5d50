"""Endless bytes for a peer that does not read them, and ways to wait until no more are relayed."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

from fooproxy.net.private import unsent
from fooproxy.net.sockets import acknowledged, is_writing, unacknowledged
from tests.helpers.bed import until

if TYPE_CHECKING:
    from fooproxy.relay.leg import Leg
    from tests.helpers.bed import Peer


def noise(size: int) -> bytes:
    """Return `size` bytes, the same ones each time."""
    return random.Random(size).randbytes(size)


async def flood(sender: Peer, source: Leg, size: int = 65536) -> bytes:
    """Send until the relay has paused `source`, the leg that `sender` sends to; return what was sent.

    The kernel may still make room, and the leg is then read again; see `clog`.
    """
    block, sent = noise(size), bytearray()
    while not source.paused:
        sender.transport.write(block)
        sent += block
        await until(lambda: source.paused or not unsent(sender.transport))
    return bytes(sent)


async def clog(sender: Peer, source: Leg, sink: Leg) -> bytes:
    """Send until `source` is paused because of `sink`, and stays paused; return what was sent."""
    sent = b""
    while True:
        sent += await flood(sender, source)
        await at_rest(sink)
        if source.paused:
            return sent


async def stuck(source: Leg, sink: Leg) -> None:
    """Wait until `source` is paused because of `sink` and stays paused; the kernel may be slow to deliver its data."""
    while True:
        await until(lambda: source.paused)
        await at_rest(sink)
        if source.paused:
            return


async def at_rest(sink: Leg) -> None:
    """Wait until nothing has changed in many checks over a tenth of a second: kernels may delay acknowledgements."""
    seen: Any = None
    checks, since = 0, 0.0

    def unmoved() -> bool:
        nonlocal seen, checks, since
        if sink.lost:
            return True
        before, seen = seen, (is_writing(sink.transport), acknowledged(sink.transport), unacknowledged(sink.transport))
        if seen != before:
            checks, since = 0, time.monotonic()
        checks += 1
        return checks > 20 and time.monotonic() - since > 0.1

    await until(unmoved)
