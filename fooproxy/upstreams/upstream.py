"""An upstream server: connects to it, retries with backoff, and records whether it is reachable, and why not.

While attempts succeed, each request for a connection makes its own.  After an attempt has failed, all requests wait in
one queue, and one attempt at a time is made for all of them.  The pauses in between double up to `_LONGEST_PAUSE` and
are randomized.  The first success serves the request that has waited longest; the others follow, spread over `_SPREAD`
seconds.  So a restarting server is not flooded with connection attempts from a thousand clients.

What operators see changes less often: the server is unreachable from the first failure until there has been a success
and no failure for a while, which is longer if it failed again soon after the last time.  So a server of which every
other attempt fails, like one with a full backlog, has one such episode, with one line at its begin and one at its end.

It knows nothing about sessions or messages.  The service passes its `connect` to the bridge; health calls `probe`.
"""

from __future__ import annotations

import math
import random
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from fooproxy.net.arrival import ArrivalEndpoint
from fooproxy.net.deadlines import Deadlines, Limit
from fooproxy.net.failures import HandshakeCancelled, HandshakeError, counted_as, is_tls, words
from fooproxy.text import one_line

if TYPE_CHECKING:
    from twisted.internet.interfaces import (
        IDelayedCall,
        IProtocolFactory,
        IReactorTime,
        IStreamClientEndpoint,
    )

    Waiting = dict[Deferred[Any], IProtocolFactory]

_FIRST_PAUSE = 0.05
"""Seconds before the first retry, at most; each further pause is twice as long."""

_LONGEST_PAUSE = 1.0
"""Seconds between two retries, at most."""

_LONGEST_KNOCK = 5.0
"""Seconds after which an unanswered attempt is replaced by a new one, as the kernel's own retries get rarer."""

_LINGER = 0.2
"""Seconds that a probe waits for the peer to close: what accepts for a dead server, or for itself, does so at once."""

_SPREAD = 0.5
"""Seconds over which the queued requests are spread once the server is reachable again."""

_STEP = 0.01
"""Seconds between two batches of queued requests."""

_PROBATION = 2.0
"""Seconds without a failure after which a server to which connections succeed again is called reachable."""

_LONGEST_PROBATION = 30.0
"""Seconds of that at most; it doubles each time that the server fails again within `_RELAPSE`."""

_RELAPSE = 60.0
"""Seconds after the end of an episode within which a failure makes the next one longer."""


class Upstream:
    """Connects to `endpoint`, with retries.

    `name` identifies the server in log lines.  `timeout` is the number of seconds that a request for a connection may
    take, including time in the queue and all retries.
    """

    log = Logger()

    def __init__(self, endpoint: IStreamClientEndpoint, name: str, clock: IReactorTime, timeout: float) -> None:
        self._endpoint = endpoint
        self.name = one_line(name)
        self._clock = clock
        self._timeout = timeout
        self._deadlines: Deadlines[Any] = Deadlines(clock)
        self._trying: dict[Deferred[Any], Deferred[Any]] = {}
        """Requests with an attempt of their own in progress, each with its attempt."""
        self._waiting: Waiting = {}
        """The queue: requests that wait for the server to become reachable or for their batch, oldest first."""
        self._knocking: Deferred[Any] | None = None
        """The attempt in progress for the whole queue."""
        self._timer: IDelayedCall | None = None
        self._pause = _FIRST_PAUSE
        self._share = 1
        """Number of queued requests per batch."""
        self._failing = False
        """Whether the last attempt failed, so that requests queue."""
        self._recovering: IDelayedCall | None = None
        """The end of the episode, if nothing fails until then."""
        self._probation = _PROBATION
        self._recovered_at = float("-inf")
        self._failed_at = float("-inf")
        self._heard_at = float("-inf")
        self._last: Exception = error.TimeoutError()
        self.error: str | None = None
        """Why the server is unreachable, in words: why the last failed attempt failed; `None` if it is not."""
        self.reason: str | None = None
        """The same in a word, by which the sessions that fail for it are counted."""
        if isinstance(endpoint, ArrivalEndpoint):
            endpoint.rejected = self._failed

    def unreachable(self, within: float) -> str | None:
        """Return why the server is unreachable, if an attempt failed at most `within` seconds ago; otherwise `None`."""
        return self.error if self._clock.seconds() - self._failed_at <= within else None

    @property
    def silence(self) -> float:
        """Seconds since the last attempt succeeded or failed; infinite before the first."""
        return self._clock.seconds() - self._heard_at

    @property
    def state(self) -> str:
        """``reachable`` or ``unreachable``; ``unknown`` before the first attempt."""
        if self.error is not None:
            return "unreachable"
        return "unknown" if self._heard_at < 0 else "reachable"

    async def probe(self, timeout: float) -> None:
        """Check whether a connection can be made within `timeout` seconds and stays open, and close it again."""
        probe = _Probe()
        trying = self._endpoint.connect(Factory.forProtocol(lambda: probe))
        trying.addTimeout(timeout, Limit(self._deadlines))  # type: ignore[arg-type]
        try:
            await trying
            self._deadlines.set(probe, _LINGER, probe.stayed)
            await probe.over
        except DeferredTimeout:
            self._failed(_NoAnswer(timeout))
        except Exception as reason:
            self._failed(_cause(reason, timeout))
        else:
            self._succeeded()
        finally:
            self._deadlines.clear(probe)

    def connect(self, factory: IProtocolFactory) -> Deferred[Any]:
        """Connect `factory`; the Deferred fires with its protocol, at once if the endpoint connects at once.

        After `timeout` seconds it fails with the error of the last failed attempt, or `TimeoutError` if there was
        none.  It can be cancelled.
        """
        first = None if self._failing else self._endpoint.connect(factory)
        if first is not None and first.called and not isinstance(first.result, Failure):
            self._succeeded()
            return first
        connecting: Deferred[Any] = Deferred(self._leave)
        if first is not None:
            self._follow(first, connecting, factory)
        else:
            self._waiting[connecting] = factory
            if self._timer is None:
                self._go_on()
        if not connecting.called:
            self._deadlines.set(connecting, self._timeout, partial(self._expire, connecting))
        return connecting

    def _follow(self, attempt: Deferred[Any], connecting: Deferred[Any], factory: IProtocolFactory) -> None:
        self._trying[connecting] = attempt
        if self._timeout > _LONGEST_KNOCK and not attempt.called:
            self._deadlines.set(attempt, _LONGEST_KNOCK, attempt.cancel)
            attempt.addBoth(self._answered, attempt)
        attempt.addCallbacks(self._made, self._not_made, callbackArgs=(connecting,), errbackArgs=(connecting, factory))

    def _answered(self, result: Any, attempt: Deferred[Any]) -> Any:
        self._deadlines.clear(attempt)
        return result

    def _made(self, protocol: Any, connecting: Deferred[Any]) -> None:
        self._trying.pop(connecting, None)
        self._succeeded()
        self._fire(connecting, protocol)

    def _not_made(self, failure: Failure, connecting: Deferred[Any], factory: IProtocolFactory) -> None:
        # If it is missing, it expired or was cancelled, and so cancelled this attempt.
        if self._trying.pop(connecting, None) is not None:
            self._waiting[connecting] = factory
            # If it was cancelled, that was `_expire`.
            self._failed(_cause(failure.value, min(self._timeout, _LONGEST_KNOCK)))
            self._go_on_after(self._pause)

    def _fire(self, connecting: Deferred[Any], protocol: Any) -> None:
        self._deadlines.clear(connecting)
        if not connecting.called:
            connecting.callback(protocol)

    def _leave(self, connecting: Deferred[Any]) -> None:
        """Remove a request that was cancelled or has expired, and cancel attempts that nobody needs any more."""
        self._deadlines.clear(connecting)
        attempt = self._trying.pop(connecting, None)
        if attempt is not None:
            attempt.cancel()
        self._waiting.pop(connecting, None)
        if not self._waiting:
            self._stop_waiting()

    def _expire(self, connecting: Deferred[Any]) -> None:
        attempt = self._trying.get(connecting)
        if attempt is not None:
            # Its failure says what it was waiting for.
            attempt.cancel()
        self._leave(connecting)
        connecting.errback(self._last)

    def _go_on_after(self, pause: float) -> None:
        if self._timer is None:
            # Randomized, so that several proxies do not retry in step.
            self._timer = self._clock.callLater(pause * random.uniform(0.5, 1.0), self._go_on)

    def _go_on(self) -> None:
        """Make an attempt for the queue, or connect its next batch if the server is reachable again."""
        self._timer = None
        if not self._failing:
            for connecting, factory in list(islice(self._waiting.items(), self._share)):
                del self._waiting[connecting]
                self._follow(self._endpoint.connect(factory), connecting, factory)
                if self._failing:
                    return
            if self._waiting:
                self._go_on_after(_STEP)
        elif self._waiting and self._knocking is None:
            self._knock()

    def _knock(self) -> None:
        first = _First(self._waiting)
        self._knocking = attempt = self._endpoint.connect(first)
        self._deadlines.set(attempt, min(self._timeout, _LONGEST_KNOCK), attempt.cancel)
        attempt.addCallbacks(self._let_in, self._not_let_in, callbackArgs=(attempt, first), errbackArgs=(attempt,))

    def _let_in(self, protocol: Any, attempt: Deferred[Any], first: _First) -> None:
        self._knocking = None
        self._deadlines.clear(attempt)
        self._succeeded()
        if first.connecting is not None:
            self._fire(first.connecting, protocol)
        else:
            protocol.transport.loseConnection()

    def _not_let_in(self, failure: Failure, attempt: Deferred[Any]) -> None:
        self._knocking = None
        if attempt not in self._deadlines:
            self._failed(_cause(failure.value, min(self._timeout, _LONGEST_KNOCK)))
        elif failure.check(CancelledError, error.ConnectingCancelledError) is None:
            self._failed(failure.value)
        self._deadlines.clear(attempt)
        if self._waiting:
            self._go_on_after(self._pause)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _stop_waiting(self) -> None:
        if self._knocking is not None:
            self._knocking.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _failed(self, reason: Any) -> None:
        self._failed_at = self._heard_at = self._clock.seconds()
        self._last = reason
        self._failing = True
        if self._recovering is not None:
            self._recovering.cancel()
            self._recovering = None
        began = self.error is None
        self.error, self.reason = one_line(words(reason)), counted_as(reason)
        if began:
            is_relapse = self._failed_at - self._recovered_at <= _RELAPSE
            self._probation = min(2 * self._probation, _LONGEST_PROBATION) if is_relapse else _PROBATION
            self.log.warn("cannot connect to upstream {name}: {error}", name=self.name, error=self.error)

    def _succeeded(self) -> None:
        self._heard_at = self._clock.seconds()
        if self._failing:
            self._failing = False
            self._recovering = self._clock.callLater(self._probation, self._recovered)
            self._pause = _FIRST_PAUSE
            self._share = math.ceil(len(self._waiting) * _STEP / _SPREAD)
            self._stop_waiting()
            if self._waiting:
                self._go_on_after(_STEP)

    def _recovered(self) -> None:
        self._recovering = None
        self._recovered_at = self._clock.seconds()
        self.error = self.reason = None
        self.log.info("connected to upstream {name} again", name=self.name)


class _Probe(Protocol):
    """A connection that only shows whether the peer keeps it; `over` fires when that is known."""

    transport: Any

    def __init__(self) -> None:
        self.over: Deferred[None] = Deferred()

    def stayed(self) -> None:
        """Close: the peer has kept the connection."""
        self.over.callback(None)
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fail if the peer has closed first."""
        if not self.over.called:
            tls = is_tls(reason.value)
            self.over.errback(HandshakeError(words(reason.value)) if tls else _ClosedAtOnce())


class _First(Factory):
    """Takes the oldest request from the queue `waiting` once the connection is made, and builds its protocol."""

    noisy = False

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self.connecting: Deferred[Any] | None = None
        """The request that was served; `None` if the queue was empty."""

    def buildProtocol(self, addr: Any) -> Any:
        """Build the protocol of the oldest request, or one that does nothing if the queue is empty."""
        if not self._waiting:
            return Protocol()
        self.connecting = next(iter(self._waiting))
        return self._waiting.pop(self.connecting).buildProtocol(addr)


def _cause(reason: Any, seconds: float) -> Any:
    """Return why an attempt failed with `reason`; if it was cancelled, that was after `seconds` without an answer."""
    if isinstance(reason, HandshakeCancelled):
        return HandshakeError(f"no answer within {seconds:g} s")
    return _NoAnswer(seconds) if isinstance(reason, (CancelledError, error.ConnectingCancelledError)) else reason


class _ClosedAtOnce(error.ConnectError):
    """The peer accepts connections, but does not keep them."""

    def __str__(self) -> str:
        return "it closes connections as soon as they are made"


class _NoAnswer(error.TimeoutError):
    """An attempt was not answered within `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(string=f"no answer within {seconds:g} s")

    def __str__(self) -> str:
        return str(self.args[0])
