"""The interceptor: sits between a leg's transport and its protocol, and shows every chunk to an analyzer.

It never alters, delays or fails a chunk, and it stays out of the way of what the protocol writes.  It knows neither
what is done with the counts nor what the wrapped protocol does.  The service wraps the bridge's two factories in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from zope.interface import implementer

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IAddress, ITransport
    from twisted.python.failure import Failure

    from fooproxy.net.pump import Tap


@implementer(IHalfCloseableProtocol)
class Interceptor(Protocol):
    """Wraps `wrapped`, a half-closeable protocol, so that `tap` gets every chunk first, with the time on `clock`.

    `clock` gives microseconds, as the pump does.
    """

    log = Logger()

    def __init__(self, wrapped: Any, tap: Tap, clock: Callable[[], int]) -> None:
        self.wrapped = wrapped
        self.tap = tap
        self.clock = clock

    def makeConnection(self, transport: ITransport) -> None:
        """Connect the wrapped protocol to the transport itself: writes need no interception."""
        self.wrapped.makeConnection(transport)

    def dataReceived(self, data: bytes) -> None:
        """Show the chunk, then let it through."""
        try:
            self.tap.feed(data, self.clock())
        except Exception:
            self.log.failure("the analysis failed; the traffic goes on, but the counts may be wrong from here on")
        self.wrapped.dataReceived(data)

    def readConnectionLost(self) -> None:
        """Let the FIN through."""
        self.wrapped.readConnectionLost()

    def writeConnectionLost(self) -> None:
        """Let it through."""
        self.wrapped.writeConnectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Let it through."""
        self.wrapped.connectionLost(reason)


class InterceptorFactory(Factory):
    """Wraps the factory `wrapped`: each protocol it builds is intercepted, with what `tap` gives for it."""

    noisy = False

    def __init__(self, wrapped: Any, tap: Callable[[Any], Tap], clock: Callable[[], int]) -> None:
        self.wrapped = wrapped
        self._tap = tap
        self._clock = clock

    def buildProtocol(self, addr: IAddress | None) -> Interceptor:
        """Build the wrapped factory's protocol, intercepted."""
        protocol = self.wrapped.buildProtocol(addr)
        return Interceptor(protocol, self._tap(protocol), self._clock)

    def doStart(self) -> None:
        """Start the wrapped factory."""
        self.wrapped.doStart()

    def doStop(self) -> None:
        """Stop the wrapped factory."""
        self.wrapped.doStop()
