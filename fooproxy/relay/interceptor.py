"""The interceptor: sits between a leg's transport and its protocol, and shows every chunk to an analyzer.

It never alters, delays or loses a chunk, even if the analyzer raises.  The protocol's writes go straight to the
transport.  It knows neither what the analyzer does with the chunks nor what the wrapped protocol is.  `fooproxy.parts`
wraps the factories of both legs in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IHalfCloseableProtocol, IHandshakeListener, IProtocol
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from zope.interface import implementer

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IAddress, ITransport
    from twisted.python.failure import Failure

    from fooproxy.net.pump import Tap


@implementer(IProtocol, IHalfCloseableProtocol, IHandshakeListener)
class Interceptor:
    """Passes every chunk to `tap`, with the time it was received, and then to `wrapped`, a half-closeable protocol.

    `clock` returns microseconds on a monotonic clock, the same one that the pump uses.
    """

    log = Logger()

    # Not Twisted's `Protocol`: it has nothing of use here, and would give each interceptor a dictionary.
    __slots__ = ("clock", "tap", "transport", "wrapped")

    def __init__(self, wrapped: Any, tap: Tap, clock: Callable[[], int]) -> None:
        self.wrapped = wrapped
        self.tap = tap
        self.clock = clock

    def makeConnection(self, transport: ITransport) -> None:
        """Connect the wrapped protocol directly to the transport: writes need no interception."""
        self.transport: Any = transport
        self.wrapped.makeConnection(transport)

    def connectionMade(self) -> None:
        """Do nothing, since `makeConnection` has connected the wrapped protocol already."""

    def dataReceived(self, data: bytes) -> None:
        """Show the chunk to the tap, then pass it on."""
        try:
            self.tap.feed(data, self.clock())
        except Exception:
            self.log.failure(
                "the analyzer failed; traffic continues, but its figures may be wrong from now on",
                limited="failures of the analyzer",
            )
        self.wrapped.dataReceived(data)

    def dataWaits(self) -> None:
        """Pass on that awaited data has arrived; it has not been read yet."""
        self.wrapped.dataWaits()

    def handshakeCompleted(self) -> None:
        """Pass on that the TLS handshake is done."""
        self.wrapped.handshakeCompleted()

    def readConnectionLost(self) -> None:
        """Pass on that the peer sent a FIN."""
        self.wrapped.readConnectionLost()

    def writeConnectionLost(self) -> None:
        """Pass on that our FIN was sent."""
        self.wrapped.writeConnectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Pass on that the connection ended."""
        self.wrapped.connectionLost(reason)


class WatchedInterceptor(Interceptor):
    """An interceptor that also calls `when_lost` when the connection is gone."""

    __slots__ = ("when_lost",)

    def __init__(self, wrapped: Any, tap: Tap, clock: Callable[[], int]) -> None:
        super().__init__(wrapped, tap, clock)
        self.when_lost: Callable[[], object] = lambda: None

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Pass on that the connection ended, and call `when_lost`."""
        try:
            super().connectionLost(reason)
        finally:
            self.when_lost()


class InterceptorFactory(Factory):
    """Wraps the factory `wrapped` and intercepts each protocol that it builds; `tap` returns the tap of a protocol."""

    interceptor = Interceptor

    noisy = False

    def __init__(self, wrapped: Any, tap: Callable[[Any], Tap], clock: Callable[[], int]) -> None:
        self.wrapped = wrapped
        self.tap = tap
        self.clock = clock

    def buildProtocol(self, addr: IAddress | None) -> Interceptor:  # type: ignore[override]
        """Build a protocol with the wrapped factory, and intercept it."""
        protocol = self.wrapped.buildProtocol(addr)
        return self.interceptor(protocol, self.tap(protocol), self.clock)

    def doStart(self) -> None:
        """Start the wrapped factory."""
        self.wrapped.doStart()

    def doStop(self) -> None:
        """Stop the wrapped factory."""
        self.wrapped.doStop()


class WatchedFactory(InterceptorFactory):
    """Intercepts each protocol with a `WatchedInterceptor`."""

    interceptor = WatchedInterceptor
