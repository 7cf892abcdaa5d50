"""A turnstile: bounds the time that one turn of the event loop spends accepting connections.

Twisted's ports raise the number of connections that they accept in a turn for as long as more are waiting, without a
limit in time, so that thousands of clients that come at once would hold up all open sessions.  A client that is not
accepted in a turn waits in the kernel's backlog for the next one.

This module does not know what the connections are for.  The service puts a turnstile before each of its listeners, and
``foo-server`` before its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fooproxy.net.accepting import StandIn, nobody
from fooproxy.net.turns import SHARE

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime


class Turnstile(StandIn):
    """Limits what a turn accepts.

    Each turn accepts at least one connection, and none once `SHARE` seconds have passed since the first.  The time
    includes what the port does for each connection: its transport, its protocol, and whatever that starts.

    After a turn that was cut short, the port is not read for `rest` seconds, so that a flood does not keep the process
    busy all the time, which would make the operating system prefer other processes.
    """

    def __init__(self, port: Any, clock: IReactorTime, rest: float = 0.0) -> None:
        super().__init__(port, clock)
        self._read = port.doRead
        self._rest = rest
        self._end: float | None = None
        """The time at which this turn stops accepting; `None` before its first connection."""
        port.doRead = self._take_turn

    def _take_turn(self) -> Any:
        self._end = None
        return self._read()

    def accept(self) -> tuple[Any, Any]:
        """Accept the next connection.

        :raises BlockingIOError: none is waiting, or the time for this turn is up.
        """
        now = self.clock.seconds()
        if self._end is None:
            self._end = now + SHARE
        elif now >= self._end:
            if self._rest:
                self.port.pauseProducing()
                # A port that is closed or closing ignores this.
                self.after(self._rest, self.port.resumeProducing)
            raise nobody("the rest must wait for the next turn")
        accepted: tuple[Any, Any] = self.socket.accept()
        return accepted
