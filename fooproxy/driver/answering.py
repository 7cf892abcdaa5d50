"""One connection of ``foo-server``: answers each request in order, with a digest of the request's data.

It behaves as real Foo servers do: it answers a line that it cannot decode with ``NAK 0 ERRDECODE`` and continues, it
answers a last request without a newline at FIN, and it keeps its own side open after FIN.
It knows nothing of any proxy.  Memory per connection is bounded: the server stops reading from a client that does not
read its replies.
"""

from __future__ import annotations

from collections import deque
from random import Random
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IPushProducer, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from zope.interface import implementer

from fooproxy.driver.messages import CANNOT_DECODE, Request, RequestReader, reply

if TYPE_CHECKING:
    from collections.abc import Iterable

    from twisted.internet.interfaces import IDelayedCall, IReactorTime
    from twisted.python.failure import Failure

# Bytes of delayed replies on one connection above which the server stops reading its requests.
_WAITING_LIMIT = 16 * 1024 * 1024


@implementer(IHalfCloseableProtocol, IPushProducer)
class FooServer(Protocol):
    """Answers the requests of one connection; `FooServerFactory` explains the arguments.

    `closed` fires when the connection is closed.
    """

    def __init__(
        self, clock: IReactorTime, random: Random, nak_rate: float, delay: float, close_after_fin: bool
    ) -> None:
        self.closed: Deferred[None] = Deferred()
        self._clock = clock
        self._random = random
        self._nak_rate = nak_rate
        self._delay = delay
        self._close_after_fin = close_after_fin
        self._reader = RequestReader()
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._waiting_size = 0
        self._timer: IDelayedCall | None = None
        self._transport_full = False
        self._reading = True
        self._fin_seen = False

    def connectionMade(self) -> None:
        """Register for flow control: the transport pauses us when replies pile up."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self._transport.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        """Answer the requests that `data` completes."""
        self._answer(self._reader.feed(data))

    def readConnectionLost(self) -> None:
        """Handle the client's FIN, which also completes a last request."""
        self._fin_seen = True
        self._answer(self._reader.end())
        self._close_when_done()

    def writeConnectionLost(self) -> None:
        """Nothing to do: this side is never half-closed."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Drop the delayed replies."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.closed.callback(None)

    def abort(self) -> None:
        """Abort the connection and drop all unsent replies."""
        self._transport.abortConnection()

    def pauseProducing(self) -> None:
        """Stop answering: the client does not read its replies."""
        self._transport_full = True
        self._regulate()

    def resumeProducing(self) -> None:
        """Continue answering."""
        self._transport_full = False
        self._regulate()

    def stopProducing(self) -> None:
        """Nothing to do: the transport calls `connectionLost` as well."""

    @property
    def _transport(self) -> Any:
        # A TCP transport is also a consumer and a producer; the annotation on Protocol promises less.
        return self.transport

    def _answer(self, requests: Iterable[Request | None]) -> None:
        replies = b"".join(map(self._reply, requests))
        if not replies:
            return
        if not self._delay:
            self._transport.write(replies)
            return
        self._waiting.append((self._clock.seconds() + self._delay, replies))
        self._waiting_size += len(replies)
        if self._timer is None:
            self._timer = self._clock.callLater(self._delay, self._release)
        self._regulate()

    def _reply(self, request: Request | None) -> bytes:
        if request is None:
            return CANNOT_DECODE
        return reply(b"NAK" if self._random.random() < self._nak_rate else b"ACK", request)

    def _release(self) -> None:
        """Send the replies that are due; a single timer keeps them in order."""
        self._timer = None
        now = self._clock.seconds()
        while self._waiting and self._waiting[0][0] <= now:
            _, replies = self._waiting.popleft()
            self._waiting_size -= len(replies)
            self._transport.write(replies)
        if self._waiting:
            self._timer = self._clock.callLater(self._waiting[0][0] - now, self._release)
        self._regulate()
        self._close_when_done()

    def _regulate(self) -> None:
        """Read requests only while there is room for their replies."""
        reading = not self._transport_full and self._waiting_size < _WAITING_LIMIT
        # After FIN there is nothing to read, and resuming would make Twisted report the FIN again.
        if reading is self._reading or self._fin_seen:
            return
        self._reading = reading
        if reading:
            self._transport.resumeProducing()
        else:
            self._transport.pauseProducing()

    def _close_when_done(self) -> None:
        if self._fin_seen and self._close_after_fin and not self._waiting:
            # While a producer is registered, the transport waits for it and never closes.
            self._transport.unregisterProducer()
            self._transport.loseConnection()


class FooServerFactory(Factory):
    """Makes a `FooServer` for each connection.

    `nak_rate` is the share of requests, 0 to 1, that get a NAK; `seed` and the order in which connections are accepted
    determine which ones.  `delay` is the time from a request's arrival to its reply, in seconds.
    Connections stay open after the client's FIN, unless `close_after_fin` or `disconnect` closes them.
    """

    noisy = False

    def __init__(
        self,
        clock: IReactorTime,
        *,
        nak_rate: float = 0.0,
        delay: float = 0.0,
        seed: int | None = None,
        close_after_fin: bool = False,
    ) -> None:
        self._clock = clock
        self._nak_rate = nak_rate
        self._delay = delay
        self._seed = seed
        self._close_after_fin = close_after_fin
        self._accepted = 0
        self._open: set[FooServer] = set()

    def buildProtocol(self, addr: IAddress | None) -> FooServer:
        """Make the protocol for the next connection."""
        self._accepted += 1
        random = Random() if self._seed is None else Random(f"{self._seed}/{self._accepted}")
        protocol = FooServer(self._clock, random, self._nak_rate, self._delay, self._close_after_fin)
        self._open.add(protocol)
        protocol.closed.addCallback(lambda _: self._open.discard(protocol))
        return protocol

    @property
    def connections(self) -> int:
        """Number of open connections."""
        return len(self._open)

    async def disconnect(self) -> None:
        """Abort every connection and wait until all are closed."""
        protocols = list(self._open)
        for protocol in protocols:
            protocol.abort()
        for protocol in protocols:
            await protocol.closed
