"""The turns of the event loop: what can wait is spread over several, so that none of them takes long.

While a turn does anything else, nothing is relayed, so thousands of ends, deadlines or newcomers must not share one.
Code that has a list to go through uses `in_turns`.  `fooproxy.net.turnstile` has no list, since the port asks it for
one connection after the other; it applies the same `SHARE`.

This module does not know what the work is.  The bridge, the sweep and `fooproxy.net.deadlines` use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from twisted.internet.task import deferLater

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from twisted.internet.interfaces import IReactorTime

T = TypeVar("T")

SHARE = 0.002
"""Seconds of a turn of the event loop that newcomers, or any other work that can wait, may take."""


async def in_turns(clock: IReactorTime, things: Iterable[T]) -> AsyncIterator[T]:
    """Yield each of `things`, which must not change meanwhile; the next turn goes on when `SHARE` is used up.

    The first ones come at once, within the current turn.
    """
    began = clock.seconds()
    for thing in things:
        if clock.seconds() - began > SHARE:
            await deferLater(clock, 0)
            began = clock.seconds()
        yield thing
