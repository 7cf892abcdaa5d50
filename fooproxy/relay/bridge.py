"""The bridge's factories: a session for each client that connects, and the upstream leg that belongs to it.

The service composes it.  What a session does is its own business; none of this knows of messages or counting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import ClientFactory, ServerFactory

from fooproxy.net.deadlines import Deadlines
from fooproxy.relay.session import Session
from fooproxy.relay.timeouts import Timeouts

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IAddress, IReactorTime

    from fooproxy.relay.leg import Leg
    from fooproxy.relay.session import Observer

_DEFAULTS = Timeouts()


class BridgeFactory(ServerFactory):
    """Makes a session of each client that connects, and holds those that are open.

    `connect` takes a `ClientFactory` and connects it to the upstream: its Deferred fails when that is given up, and
    can be cancelled.  `observe` gives the `Observer` of a new session.
    """

    noisy = False

    def __init__(
        self,
        connect: Callable[[ClientFactory], Deferred[Any]],
        observe: Callable[[], Observer],
        clock: IReactorTime,
        timeouts: Timeouts = _DEFAULTS,
    ) -> None:
        self.connect = connect
        self.observe = observe
        self.timeouts = timeouts
        self.deadlines: Deadlines[Session] = Deadlines(clock)
        self.sessions: set[Session] = set()
        self._drained: list[Deferred[None]] = []

    def buildProtocol(self, addr: IAddress | None) -> Leg:
        """Build the client leg of a new session."""
        return Session(self, self.observe()).client

    def drain(self) -> Deferred[None]:
        """Close each session as soon as it is settled; fires when none is left."""
        done: Deferred[None] = Deferred()
        self._drained.append(done)
        for session in list(self.sessions):
            session.drain()
        self.session_ended()
        return done

    def abort(self) -> None:
        """End all sessions at once."""
        for session in list(self.sessions):
            session.abort()

    def session_ended(self) -> None:
        """Tell those who wait for the last session, if that was it."""
        if not self.sessions:
            waiting, self._drained = self._drained, []
            for done in waiting:
                done.callback(None)
