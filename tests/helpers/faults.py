"""A peer that injects faults: a plain non-blocking socket that follows a script, whichever side it is on.

A script is a list of steps; each takes turns until it is done, and turns are given by whoever waits for something (see
`Stage.until`).  So nothing runs at the same time as the test, and nothing waits for a time to pass.  Whatever the
script is at, what comes is read, unless the peer was told to `stop_reading`.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable

Step = Callable[["FaultyPeer"], bool]
"""Does what it can in one turn; tells whether it is done."""

LITTLE = 1 << 14
"""Bytes asked of the kernel for its buffers, so that who does not read is noticed soon."""


class FaultyPeer:
    """One end of a connection, and a record of what it `sent` and `received`."""

    def __init__(self, skt: socket.socket) -> None:
        skt.setblocking(False)
        with contextlib.suppress(OSError):
            skt.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = skt
        self.script: list[Step] = []
        self.sent = bytearray()
        self.received = bytearray()
        self.reading = True
        self.fin = False
        """Whether the other side has said that nothing more comes."""
        self.broken = False
        """Whether the connection was reset, or cannot be written to."""
        self.closed = False
        self.waited = 0

    def turn(self) -> None:
        """Read what has come, and go on with the script."""
        if self.reading:
            self.read()
        while self.script and self.script[0](self):
            del self.script[:1]

    def do(self, *steps: Step) -> None:
        """Follow these steps after all others."""
        self.script += steps

    def read(self) -> None:
        """Read all that has come."""
        try:
            while not (self.closed or self.fin):
                chunk = self.socket.recv(1 << 18)
                self.received += chunk
                self.fin = not chunk
        except BlockingIOError:
            return
        except OSError:
            self.fin = self.broken = True

    def send(self, data: bytes) -> int:
        """Send what of `data` the kernel takes."""
        try:
            taken = self.socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self.broken = True
            return len(data)
        self.sent += data[:taken]
        return taken

    def close(self) -> None:
        """Close, which resets the connection if anything was not read."""
        if not self.closed:
            self.closed = True
            self.socket.close()

    @property
    def done(self) -> bool:
        return not self.script


# Steps.


def send(data: bytes, at_once: int = 1 << 20) -> Step:
    """Send all of `data`, at most so many bytes a turn."""
    rest = [data]

    def step(peer: FaultyPeer) -> bool:
        rest[0] = rest[0][peer.send(rest[0][:at_once]) :]
        return not rest[0]

    return step


def bytewise(data: bytes) -> Step:
    """Send each byte by itself."""
    return send(data, 1)


def flood(line: bytes, stop: Callable[[], object]) -> Step:
    """Send whole lines without end, until `stop` says so; the last one is sent whole, or as far as anybody takes it."""
    rest = [b""]

    def step(peer: FaultyPeer) -> bool:
        if peer.broken or (stop() and not rest[0]):
            return True
        rest[0] = rest[0] or line * (1 + (1 << 16) // len(line))
        rest[0] = rest[0][peer.send(rest[0]) :]
        # So that there is an end to it when nobody reads.
        return bool(stop())

    return step


def expect(size: int) -> Step:
    """Wait until so many bytes have come in all."""
    return lambda peer: len(peer.received) >= size or peer.fin


def expect_end() -> Step:
    """Wait until the other side sends a FIN, or a reset."""
    return lambda peer: peer.fin


def delay(turns: int) -> Step:
    """Do nothing for some turns."""

    def step(peer: FaultyPeer) -> bool:
        peer.waited += 1
        return peer.waited % turns == 0

    return step


def _once(act: Callable[[FaultyPeer], object]) -> Step:
    def step(peer: FaultyPeer) -> bool:
        act(peer)
        return True

    return step


def half_close() -> Step:
    """Send a FIN, and go on reading."""

    def act(peer: FaultyPeer) -> None:
        with contextlib.suppress(OSError):
            peer.socket.shutdown(socket.SHUT_WR)

    return _once(act)


def close() -> Step:
    """Close both ways."""
    return _once(FaultyPeer.close)


def reset() -> Step:
    """Close with a reset, whatever is under way."""

    def act(peer: FaultyPeer) -> None:
        if not peer.closed:
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()

    return _once(act)


def stop_reading() -> Step:
    """Read no more."""
    return _once(lambda peer: setattr(peer, "reading", False))


def read_on() -> Step:
    """Read again."""
    return _once(lambda peer: setattr(peer, "reading", True))
