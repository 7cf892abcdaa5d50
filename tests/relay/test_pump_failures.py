"""A pump that fails, for lack of memory or by a bug, ends the sessions it was relaying for, and no others."""

from __future__ import annotations

import os
from typing import Any

import pytest
import pytest_twisted

from tests.helpers.bed import Bed, until

ensure = pytest_twisted.ensureDeferred
pytestmark = pytest.mark.parametrize("bed", ["ours"], indirect=True)


class FailsOnce:
    """A pump that fails at its next batch, after it has read from every connection and written nothing."""

    def __init__(self, pump: Any, reactors: int) -> None:
        self._pump = pump
        self._reactors = reactors
        self.has_failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pump, name)

    def relay(self, events: list[tuple[int, int]], now: int) -> Any:
        # The reactor is no connection.
        if self.has_failed or all(fd == self._reactors for fd, _ in events):
            return self._pump.relay(events, now)
        self.has_failed = True
        for fd, _ in events:
            if fd != self._reactors:
                os.read(fd, 1 << 16)
        raise MemoryError


def expect_failure(bed: Bed) -> None:
    assert bed.failures
    bed.failures.clear()


async def fail_once(bed: Bed, client: Any) -> None:
    """Have the pump fail at what `client` sends next."""
    assert bed.poller is not None and bed.lead is not None
    bed.poller.pump = FailsOnce(bed.poller.pump, bed.lead.fileno())
    client.transport.write(b"REQ 2 lo")
    await until(lambda: bed.failures)
    expect_failure(bed)


@ensure
async def test_a_session_whose_bytes_are_lost_ends_by_resets_and_no_half_request_is_executed(bed: Bed) -> None:
    client, upstream = await bed.exchanged()
    await fail_once(bed, client)
    await until(lambda: client.lost and upstream.lost)
    assert not client.fin
    assert not upstream.fin
    assert not bed.bridge.sessions


@ensure
async def test_other_sessions_go_on_and_new_ones_begin(bed: Bed) -> None:
    other, others = await bed.exchanged()
    client, _ = await bed.exchanged()
    await fail_once(bed, client)
    other.transport.write(b"REQ 2\n")
    await until(lambda: others.received == b"REQ 1\nREQ 2\n")
    others.transport.write(b"ACK 2\n")
    await until(lambda: other.received == b"ACK 1\nACK 2\n")
    await bed.exchanged()


@ensure
async def test_a_poller_that_raises_is_not_given_up(bed: Bed) -> None:
    client, upstream = await bed.exchanged()
    poller: Any = bed.poller
    clock = poller._clock

    def fail_at_once() -> int:
        poller._clock = clock
        raise MemoryError

    poller._clock = fail_at_once
    client.transport.write(b"REQ 2\n")
    await until(lambda: upstream.received == b"REQ 1\nREQ 2\n")
    expect_failure(bed)
    await bed.exchanged()
