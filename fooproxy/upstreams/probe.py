"""Probes: connect to a server, check that the connection stays open, and say why an attempt failed.

A load balancer or a proxy in front of a dead server accepts connections and closes them at once, so a server counts as
reachable only if it keeps a connection open for a moment.

This module knows neither what is probed nor what follows from it.  `fooproxy.upstreams.server` calls it, for health,
for checks and to try a server again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.protocol import Factory, Protocol, connectionDone

from fooproxy.net.deadlines import Limit
from fooproxy.net.failures import HandshakeCancelled, HandshakeError, is_tls, words

if TYPE_CHECKING:
    from twisted.internet.interfaces import IStreamClientEndpoint
    from twisted.python.failure import Failure

    from fooproxy.net.deadlines import Deadlines

_LINGER = 0.2
"""Seconds for which a connection must stay open; a load balancer in front of a dead server closes it at once."""


async def stays(endpoint: IStreamClientEndpoint, timeout: float, deadlines: Deadlines[Any]) -> None:
    """Connect within `timeout` seconds, and close after a moment; fail if that fails or the peer closes first."""
    probe = _Probe()
    trying = endpoint.connect(Factory.forProtocol(lambda: probe))
    trying.addTimeout(timeout, Limit(deadlines))  # type: ignore[arg-type]
    try:
        await trying
        deadlines.set(probe, _LINGER, probe.stayed)
        await probe.over
    except DeferredTimeout:
        raise NoAnswer(timeout) from None
    finally:
        deadlines.clear(probe)
        probe.close()


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
        """Close the connection, if there is one; nothing waits for `over` any more."""
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
