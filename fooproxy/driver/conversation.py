"""One connection of the Foo client: sends numbered requests and checks every reply.

Replies must arrive in order, one per request, and match byte for byte what the driver's server sends.  After the last
reply the client half-closes and then closes, because only Foo clients terminate a connection.
This module knows nothing of a run's other connections, of addresses or of terminals; `client` calls it.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IPullProducer, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from zope.interface import implementer

from fooproxy.driver.figures import counted, duration_text
from fooproxy.driver.messages import digest, request

if TYPE_CHECKING:
    from random import Random

    from twisted.internet.interfaces import IDelayedCall, IReactorTime
    from twisted.python.failure import Failure

    from fooproxy.driver.tally import Tally

# A reply is a few dozen bytes.  A peer that sends this much without a newline is not a Foo server.
_LONGEST_REPLY = 65536


class ClientError(Exception):
    """A connection failed or a reply was wrong; the text says on which connection and what happened."""


class Script(NamedTuple):
    """What to send on one connection; `pause` and `timeout` are in seconds, `size` is in bytes of data.

    `pipeline` is the number of requests in flight.  `fragment` sends each request in up to three packets.  `pause` is
    the time between a reply and the next request.  The conversation fails if no reply arrives for `timeout`.
    """

    requests: int
    pipeline: int = 1
    size: int = 16
    fragment: bool = False
    pause: float = 0.0
    timeout: float = 10.0


class _Sent(NamedTuple):
    seq: int
    digest: bytes
    at: float


@implementer(IHalfCloseableProtocol, IPullProducer)
class Conversation(Protocol):
    """Runs `script` on one connection and counts in `tally`; errors refer to the connection by `number`.

    `finished` fires after the last reply or fails with a `ClientError`; `closed` fires when the connection is closed.
    """

    def __init__(self, clock: IReactorTime, number: int, script: Script, random: Random, tally: Tally) -> None:
        self.finished: Deferred[None] = Deferred()
        self.closed: Deferred[None] = Deferred()
        self._clock = clock
        self._name = f"connection {number}"
        self._script = script
        self._random = random
        self._tally = tally
        self._next_seq = 1
        self._in_flight: deque[_Sent] = deque()
        self._pieces: deque[bytes] = deque()
        self._producing = False
        self._partial = b""
        self._over = False
        self._timeout: IDelayedCall | None = None
        self._pausing: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """Send the first requests."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self._timeout = self._clock.callLater(self._script.timeout, self._timed_out)
        self._fill()

    def dataReceived(self, data: bytes) -> None:
        """Check the replies that `data` completes and send the next requests."""
        now = time.monotonic()
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            if self._over:
                return
            self._check(line, now)
        if len(self._partial) > _LONGEST_REPLY:
            self._fail(f"got {_shown(self._partial)} and no newline after {len(self._partial)} bytes")
        if lines and not self._over:
            self._go_on()

    def readConnectionLost(self) -> None:
        """Handle the server's FIN: an error before the last reply."""
        self._lost("closed by the server")

    def writeConnectionLost(self) -> None:
        """Close after our FIN without waiting for the server's: Foo servers send none."""
        self._transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Report the closed connection."""
        self._lost(f"lost ({reason.getErrorMessage()})")
        self.closed.callback(None)

    def resumeProducing(self) -> None:
        """Send the next piece once the kernel has taken the previous one, so that each piece is its own packet."""
        if self._pieces:
            self._transport.write(self._pieces.popleft())
        else:
            self._producing = False
            self._transport.unregisterProducer()

    def stopProducing(self) -> None:
        """Nothing to do: the transport calls `connectionLost` as well."""

    def abort(self) -> None:
        """Abort the connection without an error."""
        self._end()
        self._transport.abortConnection()

    @property
    def _transport(self) -> Any:
        # A TCP transport can half-close and accepts producers; the annotation on Protocol promises less.
        return self.transport

    def _fill(self) -> None:
        """Send requests until the script's number of them is in flight."""
        self._pausing = None
        requests = []
        while self._next_seq <= self._script.requests and len(self._in_flight) < self._script.pipeline:
            requests.append(self._next_request())
        if not self._script.fragment:
            self._transport.write(b"".join(requests))
        elif requests:
            self._pieces.extend(piece for line in requests for piece in _fragments(line))
            if not self._producing:
                self._producing = True
                self._transport.registerProducer(self, False)

    def _next_request(self) -> bytes:
        size = self._script.size
        data = self._random.randbytes((size + 1) // 2).hex()[:size].encode("ascii")
        now = time.monotonic()
        self._in_flight.append(_Sent(self._next_seq, digest(data), now))
        self._tally.count_sent(now)
        self._next_seq += 1
        return request(self._in_flight[-1].seq, data)

    def _check(self, line: bytes, now: float) -> None:
        if not self._in_flight:
            self._fail(f"got {_shown(line)}, which answers no request")
            return
        sent = self._in_flight.popleft()
        kind, rest = line[:4], line[4:]
        if kind not in (b"ACK ", b"NAK ") or rest != b"%d %s" % (sent.seq, sent.digest):
            self._fail(
                f"wrong reply to REQ {sent.seq} ({self._diagnosis(line, sent)}): "
                f"expected ACK or NAK {sent.seq} {sent.digest.decode('ascii')}, got {_shown(line)}"
            )
            return
        self._tally.count_answer(kind == b"ACK ", sent.at, now)

    def _diagnosis(self, line: bytes, sent: _Sent) -> str:
        words = line.split(b" ")
        if len(words) != 3 or words[0] not in (b"ACK", b"NAK"):
            return "malformed"
        if words[1] == b"%d" % sent.seq:
            return "wrong digest"
        if words[1] in {b"%d" % later.seq for later in self._in_flight}:
            return "wrong order"
        return "server could not decode it" if words[1:] == [b"0", b"ERRDECODE"] else "wrong seq"

    def _go_on(self) -> None:
        """Send the next requests, or finish after the last reply."""
        if self._next_seq > self._script.requests and not self._in_flight:
            self._end()
            self.finished.callback(None)
            self._transport.loseWriteConnection()
            return
        if self._timeout is not None:
            self._timeout.reset(self._script.timeout + self._script.pause)
        if not self._script.pause:
            self._fill()
        elif self._pausing is None:
            self._pausing = self._clock.callLater(self._script.pause, self._fill)

    def _timed_out(self) -> None:
        self._timeout = None
        self._fail(f"no reply to REQ {self._in_flight[0].seq} within {duration_text(self._script.timeout)}")

    def _lost(self, how: str) -> None:
        if not self._over:
            answered = self._next_seq - 1 - len(self._in_flight)
            self._fail(f"{how} after {answered} of {counted(self._script.requests, 'reply', 'replies')}")

    def _fail(self, what: str) -> None:
        self._end()
        self.finished.errback(ClientError(f"{self._name}: {what}"))
        self._transport.abortConnection()

    def _end(self) -> None:
        self._over = True
        for call in (self._timeout, self._pausing):
            if call is not None and call.active():
                call.cancel()


def _fragments(line: bytes) -> list[bytes]:
    r"""Split ``REQ 2 data\n`` into ``REQ 2``, `` data`` and the newline."""
    head, space, data = line[:-1].partition(b" ")[2].partition(b" ")
    return [piece for piece in (b"REQ " + head, space + data, b"\n") if piece]


def _shown(line: bytes) -> str:
    return repr(line) if len(line) <= 80 else f"{line[:80]!r}…"
