"""The way to the upstream: connects, tries again with growing pauses, and gives up in time.

It knows no sessions and no messages; the service hands its `connect` to the bridge.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from fooproxy.deadlines import Deadlines

if TYPE_CHECKING:
    from twisted.internet.interfaces import IProtocolFactory, IReactorTime, IStreamClientEndpoint

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0


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
        self._failed_at = float("-inf")
        self._heard_at = float("-inf")
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
            self._failed(f"no answer within {timeout:g} s")
        except Exception as reason:
            self._failed(_words(reason))
        else:
            self._succeeded()
            protocol.transport.loseConnection()

    def connect(self, factory: IProtocolFactory) -> Deferred[Any]:
        """Connect `factory`; fires with its protocol, at once if the first attempt does.

        Fails with the last error that any attempt met, or `TimeoutError` when there was none.  Can be cancelled.
        """
        first = self._endpoint.connect(factory)
        if first.called and not isinstance(first.result, Failure):
            self._succeeded()
            return first
        met: list[Exception] = []
        connecting: Deferred[Any] = Deferred.fromCoroutine(self._attempts(factory, first, met))
        self._deadlines.set(connecting, self._timeout, connecting.cancel)
        connecting.addBoth(self._settled, connecting, met)
        return connecting

    def _settled(self, result: Any, connecting: Deferred[Any], met: list[Exception]) -> Any:
        if connecting not in self._deadlines:
            if not met:
                met.append(error.TimeoutError(f"no answer within {self._timeout:g} s"))
                self._failed(f"no answer within {self._timeout:g} s")
            return Failure(met[-1])
        self._deadlines.clear(connecting)
        return result

    async def _attempts(self, factory: IProtocolFactory, attempt: Deferred[Any], met: list[Exception]) -> Any:
        pause = _FIRST_PAUSE
        while True:
            try:
                protocol = await attempt
            except (CancelledError, error.ConnectingCancelledError):
                raise
            except Exception as reason:
                met.append(reason)
                del met[:-1]
                self._failed(_words(reason))
            else:
                self._succeeded()
                return protocol
            # Spread over half the pause, so that a restarted server does not get all sessions at one instant.
            await deferLater(self._clock, pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)
            attempt = self._endpoint.connect(factory)

    def _failed(self, why: str) -> None:
        self._failed_at = self._heard_at = self._clock.seconds()
        if self.error is None:
            self.log.warn("the upstream {name} cannot be connected: {error}", name=self.name, error=why)
        self.error = why

    def _succeeded(self) -> None:
        self._heard_at = self._clock.seconds()
        if self.error is not None:
            self.error = None
            self.log.info("the upstream {name} can be connected again", name=self.name)


def _words(reason: Exception) -> str:
    return str(reason) or type(reason).__name__
