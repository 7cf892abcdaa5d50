"""Polls TCP transports together: an epoll of their own that is one reader of whatever reactor runs.

Twisted's reactors call each event within a log context, and do much besides in each turn.  A `Poller` takes both once
for a whole batch of events, or for several.  To transports it stands for the reactor.
"""

from __future__ import annotations

import select
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from fooproxy.net.pump import IN, Pump

if TYPE_CHECKING:
    from collections.abc import Callable

_OUT = 4
"""EPOLLOUT, by number so that this module loads where there is no epoll."""

_BATCH = 64
"""Events taken from the kernel at once."""

_ROUNDS = 8
_BUDGET = 10_000
"""Batches served, and microseconds taken, before the reactor gets its turn: for timers, signals and the web side."""

_DONE = Failure(ConnectionDone())
_LOST = Failure(ConnectionLost())


def is_available() -> bool:
    """Tell whether this machine has what it takes."""
    return hasattr(select, "epoll")


def microseconds() -> int:
    """Give the time by which latencies are measured, on the monotonic clock."""
    return monotonic_ns() // 1000


@implementer(IReadDescriptor)
class Poller:
    """Polls transports with one epoll, which `reactor` polls; to the transports it is their reactor.

    With `patience`, in seconds, it waits so long for the next events itself before it goes back to `reactor`: good
    where it has all the traffic, since a turn of the reactor costs more than a message, and bad where it has a part.
    `clock` gives the microseconds that stand for each batch.
    """

    log = Logger()

    def __init__(self, reactor: Any, patience: float = 0.0, clock: Callable[[], int] = microseconds) -> None:
        self.callLater = reactor.callLater
        self._clock = clock
        self.patience = patience
        self._reactor = reactor
        self.pump = Pump(self._do_afterwards, clock)
        """What relays between transports, without anybody in between."""
        self.afterwards: list[Callable[[], None]] = []
        """What to call after each batch of events, when all is written."""
        self._soon: list[Callable[[], None]] = []
        self._epoll: Any = None
        self._polled: dict[int, Any] = {}
        self._events: dict[int, int] = {}

    def addReader(self, reader: Any) -> None:
        """Have `reader.doRead` called when it can read."""
        self._change(reader, IN, 0)

    def removeReader(self, reader: Any) -> None:
        """Call `reader.doRead` no more."""
        self._change(reader, 0, IN)

    def addWriter(self, writer: Any) -> None:
        """Have `writer.doWrite` called when it can write."""
        self._change(writer, _OUT, 0)

    def removeWriter(self, writer: Any) -> None:
        """Call `writer.doWrite` no more."""
        self._change(writer, 0, _OUT)

    def getWriters(self) -> list[Any]:
        """Give those whose `doWrite` is to be called."""
        return [self._polled[fd] for fd, events in self._events.items() if events & _OUT]

    def forget(self, selectable: Any) -> None:
        """Call `selectable` no more: it is about to close, which takes it from the epoll too."""
        fd = selectable.fileno()
        if self._events.pop(fd, 0):
            del self._polled[fd]

    def soon(self, do: Callable[[], None]) -> None:
        """Call `do` when all that is going on has returned."""
        if not self._soon:
            self.callLater(0, self._do_now)
        self._soon.append(do)

    def _do_now(self) -> None:
        due, self._soon = self._soon, []
        for do in due:
            try:
                do()
            except Exception:
                self.log.failure("a protocol failed as it was told of the end of its connection")

    def _change(self, selectable: Any, add: int, remove: int) -> None:
        fd = selectable.fileno()
        before = self._events.get(fd, 0)
        after = (before | add) & ~remove
        if after == before:
            return
        if not before:
            if self._epoll is None:
                # Not before it is needed: twistd may fork between makeService and the start.
                self._epoll = select.epoll()
                self._reactor.addReader(self)
            self._epoll.register(fd, after)
            self._polled[fd] = selectable
        elif after:
            self._epoll.modify(fd, after)
        else:
            # Not even errors are wanted now, as with Twisted's reactors.
            self._epoll.unregister(fd)
            del self._polled[fd], self._events[fd]
            return
        self._events[fd] = after

    def fileno(self) -> int:
        """Give the epoll's own file descriptor."""
        fileno: int = self._epoll.fileno()
        return fileno

    def doRead(self) -> None:
        """Serve what is ready, and what gets ready meanwhile, but not for ever."""
        poll, relay = self._epoll.poll, self.pump.relay
        patience, end = 0.0, 0
        for _ in range(_ROUNDS):
            events = poll(patience, _BATCH)
            if not events:
                return
            now = self._clock()
            others, stuck = relay(events, now)
            # All that was read is written before anything else happens to any transport.
            for sink, data in stuck:
                try:
                    sink.write(data)
                except Exception:
                    self._failed(sink)
            for fd, event, why in others:
                self._serve(fd, event, why)
            self._do_afterwards()
            end = end or now + _BUDGET
            if now > end:
                return
            patience = self.patience

    def _do_afterwards(self) -> None:
        for do in self.afterwards:
            try:
                do()
            except Exception:
                self.log.failure("what follows a batch of events failed; the traffic goes on")

    def _serve(self, fd: int, event: int, why: Any) -> None:
        """Serve an event that is not the pump's, or for which that has found out `why` the connection ends."""
        # An event earlier in the batch may have closed this one.  If its number is in use again already, the newcomer
        # finds nothing to read, which is no harm: no event is believed before a call confirms it, and the ends that the
        # pump has found come before anybody new.
        selectable = self._polled.get(fd)
        if selectable is None:
            return
        try:
            if why is None:
                why = self._confirm(selectable, fd, event)
            if why is not None:
                self._disconnect(selectable, why)
        except Exception:
            self._failed(selectable)

    def _confirm(self, selectable: Any, fd: int, event: int) -> Any:
        """Read and write as `event` says; errors and hang-ups are told by the calls that meet them."""
        events = self._events[fd]
        why = selectable.doRead() if events & IN and event & ~_OUT else None
        still_there = self._polled.get(fd) is selectable
        if why is None and events & _OUT and event & ~IN and still_there:
            return selectable.doWrite()
        return why

    def _failed(self, selectable: Any) -> None:
        """Close a connection whose protocol raised; nothing that one does may hurt the others."""
        self.log.failure("closing a connection whose protocol failed")
        try:
            selectable.connectionLost(Failure())
        except Exception:
            self.log.failure("its protocol failed once more as it was told of the end")

    def _disconnect(self, selectable: Any, why: Exception) -> None:
        if isinstance(why, ConnectionDone) and not selectable.disconnecting:
            selectable.readConnectionLost(_DONE)
            self.removeReader(selectable)
        else:
            selectable.connectionLost(_DONE if isinstance(why, ConnectionDone) else _LOST)

    def logPrefix(self) -> str:
        """Name the poller in log lines that come from under it."""
        return "fooproxy"

    def connectionLost(self, reason: Failure) -> None:
        """Close everything: the reactor stops."""
        for selectable in list(self._polled.values()):
            selectable.connectionLost(reason)
