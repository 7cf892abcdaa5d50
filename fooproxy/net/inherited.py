"""Listening sockets that another process has opened and passed to this one, as systemd does.

The kind of a passed socket is known only when it is used, and Twisted does not check it: it would take a UDP socket for
a listener, and report each datagram as a failed accept.  `fooproxy.net.endpoints` adopts sockets with this.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.internet.error import CannotListenError

if TYPE_CHECKING:
    from twisted.internet.interfaces import IListeningPort, IProtocolFactory

_FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)

_TYPES = {socket.SOCK_DGRAM: "a datagram socket", socket.SOCK_SEQPACKET: "a socket for packets"}


def adopted(reactor: Any, fd: int, factory: IProtocolFactory) -> IListeningPort:
    """Return a port of the reactor that listens on `fd`, by its real family; closing the port leaves `fd` open.

    :raises CannotListenError: `fd` is not a listening stream socket; the error says what it is.
    """
    try:
        with socket.socket(fileno=os.dup(fd)) as inherited:
            family, found = inherited.family, _found(inherited)
    except OSError as error:
        found = f"no socket ({error.strerror})"
    if found is not None:
        why = (
            f"the file descriptor {fd} that was passed is {found}; expected a listening socket for streams "
            "(ListenStream= and Accept=no in the systemd unit)"
        )
        raise CannotListenError("", fd, why)
    port: IListeningPort = reactor.adoptStreamPort(fd, family, factory)
    return port


def _found(inherited: socket.socket) -> str | None:
    """Return what kind of socket `inherited` is, or `None` if it is a listening stream socket."""
    if inherited.family not in _FAMILIES:
        return f"a socket of the family {inherited.family}"
    if inherited.type != socket.SOCK_STREAM:
        return _TYPES.get(inherited.type, f"a socket of the type {inherited.type}")
    if inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return None
    with suppress(OSError):
        inherited.getpeername()
        return "a connection"
    return "a socket that does not listen"
