"""The set of servers: connects each client to one of them, as long as one can be had.

While attempts succeed, each request for a connection makes its own, to the server that `fooproxy.upstreams.balance`
chooses.  If that fails, the next server is tried at once.  A server that has failed is not chosen; one attempt at a
time is made to see whether it is back, with pauses that double and are randomized.  If no server is left, all requests
wait in one queue, and these attempts are made for those who have waited longest.  The first success serves the first of
them; the others follow, spread over `_SPREAD` seconds.  So a restarting server is not flooded with connection attempts
from a thousand clients.

A single server is tried again only while somebody waits for it; of several, those that failed are tried again in any
case, so that the first to find out that one is back is not a client.

It knows nothing about sessions or messages.  The service passes its `connect` to the bridge; health calls `probe`.
"""

from __future__ import annotations

import math
import random
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

from fooproxy.net.deadlines import Deadlines
from fooproxy.upstreams.balance import Least
from fooproxy.upstreams.server import cause

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from twisted.internet.interfaces import IDelayedCall, IProtocolFactory, IReactorTime

    from fooproxy.upstreams.balance import Balance
    from fooproxy.upstreams.server import Client, Server

_FIRST_PAUSE = 0.05
"""Seconds before the first retry, at most; each further pause is twice as long."""

_LONGEST_PAUSE = 1.0
"""Seconds between two retries, at most, while somebody waits for them."""

_LONGEST_REST = 10.0
"""Seconds between two retries, at most, while nobody does."""

_LONGEST_KNOCK = 5.0
"""Seconds after which an unanswered attempt is replaced by a new one, as the kernel's own retries get rarer."""

_NEXT = 1.0
"""Seconds without an answer after which the next server is tried, if there is one."""

_PATIENCE = 3
"""Failures in a row after which one of several servers is called down."""

_SPREAD = 0.5
"""Seconds over which the queued requests are spread once a server can be connected again."""

_STEP = 0.01
"""Seconds between two batches of queued requests."""


class _Request:
    """A request for a connection that has not been made at once."""

    __slots__ = ("attempt", "began", "client", "factory", "is_late", "result", "server", "tried")

    def __init__(self, factory: IProtocolFactory, client: Client | None, now: float) -> None:
        self.began = now
        self.factory = factory
        self.client = client
        self.result: Deferred[Any]
        self.attempt: Deferred[Any] | None = None
        """Its own attempt, if one is in progress."""
        self.server: Server
        """The server of that attempt."""
        self.tried: tuple[Server, ...] = ()
        self.is_late = False
        """Whether its time is over."""


class Servers:
    """Connects clients to one of `servers`, which `balance` chooses.

    `timeout` is the number of seconds that a request for a connection may take, including time in the queue and all
    attempts.
    """

    def __init__(
        self, servers: Sequence[Server], clock: IReactorTime, timeout: float, balance: Balance | None = None
    ) -> None:
        self.servers = servers
        self._only = servers[0] if len(servers) == 1 else None
        self._tiers = [[each for each in servers if each.backup is backup] for backup in (False, True)]
        self._balance: Balance = balance or Least(random.Random())
        self._clock = clock
        self._timeout = timeout
        self._deadlines: Deadlines[Any] = Deadlines(clock)
        self.waiting: dict[_Request, None] = {}
        """The queue: requests that wait for a server to become reachable or for their batch, oldest first."""
        self._timer: IDelayedCall | None = None
        """When the next batch is let in."""
        self._share = 1
        """Number of queued requests per batch."""
        self._retries = {server: _Retry(self, server, clock, min(timeout, _LONGEST_KNOCK)) for server in servers}
        for server in servers:
            server.patience = 1 if self._only else _PATIENCE
            server.when_failed, server.when_opened = self.try_again, self._opened

    # What is known of them, together.

    @property
    def state(self) -> str:
        """``up`` if any server is, else ``unknown`` if any server is, else ``down``."""
        states = {server.state for server in self.servers}
        return next(state for state in ("up", "unknown", "down") if state in states)

    @property
    def _latest(self) -> Server:
        """The server that was the last to fail."""
        return max(self.servers, key=lambda server: server.failed_at)

    @property
    def error(self) -> str | None:
        """Why no server can be reached; `None` if one can."""
        return self._latest.error if self.state == "down" else None

    @property
    def reason(self) -> str | None:
        """The same in a word, by which the sessions that fail for it are counted."""
        return self._latest.reason if self.state == "down" else None

    @property
    def silence(self) -> float:
        """Seconds since the last attempt succeeded or failed; infinite before the first."""
        return min(server.silence for server in self.servers)

    @property
    def counts(self) -> tuple[int, int]:
        """How many servers are not down, and how many there are."""
        return sum(server.state != "down" for server in self.servers), len(self.servers)

    @property
    def oldest_wait(self) -> float | None:
        """Seconds that the first in the queue has waited; `None` if nobody waits."""
        first = next(iter(self.waiting), None)
        return None if first is None else self._clock.seconds() - first.began

    def unreachable(self, within: float) -> str | None:
        """Return why no server can be reached, if one failed at most `within` seconds ago; otherwise `None`."""
        return self._latest.unreachable(within) if self.state == "down" else None

    async def probe(self, timeout: float) -> None:
        """Check whether connections can be made within `timeout` seconds and stay open, and close them again."""
        await gatherResults([Deferred.fromCoroutine(server.probe(timeout)) for server in self.servers])

    # Connecting.

    def connect(self, factory: IProtocolFactory, client: Client | None = None) -> Deferred[Any]:
        """Connect `factory`; the Deferred fires with its protocol, at once if the endpoint connects at once.

        After `timeout` seconds it fails with the error of the last failed attempt, or `TimeoutError` if there was
        none.  It can be cancelled.  `client` is needed if there are several servers.
        """
        server = self._choose(client)
        attempt = None if server is None else server.connect(factory, client)
        if server is not None and attempt is not None and attempt.called and not isinstance(attempt.result, Failure):
            server.succeeded()
            return attempt
        request = _Request(factory, client, self._clock.seconds())
        request.result = Deferred(lambda _: self._leave(request))
        if server is not None and attempt is not None:
            self._follow(attempt, server, request)
        else:
            self._wait(request)
        if not request.result.called:
            self._deadlines.set(request, self._timeout, partial(self._expire, request))
        return request.result

    def _choose(self, client: Client | None, tried: Collection[Server] = ()) -> Server | None:
        """Return the server for the next attempt, none of those `tried`; `None` if no server is worth one."""
        if self._only is not None:
            return None if self._only.failing or tried else self._only
        for tier in self._tiers:
            worth = [server for server in tier if not server.failing and server not in tried]
            if worth:
                return self._balance.choose(worth, "" if client is None else client.host)
        return None

    def _follow(self, attempt: Deferred[Any], server: Server, request: _Request) -> None:
        request.attempt, request.server = attempt, server
        if not attempt.called:
            server.connecting += 1
            limit = self._limit(request)
            if limit is not None:
                self._deadlines.set(attempt, limit, attempt.cancel)
        attempt.addCallbacks(
            self._made, self._not_made, callbackArgs=(attempt, request), errbackArgs=(attempt, request)
        )

    def _limit(self, request: _Request) -> float | None:
        """Return the seconds that an attempt may take, or `None` if it may take all that is left."""
        others = self._only is None and self._choose(request.client, (*request.tried, request.server))
        if others:
            return min(_NEXT, self._timeout / 2)
        return _LONGEST_KNOCK if self._timeout > _LONGEST_KNOCK else None

    def _done(self, attempt: Deferred[Any], server: Server) -> None:
        """Forget what goes with an attempt."""
        server.connecting = max(server.connecting - 1, 0)
        self._deadlines.clear(attempt)

    def _made(self, protocol: Any, attempt: Deferred[Any], request: _Request) -> None:
        self._done(attempt, request.server)
        request.attempt = None
        request.server.succeeded()
        self._fire(request, protocol)

    def _not_made(self, failure: Failure, attempt: Deferred[Any], request: _Request) -> None:
        server = request.server
        self._done(attempt, server)
        if request.attempt is None:
            # The request was cancelled, and so this attempt.
            return
        request.attempt = None
        request.tried += (server,)
        others = not request.is_late and self._choose(request.client, request.tried)
        if not others:
            self.waiting[request] = None
        # If it was cancelled, that was by a deadline.
        server.failed(cause(failure.value, min(self._timeout, _LONGEST_KNOCK)))
        if others:
            self._follow(others.connect(request.factory, request.client), others, request)

    def _fire(self, request: _Request, protocol: Any) -> None:
        self._deadlines.clear(request)
        if not request.result.called:
            request.result.callback(protocol)

    def _leave(self, request: _Request) -> None:
        """Remove a request that was cancelled or has expired, and cancel attempts that nobody needs any more."""
        self._deadlines.clear(request)
        attempt, request.attempt = request.attempt, None
        if attempt is not None:
            attempt.cancel()
        self.waiting.pop(request, None)
        if not self.waiting:
            self._stop_waiting()

    def _expire(self, request: _Request) -> None:
        if request.attempt is not None:
            # Its failure says what it was waiting for.
            request.is_late = True
            request.attempt.cancel()
        self._leave(request)
        request.result.errback(self._latest.last)

    # The queue.

    def _wait(self, request: _Request) -> None:
        self.waiting[request] = None
        for server in self.servers:
            if server.failing:
                self._retries[server].hasten()

    def try_again(self, server: Server) -> None:
        """Try a server that has failed after a pause, if anybody might care."""
        if self._only is None or self.waiting:
            self._retries[server].later()

    def _opened(self, server: Server) -> None:
        """Let in those who wait, since a server can be connected again."""
        self._share = math.ceil(len(self.waiting) * _STEP / _SPREAD)
        self._retries[server].stop()
        if self.waiting:
            self._go_on()

    def _go_on(self) -> None:
        if self._timer is None:
            self._timer = self._clock.callLater(_STEP, self._let_in)

    def _let_in(self) -> None:
        """Connect the next batch of the queue."""
        self._timer = None
        for request in list(islice(self.waiting, self._share)):
            server = self._choose(request.client)
            if server is None:
                return
            del self.waiting[request]
            request.tried = ()
            self._follow(server.connect(request.factory, request.client), server, request)
        if self.waiting and self._choose(None) is not None:
            self._go_on()

    def serve_first(self, server: Server, factory: _First, protocol: Any) -> None:
        """Hand on a connection that was made for the queue, or close it if nobody waits any more."""
        server.succeeded(is_trial=True)
        if factory.request is not None:
            self._fire(factory.request, protocol)
        else:
            protocol.transport.loseConnection()

    def _stop_waiting(self) -> None:
        if self._only is not None:
            self._retries[self._only].stop(again=True)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Retry:
    """Tries a failing server again: for the queue of `owner`, or for nobody."""

    def __init__(self, owner: Servers, server: Server, clock: IReactorTime, patience: float) -> None:
        self._owner = owner
        self._server = server
        self._clock = clock
        self._patience = patience
        self._deadlines: Deadlines[Any] = Deadlines(clock)
        self._attempt: Deferred[Any] | None = None
        self._timer: IDelayedCall | None = None
        self._pause = _FIRST_PAUSE

    def hasten(self) -> None:
        """Try soon, since somebody waits: now, unless there was an attempt lately."""
        if self._attempt is not None:
            return
        if self._timer is None:
            self._go()
        elif self._timer.getTime() - self._clock.seconds() > _LONGEST_PAUSE:
            self._pause = _LONGEST_PAUSE
            self._timer.cancel()
            self._timer = None
            self.later()

    def later(self) -> None:
        """Try after a pause."""
        if self._timer is None and self._attempt is None:
            pause = min(self._pause, _LONGEST_REST)
            if self._server.ejected:
                pause = max(pause, self._server.rest)
            if self._owner.waiting:
                pause = min(pause, _LONGEST_PAUSE)
            # Randomized, so that several proxies do not retry in step.
            self._timer = self._clock.callLater(pause * random.uniform(0.5, 1.0), self._go)

    def stop(self, again: bool = False) -> None:
        """Cease to try; if it goes on some day, go on with the same pauses if `again`, else with short ones."""
        if not again:
            self._pause = _FIRST_PAUSE
        if self._attempt is not None:
            self._attempt.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _go(self) -> None:
        self._timer = None
        if not self._owner.waiting:
            if self._server.is_stuck:
                # What waits there is answered if it is back.
                self.later()
                return
            probing = Deferred.fromCoroutine(self._server.probe(min(self._patience, _NEXT), is_trial=True))
            probing.addBoth(self._probed)
            return
        first = _First(self._owner.waiting, self._server)
        self._attempt = attempt = self._server.connect(first)
        self._deadlines.set(attempt, self._patience, attempt.cancel)
        attempt.addCallbacks(self._let_in, self._not_let_in, callbackArgs=(attempt, first), errbackArgs=(attempt,))

    def _probed(self, _: object) -> None:
        if self._server.failing:
            self._pause = min(2 * self._pause, _LONGEST_REST)

    def _let_in(self, protocol: Any, attempt: Deferred[Any], first: _First) -> None:
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
            self._pause = min(2 * self._pause, _LONGEST_REST)


class _First(Factory):
    """Takes the oldest request from the queue `waiting` once the connection is made, and builds its protocol."""

    noisy = False

    def __init__(self, waiting: dict[_Request, None], server: Server) -> None:
        self._waiting = waiting
        self._server = server
        self.request: _Request | None = None
        """The request that was served; `None` if the queue was empty."""

    def buildProtocol(self, addr: Any) -> Any:
        """Build the protocol of the oldest request, or one that does nothing if the queue is empty."""
        if not self._waiting:
            return Protocol()
        self.request = request = next(iter(self._waiting))
        del self._waiting[request]
        if request.client is not None:
            request.client.served_by(self._server)
        return request.factory.buildProtocol(addr)
