"""Asks a transport's socket what waits for its peer, and how far that has read, whatever layers are above it.

It changes nothing.  Legs, sessions and the sweep that looks for peers that do not read use it.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import termios
from typing import Any

from twisted.internet.abstract import FileDescriptor

from fooproxy.net.private import unsent, unsent_cleartext

_BYTES_ACKED = struct.Struct("=120xQ")
"""Where ``tcpi_bytes_acked`` is in Linux's ``struct tcp_info``."""


def is_writing(transport: Any) -> bool:
    """Tell whether bytes wait at `transport` to be sent, or whether it is to close and waits for the peer to let it."""
    if isinstance(transport, FileDescriptor):
        return bool(unsent(transport) or transport.disconnecting)
    if transport is None:
        return False
    # TLS has bytes of its own as long as its handshake has not been done.
    return bool(transport.disconnecting or unsent_cleartext(transport)) or is_writing(_inner(transport))


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
        return -unsent(bottom) - unacknowledged(bottom)
    return int(count)


def bottom_of(transport: Any) -> Any:
    """Give the transport that has the socket, below wrappers as TLS's is, or `None`."""
    while transport is not None and not isinstance(transport, FileDescriptor):
        transport = _inner(transport)
    return transport


def _inner(transport: Any) -> Any:
    """Give what a transport that is a wrapper stands on."""
    return getattr(transport, "transport", None)
