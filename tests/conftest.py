"""Fixtures that several test modules use."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import pytest_twisted
from hypothesis import settings

from tests.helpers.bed import Bed

# What somebody has set for a proxy of their own is not for those that the tests start.
for name in [name for name in os.environ if name.startswith("FOOPROXY_")]:
    del os.environ[name]

# Examples are judged by what comes out, not by how long a busy machine takes for them.
settings.register_profile("fooproxy", deadline=None)
settings.load_profile("fooproxy")


@pytest_twisted.async_yield_fixture(params=["ours", "twisted's"])
async def bed(request: Any) -> AsyncIterator[Bed]:
    """A relay with an upstream, running on either kind of transports."""
    bed = Bed(request.param)
    await bed.start()
    yield bed
    await bed.stop()
