"""Shows a client run on the terminal: dots and ``OK!`` for a small one, a tqdm bar for a long one.

It reads the tally ten times a second rather than handling each reply, so that it does not slow the run down.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tqdm import tqdm
from twisted.internet.task import LoopingCall

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from fooproxy.driver.tally import Tally

# In place of tqdm's own, which turns a rate below one per second into "2.00s/ requests".
BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"

# Runs of up to this many requests show a dot for each.
_SMALL = 100


class _Dots:
    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._shown = 0

    def show(self) -> None:
        sys.stdout.write("." * (self._tally.answered - self._shown))
        sys.stdout.flush()
        self._shown = self._tally.answered

    def close(self, succeeded: bool) -> None:
        # A run that failed before its first dot leaves no line to finish.
        sys.stdout.write(" OK!\n" if succeeded else "\n" if self._shown else "")
        sys.stdout.flush()


class _QuietBar(tqdm):  # type: ignore[type-arg]  # not generic at run time
    # Start no monitor thread: we refresh the bar ourselves.
    monitor_interval = 0


class _Bar:
    def __init__(self, tally: Tally, total: int) -> None:
        self._tally = tally
        # Seconds.  A terminal shows a moving bar, a log file gets a line now and then.
        interval = 0.1 if sys.stderr.isatty() else 5.0
        self._bar = _QuietBar(total=total, unit=" requests", mininterval=interval, miniters=0, bar_format=BAR_FORMAT)

    def show(self) -> None:
        self._bar.set_postfix_str(self._tally.latency_text(), refresh=False)
        self._bar.update(self._tally.answered - self._bar.n)

    def close(self, succeeded: bool) -> None:
        self._bar.close()


class Progress:
    """Shows how `tally` approaches `total` replies, from creation until `close`."""

    def __init__(self, clock: IReactorTime, tally: Tally, total: int) -> None:
        self._picture = _Dots(tally) if total <= _SMALL else _Bar(tally, total)
        self._looking = LoopingCall(self._picture.show)
        self._looking.clock = clock
        self._looking.start(0.1)

    def close(self, succeeded: bool) -> None:
        """Show the final state, with ``OK!`` for a small run that `succeeded`."""
        if self._looking.running:
            self._looking.stop()
        self._picture.show()
        self._picture.close(succeeded)
