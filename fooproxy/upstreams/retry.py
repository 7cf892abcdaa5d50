"""Trying a server that has failed again: one attempt at a time, after pauses that double and are randomized.

If somebody waits, the attempt is made for who has waited longest; else it only shows whether the server is back.
`fooproxy.upstreams.servers` has one for each server.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any
from typing import Protocol as Interface

from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory, Protocol, connectionDone

from fooproxy.net.deadlines import Deadlines
from fooproxy.upstreams.probe import cause

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IDelayedCall, IReactorTime
    from twisted.python.failure import Failure

    from fooproxy.upstreams.queue import Queue, Request
    from fooproxy.upstreams.server import Server

    class Owner(Interface):
        """The set of servers."""

        waiting: Queue

        def serve_first(self, server: Server, factory: First, protocol: Any) -> None:
            """Hand on a connection that was made for the queue."""

        def try_again(self, server: Server) -> None:
            """Try a server that has failed after a pause, if anybody might care."""


FIRST_PAUSE = 0.05
"""Seconds before the first retry, at most; each further pause is twice as long."""

LONGEST_PAUSE = 1.0
"""Seconds between two retries, at most, while somebody waits for them."""

LONGEST_REST = 10.0
"""Seconds between two retries, at most, while nobody does."""

NEXT = 1.0
"""Seconds without an answer after which the next server is tried, if there is one."""


class Retry:
    """Tries a failing server again: for the queue of `owner`, or for nobody."""

    def __init__(self, owner: Owner, server: Server, clock: IReactorTime, patience: float) -> None:
        self._owner = owner
        self._server = server
        self._clock = clock
        self._patience = patience
        self._deadlines: Deadlines[Any] = Deadlines(clock)
        self._attempt: Deferred[Any] | None = None
        self._timer: IDelayedCall | None = None
        self._probes = 0
        """Attempts in progress that are for nobody."""
        self._pause = FIRST_PAUSE

    def hasten(self) -> None:
        """Try soon, since somebody waits: now, unless there was an attempt lately."""
        if self._attempt is not None or (self._probes and not self._server.can_grow):
            return
        if self._timer is None:
            self._go()
        elif self._timer.getTime() - self._clock.seconds() > LONGEST_PAUSE:
            self._pause = LONGEST_PAUSE
            self._timer.cancel()
            self._timer = None
            self.later()

    def later(self) -> None:
        """Try after a pause."""
        if self._timer is None and self._attempt is None:
            pause = min(self._pause, LONGEST_REST)
            if self._server.ejected:
                pause = max(pause, self._server.rest)
            if self._owner.waiting:
                pause = min(pause, LONGEST_PAUSE)
            # Randomized, so that several proxies do not retry in step.
            self._timer = self._clock.callLater(pause * random.uniform(0.5, 1.0), self._go)

    def stop(self, again: bool = False) -> None:
        """Cease to try; if it goes on some day, go on with the same pauses if `again`, else with short ones."""
        if not again:
            self._pause = FIRST_PAUSE
        if self._attempt is not None:
            self._attempt.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _go(self) -> None:
        self._timer = None
        # What is full or held has no connection for who waits, and one for nobody is closed at once.
        if not (self._owner.waiting and self._server.can_grow and self._server.held is None):
            if self._server.is_stuck:
                # What waits there is answered if it is back.
                self.later()
                return
            self._probes += 1
            probing = Deferred.fromCoroutine(self._server.probe(min(self._patience, NEXT), is_trial=True))
            probing.addBoth(self._probed)
            return
        first = First(self._owner.waiting, self._server)
        self._attempt = attempt = self._server.connect(first, fresh=True)
        self._deadlines.set(attempt, self._patience, attempt.cancel)
        attempt.addCallbacks(self._let_in, self._not_let_in, callbackArgs=(attempt, first), errbackArgs=(attempt,))

    def _probed(self, _: object) -> None:
        self._probes -= 1
        if self._server.failing:
            self._pause = min(2 * self._pause, LONGEST_REST)

    def _let_in(self, protocol: Any, attempt: Deferred[Any], first: First) -> None:
        self._attempt = None
        self._deadlines.clear(attempt)
        self._owner.serve_first(self._server, first, protocol)

    def _not_let_in(self, failure: Failure, attempt: Deferred[Any]) -> None:
        self._attempt = None
        if attempt not in self._deadlines:
            self._server.failed(cause(failure.value, self._patience))
        elif failure.check(CancelledError, error.ConnectingCancelledError) is None:
            self._server.failed(failure.value)
        self._deadlines.clear(attempt)
        if self._owner.waiting or self._server.failing:
            self._owner.try_again(self._server)
            self._pause = min(2 * self._pause, LONGEST_REST)


class First(Factory):
    """Takes the oldest request from the queue `waiting` once the connection is made, and builds its protocol."""

    noisy = False

    def __init__(self, waiting: Queue, server: Server) -> None:
        self._waiting = waiting
        self._server = server
        self.request: Request | None = None
        """The request that was served; `None` if the queue was empty."""

    def buildProtocol(self, addr: Any) -> Any:
        """Build the protocol of the oldest request, or one that does nothing if there is none or it must wait."""
        if not self._waiting or self._server.held is not None:
            return _Nobody()
        self.request = request = next(iter(self._waiting))
        self._waiting.remove(request)
        if request.client is not None:
            request.client.served_by(self._server)
        return request.factory.buildProtocol(addr)


class _Nobody(Protocol):
    """Does nothing with a connection that nobody waits for any more."""

    when_lost: Callable[[], object] = staticmethod(lambda: None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell whoever counts connections."""
        self.when_lost()
