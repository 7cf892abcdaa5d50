"""The state of a transport's socket: data to send, data taken by the peer, and the end, whatever layers are above it.

Legs, sessions, and the sweep that finds peers that do not read use these functions; the web side aborts connections.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import sys
import termios
from contextlib import suppress
from functools import lru_cache
from typing import Any

from twisted.internet import main
from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ConnectionAborted, TimeoutError
from twisted.python.failure import Failure

from fooproxy.net.private import unsent, unsent_cleartext

_BYTES_ACKED = struct.Struct("=120xQ")
"""The position of ``tcpi_bytes_acked`` in Linux's ``struct tcp_info``."""

_CLOSE_WAIT = 8
"""The state (first byte of ``struct tcp_info``) of a connection whose peer has sent its FIN."""

_LONGEST_TIMEOUT = (1 << 31) - 1
"""Milliseconds; the longest TCP_USER_TIMEOUT."""

_LINGER_NOT = struct.pack("ii", 1, 0)
"""The value of SO_LINGER that makes a close send a reset."""

TIMED_OUT = TimeoutError()
"""The `loss` of a connection whose peer acknowledged no data for the time that `set_options` set."""


def is_writing(transport: Any) -> bool:
    """Return whether `transport` has bytes to send, or waits to close."""
    if isinstance(transport, FileDescriptor):
        return bool(unsent(transport) or transport.disconnecting)
    if transport is None:
        return False
    # TLS keeps bytes of its own until its handshake is done.
    return bool(transport.disconnecting or unsent_cleartext(transport)) or is_writing(_inner(transport))


def is_delivered(transport: Any) -> bool:
    """Return whether the peer's kernel has acknowledged all data written to `transport`, as far as our kernel knows."""
    while transport is not None and not isinstance(transport, FileDescriptor):
        if unsent_cleartext(transport):
            return False
        transport = _inner(transport)
    return transport is None or not (unsent(transport) or unacknowledged(transport))


def unacknowledged(transport: Any) -> int:
    """Return how many bytes the kernel holds for the peer of `transport`; 0 if that is unknown.

    For a unix socket, it is the memory that unread data takes.
    """
    bottom = bottom_of(transport)
    return 0 if bottom is None else _held(bottom.fileno())


def _held(fd: int) -> int:
    try:
        held = fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):
        return 0
    return int.from_bytes(held, sys.byteorder)


def acknowledged(transport: Any) -> int:
    """Return a number that grows when the peer of `transport` takes data, and stays the same while it does not.

    For TCP, it is the number of bytes that the peer's kernel has acknowledged.  For a unix socket, it is minus the
    number of unread bytes, which works as long as nothing is written.
    """
    bottom = bottom_of(transport)
    if bottom is None:
        return 0
    try:
        (count,) = _BYTES_ACKED.unpack(bottom.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size))
    except (OSError, struct.error):
        return -unsent(bottom) - unacknowledged(bottom)
    return int(count)


def has_fin(skt: socket.SocketType) -> bool:
    """Return whether the peer's FIN has arrived, even behind unread data; false if that is unknown."""
    try:
        return skt.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _CLOSE_WAIT
    except (AttributeError, OSError):
        return False


def is_quiet(transport: Any) -> bool:
    """Return whether a plain connection has nothing to read: no byte, no FIN, no reset.

    TLS has messages of its own, so a connection over TLS counts as quiet until it has ended.
    """
    bottom = bottom_of(transport)
    if bottom is None:
        return True
    if bottom.disconnected or bottom.disconnecting:
        return False
    if bottom is not transport:
        return True
    try:
        bottom.socket.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def abort_now(transport: Any) -> None:
    """Reset the connection and release its file descriptor before this returns; Twisted does so in a later turn.

    The protocol's `connectionLost` is called from within, so its `dataReceived` must not be the caller.
    """
    bottom = bottom_of(transport)
    if bottom is None:
        transport.abortConnection()
    else:
        bottom.connectionLost(Failure(ConnectionAborted()))


def reset_on_close(skt: socket.SocketType) -> None:
    """Make the close of a socket send a reset and drop undelivered data."""
    with suppress(OSError):
        skt.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)


def set_options(transport: Any, within: float) -> None:
    """Make a connection send small messages at once, and detect a peer that has vanished or acknowledges nothing.

    The kernel ends the connection if the peer does not answer keepalive probes or, where there is TCP_USER_TIMEOUT,
    acknowledges none of the data held for it within `within` seconds.  For a unix socket, this does nothing.

    On Linux, accepted connections inherit these options, so `transport` may also be a port of ours.
    """
    bottom = bottom_of(transport)
    if bottom is None or getattr(bottom, "options_set_for", None) == within:
        return
    bottom.options_set_for = within
    try:
        for option in _options(within):
            bottom.socket.setsockopt(*option)
    except OSError:
        # A unix socket, or one whose connection is over.
        pass


@lru_cache(maxsize=1)
def _options(within: float) -> tuple[tuple[int, int, int], ...]:
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = min(max(round(within * 1000), 1), _LONGEST_TIMEOUT)
        options.append((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds))
    return tuple(options)


def loss(problem: OSError, fd: int) -> Exception:
    """Return why a connection was lost, from its socket's error: `TimeoutError` if the peer acknowledged no data.

    If keepalive probes were not answered while no data waited for the peer, the reason is another one.
    """
    if problem.errno == errno.ETIMEDOUT and _held(fd):
        return TIMED_OUT
    return main.CONNECTION_LOST


def meets_itself(skt: Any) -> bool:
    """Return whether a TCP socket is connected to itself: its local port may be the closed target port."""
    try:
        here = skt.getsockname()
        # The names of unix sockets are text, and may both be empty.
        return isinstance(here, tuple) and here == skt.getpeername()
    except (AttributeError, OSError):
        return False


_PEER = struct.Struct("3i")
"""Linux's ``struct ucred``: the ids of a process, its user and its group."""


def peer_process(skt: Any) -> tuple[int, int]:
    """Return the process ID and the user ID at the other end of a unix socket; 0 and -1 if they are unknown."""
    if not hasattr(socket, "SO_PEERCRED"):
        return 0, -1
    pid, user, _ = _PEER.unpack(skt.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return pid, user


def bottom_of(transport: Any) -> Any:
    """Return the transport that has the socket, below wrappers such as TLS, or `None`."""
    while transport is not None and not isinstance(transport, FileDescriptor):
        transport = _inner(transport)
    return transport


def _inner(transport: Any) -> Any:
    """Return the transport below a wrapper, or `None`."""
    return getattr(transport, "transport", None)
