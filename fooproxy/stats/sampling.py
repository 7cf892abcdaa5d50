"""Sampling: when the time table takes samples and the history adds rows, and when the time table rests.

Waking up costs more than taking a sample, so an idle proxy takes no samples.  Nothing is missed as long as `look` is
called for every batch of chunks.  `fooproxy.parts` starts and stops the sampling, and makes the poller call `look`.
This module does not know what is counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.task import LoopingCall

from fooproxy.stats.timetable import INTERVAL

if TYPE_CHECKING:
    from fooproxy.stats.counters import Stats


class Sampling:
    """Samples the counters of `stats`.

    `may_rest` lets it stop while there is no traffic; set it only if `look` is called for all traffic.
    """

    def __init__(self, stats: Stats, reactor: Any, may_rest: bool) -> None:
        self._stats = stats
        self._may_rest = may_rest
        self._started = False
        self._times = LoopingCall(self._sample)
        self._history = LoopingCall(stats.history.record)
        self._times.clock = self._history.clock = reactor

    def start(self) -> None:
        """Start sampling."""
        self._started = True
        self._times.start(INTERVAL, now=False)
        self._history.start(1.0)

    def look(self) -> None:
        """Wake up, and count the waiting chunks if there are many; call this after each batch of chunks."""
        if not self._times.running:
            self._wake()
        if self._stats.defers:
            self._stats.digest()

    def stay_awake(self) -> None:
        """Keep sampling from now on, even without traffic."""
        self._may_rest = False
        if not self._times.running:
            self._wake()

    def stop(self) -> None:
        """Stop sampling; it does not start again by itself."""
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
