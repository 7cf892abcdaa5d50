"""Connects each client to one of the servers, as long as any can be reached.

While attempts succeed, each request for a connection makes its own, to the server that `fooproxy.upstreams.members`
chooses.  If that fails, the next server is tried at once.  A server that has failed is not chosen; one attempt at a
time is made to see whether it is back, with pauses that double and are randomized.  If no server is left, all requests
wait in one queue, and these attempts are made for the request that has waited longest.  The first success serves that
request; the others follow, spread over `_SPREAD` seconds.  So a restarting server is not flooded with connection
attempts from a thousand clients.

A single server is retried only while clients wait for it.  With several servers, a failed one is always retried, so
that no client has to find out whether it is back.

A server that an operator holds, paused or draining, gets no clients.  If all usable servers are held, clients wait as
they do when no server has room.

If servers have limits and no usable one has room, requests wait in the same queue until a slot is free.  The queue is
strictly first come, first served.

This module knows nothing about sessions or messages.  `fooproxy.parts` passes its `connect` to the bridge.
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
"""Seconds after which a new attempt replaces an unanswered one, since the kernel's own retries get rarer."""

_PATIENCE = 3
"""The number of failures in a row after which one of several servers counts as down."""

_SPREAD = 0.5
"""Seconds over which the queued requests are spread once a server can be reached again."""

_STEP = 0.01
"""Seconds between two batches of queued requests."""


class Servers(Members):
    """A set of servers that connects clients to one of them.

    `timeout` is the maximum seconds for a request to be connected, including all attempts and the time in the queue
    while no server can be reached.  `queue_timeout` is the maximum seconds in the queue while no reachable server has
    room.
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
        """Lets in the next batch of the queue."""
        self._share = 1
        """The number of queued requests per batch."""
        self._spread = 0
        """The number of requests that such batches still have to let in."""
        self._has_freed = False
        """Whether a slot or a link has become free, so that waiting requests are about to be let in."""
        self._is_full = False
        """Whether the queue waits because no usable server has room, or operators hold them."""
        self._retries: dict[Server, Retry] = {}
        self._paused_by: str | None = None
        """The operator who has paused all servers."""
        for server in servers:
            self.add(server)

    def add(self, server: Server) -> None:
        """Add a server, which may get clients from now on."""
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
        """Seconds that the first request in the queue has waited; `None` if the queue is empty."""
        first = next(iter(self.waiting), None)
        return None if first is None else self._clock.seconds() - first.began

    @property
    def queue(self) -> tuple[int, float]:
        """The number of waiting requests, and the seconds that the first of them has waited."""
        return len(self.waiting), self.oldest_wait or 0.0

    # Connecting.

    def connect(self, factory: IProtocolFactory, client: Client | None = None) -> Deferred[Any]:
        """Connect `factory`; the Deferred fires with its protocol, at once if the endpoint connects at once.

        After `timeout` seconds it fails with the error of the last failed attempt, or `TimeoutError` if there was
        none; after `queue_timeout` seconds in which no server had room, with `NotServed`.  It can be cancelled.
        `client` is needed if there are several servers; if one has a limit, `factory` must build `Watched` protocols.
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
        """Start one of the timeouts of a request: for a server with room (`is_queued`), or for connecting."""
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
        """Return the maximum seconds for an attempt, or `None` if the request's own timeout is enough."""
        if self.only is None and self.candidates((*request.tried, request.server)):
            return min(NEXT, self._timeout / 2)
        return _LONGEST_KNOCK if self._timeout > _LONGEST_KNOCK else None

    def _done(self, attempt: Deferred[Any], server: Server) -> None:
        """Clean up after an attempt."""
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
            # The request was cancelled, and this attempt with it.
            return
        request.attempt = None
        request.tried += (server,)
        is_behind = self.is_limited and len(self.waiting) > 0
        others = None if request.is_late or is_behind else self.choose(request.client, request.tried)
        if others is None:
            self.waiting.add(request)
        # If the attempt was cancelled, it was by a deadline.
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
        """Remove a request that was cancelled or has expired, and cancel attempts that are no longer needed."""
        self._deadlines.clear(request)
        attempt, request.attempt = request.attempt, None
        if attempt is not None:
            attempt.cancel()
        self.waiting.remove(request)
        if not self.waiting:
            self._stop_waiting()

    def _expire(self, request: Request) -> None:
        if request.attempt is not None:
            # The failure of a cancelled attempt says what it was waiting for.
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
        """Start the right timeout for a request that has begun to wait, and let it in soon if a server has room."""
        self._judge()
        if request.is_queued is not self._is_full:
            self._run(request, self._is_full)
        if self._timer is None and self.candidates():
            # The request may have tried all servers before one came back.
            self._go_on(0)

    def _judge(self) -> None:
        """Determine whether the queue waits for room or for a reachable server, and switch the timeouts."""
        found = self.candidates()
        # While a server has room, the requests are about to be let in.
        if not found and self._is_full is (found is None):
            self._is_full = not self._is_full
            for request in self.waiting:
                if request.is_queued is not self._is_full:
                    self._run(request, self._is_full)

    def _failed(self, server: Server) -> None:
        self._judge()
        self.try_again(server)

    def try_again(self, server: Server) -> None:
        """Retry a failed server after a pause, if clients wait for it or there are other servers."""
        if self.only is None or self.waiting:
            self._retries[server].later()

    def _opened(self, server: Server) -> None:
        """Let in the waiting requests, since a server can be reached again."""
        self._retries[server].stop()
        self._open_slowly()

    def _open_slowly(self) -> None:
        self._share = math.ceil(len(self.waiting) * _STEP / _SPREAD)
        self._spread = len(self.waiting)
        if self.waiting:
            self._go_on(_STEP)

    def hold(self, server: Server, how: str, who: str) -> None:
        """Keep new clients away from a server: it is ``paused`` or ``draining`` from now on, at the order of `who`."""
        server.hold(how, who)
        self._judge()

    def pause_all(self, who: str) -> None:
        """Pause all servers, including those that are found later."""
        self._paused_by = who
        for server in self.servers:
            self.hold(server, "paused", who)

    def resume_all(self) -> None:
        """Resume all paused servers."""
        self._paused_by = None
        for server in self.servers:
            self.release(server, "paused")

    def release(self, server: Server, *hows: str) -> None:
        """End some holds of a server, so that it gets clients again unless another hold is in force."""
        for how in hows:
            server.release(how)
        self._open_slowly()

    def _freed(self) -> None:
        """Let in waiting requests, since a server has room again."""
        if self.waiting:
            # Not at once: the caller may be about to report more free slots.
            self._has_freed = True
            self._go_on(0)

    def serve_now(self) -> None:
        """Let in waiting requests for the slots and links that have become free; called once per batch of events."""
        if self._has_freed:
            self._has_freed = False
            if self._timer is not None and self._spread <= 0:
                self._timer.cancel()
                self._let_in()

    def _needs_links(self, server: Server) -> bool:
        """Return whether sessions must give back links of `server` that they do not need at the moment."""
        return not server.is_usable or bool(self.waiting)

    def _go_on(self, pause: float) -> None:
        if self._timer is None:
            self._timer = self._clock.callLater(pause, self._let_in)

    def _let_in(self) -> None:
        """Connect the next batch of the queue: a part of it if a server has just come back, else all."""
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
        """Pass on a connection that was made for the queue, or close it if the queue is empty by now."""
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
