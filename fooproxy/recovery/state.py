"""Recovery: what of the statistics is saved, and how it comes back after a crash.

What is saved has the keys that other Foo proxies write (``index``, ``time_stamp``, ``requests_10s``,
``responses_10s``), so that their files are accepted too, and our own beside them.  Of what comes back everything is
checked before anything is restored: it comes back as a whole or not at all.

The file is the `saver`'s, and who saves when is `saving`'s business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from fooproxy.foo.latency import BUCKETS, Histogram, bounds, bucket
from fooproxy.foo.numbers import LARGEST
from fooproxy.recovery.saver import Saver, Unusable
from fooproxy.stats import history
from fooproxy.stats.timetable import FRAME

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fooproxy.stats.counters import Stats


class Recovery:
    """What of `stats` is saved, and how it is restored.

    `clock` is the wall clock (seconds since 1970), since a saved state must outlive the machine's start; a state
    older than `max_age` seconds is not restored.
    """

    log = Logger()

    def __init__(self, stats: Stats, saver: Saver, clock: Callable[[], float], max_age: float) -> None:
        self._stats = stats
        self._saver = saver
        self._clock = clock
        self._max_age = max_age

    def state(self) -> dict[str, Any]:
        """Give the state as it stands now, for `Saver.write`."""
        now = self._clock()
        requests, responses = self._stats.times.seconds()
        return {
            "index": FRAME - 1,
            "time_stamp": int(now),
            "requests_10s": requests,
            "responses_10s": responses,
            "saved_at": now,
            "counters": self._stats.counters(),
            "latency": self._stats.latency_seconds.state(),
            "history": self._stats.history.state(),
        }

    def load(self) -> None:
        """Restore the saved state if there is one that is young enough; keep any other file aside.

        :raises OSError: the file is there but cannot be read or moved.
        """
        try:
            state = SavedState(self._saver.read())
        except FileNotFoundError:
            return
        except Unusable as error:
            aside = self._saver.put_aside("unusable")
            self.log.warn(
                "cannot use the recovery file {path}: {error}; it is kept as {aside}; all statistics start from zero",
                path=str(self._saver.path),
                error=error,
                aside=str(aside),
            )
            return
        age = self._clock() - state.saved_at
        # A clock that was set back a little must not cost the statistics; by much, and nobody knows how old they are.
        if -self._max_age <= age <= self._max_age:
            self._restore(state, max(age, 0.0))
            self.log.info("statistics of {when} restored from {path}", when=_when(age), path=str(self._saver.path))
        else:
            aside = self._saver.put_aside("old")
            self.log.warn(
                "the recovery file {path} was saved {when}, and only {max_age:g} s are allowed; "
                "it is kept as {aside}, and all statistics start from zero",
                path=str(self._saver.path),
                when=_when(age),
                max_age=self._max_age,
                aside=str(aside),
            )

    def _restore(self, state: SavedState, age: float) -> None:
        self._stats.restore(state.counters, state.latencies)
        self._stats.times.restore(state.requests, state.responses, age)
        self._stats.history.restore(state.history, age)


def _when(age: float) -> str:
    if age >= 0:
        return f"{age:.1f} s ago"
    return f"{-age:.1f} s in the future (the clock was set back)"


class SavedState:
    """A saved state, checked.

    :raises Unusable: `content` is no such state.
    """

    def __init__(self, content: object) -> None:
        if not isinstance(content, dict):
            raise Unusable("it is not a JSON object")
        # The first is the second's whole seconds; whoever changes one of them alone means the file to be older.
        self.saved_at = _time(content, "time_stamp")
        if "saved_at" in content:
            self.saved_at = min(_time(content, "saved_at"), self.saved_at + 1)
        index = _count(content, "index")
        if index >= FRAME:
            raise Unusable(f"its index is {index}; there are {FRAME} seconds, counted from 0")
        # The seconds stand in a ring; the one at index is the newest.
        self.requests, self.responses = (
            seconds[index + 1 :] + seconds[: index + 1]
            for seconds in (_seconds(content, "requests_10s"), _seconds(content, "responses_10s"))
        )
        counters = content.get("counters", {})
        if not isinstance(counters, dict):
            raise Unusable("its counters are not a JSON object")
        self.counters = {name: _count(counters, name) for name in counters}
        self.latencies = _latencies(content.get("latency", {"sum": 0, "longest": 0, "buckets": {}}))
        self.history = _history(content.get("history", ""))


def _latencies(content: Any) -> Histogram:
    """Return the histogram with this state, if it is one."""
    if not isinstance(content, dict) or not isinstance(content.get("buckets"), dict):
        raise Unusable("its latency is not a histogram")
    counts = content["buckets"]
    if not counts.keys() <= BUCKETS:
        raise Unusable("its latency has buckets that there are not")
    buckets = {int(name): _count(counts, name) for name in counts}
    total, longest = content.get("sum"), _count(content, "longest")
    if type(total) is not int or total > LARGEST or not _adds_up(buckets, total, longest):
        raise Unusable("its latency does not add up")
    return Histogram(buckets, total, longest)


def _adds_up(buckets: Mapping[int, int], total: int, longest: int) -> bool:
    """Say whether latencies that are so many in each bucket can have this sum and this longest one."""
    if not buckets or 0 in buckets.values() or bucket(longest) != max(buckets):
        return not buckets and total == longest == 0
    ranges = [(count, *bounds(number)) for number, count in buckets.items()]
    # One of them is the longest, and none of the others is longer.
    least = sum(count * lower for count, lower, _ in ranges) + longest - bounds(max(buckets))[0]
    most = sum(count * min(upper - 1, longest) for count, _, upper in ranges)
    return least <= total <= most


def _history(content: Any) -> list[history.Second]:
    if not isinstance(content, str):
        raise Unusable("its history is not a text")
    try:
        return history.parse(content)
    except ValueError as error:
        raise Unusable(f"its history is not one ({error})") from error


def _count(holder: Any, name: Any) -> int:
    value = holder.get(name)
    # bool is an int to Python, and no count to us.
    if type(value) is not int or not 0 <= value <= LARGEST:
        # Names may be as long as the file.
        raise Unusable(f"its {name[:40]!r} is not a count")
    return value


def _time(holder: dict[str, Any], name: str) -> float:
    value = holder.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e11:
        raise Unusable(f"its {name!r} is not a time in seconds")
    return float(value)


def _seconds(holder: dict[str, Any], name: str) -> list[int]:
    values = holder.get(name)
    if not isinstance(values, list) or len(values) != FRAME:
        raise Unusable(f"its {name} is not a list of {FRAME} counts")
    return [_count({name: value}, name) for value in values]
