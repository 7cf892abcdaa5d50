"""Stand-ins for a listening port's socket, which decide when the port accepts connections.

Twisted's ports accept whatever comes: many connections in a turn, and without file descriptors they close every new
client at once.  A class here takes the place of the socket, so it works for all kinds of ports, and several of
them can be stacked.  Clients that are not accepted yet wait in the kernel's backlog.

This module does not know what the connections are for.  `fooproxy.net.turnstile` limits what a turn accepts, and the
relay's gate limits the number of sessions; ``foo-server`` reports when it runs out of descriptors.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall, IReactorTime

RETRY = 1.0
"""Seconds between attempts to accept again after file descriptors ran out; a failed one costs microseconds."""

CALM = 5.0
"""Seconds without a pause after which accepting counts as working again."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class StandIn:
    """Takes the place of the socket of `port`, one of Twisted's listening ports or ours, and passes everything else on.

    It may have one timer, which is cancelled when the socket is closed.
    """

    def __init__(self, port: Any, clock: IReactorTime) -> None:
        self.port = port
        self.socket = port.socket
        self.clock = clock
        self._timer: IDelayedCall | None = None
        port.socket = self

    def __getattr__(self, name: str) -> Any:
        """Pass everything else on to the socket."""
        return getattr(self.socket, name)

    def close(self) -> None:
        """Close the socket and cancel the timer; the port calls this when it stops listening."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.socket.close()

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Call `do` in `seconds`, unless the timer is set already."""
        if self._timer is None:
            self._timer = self.clock.callLater(seconds, self._call, do)

    def _call(self, do: Callable[[], None]) -> None:
        self._timer = None
        do()


class Acceptor(StandIn):
    """Pauses a port while it cannot accept, and resumes it when it may be able to.

    An episode begins with the first pause, and ends when there has been none for `CALM` seconds.
    """

    def __init__(self, port: Any, clock: IReactorTime) -> None:
        super().__init__(port, clock)
        self._paused = False
        self._changed = 0.0
        """When accepting was last paused or resumed."""
        self._told: set[str] = set()
        """The causes of pauses in this episode."""

    def accept(self) -> tuple[Any, Any]:
        """Accept the next client.

        :raises BlockingIOError: no client is waiting, or there is no file descriptor for it.
        """
        try:
            accepted: tuple[Any, Any] = self.socket.accept()
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            self.pause("descriptors", str(error.strerror))
            raise nobody() from None
        return accepted

    @property
    def is_open(self) -> bool:
        """Whether new clients are accepted without waiting."""
        return not self._paused

    @property
    def has_room(self) -> bool:
        """Whether accepting may be tried again."""
        return True

    def paused(self, cause: str, why: str, is_news: bool) -> None:
        """Handle a pause; `is_news` is true for the first one of its cause in this episode."""

    def recovered(self) -> None:
        """Handle the end of an episode."""

    def pause(self, cause: str, why: str) -> None:
        """Leave clients in the backlog until accepting is tried again; `cause` is a word, `why` the reason as text."""
        # First, since the reactor would otherwise call again at once, for ever, if anything below failed.
        self.port.pauseProducing()
        self._paused = True
        self._changed = self.clock.seconds()
        is_news = cause not in self._told
        self._told.add(cause)
        self.after(RETRY, self._look_again)
        self.paused(cause, why, is_news)

    def resume(self) -> None:
        """Accept again, if there is room."""
        if self._paused and self.has_room:
            self._paused = False
            self._changed = self.clock.seconds()
            # A port that is closed or closing ignores this.
            self.port.resumeProducing()

    def _look_again(self) -> None:
        self.resume()
        if self._paused or self.clock.seconds() - self._changed < CALM:
            self.after(RETRY, self._look_again)
        else:
            self._told.clear()
            self.recovered()


def nobody(why: str = "no client to accept") -> OSError:
    """Return the error that a non-blocking socket raises when no client is waiting."""
    return BlockingIOError(errno.EAGAIN, why)
