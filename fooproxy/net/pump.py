"""The innermost loop.  It relays the chunks of a batch of events in three phases: read all, write all, analyze all.

A system call evicts Python's code and data from the processor's caches, and each bytecode after it costs several times
what it costs in a tight loop.  So between two system calls the loop does only what cannot be done later for many chunks
at once.  For the same reason, it calls no function per chunk except the system calls, and all chunks that are read
before any is written share one time.

The pump knows file descriptors and taps, and calls no method of a transport or protocol.  It returns whatever it cannot
do itself to the poller, which owns it.  The compiled twin, pump.c, does the same, and also counts each chunk as it is
read.
"""

from __future__ import annotations

import errno
import os
from itertools import islice
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet import main

from fooproxy.core import IS_USED, core
from fooproxy.net.sockets import loss

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    Event = tuple[int, int, Any]
    """A file descriptor, its events, and the result of a read: `None`, `CONNECTION_DONE` or a `loss`."""
    Stuck = tuple["Sink", bytes, Exception | None]
    """A sink, the data that could not be written to it, and the `loss` of its connection, if that is the cause."""

IN = 1
"""EPOLLIN, as a number so that this module can be imported on machines without epoll."""

CLOSED = -1
"""An `outlet` that accepts nothing: the chunk then goes to the transport's own `write`, which handles the cause."""

SMALLEST_READ, LARGEST_READ = 1 << 12, 1 << 18
"""Bytes per read: the first value at first and for small messages, the second in bulk while few others are active."""

_FAIR_READ = 1 << 16
"""Bytes per read in bulk transfers while many connections are active."""

_BATCH_BYTES = 1 << 20
"""Bytes that one batch may read, so that no connection waits long; more only if every read is `_FAIR_READ`."""

_GROWTH = 8
"""The read size grows by this factor after a read that was filled."""

_SHRINKAGE = 6
"""A read that returned little shrinks the read size by one part in 2 to this power, since bulk has short reads too."""

_LARGE = 4096
"""A chunk of more bytes than this is written and analyzed before the next read, while it is still in the caches."""


class Tap(Protocol):
    """Receives the chunks of one leg for analysis.

    A pump bypasses `feed`: it appends the tap, the chunk and the time to `waiting`, and makes all taps analyze their
    waiting chunks after each batch of events.  `outlet` and `room` belong to the pump: the file descriptor that the
    chunks are written to, and the bytes per read.
    """

    waiting: list[Any]
    outlet: int
    room: int

    def feed(self, chunk: bytes, time: int) -> None:
        """Receive the next chunk and the time it was read, in microseconds."""


class Sink(Protocol):
    """The destination of a pump; it keeps the `outlet` of its `inflow` up to date."""

    inflow: Tap | None

    def write(self, data: bytes) -> None:
        """Send data that the pump could not write."""

    def fail(self, why: Exception) -> None:
        """Stop writing, since the connection is lost."""


def microseconds() -> int:
    """Return the time on the monotonic clock in microseconds; latencies are measured by it."""
    return monotonic_ns() // 1000


class Pump:
    """Relays from each source to its sink, and passes each chunk to the source's tap.

    `look` makes the taps analyze their waiting chunks.  `clock` returns the time in microseconds.
    """

    def __init__(self, look: Callable[[], None], clock: Callable[[], int]) -> None:
        self._look = look
        self._clock = clock
        self._taps: dict[int, Tap] = {}
        self._sinks: dict[Tap, Sink] = {}
        self._boxes: list[list[Any]] = []
        self._stuck: list[Stuck] = []

    def start(self, source: int, sink: Sink, tap: Tap) -> None:
        """Relay from the file descriptor `source` to `sink`, whose `inflow` is `tap` from now on, and to no other."""
        self.stop(source)
        sink.inflow = tap
        tap.room = SMALLEST_READ
        self._taps[source] = tap
        self._sinks[tap] = sink
        if not any(tap.waiting is box for box in self._boxes):
            self._boxes.append(tap.waiting)

    def stop(self, source: int) -> None:
        """Stop relaying from `source`, if it is relayed."""
        tap = self._taps.pop(source, None)
        if tap is not None:
            self._sinks.pop(tap).inflow = None

    def relay(self, events: Collection[tuple[int, int]], now: int) -> tuple[list[Event], list[Stuck]]:
        """Relay the chunks of a batch of `events`, pairs of a file descriptor and its events, read at the time `now`.

        Returns the events that the caller has to handle, ends of connections first, and the chunks that could not be
        written at once.  The sink's `write` must send each of them.  If its `loss` is known, `fail` must be called
        instead, since the kernel reports an error only once.
        """
        taps, read = self._taps, os.read
        ends: list[Event] = []
        others: list[Event] = []
        starts = [len(box) for box in self._boxes]
        most = min(max(_BATCH_BYTES // (len(events) or 1), _FAIR_READ), LARGEST_READ)
        for fd, event in events:
            if event != IN:
                others.append((fd, event, None))
                continue
            try:
                tap = taps[fd]
                room = tap.room
                if room > most:
                    room = most
                chunk = read(fd, room)
            except KeyError:
                others.append((fd, event, None))
                continue
            except BlockingIOError:
                continue
            except OSError as problem:
                ends.append((fd, event, loss(problem, fd)))
                continue
            if not chunk:
                ends.append((fd, event, main.CONNECTION_DONE))
                continue
            tap.waiting.append((tap, chunk, now))
            size = len(chunk)
            if size == room:
                tap.room = min(room * _GROWTH, most)
            elif room > SMALLEST_READ and size < room >> 2:
                tap.room = max(room - (room >> _SHRINKAGE), SMALLEST_READ)
            if size > _LARGE:
                self._write(starts)
                self._look()
                starts = [len(box) for box in self._boxes]
                # A later read may return the reply to data that was just written.
                now = max(self._clock(), now + 1)
        self._write(starts)
        stuck, self._stuck = self._stuck, []
        return ends + others, stuck

    def _write(self, starts: list[int]) -> None:
        """Write the chunks that were added to each `waiting` list since it had the length in `starts`."""
        write = os.write
        for box, start in zip(self._boxes, starts, strict=True):
            for tap, chunk, _ in islice(box, start, None):
                try:
                    sent = write(tap.outlet, chunk)
                except OSError as problem:
                    self._stuck.append((self._sinks[tap], chunk, _why_failed(problem, tap.outlet)))
                    continue
                if sent != len(chunk):
                    self._stuck.append((self._sinks[tap], chunk[sent:], None))


def _why_failed(problem: OSError, outlet: int) -> Exception | None:
    """Return why the connection of `outlet` is lost after a failed write; `None` if the write only has to wait."""
    must_wait = outlet == CLOSED or problem.errno in (errno.EAGAIN, errno.ENOBUFS)
    return None if must_wait else loss(problem, outlet)


def compiled(look: Callable[[], None], clock: Callable[[], int]) -> Any:
    """Return the compiled twin of a `Pump`, whose taps must be compiled too; it never needs to call `look`."""
    # The compiled pump reads the default clock itself, without calling Python.
    return core.Pump(None if clock is microseconds else clock, loss, main.CONNECTION_DONE)


CHOSEN: Callable[[Callable[[], None], Callable[[], int]], Any] = compiled if IS_USED else Pump
"""Creates the pump to use."""
