"""The HTTP server of the web side: connections, requests, and limits that keep both from harming the relay.

Each connection carries one request, and each turn of the event loop answers one request, so that the relay gets its
turns in between.  A connection is closed if its request has not arrived completely within `REQUEST_TIMEOUT`, or if the
client has not read the answer within `ANSWER_TIMEOUT`, however active it is.  Above `MOST_CONNECTIONS`, the oldest
connection is closed, so that slow clients cannot keep others out.

This module does not know what the answers contain; `fooproxy.web.resource` does, and creates the site.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from twisted.internet.protocol import connectionDone
from twisted.web.http import HTTPChannel
from twisted.web.server import Request, Site

from fooproxy.net.deadlines import Deadlines
from fooproxy.net.sockets import abort_now

if TYPE_CHECKING:
    from collections.abc import Callable

    from twisted.internet.interfaces import IReactorTime
    from twisted.python.failure import Failure
    from twisted.web.resource import IResource

MOST_CONNECTIONS = 100
"""The maximum number of open connections; one more closes the oldest."""

REQUEST_TIMEOUT = 10.0
"""Seconds within which a request must arrive completely."""

ANSWER_TIMEOUT = 30.0
"""Seconds within which an answer must be produced and read by the client."""

LARGEST_BODY = 1 << 20
"""Bytes; a request body up to this size is read and dropped, and a larger one is refused."""

_TOO_LARGE = b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\n\r\n"
_NO_LENGTH = b"HTTP/1.1 411 Length Required\r\nConnection: close\r\n\r\n"


class Channel(HTTPChannel):
    """A connection; request headers are limited to 16 KiB and `maxHeaders` lines."""

    maxHeaders = 100
    site: QuietSite
    transport: Any

    def connectionMade(self) -> None:
        """Register the connection."""
        super().connectionMade()
        self.site.opened(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Unregister the connection."""
        self.site.closed(self)
        super().connectionLost(reason)

    def rawDataReceived(self, data: bytes) -> None:
        """Handle a part of a request's body; the body of a refused request is not even decoded."""
        if not (self.requests and self.requests[-1].is_refused):
            super().rawDataReceived(data)

    def abort(self) -> None:
        """Close at once, dropping unsent data, so that a flood cannot use up the descriptors."""
        abort_now(self.transport)


class PlainRequest(Request):
    """A request of which only the method, the path, the query and the headers are used."""

    channel: Any
    hosts: list[bytes]
    """The hosts that the request is for, as it names them: usually one."""
    is_refused = False

    def gotLength(self, length: int | None) -> None:
        """Allocate no buffer for a body, and refuse a body that is too large or of unknown size.

        A body of unknown size comes in chunks, and decoding many small ones would hold up the relay.
        """
        super().gotLength(0)
        if length is None:
            self._refuse(_NO_LENGTH)
        elif length > LARGEST_BODY:
            self._refuse(_TOO_LARGE)

    def handleContentChunk(self, data: bytes) -> None:
        """Drop the body: no route uses one, and spooling it could fill the disk."""

    def _refuse(self, answer: bytes) -> None:
        self.is_refused = True
        self.channel.transport.write(answer)
        self.channel.loseConnection()

    def process(self) -> None:
        """Queue the request, the only one of its connection, so that pipelined requests cannot stall the relay."""
        self.channel.persistent = False
        self.setHeader("Connection", "close")
        self.hosts = list(self.requestHeaders.getRawHeaders(b"host", []))
        # No route depends on the host, and malformed ones make the routing fail.
        self.requestHeaders.setRawHeaders(b"host", [b"fooproxy"])
        if not self.path.startswith(b"/") and b"://" in self.path:
            # The absolute form of the target, which every server must accept; its host counts instead of the header's.
            authority, _, path = self.path.split(b"://", 1)[1].partition(b"/")
            self.path = b"/" + path
            self.hosts[:1] = [authority]
        try:
            unquote_to_bytes(self.path).decode()
        except UnicodeDecodeError:
            self.path = b"/not-a-text"
        if not self.path.startswith(b"/"):
            self.path = b"/"
        self.uri = self.path
        self.channel.site.arrived(self.channel, self._answer)

    def _answer(self) -> None:
        # Twisted takes the channel from a request whose connection is lost.
        if self.channel is not None and not self.is_refused:
            super().process()


class QuietSite(Site):
    """Serves `resource` within the limits; no access log, because health checks would fill it."""

    noisy = False
    protocol = Channel  # type: ignore[assignment]
    requestFactory = PlainRequest

    def __init__(self, resource: IResource, clock: IReactorTime, answer_timeout: float = ANSWER_TIMEOUT) -> None:
        # Deadlines replace Twisted's timeout, which restarts with each byte.
        super().__init__(resource, timeout=None, reactor=clock)
        self._clock = clock
        self._answer_timeout = answer_timeout
        self._deadlines: Deadlines[Channel] = Deadlines(clock)
        self._open: dict[Channel, None] = {}
        self._waiting: deque[Callable[[], None]] = deque()

    def opened(self, channel: Channel) -> None:
        """Register a new connection; close the oldest one if there are too many."""
        self._open[channel] = None
        self._deadlines.set(channel, REQUEST_TIMEOUT, channel.abort)
        if len(self._open) > MOST_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.abort()

    def arrived(self, channel: Channel, answer: Callable[[], None]) -> None:
        """Queue the request of a connection; `answer` is called when its turn comes."""
        self._deadlines.set(channel, self._answer_timeout, channel.abort)
        self._waiting.append(answer)
        if len(self._waiting) == 1:
            self._clock.callLater(0, self._next)

    def _next(self) -> None:
        answer = self._waiting.popleft()
        if self._waiting:
            self._clock.callLater(0, self._next)
        answer()

    def closed(self, channel: Channel) -> None:
        """Forget a closed connection."""
        self._open.pop(channel, None)
        self._deadlines.clear(channel)

    def log(self, request: object) -> None:
        """Write no access log."""
