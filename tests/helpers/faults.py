"""A peer that injects faults: a plain non-blocking socket that follows a script, as client or as upstream.

A script is a list of steps.  Each step runs once per turn until it is done, and the test takes turns while it waits for
something (see `Stage.until`).  So nothing runs concurrently with the test, and nothing sleeps.  In every turn the peer
also reads whatever has arrived, unless a `stop_reading` step was run.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable

Step = Callable[["FaultyPeer"], bool]
"""A step: does what it can in one turn; returns whether it is done."""

LITTLE = 1 << 14
"""Bytes requested for kernel buffers: small, so that backpressure is felt soon after a peer stops reading."""


class FaultyPeer:
    """One end of a connection; records what it `sent` and `received`."""

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
        """Whether the other side sent a FIN, or the connection was reset."""
        self.broken = False
        """Whether reading or writing failed: the connection was reset or is closed."""
        self.closed = False
        self.left = False
        """Whether this peer has closed its side, without a reset."""
        self.waited = 0

    def turn(self) -> None:
        """Read what has arrived, and continue the script."""
        if self.reading:
            self.read()
        while self.script and self.script[0](self):
            del self.script[:1]

    def do(self, *steps: Step) -> None:
        """Append `steps` to the script."""
        self.script += steps

    def read(self) -> None:
        """Read everything that has arrived."""
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
        """Send as much of `data` as the kernel accepts; return the number of bytes accepted."""
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
        """Close the socket; this sends a reset if received data is unread."""
        if not self.closed:
            self.closed = True
            self.socket.close()

    @property
    def done(self) -> bool:
        return not self.script


# Steps


def send(data: bytes, at_once: int = 1 << 20) -> Step:
    """Send all of `data`, at most `at_once` bytes per turn."""
    rest = [data]

    def step(peer: FaultyPeer) -> bool:
        rest[0] = rest[0][peer.send(rest[0][:at_once]) :]
        return not rest[0]

    return step


def bytewise(data: bytes) -> Step:
    """Send one byte per turn."""
    return send(data, 1)


def flood(line: bytes, stop: Callable[[], object]) -> Step:
    """Send `line` repeatedly until `stop` returns true; the last one is cut if the kernel does not accept it all."""
    rest = [b""]

    def step(peer: FaultyPeer) -> bool:
        if peer.broken or (stop() and not rest[0]):
            return True
        rest[0] = rest[0] or line * (1 + (1 << 16) // len(line))
        rest[0] = rest[0][peer.send(rest[0]) :]
        # Also checked in mid-line: without a reader, the line never ends.
        return bool(stop())

    return step


def expect(size: int) -> Step:
    """Wait until `size` bytes have been received in total, or the other side closed."""
    return lambda peer: len(peer.received) >= size or peer.fin


def expect_end() -> Step:
    """Wait for a FIN or a reset from the other side."""
    return lambda peer: peer.fin


def delay(turns: int) -> Step:
    """Wait for `turns` turns."""

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
    """Send a FIN, and continue to read."""

    def act(peer: FaultyPeer) -> None:
        with contextlib.suppress(OSError):
            peer.socket.shutdown(socket.SHUT_WR)
            peer.left = True

    return _once(act)


def close() -> Step:
    """Close both ways."""

    def act(peer: FaultyPeer) -> None:
        peer.left = peer.left or not peer.closed
        peer.close()

    return _once(act)


def reset() -> Step:
    """Close with a reset, and discard what was not sent yet."""

    def act(peer: FaultyPeer) -> None:
        if not peer.closed:
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()

    return _once(act)


def stop_reading() -> Step:
    """Stop reading."""
    return _once(lambda peer: setattr(peer, "reading", False))


def read_on() -> Step:
    """Resume reading."""
    return _once(lambda peer: setattr(peer, "reading", True))
