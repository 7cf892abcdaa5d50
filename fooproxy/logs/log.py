"""The log: drops events below its level or beyond the limits, and passes the others to a sink.

`launch` creates it, and gives it to twistd or twist as the log observer.
"""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING, Any

from twisted.logger import FilteringLogObserver, ILogObserver, Logger, LogLevelFilterPredicate
from zope.interface import implementer

from fooproxy.logs.limits import Limits
from fooproxy.logs.writer import Writer

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from fooproxy.logs.sinks import Sink


class Log:
    """Shows events of `level` and above; the limits are measured on `clock`.

    At the end of the process, it waits a few seconds at most until all entries are written.
    """

    def __init__(self, level: Any, clock: IReactorTime) -> None:
        self.limits = Limits(clock)
        self.writer = Writer("log")
        self.level = level

    def shows(self, level: Any) -> bool:
        """Whether events of this level are shown."""
        return bool(level >= self.level)

    def observer(self, sink: Sink) -> Any:
        """Return the observer that shows events in `sink`."""
        # Even a process that ends before it has fully started writes its log to the end.
        atexit.register(self.writer.close)
        limited = _Limited(self.limits, self.writer, sink)
        return FilteringLogObserver(limited, [LogLevelFilterPredicate(self.level)])


@implementer(ILogObserver)
class _Limited:
    """Passes on the events that `limits` admits, and reports how many entries `writer` has lost."""

    def __init__(self, limits: Limits, writer: Writer, sink: Sink) -> None:
        self._limits = limits
        self._writer = writer
        self._sink = sink
        self._lost = Logger(namespace=__name__, observer=sink)  # type: ignore[arg-type]

    def __call__(self, event: dict[str, Any]) -> None:
        if not self._limits.admit(event):
            return
        lost = self._writer.lost()
        if lost:
            self._lost.warn(
                "log entries dropped because the log was not being written fast enough: {count}", count=lost
            )
        self._sink(event)
