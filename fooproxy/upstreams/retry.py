"""Retries of a server that has failed: one attempt at a time, after pauses that double and are randomized.

If clients wait, the attempt is for the one that has waited longest; otherwise it only shows whether the server is back.
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
            """Pass on a connection that was made for the queue."""

        def try_again(self, server: Server) -> None:
            """Retry a failed server after a pause, if clients wait for it or there are other servers."""


FIRST_PAUSE = 0.05
"""Maximum seconds before the first retry; each further pause is twice as long."""

LONGEST_PAUSE = 1.0
"""Maximum seconds between two retries while clients wait."""

LONGEST_REST = 10.0
"""Maximum seconds between two retries while no client waits."""

NEXT = 1.0
"""Seconds without an answer after which the next server is tried, if there is one."""


class Retry:
    """Retries a failing server: for the first client in the queue of `owner`, or as a probe if none waits."""

    def __init__(self, owner: Owner, server: Server, clock: IReactorTime, patience: float) -> None:
        self._owner = owner
        self._server = server
        self._clock = clock
        self._patience = patience
        self._deadlines: Deadlines[Any] = Deadlines(clock)
        self._attempt: Deferred[Any] | None = None
        self._timer: IDelayedCall | None = None
        self._probes = 0
        """The number of probes in progress."""
        self._pause = FIRST_PAUSE

    def hasten(self) -> None:
        """Retry now, or within `LONGEST_PAUSE` if a retry is scheduled already, since a client waits."""
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
        """Retry after a pause."""
        if self._timer is None and self._attempt is None:
            pause = min(self._pause, LONGEST_REST)
            if self._server.ejected:
                pause = max(pause, self._server.rest)
            if self._owner.waiting:
                pause = min(pause, LONGEST_PAUSE)
            # Randomized, so that several proxies do not retry in step.
            self._timer = self._clock.callLater(pause * random.uniform(0.5, 1.0), self._go)

    def stop(self, again: bool = False) -> None:
        """Stop retrying; a later start continues with the present pauses if `again`, else with short ones."""
        if not again:
            self._pause = FIRST_PAUSE
        if self._attempt is not None:
            self._attempt.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _go(self) -> None:
        self._timer = None
        # A server that is full or held has no connection for waiting clients, but a probe closes its own at once.
        if not (self._owner.waiting and self._server.can_grow and self._server.held is None):
            if self._server.is_stuck:
                # Requests still wait there: their replies will show that the server is back.
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
    """Ignores a connection that no client waits for any more."""

    when_lost: Callable[[], object] = staticmethod(lambda: None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell the observer that counts connections."""
        self.when_lost()
