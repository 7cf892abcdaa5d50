"""Lets a server survive running out of file descriptors.

By default, when no descriptor is left, Twisted accepts every new client and closes it at once.  `Acceptor` leaves new
clients in the kernel's backlog instead and tries again until descriptors are free.
It knows nothing of the Foo protocol; `server` calls it.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

RETRY = 0.2
"""Seconds until the next attempt to accept; a failed one costs microseconds."""

QUIET = 60.0
"""Seconds without exhaustion after which the next one is reported again."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Wraps the socket of `port`, a listening Twisted port.

    While no descriptor is free for a new client, the reactor does not read the port.  `tell` is called with the error
    once per episode, however many clients wait and however often accepting fails.
    """

    def __init__(self, port: Any, clock: IReactorTime, tell: Callable[[OSError], object]) -> None:
        self._port = port
        self._clock = clock
        self._tell = tell
        self._socket = port.socket
        self._last_exhausted = float("-inf")
        self._retry: IDelayedCall | None = None
        port.socket = self

    def __getattr__(self, name: str) -> Any:
        """Pass everything else on to the socket."""
        return getattr(self._socket, name)

    def accept(self) -> tuple[Any, Any]:
        """Accept the next client.

        :raises BlockingIOError: no client is waiting, or there is no descriptor for it.
        """
        try:
            client: tuple[Any, Any] = self._socket.accept()
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            self._wait(error)
            raise BlockingIOError(errno.EAGAIN, "no file descriptor for a client") from None
        return client

    def close(self) -> None:
        """Close the socket, as the port does when it stops listening."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._socket.close()

    def _wait(self, error: OSError) -> None:
        # Pause first: if anything below failed, the reactor would otherwise call again at once, for ever.
        self._port.pauseProducing()
        if self._retry is None:
            self._retry = self._clock.callLater(RETRY, self._resume)
        now = self._clock.seconds()
        news = now - self._last_exhausted >= QUIET
        self._last_exhausted = now
        if news:
            self._tell(error)

    def _resume(self) -> None:
        self._retry = None
        # Does nothing once the port is closed.
        self._port.resumeProducing()
