"""The saved state: which statistics are saved, and how they are restored after a crash.

A state has the keys that other Foo proxies write (``index``, ``time_stamp``, ``requests_10s``, ``responses_10s``), so
that their files are accepted too, and our own keys beside them.  Everything is checked before anything is restored: a
state is restored completely or not at all.

`saver` handles the file, and `saving` decides when to restore and save; nothing here knows about either.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from fooproxy.foo.latency import BUCKET_NAMES, Histogram, bounds, bucket
from fooproxy.foo.numbers import LARGEST
from fooproxy.recovery.saver import Saver, Unusable
from fooproxy.stats import history
from fooproxy.stats.servers import SHARED, SavedServer
from fooproxy.stats.timetable import FRAME
from fooproxy.text import one_line
from fooproxy.upstreams.forward import MOST_SERVERS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from fooproxy.stats.counters import Stats


_MOST_SERVERS = 2 * MOST_SERVERS
"""The present servers, and as many that earlier processes had."""


class Recovery:
    """Saves `stats` as a state, and restores them from one.

    `clock` is the wall clock (seconds since 1970), because a state must survive a reboot; a state older than `max_age`
    seconds is not restored.
    """

    log = Logger()

    def __init__(self, stats: Stats, saver: Saver, clock: Callable[[], float], max_age: float) -> None:
        self._stats = stats
        self._saver = saver
        self._clock = clock
        self._max_age = max_age

    def state(self) -> dict[str, Any]:
        """Return the current state, for `Saver.write`."""
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
            "servers": self._stats.saved_servers(),
            "history": self._stats.history.state(),
        }

    def load(self) -> None:
        """Restore the saved state if it is recent enough; rename a file that is too old or unusable.

        :raises OSError: the path is not a regular file, or the file cannot be renamed.
        """
        try:
            state = SavedState(self._saver.read())
        except FileNotFoundError:
            return
        except Unusable as error:
            aside = self._saver.put_aside("unusable")
            self.log.warn(
                "cannot use the recovery file {path}: {error}; "
                "the file was moved to {aside}, and all statistics start from zero",
                path=one_line(str(self._saver.path)),
                error=one_line(str(error)),
                aside=one_line(str(aside)),
            )
            return
        age = self._clock() - state.saved_at
        # If the clock was set back a little, restore nevertheless; if by a lot, the age of the file is unknown.
        if -self._max_age <= age <= self._max_age:
            self._restore(state, max(age, 0.0))
            self.log.info(
                f"restored the statistics from {{path}}, saved {_when(age)}",
                path=one_line(str(self._saver.path)),
                age_seconds=age,
                limited="",
            )
        else:
            aside = self._saver.put_aside("old")
            self.log.warn(
                f"the recovery file {{path}} was saved {_when(age)}, more than --recovery-max-age "
                "({max_age_seconds:g} s) allows; the file was moved to {aside}, and all statistics start from zero",
                path=one_line(str(self._saver.path)),
                age_seconds=age,
                max_age_seconds=self._max_age,
                aside=one_line(str(aside)),
                limited="",
            )

    def _restore(self, state: SavedState, age: float) -> None:
        self._stats.restore(state.counters, state.latencies, state.servers)
        self._stats.times.restore(state.requests, state.responses, age)
        self._stats.history.restore(state.history, age)


def _when(age: float) -> str:
    if age >= 0:
        return f"{age:.1f} s ago"
    return f"{-age:.1f} s in the future (the clock was set back)"


class SavedState:
    """A saved state whose values have all been checked.

    :raises Unusable: `content` is not a valid state; the message says why.
    """

    def __init__(self, content: object) -> None:
        if not isinstance(content, dict):
            raise Unusable("it is not a JSON object")
        # time_stamp is saved_at in whole seconds.  If they disagree, one of them was edited; the older one counts.
        self.saved_at = _time(content, "time_stamp")
        if "saved_at" in content:
            self.saved_at = min(_time(content, "saved_at"), self.saved_at + 1)
        index = _count(content, "index")
        if index >= FRAME:
            raise Unusable(f"its index is {index}, but must be less than {FRAME}")
        # The seconds form a ring; the one at index is the newest.
        self.requests, self.responses = (
            seconds[index + 1 :] + seconds[: index + 1]
            for seconds in (_seconds(content, "requests_10s"), _seconds(content, "responses_10s"))
        )
        self.counters = _counters(content)
        self.latencies = _latencies(content.get("latency", {"sum": 0, "longest": 0, "buckets": {}}))
        self.servers = _servers(content.get("servers", {}))
        if not _contain(self.counters, self.latencies, self.servers.values()):
            raise Unusable("the figures of its servers contradict each other or the totals")
        self.history = _history(content.get("history", ""))


def _counters(content: dict[str, Any]) -> dict[str, int]:
    counters = content.get("counters", {})
    if not isinstance(counters, dict):
        raise Unusable("its counters are not a JSON object")
    return {name: _count(counters, name) for name in counters}


def _servers(content: Any) -> dict[str, SavedServer]:
    """Return the saved statistics of each server, by its name."""
    if not isinstance(content, dict) or len(content) > _MOST_SERVERS:
        raise Unusable(f"its servers are not a JSON object of up to {_MOST_SERVERS} names")
    if not all(isinstance(server, dict) for server in content.values()):
        raise Unusable("one of its servers is not a JSON object")
    return {name: SavedServer(_counters(one), _latencies(one.get("latency"))) for name, one in content.items()}


def _contain(counters: Mapping[str, int], latencies: Histogram, servers: Collection[SavedServer]) -> bool:
    """Return whether the totals can contain the counts of all servers."""
    buckets = Counter[int]()
    for server in servers:
        buckets.update(server.latencies.buckets)
    return (
        all(server.matched == server.replied for server in servers)
        and all(sum(each.counters.get(name, 0) for each in servers) <= counters.get(name, 0) for name in SHARED)
        and all(count <= latencies.buckets.get(number, 0) for number, count in buckets.items())
        and sum(server.latencies.sum for server in servers) <= latencies.sum
    )


def _latencies(content: Any) -> Histogram:
    """Return the histogram that was saved as `content`."""
    if not isinstance(content, dict) or not isinstance(content.get("buckets"), dict):
        raise Unusable("its latency is not a JSON object with buckets")
    counts = content["buckets"]
    if not counts.keys() <= BUCKET_NAMES:
        raise Unusable("its latency has unknown buckets")
    buckets = {int(name): _count(counts, name) for name in counts}
    total, longest = content.get("sum"), _count(content, "longest")
    if type(total) is not int or max(total, sum(buckets.values())) > LARGEST or not _adds_up(buckets, total, longest):
        raise Unusable("the sum or the maximum of its latency contradicts the buckets")
    return Histogram(buckets, total, longest)


def _adds_up(buckets: Mapping[int, int], total: int, longest: int) -> bool:
    """Return whether latencies with these counts by bucket can have this sum and this maximum."""
    if not buckets or 0 in buckets.values() or bucket(longest) != max(buckets):
        return not buckets and total == longest == 0
    ranges = [(count, *bounds(number)) for number, count in buckets.items()]
    # One latency is exactly the longest, and no other one exceeds it.
    least = sum(count * lower for count, lower, _ in ranges) + longest - bounds(max(buckets))[0]
    most = sum(count * min(upper - 1, longest) for count, _, upper in ranges)
    return least <= total <= most


def _history(content: Any) -> list[history.Second]:
    if not isinstance(content, str):
        raise Unusable("its history is not a string")
    try:
        return history.parse(content)
    except ValueError as error:
        raise Unusable(f"its history is malformed ({error})") from error


def _count(holder: Any, name: Any) -> int:
    value = holder.get(name)
    # In Python, bool is a subclass of int.
    if type(value) is not int or not 0 <= value <= LARGEST:
        # A name may be as long as the whole file.
        raise Unusable(f"its {name[:40]!r} is not a count (an integer from 0 to 2^62-1)")
    return value


def _time(holder: dict[str, Any], name: str) -> float:
    value = holder.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e11:
        raise Unusable(f"its {name!r} is not a time (seconds since 1970)")
    return float(value)


def _seconds(holder: dict[str, Any], name: str) -> list[int]:
    values = holder.get(name)
    if not isinstance(values, list) or len(values) != FRAME:
        raise Unusable(f"its {name} is not a list of {FRAME} counts")
    return [_count({name: value}, name) for value in values]
