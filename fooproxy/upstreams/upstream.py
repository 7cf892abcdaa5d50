"""The way to the upstream: one attempt for each connection while it is well, few for all while it is in trouble.

After an attempt has failed, nobody tries on his own.  All who want a connection wait together, and one attempt at a
time is made for them, with pauses that grow up to `_LONGEST_PAUSE` and are never quite the same.  The first success
gives its connection to who has waited longest, lets the others follow spread over `_SPREAD`, and begins with short
pauses next time.  So a server that restarts is neither knocked at by a thousand clients nor stormed by them.

It knows no sessions and no messages; the service hands its `connect` to the bridge.
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
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from fooproxy.net.deadlines import Deadlines

if TYPE_CHECKING:
    from twisted.internet.interfaces import (
        IDelayedCall,
        IProtocolFactory,
        IReactorTime,
        IStreamClientEndpoint,
    )

    Waiting = dict[Deferred[Any], IProtocolFactory]

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0

_LONGEST_KNOCK = 5.0
"""Seconds after which a new attempt is made for those who wait: the kernel's own retries get ever rarer."""

_SPREAD = 0.5
"""Seconds over which those who have waited follow the first."""

_STEP = 0.01
"""Seconds between two groups of them."""


class Upstream:
    """Connects to `endpoint`.

    `name` is what log lines call it, `timeout` the seconds that connecting may take, with all its retries.
    """

    log = Logger()

    def __init__(self, endpoint: IStreamClientEndpoint, name: str, clock: IReactorTime, timeout: float) -> None:
        self._endpoint = endpoint
        self.name = name
        self._clock = clock
        self._timeout = timeout
        self._deadlines: Deadlines[Deferred[Any]] = Deadlines(clock)
        self._trying: dict[Deferred[Any], Deferred[Any]] = {}
        """Who has an attempt of his own under way."""
        self._waiting: Waiting = {}
        """Who waits for the upstream to come back, or to let him in; the longest first."""
        self._knocking: Deferred[Any] | None = None
        """The one attempt for all of these."""
        self._timer: IDelayedCall | None = None
        self._pause = _FIRST_PAUSE
        self._share = 1
        """How many follow at a time."""
        self._failed_at = float("-inf")
        self._heard_at = float("-inf")
        self._last: Exception = error.TimeoutError()
        self.error: str | None = None
        """Why it could not be connected last time; `None` after a success, and before the first attempt."""

    def unreachable(self, within: float) -> str | None:
        """Say why the upstream is unreachable, if it was found to be so less than `within` seconds ago."""
        return self.error if self._clock.seconds() - self._failed_at <= within else None

    @property
    def silence(self) -> float:
        """Seconds since an attempt to connect succeeded or failed."""
        return self._clock.seconds() - self._heard_at

    @property
    def state(self) -> str:
        """What the last attempt to connect showed: ``reachable``, ``unreachable``, or ``unknown`` before the first."""
        if self.error is not None:
            return "unreachable"
        return "unknown" if self._heard_at < 0 else "reachable"

    async def probe(self, timeout: float) -> None:
        """Connect, for at most `timeout` seconds, just to see whether that works, and close."""
        trying = self._endpoint.connect(Factory.forProtocol(Protocol))
        trying.addTimeout(timeout, self._clock)
        try:
            protocol: Any = await trying
        except (DeferredTimeout, error.ConnectingCancelledError):
            self._failed(_NoAnswer(timeout))
        except Exception as reason:
            self._failed(reason)
        else:
            self._succeeded()
            protocol.transport.loseConnection()

    def connect(self, factory: IProtocolFactory) -> Deferred[Any]:
        """Connect `factory`; fires with its protocol, at once if the first attempt does.

        Fails with the last error that any attempt met, or `TimeoutError` when there was none.  Can be cancelled.
        """
        first = self._endpoint.connect(factory) if self.error is None else None
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
        attempt.addCallbacks(self._made, self._not_made, callbackArgs=(connecting,), errbackArgs=(connecting, factory))

    def _made(self, protocol: Any, connecting: Deferred[Any]) -> None:
        self._trying.pop(connecting, None)
        self._succeeded()
        self._fire(connecting, protocol)

    def _not_made(self, failure: Failure, connecting: Deferred[Any], factory: IProtocolFactory) -> None:
        # Who is gone took his attempt back himself.
        if self._trying.pop(connecting, None) is not None:
            self._waiting[connecting] = factory
            self._failed(failure.value)
            self._go_on_after(self._pause)

    def _fire(self, connecting: Deferred[Any], protocol: Any) -> None:
        self._deadlines.clear(connecting)
        if not connecting.called:
            connecting.callback(protocol)

    def _leave(self, connecting: Deferred[Any]) -> None:
        """Forget who wants no connection any more."""
        self._deadlines.clear(connecting)
        attempt = self._trying.pop(connecting, None)
        if attempt is not None:
            attempt.cancel()
        self._waiting.pop(connecting, None)
        if not self._waiting and self._knocking is not None:
            self._knocking.cancel()

    def _expire(self, connecting: Deferred[Any]) -> None:
        if connecting in self._trying:
            self._failed(_NoAnswer(self._timeout))
        self._leave(connecting)
        connecting.errback(self._last)

    def _go_on_after(self, pause: float) -> None:
        if self._timer is None:
            # Spread, so that several proxies do not go on in step.
            self._timer = self._clock.callLater(pause * random.uniform(0.5, 1.0), self._go_on)

    def _go_on(self) -> None:
        """Knock for those who wait, or let some of them in."""
        self._timer = None
        if self.error is None:
            for connecting, factory in list(islice(self._waiting.items(), self._share)):
                del self._waiting[connecting]
                self._follow(self._endpoint.connect(factory), connecting, factory)
                if self.error is not None:
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
            self._failed(_NoAnswer(min(self._timeout, _LONGEST_KNOCK)))
        elif failure.check(CancelledError, error.ConnectingCancelledError) is None:
            self._failed(failure.value)
        self._deadlines.clear(attempt)
        if self._waiting:
            self._go_on_after(self._pause)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _failed(self, reason: Any) -> None:
        self._failed_at = self._heard_at = self._clock.seconds()
        self._last = reason
        why = str(reason) or type(reason).__name__
        if self.error is None:
            self.log.warn("the upstream {name} cannot be connected: {error}", name=self.name, error=why)
        self.error = why

    def _succeeded(self) -> None:
        self._heard_at = self._clock.seconds()
        if self.error is not None:
            self.error = None
            self.log.info("the upstream {name} can be connected again", name=self.name)
            self._pause = _FIRST_PAUSE
            self._share = math.ceil(len(self._waiting) * _STEP / _SPREAD)
            if self._knocking is not None:
                self._knocking.cancel()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._waiting:
                self._go_on_after(_STEP)


class _First(Factory):
    """Builds the protocol of whoever of those `waiting` has waited longest when the connection is made."""

    noisy = False

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self.connecting: Deferred[Any] | None = None
        """Who that was; `None` if nobody waits any more."""

    def buildProtocol(self, addr: Any) -> Any:
        """Build it."""
        if not self._waiting:
            return Protocol()
        self.connecting = next(iter(self._waiting))
        return self._waiting.pop(self.connecting).buildProtocol(addr)


class _NoAnswer(error.TimeoutError):
    """Nothing was heard for so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__(string=f"no answer within {seconds:g} s")

    def __str__(self) -> str:
        return str(self.args[0])
