"""A Foo server and simple clients for tests of the real process, with blocking sockets and threads, without Twisted.

The server behaves like a widely used one.  It answers in order, with ``NAK 0 ERRDECODE`` for a line that it cannot
parse and NAK for data that contains spaces.  It answers a last request without a newline when the FIN arrives, and
keeps its own side open after that.  It echoes the data of each request, so the replies show which requests arrived.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

PATIENCE = 60.0
"""Seconds that a test waits for an event before it fails; many, for busy machines."""


def not_yet(late: bool) -> tuple[type[Exception], ...]:
    """Return the exceptions that mean "not there yet" to a waiting test: none if it is `late`."""
    return () if late else (LookupError, FileNotFoundError)


_REQUEST = re.compile(rb"REQ[ \t]+([+-]?[0-9]+)(?:[ \t]+(.*))?", re.DOTALL)
_MESSAGE = re.compile(rb"(REQ|ACK|NAK)[ \t]+[+-]?[0-9]+(?:[ \t].*|\r?)", re.DOTALL)


# Processes with consecutive IDs start at distant ports.
_ports = itertools.count(os.getpid() * 7919)


def free_port() -> int:
    """Return a free port that neither the kernel nor, most probably, another test uses meanwhile.

    It is below the range from which the kernel assigns ports to clients, and to servers that ask for any port.
    """
    for number in _ports:
        port = 10_000 + number % 22_000
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port
    raise AssertionError("no port is free")


def reply_to(line: bytes) -> bytes:
    """Return the reply, with its newline, to `line`, without one."""
    request = _REQUEST.fullmatch(line.removesuffix(b"\r"))
    if request is None:
        return b"NAK 0 ERRDECODE\n"
    seq, data = request[1], request[2] or b""
    return b"%s %s %s\n" % (b"NAK" if b" " in data else b"ACK", seq, data)


def replies_to(stream: bytes) -> bytes:
    """Return all replies to a complete stream, including its last line without a newline."""
    *lines, rest = stream.split(b"\n")
    return b"".join(map(reply_to, [*lines, rest] if rest else lines))


def counted(from_clients: Iterable[bytes], from_upstream: Iterable[bytes]) -> dict[str, int]:
    """Count complete streams with a plain regular expression; the keys are those of the report."""
    clients, upstream = _types(from_clients), _types(from_upstream)
    both = clients + upstream
    return {
        "msg_total": len(both) - both.count(b""),
        "msg_req": both.count(b"REQ"),
        "msg_ack": both.count(b"ACK"),
        "msg_nak": both.count(b"NAK"),
        "msg_invalid": both.count(b""),
        "msg_misdirected": clients.count(b"ACK") + clients.count(b"NAK") + upstream.count(b"REQ"),
        "bytes_from_clients": sum(map(len, from_clients)),
        "bytes_from_upstream": sum(map(len, from_upstream)),
    }


def _types(streams: Iterable[bytes]) -> list[bytes]:
    """Return the type of each complete line; empty for an invalid one."""
    lines = [line for stream in streams for line in stream.split(b"\n")[:-1]]
    return [match[1] if (match := _MESSAGE.fullmatch(line)) else b"" for line in lines]


def connect(port: int) -> socket.socket:
    """Connect with TCP_NODELAY and a timeout of `PATIENCE`."""
    peer = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return peer


def connect_unix(path: str | Path) -> socket.socket:
    """Connect to a unix socket as soon as a process listens on it.

    The file of the socket exists before its owner listens.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        peer = socket.socket(socket.AF_UNIX)
        try:
            peer.settimeout(PATIENCE)
            peer.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            peer.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return peer


def read_to_end(peer: socket.socket) -> bytes:
    """Read until the other side closes."""
    received = bytearray()
    while chunk := peer.recv(1 << 20):
        received += chunk
    return bytes(received)


def read_lines(peer: socket.socket, count: int) -> bytes:
    """Read until `count` lines have arrived."""
    received, missing = bytearray(), count
    while missing > 0:
        chunk = peer.recv(1 << 16)
        assert chunk, f"closed after {bytes(received)!r}"
        received += chunk
        missing -= chunk.count(b"\n")
    return bytes(received)


def read_exactly(peer: socket.socket, size: int) -> bytes:
    """Read `size` bytes."""
    received = bytearray()
    while len(received) < size:
        chunk = peer.recv(size - len(received))
        assert chunk, f"closed after {len(received)} bytes"
        received += chunk
    return bytes(received)


def exchange(port: int, *pieces: bytes) -> bytes:
    """Send the pieces and a FIN; return everything received until the other side closes."""
    with connect(port) as peer:
        for piece in pieces:
            peer.sendall(piece)
        peer.shutdown(socket.SHUT_WR)
        return read_to_end(peer)


def reset(peer: socket.socket) -> None:
    """Close with a reset."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a TCP connection, of which the second does not block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    near.setblocking(False)
    return far, near


class FooSession:
    """A connection to the server: records what it `received` and `sent`, and answers unless the server is holding."""

    def __init__(self, server: FooServer, peer: socket.socket) -> None:
        self.received = bytearray()
        self.sent = bytearray()
        self.peer = peer
        self._server = server
        self._owed = bytearray()
        self._sending = threading.Lock()
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def reply(self) -> None:
        """Send the replies that are due."""
        with self._sending:
            owed, self._owed = bytes(self._owed), bytearray()
            self.sent += owed
            if self._server.bytewise:
                for index in range(len(owed)):
                    self.peer.sendall(owed[index : index + 1])
            else:
                self.peer.sendall(owed)

    def _serve(self) -> None:
        # The client may disconnect, or the test may end, at any time.
        try:
            self._read_and_reply()
        except OSError:
            return

    def _read_and_reply(self) -> None:
        unanswered = bytearray()
        while self._server.reading.wait() and (chunk := self.peer.recv(1 << 20)):
            # Do not search a long line again from its start for each chunk.
            begin = max(0, len(unanswered) - len(self._server.resets_at))
            unanswered += chunk
            if unanswered.find(self._server.resets_at, begin) >= 0:
                self.received += chunk
                reset(self.peer)
                return
            end = 1 + unanswered.rfind(b"\n") if b"\n" in chunk else 0
            self._owe(chunk, replies_to(bytes(unanswered[:end])))
            del unanswered[:end]
        self._owe(b"", replies_to(bytes(unanswered)))

    def _owe(self, received: bytes, replies: bytes) -> None:
        """Queue the replies before `received` shows the requests, so that a test that sees those can release them."""
        with self._sending:
            self._owed += replies
        self.received += received
        if not self._server.holding:
            self.reply()


class FooServer:
    """A server that listens for the duration of its context.

    With `holding`, replies are held until `release`; with `bytewise`, each byte is sent separately.  A session that
    receives `resets_at` is reset.  No session reads while `reading` is cleared.  Sessions stay open until `forget` or
    the end of the context.
    """

    resets_at = b"please reset"

    def __init__(self, listener: socket.socket | None = None, *, holding: bool = False, bytewise: bool = False) -> None:
        # No other process gets this port once the server is closed.
        self._listener = listener or socket.create_server(("127.0.0.1", free_port()), backlog=1024)
        self._listener.listen(1024)
        self.port: int = self._listener.getsockname()[1]
        self.holding = holding
        self.bytewise = bytewise
        self.reading = threading.Event()
        self.reading.set()
        self.sessions: list[FooSession] = []
        self._beginning = threading.Lock()
        """Held while there is a session whose thread does not run yet."""
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> FooServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()
        self.forget()

    def close(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        self._listener.close()

    @property
    def received(self) -> list[bytes]:
        """The bytes received, by session."""
        return [bytes(session.received) for session in self.sessions]

    @property
    def sent(self) -> list[bytes]:
        """The bytes sent, by session."""
        return [bytes(session.sent) for session in self.sessions]

    def release(self) -> None:
        """Send all held replies, and stop holding; those whose session the proxy has ended are lost."""
        self.holding = False
        for session in self.sessions:
            with contextlib.suppress(OSError):
                session.reply()

    def forget(self) -> None:
        """Close all sessions."""
        self.reading.set()
        with self._beginning:
            sessions, self.sessions = self.sessions, []
        for session in sessions:
            with contextlib.suppress(OSError):
                session.peer.shutdown(socket.SHUT_RDWR)
            session.thread.join(PATIENCE)
            session.peer.close()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            session = FooSession(self, peer)
            # Add it to the list before it does anything that a test could wait for.
            with self._beginning:
                self.sessions.append(session)
                session.thread.start()
