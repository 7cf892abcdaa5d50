"""The lead: a poller that waits in the place of Twisted's epoll reactor, rather than being one of its readers.

A reader must not delay the reactor's timers, HTTP or signals, so it can wait only briefly, and short waits are
expensive: the kernel sets up a timer for each.  A poller in the lead waits until the reactor's next timer, and also for
the reactor's own events: its epoll watches the reactor's.

This module knows the reactor and the poller; the service takes the lead when it starts, and gives it back when it
stops.  With any other reactor, or if something else has replaced `doIteration`, `take` does nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fooproxy.net.private import epoll_of

if TYPE_CHECKING:
    from fooproxy.net.poller import Poller


class Lead:
    """Makes `poller` wait in the place of `reactor`, which becomes one of the poller's readers."""

    brings_traffic = True
    """Never set aside by the poller: HTTP and signals do not wait for many ends."""

    def __init__(self, reactor: Any, poller: Poller) -> None:
        self._reactor = reactor
        self._poller = poller
        self._epoll = epoll_of(reactor)
        self.taken = False

    def take(self) -> None:
        """Wait in the reactor's place from now on, if that is possible."""
        # If something else has the lead, the instance has this attribute.
        if self._epoll is None or "doIteration" in vars(self._reactor):
            return
        self.taken = True
        self._poller.open()
        # First, since an epoll cannot watch one that watches it.
        self._reactor.removeReader(self._poller)
        self._poller.addReader(self)
        self._poller.led = self.fileno()
        self._others = self._reactor.doIteration
        self._reactor.doIteration = self._iterate

    def give_back(self) -> None:
        """Let the reactor wait again, if the poller has the lead."""
        if self.taken:
            self.taken = False
            del self._reactor.doIteration
            self._poller.led = -1
            self._poller.removeReader(self)
            self._reactor.addReader(self._poller)

    def fileno(self) -> int:
        """Return the file descriptor of the reactor's epoll."""
        fileno: int = self._epoll.fileno()
        return fileno

    def doRead(self) -> None:
        """End the poller's turn, since events of the reactor are ready."""
        self._poller.is_due = True

    def _iterate(self, delay: float | None) -> None:
        """Do what the reactor's `doIteration` does: wait, at most `delay` seconds, and handle what is ready."""
        self._poller.iterate(delay)
        if self._poller.is_due:
            self._others(0)
