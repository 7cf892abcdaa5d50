"""The bridge: the server factory that creates a session for each client and keeps track of the open ones.

It also drains or aborts all of them when the proxy stops.  It knows nothing about messages, counting or how a session
works inside.  `fooproxy.parts` creates it and passes in how to connect to the upstream and how to observe a session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic

from twisted.internet.defer import Deferred
from twisted.internet.protocol import ServerFactory
from twisted.logger import Logger

from fooproxy.net.deadlines import Deadlines
from fooproxy.net.turns import in_turns
from fooproxy.relay.session import Seen, Session
from fooproxy.relay.timeouts import Timeouts

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IAddress, IReactorTime
    from twisted.python.failure import Failure

    from fooproxy.relay.leg import Leg
    from fooproxy.relay.opening import UpstreamFactory

_DEFAULTS = Timeouts()


class BridgeFactory(ServerFactory, Generic[Seen]):
    """Creates a session for each client that connects, and keeps the open sessions in `sessions`.

    `connect` connects an `UpstreamFactory` to the upstream.  It returns a Deferred that fails when no connection could
    be made, and that can be cancelled.  `observe` returns the `Observer` of a new session; `session` is the class of
    sessions.
    """

    noisy = False
    log = Logger()

    def __init__(
        self,
        connect: Callable[[UpstreamFactory], Deferred[Any]],
        observe: Callable[[], Seen],
        clock: IReactorTime,
        timeouts: Timeouts = _DEFAULTS,
        session: type[Session[Seen]] = Session,
    ) -> None:
        self.connect = connect
        self.observe = observe
        self.timeouts = timeouts
        self._session = session
        self.deadlines: Deadlines[Any] = Deadlines(clock)
        self.sessions: set[Session[Seen]] = set()
        self._dismissed: Deadlines[Session[Seen]] = Deadlines(clock)
        self._clock = clock
        self._drained: list[Deferred[None]] = []
        self._is_aborting = False

    def buildProtocol(self, addr: IAddress | None) -> Leg:  # type: ignore[override]
        """Build the client leg of a new session."""
        return self._session(self, self.observe()).client

    def drain(self) -> Deferred[None]:
        """Close each session as soon as it is settled; the Deferred fires when no session is left."""
        done: Deferred[None] = Deferred()
        self._drained.append(done)
        self._with_each(lambda session: None if self._is_aborting else session.drain())
        return done

    def dismiss(self, session: Session[Seen], reason: str, patience: float) -> None:
        """Close a session for `reason` as soon as it is settled; abort it after `patience` seconds."""
        session.because(reason)
        session.drain()
        if session in self.sessions:
            self._dismissed.set(session, patience, lambda: session.abort() if session in self.sessions else None)

    def abort(self) -> None:
        """Abort all sessions, within a few turns of the event loop."""
        self._is_aborting = True
        self._with_each(lambda session: session.abort())

    def _with_each(self, do: Callable[[Session[Seen]], None]) -> None:
        """Call `do` for each session that is still open at its turn."""
        Deferred.fromCoroutine(self._go_through(do)).addErrback(self._failed)

    async def _go_through(self, do: Callable[[Session[Seen]], None]) -> None:
        async for session in in_turns(self._clock, list(self.sessions)):
            if session in self.sessions:
                do(session)
        self.session_ended()

    def _failed(self, failure: Failure) -> None:
        self.log.failure("could not end all sessions; this is a bug in fooproxy", failure)

    def session_ended(self) -> None:
        """Fire what `drain` returned if no session is left; a session calls this after it ended."""
        if not self.sessions:
            waiting, self._drained = self._drained, []
            for done in waiting:
                done.callback(None)
