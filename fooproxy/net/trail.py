"""A trail: recognizes a client whose connection this process itself made, because the proxy forwards to itself.

Each session of such a proxy makes a connection that becomes its next client, so a single client would fill the table of
sessions.  The spelling of an address does not show this: names, wildcards and all addresses of a machine may lead back.
The pair of both ends' addresses does, since it belongs to one connection only; one end alone does not, since the kernel
gives the same local port to connections to different servers.

Only connections to a port or path on which we listen are noted, so usually there are none.  Each is kept until it is
recognized, or many later ones have been noted; even a closed one is kept, since a connection that closes early is still
accepted.  A connection is noted when it begins, since on the same machine its other end may be accepted before we learn
that it was made.  A connection to a unix socket by Twisted's transports is noted when it is made, since the path is
remembered for all later ones.

This module does not know what the connections are for.  The endpoints note their connections, and the gate looks them
up.  The trail cannot recognize a ring of several proxies, nor connections whose addresses are rewritten on the way.
"""

from __future__ import annotations

import os
import socket
from collections import OrderedDict
from contextlib import suppress
from typing import Any

from fooproxy.net.sockets import peer_process

_MOST = 16_384
"""Connections remembered, several times what fits into the backlog of a listening socket."""


class Trail:
    """The connections that this process made to ports or paths on which it listens itself."""

    def __init__(self) -> None:
        self._doors: set[Any] = set()
        self._files: dict[tuple[int, int], Any] = {}
        """The paths on which we listen, by device and inode: many paths may lead to one file."""
        self._made: OrderedDict[tuple[Any, Any], None] = OrderedDict()
        self._paths: set[Any] = set()

    def listens(self, listener: Any) -> None:
        """Note connections to the listening socket `listener` from now on."""
        name = listener.getsockname()
        self._doors.add(_door(name))
        if file := _file(name):
            self._files[file] = name

    def leads_here(self, address: Any) -> bool:
        """Return whether connections to `address` have to be noted."""
        return self._ours(address) is not None

    def _ours(self, address: Any) -> Any:
        """Return the port or the path on which we listen and to which connections to `address` lead, or `None`."""
        door = _door(address)
        if door in self._doors:
            return door
        return self._files.get(_file(address)) if self._files else None  # type: ignore[arg-type]

    def note(self, skt: Any, target: Any = None) -> None:
        """Note a socket of ours that is connected, or about to be connected to the address `target`."""
        # The connection may be over already.
        with suppress(OSError):
            reached = _reached(skt) or target
            door = None if reached is None else self._ours(reached)
            if door is None:
                return
            if skt.family == socket.AF_UNIX:
                self._paths.add(door)
                return
            self._made[_end(skt.getsockname()), _end(reached)] = None
            if len(self._made) > _MOST:
                self._made.popitem(last=False)

    def was_made_here(self, client: Any, address: Any) -> bool:
        """Return whether `client`, a socket accepted from `address`, is the other end of a connection of ours."""
        if not (self._made or self._paths):
            return False
        with suppress(OSError):
            if client.family == socket.AF_UNIX:
                return client.getsockname() in self._paths and peer_process(client)[0] == os.getpid()
            pair = _end(address), _end(client.getsockname())
            if pair in self._made:
                # Later, the kernel may give the same port to a client.
                del self._made[pair]
                return True
        return False


def _door(address: Any) -> Any:
    """Return the part of an address that all connections to it share: the port or the path."""
    return address[1] if isinstance(address, tuple) else address


def _file(address: Any) -> tuple[int, int] | None:
    """Return the device and the inode of the path of a unix socket; `None` for any other address."""
    if isinstance(address, tuple) or not address or address[:1] in ("\0", b"\0"):
        return None
    try:
        # Not pathlib: the relay, which uses this, must not deal with files.
        found = os.stat(address)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _end(address: Any) -> tuple[str, int]:
    """Return host and port; a socket for both families shows IPv4 addresses as IPv6 ones."""
    return address[0].removeprefix("::ffff:"), address[1]


def _reached(skt: Any) -> Any:
    """Return the address to which a socket is connected; it may differ from the target, such as 0.0.0.0."""
    try:
        return skt.getpeername()
    except OSError:
        return None
