"""The timeouts of sessions, and the one sweep that looks after all of them.

A timer for each session would cost as much as a message, so a `Sweep` visits all sessions every now and then, and finds
those in which nothing passes and the peers that do not read.  What becomes of them is the bridge's business, and so is
what must happen within seconds of some event.  It knows nothing of messages.  The service starts and stops it.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import termios
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.internet.abstract import FileDescriptor
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from fooproxy.relay.interceptor import Interceptor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from twisted.internet.interfaces import IReactorTime

    from fooproxy.net.poller import Poller
    from fooproxy.relay.leg import Leg
    from fooproxy.relay.session import Session

_SHARE = 10
_SHORTEST_INTERVAL = 0.1
_LONGEST_INTERVAL = 5.0

_SLICE = 1000
"""Sessions that are visited before everything else has its turn: about a millisecond."""

_BYTES_ACKED = struct.Struct("=120xQ")
"""Where ``tcpi_bytes_acked`` is in Linux's ``struct tcp_info``."""


class Timeouts(NamedTuple):
    """How long what may take, in seconds."""

    idle: float = 0.0
    """Until a session in which nothing passes is ended; 0 for never."""
    client_fin: float = 10.0
    """That a client which has closed its side waits for the upstream to say something."""
    send: float = 60.0
    """Until a peer that takes nothing of what waits for it is given up."""

    @property
    def interval(self) -> float:
        """Seconds between two sweeps, and so how late these two may be noticed: a tenth of them, and 5 s at most."""
        shortest = min(self.send, self.idle or self.send)
        return min(max(shortest / _SHARE, _SHORTEST_INTERVAL), _LONGEST_INTERVAL)


class _Stuck(NamedTuple):
    """What the peer of a leg that cannot write had taken at a sweep, and since when it has taken no more."""

    taken: tuple[int, int]
    since: float


class Sweep:
    """Visits `sessions` every ``timeouts.interval`` seconds, and ends those that are idle, and legs that do not read.

    `prepare` is called before, to have their `idle` up to date.  A peer does not read when bytes wait here for it, and
    its kernel has acknowledged none from one sweep to the next: one that reads slowly is left in peace.

    With a `poller` that has all their transports, only sessions where bytes wait are visited, unless idle ones are
    sought: the memory of ten thousand others need not be fetched.
    """

    log = Logger()

    def __init__(
        self,
        sessions: Collection[Session],
        timeouts: Timeouts,
        clock: IReactorTime,
        prepare: Callable[[], object],
        poller: Poller | None = None,
    ) -> None:
        self._sessions = sessions
        self._poller = poller
        self._timeouts = timeouts
        self._clock = clock
        self._prepare = prepare
        self._stuck: dict[Leg, _Stuck] = {}
        self._swept_at = 0.0
        self._looping = LoopingCall(self._sweep)
        self._looping.clock = clock

    def start(self) -> None:
        """Begin; the first sweep is an interval away."""
        self._swept_at = self._clock.seconds()
        self._looping.start(self._timeouts.interval, now=False)

    def stop(self) -> None:
        """Sweep no more."""
        self._looping.stop()

    async def _sweep(self) -> None:
        # An exception would be the end of the looping.
        try:
            await self._visit_all()
        except Exception:
            self.log.failure("looking for idle sessions and peers that do not read failed; it is tried again")

    async def _visit_all(self) -> None:
        self._prepare()
        now, last = self._clock.seconds(), self._swept_at
        self._swept_at = now
        if now - last > 2 * self._timeouts.interval:
            # The process was held up, and what came meanwhile has not been read yet.
            return
        before = self._stuck
        stuck: dict[Leg, _Stuck] = {}
        limit = self._timeouts.idle
        for number, session in enumerate(self._in_question(), 1):
            if not number % _SLICE:
                await deferLater(self._clock, 0)
            is_idle = limit and session.observer.idle >= limit and self._is_idle(session, now)
            for leg in (session.client, session.upstream):
                if leg is None or leg.lost:
                    continue
                transport = leg.transport
                # What only the kernel holds is worth a system call when the session would else be ended.
                if is_writing(transport) or ((is_idle or leg in before) and unacknowledged(transport)):
                    is_idle = False
                    session.stirred = now
                    # A leg that is paused once more had room to write in between.
                    taken = (acknowledged(transport), session.pauses)
                    same = leg in before and before[leg].taken == taken
                    stuck[leg] = before[leg] if same else _Stuck(taken, now)
            if is_idle:
                session.expire()
        self._stuck = stuck
        for leg, (_, since) in stuck.items():
            if now - since >= self._timeouts.send and not leg.lost:
                leg.session.unread(leg)

    def _in_question(self) -> list[Session]:
        """Give the sessions to visit: all, or those where bytes wait or have waited."""
        if self._timeouts.idle or self._poller is None:
            return list(self._sessions)
        protocols = (getattr(writer, "protocol", None) for writer in self._poller.getWriters())
        writing = {protocol.wrapped.session for protocol in protocols if isinstance(protocol, Interceptor)}
        return list(writing.union(leg.session for leg in self._stuck if not leg.lost))

    def _is_idle(self, session: Session, now: float) -> bool:
        """Tell whether nothing has passed for too long; a session that is ending has time limits of its own."""
        return session.state == "open" and now - session.stirred >= self._timeouts.idle


def is_writing(transport: Any) -> bool:
    """Tell whether bytes wait at `transport` to be sent, or whether it is to close and waits for the peer to let it."""
    if isinstance(transport, FileDescriptor):
        return bool(transport.dataBuffer or transport._tempDataBuffer or transport.disconnecting)
    if transport is None:
        return False
    # TLS has bytes of its own as long as its handshake has not been done.
    waits = transport.disconnecting or getattr(transport, "_appSendBuffer", None)
    return bool(waits) or is_writing(_inner(transport))


def unacknowledged(transport: Any) -> int:
    """Count the bytes that the kernel holds for the peer of `transport`; 0 when it cannot tell.

    A unix socket tells the memory of what its peer has not read.
    """
    bottom = bottom_of(transport)
    try:
        held = fcntl.ioctl(-1 if bottom is None else bottom.fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):
        return 0
    return int.from_bytes(held, sys.byteorder)


def acknowledged(transport: Any) -> int:
    """Give a number that grows when the peer of `transport` takes something, and stays the same while it does not.

    For TCP it is the bytes that the peer's kernel has acknowledged.  A unix socket can only tell what is left, which
    says as much as long as nothing is added.
    """
    bottom = bottom_of(transport)
    if bottom is None:
        return 0
    try:
        (count,) = _BYTES_ACKED.unpack(bottom.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size))
    except (OSError, struct.error):
        return bottom.offset - len(bottom.dataBuffer) - bottom._tempDataLen - unacknowledged(bottom)  # type: ignore[no-any-return]
    return int(count)


def bottom_of(transport: Any) -> Any:
    """Give the transport that has the socket, below wrappers as TLS's is, or `None`."""
    while transport is not None and not isinstance(transport, FileDescriptor):
        transport = _inner(transport)
    return transport


def _inner(transport: Any) -> Any:
    """Give what a transport that is a wrapper stands on."""
    return getattr(transport, "transport", None)
