"""Fixtures that several test modules use."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_twisted

from .bed import Bed


@pytest_twisted.async_yield_fixture
async def bed() -> AsyncIterator[Bed]:
    """A relay with an upstream, running."""
    bed = Bed()
    await bed.start()
    yield bed
    await bed.stop()
