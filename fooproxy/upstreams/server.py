"""One server: makes single attempts to connect to it, and records whether it is up, and why not.

What operators see changes less often than the outcome of attempts: a server is down from the failure that exhausts the
patience with it until there has been a success and no failure for a while, which is longer if it failed again soon
after the last time.  So a server of which every other attempt fails, like one with a full backlog, has one such
episode, with one line at its begin and one at its end.

It knows nothing about other servers, sessions or messages.  `fooproxy.upstreams.servers` decides when to try it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any
from typing import Protocol as Interface

from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger

from fooproxy.net.arrival import ArrivalEndpoint
from fooproxy.net.deadlines import Deadlines, Limit
from fooproxy.net.failures import HandshakeCancelled, HandshakeError, counted_as, is_tls, kind, words
from fooproxy.text import one_line
from fooproxy.upstreams.slots import Slots

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from twisted.internet.interfaces import (
        IDelayedCall,
        IProtocolFactory,
        IReactorTime,
        IStreamClientEndpoint,
    )
    from twisted.python.failure import Failure

    from fooproxy.upstreams.pool import Links

_LINGER = 0.2
"""Seconds that a probe waits for the peer to close: what accepts for a dead server, or for itself, does so at once."""

_PROBATION = 2.0
"""Seconds without a failure after which a server to which connections succeed again is called up."""

_LONGEST_PROBATION = 30.0
"""Seconds of that at most; it doubles each time that the server fails again within `_RELAPSE`."""

_RELAPSE = 60.0
"""Seconds after the end of an episode within which a failure makes the next one longer."""

_FIRST_REST = 2.0
"""Seconds that a server is left alone when it is taken out because of its requests."""

_LONGEST_REST = 60.0
"""Seconds of that at most; it doubles each time that the server is taken out again soon after it has come back."""

_WARM_UP = 10.0
"""Seconds in which the share of a server that comes back grows from `_COLD` to all that it is due."""

_COLD = 0.1
"""The part of its share that it begins with."""


class Client(Interface):
    """Whoever a connection is made for, if there are several servers."""

    @property
    def host(self) -> str:
        """The address by which it may be kept on one server."""

    def served_by(self, server: Server) -> None:
        """Take note of the server, before the protocol of the connection is built."""


class Checked(Interface):
    """The checks of a server."""

    def report(self) -> dict[str, Any]:
        """Return what they have found."""


class Counts(Interface):
    """What is counted of a server elsewhere."""

    @property
    def connect_failures(self) -> MutableMapping[str, int]:
        """Failed attempts, by reason."""

    @property
    def load(self) -> int:
        """Open sessions and requests in flight together."""

    @property
    def in_flight(self) -> int:
        """Requests in flight."""

    @property
    def stuck(self) -> int:
        """1 if requests wait and the server answers nobody, else 0."""

    @property
    def checks(self) -> MutableMapping[str, int]:
        """Checks, by result."""

    ejections: int
    """How often the server was taken out for its requests."""


class Server:
    """Connects to `endpoint`.

    `name` identifies the server in log lines, `number` among all servers.  `weight` is its share of the clients, and a
    `backup` gets some only if no other server can.  It has at most `limit` connections at once, if that is not 0.
    """

    log = Logger()

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        name: str,
        clock: IReactorTime,
        *,
        number: int = 0,
        weight: int = 1,
        backup: bool = False,
        limit: int = 0,
    ) -> None:
        self._endpoint = endpoint
        self.name = one_line(name)
        self.number = number
        self.weight = weight
        self.backup = backup
        self.priority = 0
        """Of several backups, those with a lower one come first."""
        self.gone = False
        """Whether a name server names it no more, so that it gets no new sessions."""
        self.slots = Slots(limit) if limit else None
        """Its connections, if they are limited."""
        self._clock = clock
        self._deadlines: Deadlines[Any] = Deadlines(clock)
        self._counts: Counts | None = None
        self.links: Links | None = None
        """The links to it, if they are pooled."""
        self.connecting = 0
        """Clients for which an attempt is in progress, if there are several servers."""
        self.patience = 1
        """Failures in a row from which on the server is called down."""
        self.when_failed: Callable[[Server], object] = lambda server: None
        """Called after each failure."""
        self.when_opened: Callable[[Server], object] = lambda server: None
        """Called when the server can be used again."""
        self.failing = False
        """Whether the last attempt failed, so that no client should be the next to try."""
        self.failures = 0
        """Failures to connect in a row."""
        self.held: str | None = None
        """``paused`` or ``draining`` while an operator keeps clients away from it."""
        self.held_by = ""
        """Who asked for that."""
        self._holds: dict[str, tuple[str, float]] = {}
        self.ejected = False
        """Whether it was taken out because of its requests, until it is tried."""
        self.rest = 0.0
        """Seconds that it is left alone when it is taken out."""
        self.doubted = False
        """Whether its checks fail, so that clients get other servers, if there are any."""
        self.check: Checked | None = None
        """Its checks, if there are any."""
        self.examine: Callable[[float], Awaitable[None]] | None = None
        """Tries it within some seconds after it was taken out for its requests; by default, `stays` does."""
        self._recovering: IDelayedCall | None = None
        """The end of the episode, if nothing fails until then."""
        self._probation = _PROBATION
        self._recovered_at = float("-inf")
        self._warmed_at = float("-inf")
        self._returned_at = float("-inf")
        self.failed_at = float("-inf")
        self._heard_at = float("-inf")
        self._has_worked = False
        self._since = clock.seconds()
        self.last: Exception = error.TimeoutError()
        """Why the last failed attempt failed."""
        self.error: str | None = None
        """Why the server is down, in words: why the last failed attempt failed; `None` if it is not."""
        self.reason: str | None = None
        """The same in a word, by which the sessions that fail for it are counted."""
        if isinstance(endpoint, ArrivalEndpoint):
            endpoint.rejected = self.failed

    def counted_by(self, counts: Counts) -> None:
        """Count failures in `counts`, and take what the server has to do from there."""
        self._counts = counts

    @property
    def state(self) -> str:
        """``up`` or ``down``; ``unknown`` before the first success; ``paused`` or ``draining`` as operators say.

        It is also ``draining`` while it still has sessions, but a name server names it no more.
        """
        if self.held is not None:
            return self.held
        if self.gone:
            return "draining"
        if self.error is not None:
            return "down"
        return "up" if self._has_worked else "unknown"

    @property
    def since(self) -> float:
        """Seconds that the state has lasted."""
        since = self._since if self.held is None else self._holds[self.held][1]
        return self._clock.seconds() - since

    @property
    def is_usable(self) -> bool:
        """Whether it may get a client, if it has room."""
        return not self.failing and self.held is None

    @property
    def reluctance(self) -> int:
        """How much others come first: 1 if its checks fail, 2 if it is gone, else 0."""
        return 2 if self.gone else int(self.doubted)

    @property
    def is_proven(self) -> bool:
        """Whether it has worked, and did so the last time."""
        return self._has_worked and not self.failing

    @property
    def has_room(self) -> bool:
        """Whether it may get one more client: over a new connection, or over a link that is idle."""
        return self.can_grow or (self.links is not None and self.links.has_any)

    @property
    def can_grow(self) -> bool:
        """Whether it may have one more connection."""
        return self.slots is None or self.slots.has_room

    @property
    def silence(self) -> float:
        """Seconds since the last attempt succeeded or failed; infinite before the first."""
        return self._clock.seconds() - self._heard_at

    def unreachable(self, within: float) -> str | None:
        """Return why the server is down, if an attempt failed at most `within` seconds ago; otherwise `None`."""
        return self.error if self._clock.seconds() - self.failed_at <= within else None

    @property
    def load(self) -> int:
        """Open sessions, clients that are being connected and requests in flight together.

        With a pool, links that are lent count, since a session may be without one.
        """
        if self._counts is None:
            return self.connecting
        if self.links is not None:
            return self.connecting + self.links.lent + self._counts.in_flight
        return self.connecting + self._counts.load

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing to do for anybody."""
        return self.load == 0

    @property
    def share(self) -> float:
        """The weight, less while the server warms up after it was down."""
        warm = (self._clock.seconds() - self._warmed_at) / _WARM_UP
        return self.weight if warm >= 1 else self.weight * (_COLD + (1 - _COLD) * warm)

    def connect(self, factory: IProtocolFactory, client: Client | None = None, fresh: bool = False) -> Deferred[Any]:
        """Make one attempt to connect `factory`; `client` is told as soon as there is a connection.

        If there are idle links, it gets one of those, unless it must be a `fresh` connection.
        """
        if self.links is not None:
            link = None if fresh else self.links.take()
            if link is not None:
                if client is not None:
                    client.served_by(self)
                link.lend(factory)
                return succeed(link)
            factory = self.links.making(factory)
        if client is not None:
            factory = _For(client, self, factory)
        if self.slots is not None:
            return self.slots.connect(self._endpoint, factory)
        return self._endpoint.connect(factory)

    def reach(self, protocol: Callable[[], Protocol]) -> Deferred[Any]:
        """Make one attempt to connect a protocol of our own, which needs no slot."""
        return self._endpoint.connect(Factory.forProtocol(protocol))

    async def probe(self, timeout: float, is_trial: bool = False) -> None:
        """Check whether a connection can be made within `timeout` seconds and stays open, and close it again.

        If it `is_trial`, a server that was taken out is back if it can.
        """
        examine = self.examine if is_trial and self.ejected else None
        try:
            await (examine or self.stays)(timeout)
        except Exception as reason:
            self.failed(cause(reason, timeout), is_counted=examine is None)
        else:
            self.succeeded(is_trial)

    async def stays(self, timeout: float) -> None:
        """Connect within `timeout` seconds, and close if the peer has not after a moment; fail otherwise."""
        probe = _Probe()
        trying = self.reach(lambda: probe)
        trying.addTimeout(timeout, Limit(self._deadlines))  # type: ignore[arg-type]
        try:
            await trying
            self._deadlines.set(probe, _LINGER, probe.stayed)
            await probe.over
        except DeferredTimeout:
            raise NoAnswer(timeout) from None
        finally:
            self._deadlines.clear(probe)
            probe.close()

    def checked(self, result: str) -> None:
        """Count a check."""
        if self._counts is not None:
            self._counts.checks[result] += 1

    def doubt(self, why: str) -> None:
        """Prefer other servers from now on, since checks fail; `why` is for the log."""
        self.doubted = True
        self._relapse()
        self._go_down(why, "upstream_check", "upstream {name} fails its checks: {error}")

    def trust(self) -> None:
        """Use the server like others again, since checks pass."""
        if self.doubted:
            self.doubted = False
            if not self.failing:
                self._warmed_at = self._clock.seconds()
                self._recovered()
                self.when_opened(self)

    def failed(self, reason: Any, is_counted: bool = True) -> None:
        """Record that an attempt failed for `reason`, an exception; a check is not counted."""
        self.failed_at = self._heard_at = self._clock.seconds()
        self.last = reason
        self.failing = True
        self.failures += 1
        if self._counts is not None and is_counted:
            self._counts.connect_failures[kind(reason)] += 1
        self._relapse()
        if self.failures >= self.patience or self.error is not None:
            self._go_down(one_line(words(reason)), counted_as(reason), "cannot connect to upstream {name}: {error}")
        self.when_failed(self)

    def eject(self, why: str, reason: str) -> None:
        """Take the server out because of its requests: words for the log, and a word."""
        now = self._clock.seconds()
        is_relapse = now - self._returned_at <= max(_RELAPSE, 2 * self.rest)
        self.rest = min(2 * self.rest, _LONGEST_REST) if is_relapse else _FIRST_REST
        self.failed_at = now
        self.failing = self.ejected = True
        if self._counts is not None:
            self._counts.ejections += 1
        self._relapse()
        self._go_down(why, reason, "taking out upstream {name}: {error}")
        self.when_failed(self)

    @property
    def is_stuck(self) -> bool:
        """Whether it was taken out and still answers nobody of those who wait."""
        return self.ejected and self._counts is not None and bool(self._counts.stuck)

    def succeeded(self, is_trial: bool = False) -> None:
        """Record that an attempt succeeded; only one that `is_trial` brings a server back that was taken out."""
        self._heard_at = self._clock.seconds()
        if not self._has_worked:
            self._has_worked = True
            if self.error is None:
                self._since = self._heard_at
        if self.failing and (is_trial or not self.ejected):
            if self.ejected:
                self._returned_at = self._heard_at
            self.failing = self.ejected = False
            self.failures = 0
            if self.error is not None and not self.doubted:
                self._warmed_at = self._heard_at
                self._recovering = self._clock.callLater(self._probation, self._recovered)
            self.when_opened(self)

    def hold(self, how: str, who: str) -> None:
        """Let it be ``paused`` or ``draining``, as `who` asks: it gets no clients, and keeps those that it has."""
        self._holds.setdefault(how, (who, self._clock.seconds()))
        self._find_hold()

    def release(self, how: str) -> None:
        """Let it be neither paused nor draining for this reason."""
        if self._holds.pop(how, None) is not None:
            self._find_hold()
            if self.held is None:
                # Others have had its clients meanwhile.
                self._since = self._warmed_at = self._clock.seconds()

    def _find_hold(self) -> None:
        self.held = next((how for how in ("paused", "draining") if how in self._holds), None)
        self.held_by = "" if self.held is None else self._holds[self.held][0]
        if self.links is not None:
            self.links.hold(self.held is not None)

    def is_back(self, is_back: bool) -> None:
        """Take note whether a name server names it."""
        if self.gone is is_back:
            self.gone = not is_back
            self._since = self._clock.seconds()

    def close(self) -> None:
        """Do, say and count nothing more, also if an attempt is still in progress."""
        self._relapse()
        if self.links is not None:
            self.links.close()
        self._counts = self.error = None
        self.patience = sys.maxsize

    def _relapse(self) -> None:
        if self._recovering is not None:
            self._recovering.cancel()
            self._recovering = None

    def _go_down(self, why: str, reason: str, line: str) -> None:
        began = self.error is None
        self.error, self.reason = why, reason
        if began:
            self._since = self._clock.seconds()
            is_relapse = self._since - self._recovered_at <= _RELAPSE
            self._probation = min(2 * self._probation, _LONGEST_PROBATION) if is_relapse else _PROBATION
            self.log.warn(line, name=self.name, error=self.error)

    def _recovered(self) -> None:
        self._recovering = None
        self._recovered_at = self._since = self._clock.seconds()
        self.error = self.reason = None
        self.log.info("connected to upstream {name} again", name=self.name)


class _For(Factory):
    """Tells `client` which server it gets once there is a connection, and builds the protocol of `factory`."""

    noisy = False

    def __init__(self, client: Client, server: Server, factory: IProtocolFactory) -> None:
        self._client = client
        self._server = server
        self._factory = factory

    def buildProtocol(self, addr: Any) -> Any:
        """Build the protocol."""
        self._client.served_by(self._server)
        return self._factory.buildProtocol(addr)


class _Probe(Protocol):
    """A connection that only shows whether the peer keeps it; `over` fires when that is known."""

    transport: Any

    def __init__(self) -> None:
        self.over: Deferred[None] = Deferred()
        self._is_done = False

    def stayed(self) -> None:
        """End: the peer has kept the connection."""
        self.over.callback(None)

    def close(self) -> None:
        """Close what is open; nobody waits for `over` any more."""
        self._is_done = True
        if self.transport is not None:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fail if the peer has closed first."""
        if not self.over.called and not self._is_done:
            tls = is_tls(reason.value)
            self.over.errback(HandshakeError(words(reason.value)) if tls else _ClosedAtOnce())


def cause(reason: Any, seconds: float) -> Any:
    """Return why an attempt failed with `reason`; if it was cancelled, that was after `seconds` without an answer."""
    if isinstance(reason, HandshakeCancelled):
        return HandshakeError(f"no answer within {seconds:g} s")
    return NoAnswer(seconds) if isinstance(reason, (CancelledError, error.ConnectingCancelledError)) else reason


class _ClosedAtOnce(error.ConnectError):
    """The peer accepts connections, but does not keep them."""

    def __str__(self) -> str:
        return "it closes connections as soon as they are made"


class NoAnswer(error.TimeoutError):
    """An attempt was not answered within `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(string=f"no answer within {seconds:g} s")

    def __str__(self) -> str:
        return str(self.args[0])
