"""Many timeouts with one timer, for timeouts of which most are cleared long before they expire.

A reactor timer costs as much as relaying a message; here a deadline is an entry in a dictionary.
The bridge, the upstream and the web site use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

    Key = TypeVar("Key", bound=Hashable)
else:
    Key = TypeVar("Key")

GRAIN = 0.1
"""Minimum seconds between two sweeps, and so how late a deadline may be noticed."""

SHARE = 0.002
"""Seconds of a turn of the reactor that deadlines may take."""


class Deadlines(Generic[Key]):
    """Calls a function for each key when its deadline on `clock` has passed; each key has one deadline."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._due: dict[Key, tuple[float, Callable[[], object]]] = {}
        self._timer: IDelayedCall | None = None

    def __contains__(self, key: Key) -> bool:
        return key in self._due

    def set(self, key: Key, seconds: float, do: Callable[[], object]) -> None:
        """Call `do` in `seconds`; this replaces the previous deadline of `key`."""
        due = self._clock.seconds() + seconds
        self._due[key] = (due, do)
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
        pause = GRAIN
        for key in [key for key, (due, _) in self._due.items() if due <= now]:
            if self._clock.seconds() - now > SHARE:
                pause = 0.0
                break
            # The call for one key may clear another.
            _, do = self._due.pop(key, (0.0, None))
            if do is not None:
                do()
        if self._due and (self._timer is None or not pause):
            if self._timer is not None:
                self._timer.cancel()
            first = min(due for due, _ in self._due.values())
            self._timer = self._clock.callLater(max(first - now, pause), self._sweep)
