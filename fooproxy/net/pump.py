"""The innermost loop: relays what a batch of events brought, in phases: read all, write all, have all looked at.

After a system call nothing of Python's is in the processor's caches, and each bytecode costs several times what it
costs in a loop; so between two of them there is only what cannot be done later, for many chunks at once.  That is also
why no function is called here for a chunk but the kernel's, and why one time stands for all that is read before any of
it is written.

It knows file descriptors and taps, and calls nothing of a transport or a protocol: what it cannot do itself it gives
back to the poller, which owns it.  A faster one, in a compiled language, would have to do just what `relay` does.
"""

from __future__ import annotations

import os
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet import main

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    Event = tuple[int, int, Any]
    """A file descriptor, its events, and what a read of it said: `None`, `CONNECTION_DONE` or `CONNECTION_LOST`."""

IN = 1
"""EPOLLIN, by number so that this module loads where there is no epoll."""

CLOSED = -1
"""An `outlet` that takes nothing: the chunk goes to the transport's own `write`, which knows why."""

SMALLEST_READ, LARGEST_READ = 1 << 12, 1 << 18
"""Bytes that are asked for at once: at first and for small messages, and in a bulk transfer that has few beside it."""

_FAIR_READ = 1 << 16
"""Bytes that are asked for in bulk transfers when there are many of them."""

_BATCH_BYTES = 1 << 20
"""Bytes that a batch may bring, or more if each reads a fair share: the others wait for so long."""

_GROWTH = 8
"""How many times as much is asked for after a read that was filled."""

_SHRINKAGE = 6
"""By 1 in so many powers of 2 less is asked for after a read that brought little: among the pieces of long messages are
short ones, which should not have the long ones cut."""

_LARGE = 4096
"""Bytes of a chunk from which on it is written and looked at before the next is read: it would leave the caches."""


class Tap(Protocol):
    """What is shown the chunks of one leg.

    A pump does what `feed` does in a shorter way: it appends the tap, the chunk and the time to `waiting`, and has all
    taps look at what waits for them after each batch of events.  `outlet` and `room` are the pump's: the file
    descriptor that the chunks are written to, and how many bytes to ask for.
    """

    waiting: list[Any]
    outlet: int
    room: int

    def feed(self, chunk: bytes, time: int) -> None:
        """Take the next chunk, and the time it came, in microseconds."""


class Sink(Protocol):
    """Where the pump writes to; it keeps the `outlet` of its `inflow` up to date."""

    inflow: Tap | None

    def write(self, data: bytes) -> None:
        """Take what the pump could not write."""


class Pump:
    """Relays from each source to its sink, and shows what it relays to the source's tap.

    `look` is called to have the taps look at what they were shown.  `clock` gives the time, in microseconds.
    """

    def __init__(self, look: Callable[[], None], clock: Callable[[], int]) -> None:
        self._look = look
        self._clock = clock
        self._taps: dict[int, Tap] = {}
        self._sinks: dict[Tap, Sink] = {}
        self._boxes: list[list[Any]] = []
        self._stuck: list[tuple[Sink, bytes]] = []

    def start(self, source: int, sink: Sink, tap: Tap) -> None:
        """Relay from the file descriptor `source` to `sink`, whose `inflow` is `tap` from now on."""
        sink.inflow = tap
        tap.room = SMALLEST_READ
        self._taps[source] = tap
        self._sinks[tap] = sink
        if not any(tap.waiting is box for box in self._boxes):
            self._boxes.append(tap.waiting)

    def stop(self, source: int) -> None:
        """Relay from `source` no more, if it was."""
        tap = self._taps.pop(source, None)
        if tap is not None:
            self._sinks.pop(tap).inflow = None

    def relay(self, events: Collection[tuple[int, int]], now: int) -> tuple[list[Event], list[tuple[Sink, bytes]]]:
        """Relay what `events`, a file descriptor and its events each, bring at the time `now`.

        Gives the events that are somebody else's to serve, ends first, and the chunks that could not be written at
        once, each with the sink whose `write` is to have it.
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
            except OSError:
                ends.append((fd, event, main.CONNECTION_LOST))
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
                # What is read from here on may be the reply to what was just written.
                now = max(self._clock(), now + 1)
        self._write(starts)
        stuck, self._stuck = self._stuck, []
        return ends + others, stuck

    def _write(self, starts: list[int]) -> None:
        """Write what was put into each box since it was as long as `starts` says."""
        write = os.write
        for box, start in zip(self._boxes, starts, strict=True):
            for tap, chunk, _ in islice(box, start, None):
                try:
                    sent = write(tap.outlet, chunk)
                except OSError:
                    sent = 0
                if sent != len(chunk):
                    self._stuck.append((self._sinks[tap], chunk[sent:]))
