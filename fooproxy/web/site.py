"""HTTP as such, for the web side: requests, connections, and the limits that keep both from harming the relay.

A connection carries one request, and requests are answered one in a turn of the event loop, so that the relay has its
own turns between them.  A connection ends when its request has not arrived as a whole within `REQUEST_TIMEOUT`, or its
answer has not been taken within `ANSWER_TIMEOUT`, however busy it keeps itself; and the oldest one ends when there are
more than `MOST_CONNECTIONS`, so that those who dawdle cannot keep others out.

It knows nothing of what is answered; `fooproxy.web.resource` does.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from twisted.internet.protocol import connectionDone
from twisted.web.http import HTTPChannel
from twisted.web.server import Request, Site

from fooproxy.net.deadlines import Deadlines

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IReactorTime
    from twisted.python.failure import Failure
    from twisted.web.resource import IResource

MOST_CONNECTIONS = 100
"""Connections that are open at one time; one more closes the one that has been open longest."""

REQUEST_TIMEOUT = 10.0
"""Seconds in which a request has to arrive as a whole."""

ANSWER_TIMEOUT = 30.0
"""Seconds in which an answer has to be made and taken."""

LARGEST_BODY = 1 << 20
"""Bytes of a body that are read and dropped; with more, the request is refused."""

_TOO_LARGE = b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\n\r\n"


class Channel(HTTPChannel):
    """A connection; its heads may have 16 KiB, in no more lines than these."""

    maxHeaders = 100
    site: QuietSite
    transport: Any

    def connectionMade(self) -> None:
        """Begin."""
        super().connectionMade()
        self.site.opened(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """End."""
        self.site.closed(self)
        super().connectionLost(reason)

    def abort(self) -> None:
        """Close at once, whatever is left to be sent."""
        self.transport.abortConnection()


class PlainRequest(Request):
    """A request of which only method, path and headers matter; what clients can do with the rest is undone."""

    channel: Any
    _body = 0
    _refused = False

    def gotLength(self, length: int | None) -> None:
        """Make no room for a body, and refuse one that is announced to be too large."""
        super().gotLength(0)
        if length is not None and length > LARGEST_BODY:
            self._refuse()

    def handleContentChunk(self, data: bytes) -> None:
        """Drop the body: nothing here takes one, and spooling it could fill the disk."""
        self._body += len(data)
        if self._body > LARGEST_BODY:
            self._refuse()

    def _refuse(self) -> None:
        if not self._refused:
            self._refused = True
            self.channel.transport.write(_TOO_LARGE)
            self.channel.loseConnection()

    def process(self) -> None:
        """Serve the request, the only one of its connection: who sends many at once must not hold up the relay."""
        self.channel.persistent = False
        self.setHeader("Connection", "close")
        # Nothing here depends on the host, and odd ones make the routing fail.
        self.requestHeaders.setRawHeaders(b"host", [b"fooproxy"])
        if b"://" in self.path:
            # The absolute form, which a server has to take too.
            self.path = b"/" + self.path.split(b"://", 1)[1].partition(b"/")[2]
        try:
            unquote_to_bytes(self.path).decode()
        except UnicodeDecodeError:
            self.path = b"/not-a-text"
        if not self.path.startswith(b"/"):
            self.path = b"/"
        self.uri = self.path
        self.channel.site.arrived(self.channel, self._answer)

    def _answer(self) -> None:
        if not (self._disconnected or self._refused):
            super().process()


class QuietSite(Site):
    """Serves `resource` within the limits, and keeps no access log: health checks would fill it."""

    noisy = False
    protocol = Channel  # type: ignore[assignment]
    requestFactory = PlainRequest

    def __init__(self, resource: IResource, clock: IReactorTime) -> None:
        # The deadlines stand in for Twisted's timeout, which starts anew with each byte.
        super().__init__(resource, timeout=None, reactor=clock)
        self._clock = clock
        self._deadlines: Deadlines[Channel] = Deadlines(clock)
        self._open: dict[Channel, None] = {}
        self._waiting: deque[Callable[[], None]] = deque()

    def opened(self, channel: Channel) -> None:
        """Take a connection."""
        self._open[channel] = None
        self._deadlines.set(channel, REQUEST_TIMEOUT, channel.abort)
        if len(self._open) > MOST_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.abort()

    def arrived(self, channel: Channel, answer: Callable[[], None]) -> None:
        """Take the request of a connection, to call `answer` when it is its turn."""
        self._deadlines.set(channel, ANSWER_TIMEOUT, channel.abort)
        self._waiting.append(answer)
        if len(self._waiting) == 1:
            self._clock.callLater(0, self._next)

    def _next(self) -> None:
        answer = self._waiting.popleft()
        if self._waiting:
            self._clock.callLater(0, self._next)
        answer()

    def closed(self, channel: Channel) -> None:
        """Take the end of a connection."""
        self._open.pop(channel, None)
        self._deadlines.clear(channel)

    def log(self, request: object) -> None:
        """Write nothing."""
