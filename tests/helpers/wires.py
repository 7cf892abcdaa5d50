"""TCP without a kernel: sockets that are simple models of a connection, and a reactor that the test turns by hand.

Twisted's own `tcp.Connection` runs on them, so its buffers, producers and ways of closing are the real ones.  A `Wire`
keeps the bytes of both directions, and loses the bytes that a kernel would lose: those that a peer has not read when a
reset arrives.  A socket sends a reset if it is closed with data unread, or receives data after it was closed.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
from typing import Any

from twisted.internet import main, tcp
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure

ROOM = 48
"""Bytes that the peer's side of a wire holds while the peer does not read."""

BUFFER = 64
"""Bytes that a connection buffers before it pauses its producer, and the most that it reads at once."""


_numbers = itertools.count(1 << 30)


class Wire:
    """A connection: the peer's end of it, and the socket at our end."""

    def __init__(self) -> None:
        # Towards us: everything the peer sent, and the part of it that was sent before we closed.
        self.said = bytearray()
        self.sent = bytearray()
        self.taken = 0
        self.fin_sent = self.fin_taken = self.reset_sent = False
        # Towards the peer.
        self.arrived = bytearray()
        self.seen = 0
        self.fin_came = self.reset_came = False
        self.closed = self._abortive = False
        self._number = next(_numbers)

    # The peer's actions

    def peer_sends(self, data: bytes) -> None:
        self.said += data
        if self.closed:
            self._reset_peer()
        else:
            self.sent += data

    def peer_reads(self, most: int) -> None:
        self.seen = min(self.seen + most, len(self.arrived))

    @property
    def unread(self) -> int:
        """Number of bytes that have arrived and that the peer has not read."""
        return len(self.arrived) - self.seen

    @property
    def progress(self) -> tuple[int, int]:
        """Number of bytes that each end has read."""
        return self.taken, self.seen

    @property
    def peer_sees_end(self) -> bool:
        """Whether the peer has read everything and the FIN, or got a reset."""
        return self.reset_came or (self.fin_came and self.seen == len(self.arrived))

    @property
    def peer_may_send(self) -> bool:
        return not (self.fin_sent or self.reset_sent or self.reset_came)

    def _reset_peer(self) -> None:
        self.reset_came = True
        del self.arrived[self.seen :]

    # The socket interface of our end

    @property
    def readable(self) -> bool:
        return self.taken < len(self.sent) or self.fin_sent or self.reset_sent

    @property
    def writable(self) -> bool:
        return self.reset_sent or self.unread < ROOM

    def recv(self, most: int, flags: int = 0) -> bytes:
        chunk = bytes(self.sent[self.taken : self.taken + most])
        if chunk:
            self.taken += 0 if flags & socket.MSG_PEEK else len(chunk)
        elif self.reset_sent:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        elif not self.fin_sent:
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))
        else:
            self.fin_taken = True
        return chunk

    def send(self, data: bytes) -> int:
        assert not self.fin_came, "data after a FIN"
        if self.reset_sent:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        accepted = bytes(data[: ROOM - self.unread])
        if data and not accepted:
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK))
        self.arrived += accepted
        return len(accepted)

    def shutdown(self, how: int) -> None:
        # SHUT_RDWR is only called right before close, which does the rest.
        if how == socket.SHUT_WR:
            self.fin_came = True

    def close(self) -> None:
        self.closed = True
        if self._abortive or self.taken < len(self.sent):
            self._reset_peer()
        else:
            self.fin_came = True

    def setsockopt(self, level: int, option: int, value: object) -> None:
        self._abortive = self._abortive or (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER)

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def fileno(self) -> int:
        # Not an open descriptor, so system calls on it fail.
        return self._number


class Connection(tcp.Connection):
    """Twisted's connection, with small buffers."""

    bufferSize = BUFFER

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.1", 1024)


class Reactor:
    """Serves connections when the test calls `turn`; delayed calls run on `clock`."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.callLater = self.clock.callLater
        # Ordered, unlike a set, so that a failure can be replayed.
        self.readers: dict[Any, None] = {}
        self.writers: dict[Any, None] = {}

    def addReader(self, reader: Any) -> None:
        self.readers[reader] = None

    def addWriter(self, writer: Any) -> None:
        self.writers[writer] = None

    def removeReader(self, reader: Any) -> None:
        self.readers.pop(reader, None)

    def removeWriter(self, writer: Any) -> None:
        self.writers.pop(writer, None)

    def connect(self, wire: Wire, protocol: Any) -> None:
        """Connect `protocol` to our end of `wire`."""
        connection = Connection(wire, protocol, self)  # type: ignore[arg-type]
        connection.connected = 1
        connection.startReading()
        protocol.makeConnection(connection)

    def turn(self) -> bool:
        """Serve each connection that is ready once; return whether there was any."""
        ready = [(c, c.doRead) for c in self.readers if c.socket.readable]
        ready += [(c, c.doWrite) for c in self.writers if c.socket.writable]
        for connection, serve in ready:
            wanted = self.readers if serve == connection.doRead else self.writers
            if connection in wanted:
                why = serve()
                if why is not None:
                    self._disconnect(connection, why, wanted is self.readers)
        self.clock.advance(0)
        return bool(ready)

    def settle(self) -> None:
        """Take turns until no connection is ready."""
        while self.turn():
            pass

    def _disconnect(self, connection: Any, why: Exception, reading: bool) -> None:
        # Like Twisted's reactors.
        self.removeReader(connection)
        if reading and why is main.CONNECTION_DONE:
            connection.readConnectionLost(Failure(ConnectionDone()))
        else:
            self.removeWriter(connection)
            done = why is main.CONNECTION_DONE
            connection.connectionLost(Failure(ConnectionDone() if done else ConnectionLost()))
