"""Many timeouts with one timer, for timeouts of which most are cleared long before they expire.

A reactor timer costs as much as relaying a message; here a deadline is an entry in a dictionary.

An event loop runs its timers before it reads.  So if the process was held up (a frozen container, a long stall), the
data that a deadline waits for may have arrived unread.  So the event loop gets a turn before a deadline is acted on, or
several if it is noticed late; data that is read meanwhile may clear the deadline.

The bridge, the upstream, the service and the web site use it.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from fooproxy.net.turns import in_turns

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    Key = TypeVar("Key", bound=Hashable)
else:
    Key = TypeVar("Key")

GRAIN = 0.1
"""Minimum seconds between two sweeps, and so how late a deadline may be noticed."""

LATE = 0.5
"""Seconds of delay after which the process counts as held up."""

TURNS = 32
"""Turns of the event loop before a late deadline is acted on: enough to read thousands of connections."""


_NEVER = inf, lambda: None


def turns(late: float) -> int:
    """Return how many turns of the event loop to wait before acting on a deadline noticed `late` seconds late."""
    return TURNS if late > LATE else 1


async def read_first(clock: IReactorTime, late: float) -> None:
    """Let the event loop read arrived data before the caller acts on a deadline, `late` seconds late."""
    for _ in range(turns(late)):
        await deferLater(clock, 0)


class Deadlines(Generic[Key]):
    """Calls a function for each key when its deadline on `clock` has passed; each key has one deadline."""

    log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._due: dict[Key, tuple[float, Callable[[], object]]] = {}
        self._timer: IDelayedCall | None = None
        self._is_acting = False
        """Whether due functions are being called; the timer is set afterwards."""

    def __contains__(self, key: Key) -> bool:
        return key in self._due

    def set(self, key: Key, seconds: float, do: Callable[[], object]) -> None:
        """Call `do` in `seconds`; this replaces the previous deadline of `key`."""
        due = self._clock.seconds() + seconds
        self._due[key] = (due, do)
        if self._is_acting:
            return
        if self._timer is None:
            self._timer = self._clock.callLater(seconds, self._sweep)
        elif self._timer.getTime() > due:
            self._timer.reset(seconds)

    def clear(self, key: Key) -> None:
        """Clear the deadline of `key`, if it has one."""
        self._due.pop(key, None)

    def _sweep(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        due = [due for due, _ in self._due.values() if due <= now]
        if due:
            self._is_acting = True
            Deferred.fromCoroutine(self._act(now, now - min(due)))
        else:
            self._go_on()

    async def _act(self, now: float, late: float) -> None:
        """Let the event loop read, then call the functions that were due at the time `now` and still are."""
        await read_first(self._clock, late)
        async for key in in_turns(self._clock, [key for key, (due, _) in self._due.items() if due <= now]):
            # The call for one key may clear or put off another, and so may events between two turns.
            due, do = self._due.get(key, _NEVER)
            if due <= now:
                del self._due[key]
                self._do(do)
        self._is_acting = False
        self._go_on()

    def _do(self, do: Callable[[], object]) -> None:
        try:
            do()
        except Exception:
            # One failure must not prevent the other calls.
            self.log.failure("handling a timeout failed; this is a bug in fooproxy", limited="failures of timeouts")

    def _go_on(self) -> None:
        if self._due:
            first = min(due for due, _ in self._due.values())
            self._timer = self._clock.callLater(max(first - self._clock.seconds(), GRAIN), self._sweep)


class Limit:
    """A clock for `Deferred.addTimeout` that uses `deadlines`; it also serves as the delayed call."""

    def __init__(self, deadlines: Deadlines[Any]) -> None:
        self._deadlines = deadlines

    def callLater(self, seconds: float, do: Callable[[], object]) -> Limit:
        """Call `do` once, in `seconds`."""
        self._deadlines.set(self, seconds, do)
        return self

    def active(self) -> bool:
        """Whether the call is still pending."""
        return self in self._deadlines

    def cancel(self) -> None:
        """Cancel the call."""
        self._deadlines.clear(self)
