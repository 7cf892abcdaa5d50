"""A listening unix socket that belongs to one process at a time, even if an earlier one has left files behind.

Twisted's own lock holds a process ID, which may belong to another process after a crash, as it always does in a
container.  Twisted also sets the mode of the socket file by its path after creating it; by then, the path may lead
elsewhere.

`fooproxy.net.endpoints` listens with this.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet import tcp, unix
from twisted.internet.error import CannotListenError

from fooproxy.locking import Held, Lock
from fooproxy.net.private import reserve_descriptor

if TYPE_CHECKING:
    from twisted.internet.interfaces import IProtocolFactory
    from twisted.python.failure import Failure


class Port(unix.Port):
    """The listening socket, with a lock on the file beside it whose name ends in ``.lock``."""

    def __init__(
        self, path: str, factory: IProtocolFactory, backlog: int, mode: int, reactor: Any, is_locked: bool
    ) -> None:
        super().__init__(os.fsencode(path), factory, backlog, mode, reactor)
        self._place = Path(path)
        self._lock = Lock(Path(f"{path}.lock")) if is_locked else None
        self._made: os.stat_result | None = None

    def startListening(self) -> None:
        """Take the lock, replace a socket that no process listens on, and listen."""
        if self._lock is not None:
            self._take(self._lock)
        try:
            skt = self._bound()
        except OSError as error:
            if self._lock is not None:
                self._lock.remove()
            raise self._refusal(error) from error
        reserve_descriptor()
        factory: Any = self.factory
        factory.doStart()
        self.connected = True
        self.socket = skt
        self.fileno = skt.fileno  # type: ignore[method-assign]
        self.numberAccepts = 100
        self.startReading()

    def connectionLost(self, reason: Failure) -> None:
        """Remove the socket and its lock."""
        # If this user may not remove the files, the next process takes them over.
        with suppress(OSError):
            if self._made is not None and os.path.samestat(self._made, self._place.lstat()):
                self._place.unlink()
        tcp.Port.connectionLost(self, reason)
        if self._lock is not None:
            self._lock.remove()

    def _take(self, lock: Lock) -> None:
        try:
            try:
                lock.take()
            except OSError as error:
                # A link is a lock of Twisted's, which is stale if no process listens.
                if error.errno != errno.ELOOP or self._is_alive():
                    raise
                lock.path.unlink()
                lock.take()
        except Held as holder:
            raise self._refusal(f"it is in use by {holder}") from None
        except OSError as error:
            raise self._refusal(error) from error

    def _is_alive(self) -> bool:
        """Whether a process listens on the socket, or may do so."""
        with socket.socket(socket.AF_UNIX) as asking:
            asking.setblocking(False)
            return asking.connect_ex(bytes(self._place)) not in (errno.ECONNREFUSED, errno.ENOENT)

    def _bound(self) -> socket.socket:
        if self._lock is not None and self._is_socket() and not self._is_alive():
            self._place.unlink()
        skt: socket.socket = self.createInternetSocket()
        try:
            # The file has its mode from the start.
            before = os.umask(0o777 & ~self.mode)
            try:
                skt.bind(bytes(self._place))
            finally:
                os.umask(before)
            self._made = self._place.lstat()
            skt.listen(self.backlog)
        except OSError:
            skt.close()
            raise
        return skt

    def _is_socket(self) -> bool:
        try:
            return stat.S_ISSOCK(self._place.lstat().st_mode)
        except FileNotFoundError:
            return False

    def _refusal(self, why: Any) -> CannotListenError:
        if getattr(why, "errno", None) == errno.ELOOP:
            # The lock of a program that listens with Twisted.
            why = OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        return CannotListenError(None, bytes(self._place), why)
