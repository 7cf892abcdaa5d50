"""Polls TCP transports together, with an epoll of their own, which is a single reader of the reactor.

Twisted's reactors handle each event in a log context of its own and do more work in each turn.  A `Poller` pays for
both once per batch of events, or for several batches.  Transports use it as their reactor.  `fooproxy.net.lead` makes
it wait in the reactor's place, where that is possible.
"""

from __future__ import annotations

import math
import select
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any

from twisted.internet import main, tcp
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from fooproxy.net.pump import CHOSEN, IN, microseconds
from fooproxy.net.sockets import TIMED_OUT

if TYPE_CHECKING:
    from collections.abc import Callable

_OUT = 4
"""EPOLLOUT, as a number so that this module can be imported on machines without epoll."""

_BATCH = 64
"""Maximum events per call of epoll."""

_SILENCE = 100_000
"""Microseconds without a batch after which the event loop may have been blocked."""

_BUDGET = 10_000
"""Maximum microseconds before the reactor gets its turn, for timers, signals and HTTP."""

_LONG_BUDGET = 50_000
"""The same while the poller has the lead, since it then knows the reactor's next timer and watches its events."""

_NEVER = 1 << 62
"""A time that never comes."""

_ROUNDS = 8
"""Maximum batches before the reactor gets its turn while new connections or postponed work wait for it."""

_SHARE = 2_000
"""Microseconds of `_BUDGET` for anything but relaying: mostly new connections, and the ends of connections."""

_CHORES = 4_000
"""Microseconds of a turn of the reactor for postponed work: more than for new connections, so that it gets done."""

_BATCH_ASIDE = 1024
"""Maximum events per call of epoll while something is set aside, so that relaying is found among many ends."""

_ROOM = 256
"""The initial size of the tables by file descriptor, and by how much they grow when they are full."""

_FAILURES = "failures of a connection's protocol"
"""The kind of these log lines, for the limit on lines of one kind."""

_DONE = Failure(ConnectionDone())
_LOST = Failure(ConnectionLost())
_REASONS = {ConnectionDone: _DONE, type(TIMED_OUT): Failure(TIMED_OUT)}


def is_available() -> bool:
    """Return whether this machine has epoll."""
    return hasattr(select, "epoll")


@implementer(IReadDescriptor)
class Poller:
    """Polls transports with one epoll, which `reactor` polls in turn; the transports use it as their reactor.

    `patience` is the seconds that the poller waits for further events before it returns to `reactor`.  That pays if all
    traffic goes through the poller, since a turn of the reactor costs more than a message; otherwise it delays others.
    While the poller has the lead, `patience` only applies after an event that may have given the reactor something to
    do, such as a call that Twisted's TLS makes in its next turn.
    `clock` returns microseconds; one reading is the time of a whole batch.  `pump` makes the pump.
    """

    log = Logger()

    def __init__(
        self, reactor: Any, patience: float = 0.0, clock: Callable[[], int] = microseconds, pump: Any = CHOSEN
    ) -> None:
        self.callLater = reactor.callLater
        self._clock = clock
        self.patience = patience
        self._reactor = reactor
        self.pump = pump(self._do_afterwards, clock)
        """Relays between transports without calling their protocols."""
        self.after_silence: list[Callable[[], None]] = []
        """Functions to call before reading a batch that arrives more than `_SILENCE` after the last one."""
        self._served_at = 0
        self.afterwards: list[Callable[[], None]] = []
        """Functions to call after each batch of events, when everything has been written."""
        self.each_turn: list[Callable[[], None]] = []
        """Functions to call after the first batch of each turn, when everything has been written."""
        self._goes_on = hasattr(self.pump, "go_on")
        """Whether the pump can relay further batches without Python, if nothing needs to be called after each."""
        self.led = -1
        """The file descriptor of the reactor's epoll, while the poller waits in its place."""
        self.is_due = False
        """Whether the reactor has something to do, so that the turn ends after this batch."""
        self._soon: deque[Callable[[], None]] = deque()
        self._has_chores = False
        """Whether `_do_chores` is due."""
        self._epoll: Any = None
        self._polled: list[Any] = []
        """The polled objects, or `None`, by file descriptor: a list takes a fifth of a dictionary's memory."""
        self._events = bytearray()
        """The events that each is polled for, by file descriptor."""
        self._aside: OrderedDict[int, tuple[int, Any]] = OrderedDict()
        """Events that wait for a later turn, by file descriptor; the epoll does not watch these meanwhile."""

    def open(self) -> None:
        """Open the epoll, unless it is open.  Do not call this before the start: twistd may fork after makeService."""
        if self._epoll is None:
            self._epoll = select.epoll()
            self._reactor.addReader(self)

    def addReader(self, reader: Any) -> None:
        """Call `reader.doRead` whenever it can read."""
        self._change(reader, IN, 0)

    def removeReader(self, reader: Any) -> None:
        """Stop calling `reader.doRead`."""
        self._change(reader, 0, IN)

    def addWriter(self, writer: Any) -> None:
        """Call `writer.doWrite` whenever it can write."""
        self._change(writer, _OUT, 0)

    def removeWriter(self, writer: Any) -> None:
        """Stop calling `writer.doWrite`."""
        self._change(writer, 0, _OUT)

    def getWriters(self) -> list[Any]:
        """List the transports that wait to write."""
        return [self._polled[fd] for fd, events in enumerate(self._events) if events & _OUT]

    def forget(self, selectable: Any) -> None:
        """Stop calling `selectable`, which is about to close; closing also removes it from the epoll."""
        fd = selectable.fileno()
        if 0 <= fd < len(self._events) and self._events[fd]:
            self._polled[fd], self._events[fd] = None, 0
            self._aside.pop(fd, None)

    def soon(self, do: Callable[[], None]) -> None:
        """Call `do` once everything that is running now has returned."""
        self._soon.append(do)
        self._do_chores_soon()

    def _do_chores_soon(self) -> None:
        if not self._has_chores:
            self._has_chores = True
            self.callLater(0, self._do_chores)

    def _do_chores(self) -> None:
        """Do postponed work for at most `_CHORES`: first the calls from `soon`, then the events set aside."""
        self._has_chores = False
        end = self._clock() + _CHORES
        while self._soon or self._aside:
            if self._soon:
                try:
                    self._soon.popleft()()
                except Exception:
                    self.log.failure("a protocol failed in connectionLost", limited=_FAILURES)
            else:
                fd, (event, why) = next(iter(self._aside.items()))
                self._serve(fd, event, why)
                # Most of these connections have ended; watch the others again.
                if self._aside.pop(fd, None) is not None:
                    self._epoll.register(fd, self._events[fd])
            if self._clock() > end:
                self._do_chores_soon()
                break
        self._do_afterwards()
        self._call_all(self.each_turn)

    def _change(self, selectable: Any, add: int, remove: int) -> None:
        fd = selectable.fileno()
        if fd >= len(self._events):
            more = max(fd + 1 - len(self._events), _ROOM)
            self._polled += [None] * more
            self._events += bytes(more)
        before = self._events[fd] if fd >= 0 else 0
        after = (before | add) & ~remove
        if after == before:
            return
        if not before:
            self.open()
            self._epoll.register(fd, after)
            self._polled[fd] = selectable
        elif fd in self._aside:
            if not after:
                self._polled[fd] = None
                del self._aside[fd]
        elif after:
            self._epoll.modify(fd, after)
        else:
            # As with Twisted's reactors, not even errors are reported from here on.
            self._epoll.unregister(fd)
            self._polled[fd] = None
        self._events[fd] = after

    def fileno(self) -> int:
        """Return the file descriptor of the epoll."""
        fileno: int = self._epoll.fileno()
        return fileno

    def doRead(self) -> None:
        """Handle the events that are ready, and those that follow within `patience` and `_BUDGET`."""
        self._turn(0.0, self.patience, _BUDGET, _NEVER)

    def iterate(self, delay: float | None) -> None:
        """Wait for events and handle them in the reactor's place, until its next timer in `delay` seconds.

        The turn also ends with the batch that sets `is_due`.
        """
        if delay is None:
            self._turn(-1, _LONG_BUDGET / 1e6, _LONG_BUDGET, _NEVER)
        elif delay:
            self._turn(delay, delay, _LONG_BUDGET, self._clock() + int(delay * 1e6))
        else:
            self._turn(0.0, 0.0, _BUDGET, _NEVER)

    def _turn(self, timeout: float, patience: float, budget: int, due: int) -> None:
        """Handle events: wait `timeout` seconds for the first ones (-1: for ever), and `patience` seconds for more.

        The turn ends `budget` microseconds after the first events, at the latest at the time `due`.
        """
        poll, relay, clock = self._epoll.poll, self.pump.relay, self._clock
        end, rounds, self.is_due = 0, 0, False
        self._share, self._accepted = _SHARE, False
        while True:
            events = poll(timeout, _BATCH_ASIDE if self._aside else _BATCH)
            if not events:
                return
            if len(events) == 1 and events[0][0] == self.led:
                # Only the reactor has events; this is not a batch of the poller's, nor the end of a silence.
                self.is_due = True
                return
            now = clock()
            if now - self._served_at > _SILENCE:
                self._call_all(self.after_silence)
            self._served_at = now
            try:
                others, stuck = relay(events, now)
                # Everything that was read is written before anything else happens to any transport.
                if stuck:
                    self._send(stuck)
            except Exception:
                others, stuck = self._give_up(events), []
            waiting = self._serve_others(others) if others else 0
            self._call_all(self.afterwards)
            if not rounds:
                end = min(now + budget, due)
                self._call_all(self.each_turn)
            rounds += 1
            is_all_relayed = not (others or stuck or self._has_chores)
            if self.afterwards or not is_all_relayed:
                # These calls and events may have given the reactor something to do.
                end = min(end, now + _BUDGET)
            if not is_all_relayed:
                patience = min(patience, self.patience)
            if now > end or waiting == len(events) or self.is_due:
                return
            if rounds >= _ROUNDS and (waiting or self._has_chores or not patience):
                return
            timeout = min(patience, (end - now) / 1e6)
            if patience and is_all_relayed and self._goes_on and not (self.afterwards or self._aside):
                now = self._relay_on(now, end, timeout)
                if now > end:
                    return
                # The pump has waited already, and other events have come, or none.
                timeout, end, patience = 0.0, min(end, now + _BUDGET), min(patience, self.patience)

    def _relay_on(self, now: int, end: int, patience: float) -> int:
        """Relay further batches after the one at `now`, until one has other events; return the last one's time."""
        try:
            milliseconds = math.ceil(patience * 1000)
            others, stuck, now = self.pump.go_on(self._epoll.fileno(), _BATCH, milliseconds, now, end, _SILENCE)
            self._send(stuck)
        except Exception:
            others = self._give_up(self.pump.batch())
        self._served_at = now
        if others:
            self._serve_others(others)
        return now

    def _send(self, stuck: list[Any]) -> None:
        """Send the data that the pump could not write at once."""
        for sink, data, why in stuck:
            try:
                if why is None:
                    sink.write(data)
                else:
                    sink.fail(why)
            except Exception:
                self._failed(sink)

    def _give_up(self, events: list[tuple[int, int]]) -> list[Any]:
        """Reset the connections of a batch in which the pump has failed; return the events that are not the pump's.

        The pump may have read data that it did not write, and the peers must not receive a stream with a gap.
        """
        others = []
        for fd, event in events:
            selectable = self._polled[fd]
            try:
                give_up = getattr(selectable, "give_up", None)
                if give_up is None or not give_up():
                    others.append((fd, event, None))
            except Exception:
                self._failed(selectable)
        # Not earlier, since this may fail too if there is no memory.
        self.log.failure(
            "relaying failed, for lack of memory or because of a bug in fooproxy; resetting the {number} connections "
            "that had data to relay at that moment",
            number=len(events),
            limited="failures of relaying",
        )
        return others

    def _do_afterwards(self) -> None:
        self._call_all(self.afterwards)

    def _call_all(self, hooks: list[Callable[[], None]]) -> None:
        for do in hooks:
            try:
                do()
            except Exception:
                self.log.failure("a function called after a batch of events failed; traffic continues")

    def _serve_others(self, others: list[Any]) -> int:
        """Handle the events that are not the pump's; return how many of them wait for the next turn of the reactor.

        A port accepts once in a turn.  When `_SHARE` is used up, everything is set aside except writes and relayed
        reads, so that thousands of connections that end at once do not hold up the others.
        """
        waiting = 0
        began = self._clock()
        end = began + self._share
        for fd, event, why in others:
            selectable = self._polled[fd]
            if selectable is None:
                # This connection waits to be closed; until then, epoll goes on reporting it.
                continue
            if isinstance(selectable, tcp.Port):
                if self._accepted:
                    waiting += 1
                    continue
                self._accepted = True
            elif event != _OUT and (self._aside or self._clock() > end) and self._can_wait(selectable, event, why):
                self._set_aside(fd, event, why)
                continue
            self._serve(fd, event, why)
        self._share -= self._clock() - began
        return waiting

    def _can_wait(self, selectable: Any, event: int, why: Any) -> bool:
        """Return whether an event can be set aside: it is not relayed data, nor a write."""
        return event != IN or why is not None or not selectable.brings_traffic

    def _set_aside(self, fd: int, event: int, why: Any) -> None:
        self._do_chores_soon()
        self._aside[fd] = (event, why)
        # Otherwise epoll would report the event again and again.
        self._epoll.unregister(fd)

    def _serve(self, fd: int, event: int, why: Any) -> None:
        """Handle an event that is not the pump's, or the end of a connection, whose cause `why` the pump has found."""
        # An event earlier in the batch may have closed this one.  If its file descriptor is in use again, the new
        # connection finds nothing to read, which does no harm: a system call confirms each event, and the ends that the
        # pump has found are handled before any new connection.
        selectable = self._polled[fd]
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
        """Read and write as `event` says; the system calls report errors and hang-ups."""
        events = self._events[fd]
        why = selectable.doRead() if events & IN and event & ~_OUT else None
        still_there = self._polled[fd] is selectable
        if why is None and events & _OUT and event & ~IN and still_there:
            return selectable.doWrite()
        return why

    def _failed(self, selectable: Any) -> None:
        """Close a connection whose protocol raised, so that the others are not affected."""
        self.log.failure("closing a connection whose protocol failed", limited=_FAILURES)
        try:
            selectable.connectionLost(Failure())
        except Exception:
            self.log.failure("a protocol that had failed also failed in connectionLost", limited=_FAILURES)

    def _disconnect(self, selectable: Any, why: Exception) -> None:
        if isinstance(why, ConnectionDone) and not selectable.disconnecting:
            selectable.readConnectionLost(_DONE)
            self.removeReader(selectable)
        else:
            selectable.connectionLost(_REASONS.get(type(why), _LOST))

    def logPrefix(self) -> str:
        """Return the prefix of log lines that are written while the poller runs."""
        return "fooproxy"

    def connectionLost(self, reason: Failure) -> None:
        """Close everything, since the reactor stops.

        If the reactor only drops this reader because it raised an exception, relaying continues.
        """
        if reason.value is not main.CONNECTION_LOST:
            self._reactor.addReader(self)
            return
        for selectable in self._polled[:]:
            if selectable is not None:
                selectable.connectionLost(reason)
