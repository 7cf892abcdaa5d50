"""A link: one connection to a server that outlives the session it is lent to.

A link is the interceptor of its connection.  While it is lent to a session, its tap and its leg are the session's;
while it is idle, anything that its server sends ends it.  `fooproxy.upstreams.pool` keeps the links of a server, and
decides for how long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from fooproxy.net.sockets import bottom_of, is_quiet
from fooproxy.relay.interceptor import InterceptorFactory, WatchedInterceptor

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from twisted.internet.interfaces import ITransport

    class Keeper(Protocol):
        """The pool that keeps the links of a server."""

        def made(self, link: Link) -> None:
            """Register a new link, which a session uses already."""

        def linger(self, link: Link, let_go: Callable[[], bool]) -> bool:
            """Leave a settled link with its session for a moment; false if the session must give it back at once."""

        def drains(self, link: Link) -> None:
            """Record that the session of `link` has ended while replies to it are outstanding."""

        def give_back(self, link: Link) -> None:
            """Keep a clean link for the next session."""

        def discard(self, link: Link, why: str) -> None:
            """Close an idle link."""

        def let_go_of(self, link: Link) -> None:
            """Abort a link unless its connection ends soon."""

        def lost(self, link: Link, why: str) -> None:
            """Forget a link that has ended."""


class Link(WatchedInterceptor):
    """One connection to a server: an interceptor whose tap and leg belong to the session it is lent to."""

    __slots__ = ("_has_fin", "_why", "expires", "idle_since", "is_used", "links", "seen")

    links: Keeper
    expires: float
    idle_since: float
    seen: int
    """The value of `Links.ticks` when the link last began to linger."""

    def makeConnection(self, transport: ITransport) -> None:
        """Connect the leg of the first session."""
        self._why = ""
        self._has_fin = self.is_used = False
        self.links.made(self)
        self.wrapped.link = self
        super().makeConnection(transport)

    def lend(self, factory: Any) -> None:
        """Connect the leg that `factory`, a `LinkFactory`, builds."""
        leg = factory.wrapped.buildProtocol(None)
        leg.link = self
        self.tap, self.wrapped = factory.tap(leg), leg
        leg.makeConnection(self.transport)

    def take_back(self) -> None:
        """Become idle: the session no longer needs the link, and has left it clean."""
        self.links.give_back(self)

    def linger(self, let_go: Callable[[], bool]) -> bool:
        """Stay with the session for a moment, or until another one needs the link; false if that is impossible.

        `let_go` gives the link back if it is still clean, and returns whether it was.  The session calls this again
        whenever it has become settled again.
        """
        return self.is_used and self.links.linger(self, let_go)

    def drain(self) -> None:
        """Record that the session has ended while replies to it are outstanding."""
        self.links.drains(self)

    def rest(self) -> None:
        """Wait for the next session; anything that arrives meanwhile ends the link."""
        self.is_used = True
        self.tap, self.wrapped = _NOBODY, _Idle(self)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has arrived; over TLS, only whether the connection is still open."""
        return is_quiet(self.transport)

    def abort(self) -> None:
        """Close with a reset."""
        self.transport.abortConnection()

    def drop(self) -> None:
        """Close the link, since the server has closed it."""
        self.rest()
        self.close("closed")

    def close(self, why: str, at_once: bool = False) -> None:
        """Close an idle link and count `why`; `at_once` must not be set in a call from the link's own connection."""
        self._why = self._why or why
        bottom = bottom_of(self.transport)
        if bottom is not self.transport:
            self.transport.loseConnection()
            # Over TLS, `loseConnection` waits for the peer's close_notify.
            if at_once:
                bottom.connectionLost(Failure(ConnectionDone()))
            else:
                self.links.let_go_of(self)
        elif at_once:
            self.transport.connectionLost(Failure(ConnectionDone()))
        else:
            self.transport.loseConnection()

    def readConnectionLost(self) -> None:
        """Pass on the FIN of the server."""
        self._has_fin = True
        super().readConnectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Pass on the end of the connection, and report it to the pool, which counts it."""
        is_theirs = self._has_fin or not isinstance(reason.value, (ConnectionAborted, ConnectionDone))
        self.links.lost(self, self._why or ("closed" if is_theirs else "unclean"))
        super().connectionLost(reason)


class _Idle:
    """Takes the place of the leg while the link is idle: anything that happens ends the link."""

    __slots__ = ("_link",)

    def __init__(self, link: Link) -> None:
        self._link = link

    def dataReceived(self, data: bytes) -> None:
        """Close the link, since its server has sent something unsolicited."""
        self._link.links.discard(self._link, "unsolicited")

    def readConnectionLost(self) -> None:
        """Close the link, since its server has closed it."""
        self._link.links.discard(self._link, "closed")

    def writeConnectionLost(self) -> None:
        """Do nothing: our FIN is sent by a close."""

    def connectionLost(self, reason: Failure) -> None:
        """Do nothing: the link has reported its end already."""


class _Nobody:
    """A tap that counts nothing."""

    waiting: list[Any]
    outlet = room = -1

    def __init__(self) -> None:
        self.waiting = []

    def feed(self, chunk: bytes, time: int) -> None:
        """Drop a chunk."""


_NOBODY = _Nobody()


class LinkFactory(InterceptorFactory):
    """Wraps the factory of a session's upstream leg, and makes its connection a link."""

    interceptor = Link
