"""Sampling: when the time table takes its samples and the history its rows, and when they rest.

To wake up costs more than a sample does, so an idle proxy takes none: nothing can be missed where every chunk is seen.
The service starts and stops it, and has it told of each batch of chunks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.task import LoopingCall

from fooproxy.stats.timetable import INTERVAL

if TYPE_CHECKING:
    from fooproxy.stats.counters import Stats


class Sampling:
    """Samples the counters of `stats`; while nothing passes it rests, if it `may_rest`.

    It may where `look` is told of all traffic.
    """

    def __init__(self, stats: Stats, reactor: Any, may_rest: bool) -> None:
        self._stats = stats
        self._may_rest = may_rest
        self._started = False
        self._times = LoopingCall(self._sample)
        self._history = LoopingCall(stats.history.record)
        self._times.clock = self._history.clock = reactor

    def start(self) -> None:
        """Begin."""
        self._started = True
        self._times.start(INTERVAL, now=False)
        self._history.start(1.0)

    def look(self) -> None:
        """Have what came counted, if it is much; to be called after each batch of chunks."""
        if not self._times.running:
            self._wake()
        self._stats.digest()

    def stay_awake(self) -> None:
        """Rest no more."""
        self._may_rest = False
        if not self._times.running:
            self._wake()

    def stop(self) -> None:
        """End it, for good."""
        self._started = False
        for loop in (self._times, self._history):
            if loop.running:
                loop.stop()

    def _sample(self) -> None:
        self._stats.times.sample()
        if self._may_rest and self._stats.times.is_quiet:
            self._times.stop()

    def _wake(self) -> None:
        if self._started:
            self._stats.times.resume()
            self._times.start(INTERVAL, now=False)
