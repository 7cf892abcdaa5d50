"""Connects each client to one of the servers, as long as one can be had.

While attempts succeed, each request for a connection makes its own, to the server that `fooproxy.upstreams.members`
chooses.  If that fails, the next server is tried at once.  A server that has failed is not chosen; one attempt at a
time is made to see whether it is back, with pauses that double and are randomized.  If no server is left, all requests
wait in one queue, and these attempts are made for those who have waited longest.  The first success serves the first of
them; the others follow, spread over `_SPREAD` seconds.  So a restarting server is not flooded with connection attempts
from a thousand clients.

A single server is tried again only while somebody waits for it; of several, those that failed are tried again in any
case, so that the first to find out that one is back is not a client.

A server that an operator holds, paused or draining, gets no clients; if all that could be had are held, they wait like
those for whom there is no room.

If servers have limits, and none that can be used has room, requests wait in the same queue until a slot is free, and
then first come first served; nobody who comes later gets one before.

It knows nothing about sessions or messages.  `fooproxy.parts` passes its `connect` to the bridge.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from twisted.internet import error
from twisted.python.failure import Failure

from fooproxy.net.deadlines import Deadlines
from fooproxy.net.failures import NotServed
from fooproxy.upstreams.members import Members
from fooproxy.upstreams.probe import cause
from fooproxy.upstreams.queue import Queue
from fooproxy.upstreams.retry import NEXT, Retry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twisted.internet.defer import Deferred
    from twisted.internet.interfaces import IDelayedCall, IProtocolFactory, IReactorTime

    from fooproxy.upstreams.balance import Balance
    from fooproxy.upstreams.queue import Request
    from fooproxy.upstreams.retry import First
    from fooproxy.upstreams.server import Client, Server

_LONGEST_KNOCK = 5.0
"""Seconds after which an unanswered attempt is replaced by a new one, as the kernel's own retries get rarer."""

_PATIENCE = 3
"""Failures in a row after which one of several servers is called down."""

_SPREAD = 0.5
"""Seconds over which the queued requests are spread once a server can be connected again."""

_STEP = 0.01
"""Seconds between two batches of queued requests."""


class Servers(Members):
    """A set of servers that connects clients to one of them.

    `timeout` is the number of seconds that a request for a connection may take, including all attempts and the time in
    the queue while no server can be reached; `queue_timeout` that in the queue while one can, but none has room.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        clock: IReactorTime,
        timeout: float,
        balance: Balance | None = None,
        queue_timeout: float = 10.0,
        may_grow: bool = False,
    ) -> None:
        super().__init__(balance, servers[0] if len(servers) == 1 and not may_grow else None)
        self._clock = clock
        self._timeout = timeout
        self._deadlines: Deadlines[Any] = Deadlines(clock)
        self.waiting = Queue(queue_timeout, timeout)
        """The queue: requests that wait for a server that can be reached and has room, or for their batch."""
        self._timer: IDelayedCall | None = None
        """When the next batch is let in."""
        self._share = 1
        """Number of queued requests per batch."""
        self._spread = 0
        """Number of requests that are still to be let in by such batches."""
        self._has_freed = False
        """Whether something has become free for those who wait, who will get it soon."""
        self._is_full = False
        """Whether those who wait do so because no server has room, or an operator keeps them away."""
        self._retries: dict[Server, Retry] = {}
        self._paused_by: str | None = None
        """Who has paused all servers."""
        for server in servers:
            self.add(server)

    def add(self, server: Server) -> None:
        """Connect clients to this server too."""
        super().add(server)
        self._retries[server] = Retry(self, server, self._clock, min(self._timeout, _LONGEST_KNOCK))
        server.patience = 1 if self.only else _PATIENCE
        server.when_failed, server.when_opened = partial(self._failed, server), partial(self._opened, server)
        if server.slots is not None:
            server.slots.when_free = self._freed
        if server.links is not None:
            server.links.when_free = self._freed
            server.links.are_needed = partial(self._needs_links, server)
        if self._paused_by is not None:
            server.hold("paused", self._paused_by)
        if self.waiting:
            self._opened(server)

    def remove(self, server: Server) -> None:
        """Forget a server that has no sessions."""
        super().remove(server)
        server.when_failed = server.when_opened = lambda: None
        self._retries.pop(server).stop()

    @property
    def oldest_wait(self) -> float | None:
        """Seconds that the first in the queue has waited; `None` if nobody waits."""
        first = next(iter(self.waiting), None)
        return None if first is None else self._clock.seconds() - first.began

    @property
    def queue(self) -> tuple[int, float]:
        """How many wait, and for how many seconds the first of them has."""
        return len(self.waiting), self.oldest_wait or 0.0

    # Connecting.

    def connect(self, factory: IProtocolFactory, client: Client | None = None) -> Deferred[Any]:
        """Connect `factory`; the Deferred fires with its protocol, at once if the endpoint connects at once.

        After `timeout` seconds it fails with the error of the last failed attempt, or `TimeoutError` if there was
        none; after `queue_timeout` seconds in which no server had room, with `NotServed`.  It can be cancelled.
        `client` is needed if there are several servers; if one has a limit, what `factory` builds is `Watched`.
        """
        server = None if self.is_limited and self.waiting else self.choose(client)
        attempt = None if server is None else server.connect(factory, client)
        if server is not None and attempt is not None and attempt.called and not isinstance(attempt.result, Failure):
            server.succeeded()
            return attempt
        request = self.waiting.request(factory, client, self._clock.seconds(), self._leave)
        if server is not None and attempt is not None:
            self._follow(attempt, server, request)
        else:
            self._wait(request)
        if not request.result.called and request not in self._deadlines:
            self._run(request, is_queued=False)
        return request.result

    def _run(self, request: Request, is_queued: bool) -> None:
        """Let the time run that a request may wait for room, or that in which it is to be connected."""
        left = request.switch(is_queued, self._clock.seconds())
        self._deadlines.set(request, left, partial(self._expire, request))

    def _follow(self, attempt: Deferred[Any], server: Server, request: Request) -> None:
        request.attempt, request.server = attempt, server
        server.connecting += 1
        if not attempt.called:
            limit = self._limit(request)
            if limit is not None:
                self._deadlines.set(attempt, limit, attempt.cancel)
        attempt.addCallbacks(
            self._made, self._not_made, callbackArgs=(attempt, request), errbackArgs=(attempt, request)
        )

    def _limit(self, request: Request) -> float | None:
        """Return the seconds that an attempt may take, or `None` if it may take all that is left."""
        if self.only is None and self.candidates((*request.tried, request.server)):
            return min(NEXT, self._timeout / 2)
        return _LONGEST_KNOCK if self._timeout > _LONGEST_KNOCK else None

    def _done(self, attempt: Deferred[Any], server: Server) -> None:
        """Forget what goes with an attempt."""
        server.connecting -= 1
        self._deadlines.clear(attempt)

    def _made(self, protocol: Any, attempt: Deferred[Any], request: Request) -> None:
        self._done(attempt, request.server)
        request.attempt = None
        request.server.succeeded()
        self._fire(request, protocol)

    def _not_made(self, failure: Failure, attempt: Deferred[Any], request: Request) -> None:
        server = request.server
        self._done(attempt, server)
        if request.attempt is None:
            # The request was cancelled, and so this attempt.
            return
        request.attempt = None
        request.tried += (server,)
        is_behind = self.is_limited and len(self.waiting) > 0
        others = None if request.is_late or is_behind else self.choose(request.client, request.tried)
        if others is None:
            self.waiting.add(request)
        # If it was cancelled, that was by a deadline.
        server.failed(cause(failure.value, min(self._timeout, _LONGEST_KNOCK)))
        if others is not None:
            self._follow(others.connect(request.factory, request.client), others, request)
        elif request.result.is_waiting and not request.is_late:
            self._sort(request)

    def _fire(self, request: Request, protocol: Any) -> None:
        self._deadlines.clear(request)
        if not request.result.called:
            request.result.callback(protocol)

    def _leave(self, request: Request) -> None:
        """Remove a request that was cancelled or has expired, and cancel attempts that nobody needs any more."""
        self._deadlines.clear(request)
        attempt, request.attempt = request.attempt, None
        if attempt is not None:
            attempt.cancel()
        self.waiting.remove(request)
        if not self.waiting:
            self._stop_waiting()

    def _expire(self, request: Request) -> None:
        if request.attempt is not None:
            # Its failure says what it was waiting for.
            request.is_late = True
            request.attempt.cancel()
        self._leave(request)
        latest = self.latest
        why = (self.absence or error.TimeoutError()) if latest is None else latest.last
        request.result.errback(NotServed("queue_timeout") if request.is_queued else why)

    # The queue.

    def _wait(self, request: Request) -> None:
        self.waiting.add(request)
        self._sort(request)
        for server in self.servers:
            if server.failing:
                self._retries[server].hasten()

    def _sort(self, request: Request) -> None:
        """Let the right time run for a request that waits now, and see that it is let in if there is room."""
        self._judge()
        if request.is_queued is not self._is_full:
            self._run(request, self._is_full)
        if self._timer is None and self.candidates():
            # It may have tried all of them before one was back.
            self._go_on(0)

    def _judge(self) -> None:
        """Find out whether those who wait wait for room, and let the right time run for them."""
        found = self.candidates()
        # While there is room, they are about to be let in.
        if not found and self._is_full is (found is None):
            self._is_full = not self._is_full
            for request in self.waiting:
                if request.is_queued is not self._is_full:
                    self._run(request, self._is_full)

    def _failed(self, server: Server) -> None:
        self._judge()
        self.try_again(server)

    def try_again(self, server: Server) -> None:
        """Try a server that has failed after a pause, if anybody might care."""
        if self.only is None or self.waiting:
            self._retries[server].later()

    def _opened(self, server: Server) -> None:
        """Let in those who wait, since a server can be connected again."""
        self._retries[server].stop()
        self._open_slowly()

    def _open_slowly(self) -> None:
        self._share = math.ceil(len(self.waiting) * _STEP / _SPREAD)
        self._spread = len(self.waiting)
        if self.waiting:
            self._go_on(_STEP)

    def hold(self, server: Server, how: str, who: str) -> None:
        """Keep new clients away from a server: it is ``paused`` or ``draining`` from now on, because `who` says so."""
        server.hold(how, who)
        self._judge()

    def pause_all(self, who: str) -> None:
        """Keep new clients away from all servers, those that are found later included."""
        self._paused_by = who
        for server in self.servers:
            self.hold(server, "paused", who)

    def resume_all(self) -> None:
        """Let all servers have clients again that were paused."""
        self._paused_by = None
        for server in self.servers:
            self.release(server, "paused")

    def release(self, server: Server, *hows: str) -> None:
        """Let a server have clients again, as far as these holds are concerned."""
        for how in hows:
            server.release(how)
        self._open_slowly()

    def _freed(self) -> None:
        """Let in those who wait, since a server has room again."""
        if self.waiting:
            # Not at once: whoever reports this may be about to report more.
            self._has_freed = True
            self._go_on(0)

    def serve_now(self) -> None:
        """Let in those who wait for what has become free; called when nothing more will be reported for now."""
        if self._has_freed:
            self._has_freed = False
            if self._timer is not None and self._spread <= 0:
                self._timer.cancel()
                self._let_in()

    def _needs_links(self, server: Server) -> bool:
        """Return whether links of a server must not be left with the sessions that have had them."""
        return not server.is_usable or bool(self.waiting)

    def _go_on(self, pause: float) -> None:
        if self._timer is None:
            self._timer = self._clock.callLater(pause, self._let_in)

    def _let_in(self) -> None:
        """Connect the next batch of the queue: a part of those who wait for a server that is back, or all."""
        self._timer = None
        for request in list(islice(self.waiting, self._share if self._spread > 0 else None)):
            server = self.choose(request.client)
            if server is None:
                self._judge()
                return
            self._spread -= 1
            self.waiting.remove(request)
            request.tried = ()
            if request.is_queued:
                self._run(request, is_queued=False)
            self._follow(server.connect(request.factory, request.client), server, request)
        if self.waiting and self.candidates():
            self._go_on(_STEP)

    def serve_first(self, server: Server, factory: First, protocol: Any) -> None:
        """Hand on a connection that was made for the queue, or close it if nobody waits any more."""
        server.succeeded(is_trial=True)
        if factory.request is not None:
            self._fire(factory.request, protocol)
        else:
            protocol.transport.loseConnection()

    def _stop_waiting(self) -> None:
        if self.only is not None:
            self._retries[self.only].stop(again=True)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._spread = 0
