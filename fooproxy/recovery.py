"""Recovery: the statistics survive a crash.

`Saver` owns the file: it writes durably and atomically, so that at any instant the path holds either the last state or
the one before, whole.  `Recovery` knows what is saved and how it comes back.  The file is JSON and has the keys that
other Foo proxies write (``index``, ``time_stamp``, ``requests_10s``, ``responses_10s``), so that their files are
accepted too, and our own beside them.

Who saves when is the service's business.  `Saver.write` blocks on the disk and is called in a thread; everything else
is called in the reactor's.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from fooproxy import history
from fooproxy.latency import BUCKETS
from fooproxy.timetable import FRAME

if TYPE_CHECKING:
    from collections.abc import Callable

    from fooproxy.stats import Stats

_LARGEST = 1 << 20
"""Bytes beyond which a file cannot be ours."""


class Unusable(Exception):
    """The file is there, but holds no state; the message says what is wrong with it."""


class Saver:
    """A file of JSON that is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> object:
        """Give what the file holds.

        :raises FileNotFoundError: there is none.
        :raises Unusable: it cannot be read, is too large, or is no JSON.
        :raises OSError: what is there is not a file at all, and so is not ours to move.
        """
        if not self.path.exists():
            raise FileNotFoundError(errno.ENOENT, "there is none")
        if not self.path.is_file():
            raise OSError(errno.EINVAL, "it is there, but is not a file")
        try:
            with self.path.open("rb") as file:
                text = file.read(_LARGEST + 1)
        except OSError as error:
            raise Unusable(f"it cannot be read ({error.strerror})") from error
        if len(text) > _LARGEST:
            raise Unusable(f"it is larger than {_LARGEST} bytes")
        try:
            content: object = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Unusable(f"it is not JSON ({error})") from error
        return content

    def write(self, content: object) -> None:
        """Replace the file by `content`; when this returns, it is on the disk.

        :raises OSError: it could not be written; the old file is as it was.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(self.path.name + ".new")
        # Whatever stands there is left over, or a trap: a link, or a pipe that nobody reads.
        temporary.unlink(missing_ok=True)
        with temporary.open("x", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def put_aside(self, suffix: str) -> Path:
        """Move the file out of the way, over an earlier one that was, and give its new path."""
        return self.path.replace(self.path.with_name(f"{self.path.name}.{suffix}"))


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
            "latency": self._stats.latency.answered.state(),
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
        # A clock that was set back a little must not cost the statistics.
        if -self._max_age <= age <= self._max_age:
            self._stats.restore(state.counters)
            self._stats.restore_latency(*state.latency)
            self._stats.times.restore(state.requests, state.responses, max(age, 0.0))
            self._stats.history.restore(state.history, max(age, 0.0))
            self.log.info("statistics of {age:.1f} s ago restored from {path}", age=age, path=str(self._saver.path))
        else:
            aside = self._saver.put_aside("old")
            self.log.info(
                "the recovery file {path} is {age:.1f} s old, more than the {max_age:g} s allowed; "
                "it is kept as {aside}, and all statistics start from zero",
                path=str(self._saver.path),
                age=age,
                max_age=self._max_age,
                aside=str(aside),
            )


class SavedState:
    """A saved state, checked.

    :raises Unusable: `content` is no such state.
    """

    def __init__(self, content: object) -> None:
        if not isinstance(content, dict):
            raise Unusable("it is not a JSON object")
        self.saved_at = _time(content, "saved_at" if "saved_at" in content else "time_stamp")
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
        self.latency = _latency(content.get("latency", {"sum": 0, "longest": 0, "buckets": {}}))
        try:
            self.history = history.parse(content.get("history", ""))
        except (ValueError, AttributeError) as error:
            raise Unusable(f"its history is not one ({error})") from error


def _latency(content: Any) -> tuple[dict[int, int], int, int]:
    """Check the state of a `fooproxy.latency.Histogram`; gives its buckets, its sum and its longest latency."""
    if not isinstance(content, dict) or not isinstance(content.get("buckets"), dict):
        raise Unusable("its latency is not a histogram")
    buckets = content["buckets"]
    if not buckets.keys() <= BUCKETS:
        raise Unusable("its latency has buckets that there are not")
    return {int(name): _count(buckets, name) for name in buckets}, _count(content, "sum"), _count(content, "longest")


def _count(holder: Any, name: Any) -> int:
    value = holder.get(name)
    # bool is an int to Python, and no count to us.
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise Unusable(f"its {name!r} is not a count")
    return value


def _time(holder: dict[str, Any], name: str) -> float:
    value = holder.get(name)
    if not isinstance(value, (int, float)) or not 0 <= value < 1e11:
        raise Unusable(f"its {name!r} is not a time in seconds")
    return float(value)


def _seconds(holder: dict[str, Any], name: str) -> list[int]:
    values = holder.get(name)
    if not isinstance(values, list) or len(values) != FRAME:
        raise Unusable(f"its {name} is not a list of {FRAME} counts")
    return [_count({name: value}, name) for value in values]
