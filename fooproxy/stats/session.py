"""The statistics of one session: the observer to which the relay reports what happens in a session.

It holds an analyzer for each leg and the exchange that matches replies with requests, and adds everything to `Stats`.
It does not know about sockets.  `fooproxy.parts` creates one for each client, and the bridge and the interceptors call
it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from fooproxy.stats.counters import Stats
    from fooproxy.stats.servers import ServerStats

    class Server(Protocol):
        """The place of a server among all servers."""

        @property
        def number(self) -> int:
            """The number of the server's row, from 0 on."""


_UNHEARD = ("half_close_timeout", "idle_timeout", "reply_timeout")
"""The reasons for which sessions end because the upstream sends nothing."""

_MOMENT = 1.0
"""An upstream that ends a session within this many seconds, without sending anything, has dropped the client."""


class SessionStats:
    """The statistics of one session: an analyzer for each leg, and the exchange of requests and replies.

    `address` is the client's; `opened` is a time on the clock of `stats`.
    """

    __slots__ = (
        *("address", "client", "exchange", "is_held_up", "number", "opened", "server", "upstream"),
        *("_dropped_from", "_needed_link_at", "_stats"),
    )

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self.exchange, self.client, self.upstream = stats.traffic.analyzers()
        self.server: ServerStats | None = None
        self.address = ""
        self.is_held_up = False
        self._needed_link_at: float | None = None
        self._dropped_from: int | None = None
        """The number of replies that had been read when the client was gone; further ones were dropped."""
        self.opened = stats.clock()
        self.number = stats.connections_total = stats.connections_total + 1
        stats.sessions.add(self)

    def accepted(self, address: str) -> None:
        """Record the address of the client."""
        self.address = address

    def served_by(self, server: Server) -> None:
        """Record that the session is about to get `server`, one of several."""
        stats = self._stats
        if self.server is stats.rows[server.number]:
            # The session gets another link to the same server.
            self.server.sessions.add(self)
            return
        stats.catch_up()
        # Bytes that came with a TLS handshake are still to be forwarded.
        early = stats.traffic if self.server is None else None
        if self.server is not None:
            self.server.left(self)
        self.server = stats.rows[server.number]
        self.server.joined(self)
        self.server.traffic.take_over(early, self.exchange, self.client, self.upstream)

    def released(self) -> None:
        """Record that the session has no server for now; its traffic still counts for the last one."""
        if self.server is not None:
            self.server.left(self)

    @property
    def host(self) -> str:
        """The client's address without its port."""
        return self.address.rpartition(":")[0] or self.address

    @property
    def settled(self) -> bool:
        """Whether the session is at rest: every line of the client has been answered, and no line is unfinished.

        Invalid lines count as requests here, because servers answer them too (``NAK 0 ERRDECODE``).
        """
        self._stats.catch_up()
        return self.exchange.settled

    def finished(self) -> None:
        """Record that the client has finished sending; an unfinished last line is a request, as servers answer it."""
        self.client.finish(round(self._stats.clock() * 1e6))

    @property
    def waited(self) -> float:
        """Seconds that the oldest open request has waited for the server, not for its client to read; 0 without one."""
        if self.is_held_up or not self.exchange.open:
            return 0.0
        return self._stats.clock() - self.exchange.waiting_since / 1e6

    @property
    def between_requests(self) -> bool:
        """Whether the client has sent only whole lines; a last line that its FIN ends is whole too."""
        return not self.client.mid_line

    @property
    def is_regular(self) -> bool:
        """Whether requests and replies so far correspond one to one, as far as can be known.

        False after an invalid line, a message from the wrong side, a last request without a newline, or a surplus
        reply.
        """
        self._stats.catch_up()
        client, upstream = self.client, self.upstream
        noise = client.invalid or client.ack or client.nak or upstream.invalid or upstream.req
        return not (noise or self.exchange.cut or self.exchange.unmatched)

    def pair(self) -> None:
        """Compare the seqs of the replies with those of the requests from now on."""
        self._stats.traffic.requests.pair(self.exchange)

    @property
    def is_paired(self) -> bool:
        """Whether the replies had the seqs of the requests; valid once every request has a reply."""
        self._stats.catch_up()
        return not self.exchange.unpaired

    @property
    def passed(self) -> int:
        """Bytes received from both legs."""
        self._stats.catch_up()
        return self.client.bytes + self.upstream.bytes

    def when_settled(self, then: Callable[[], None] | None) -> None:
        """Call `then` after each batch of events in which the session has become settled; `None` ends this."""
        self._stats.watch(self.exchange, then)

    def needs_link(self) -> None:
        """Record that the client has sent something, and needs a pooled connection."""
        if self._needed_link_at is None:
            self._needed_link_at = self._stats.clock()

    def got_link(self) -> None:
        """Record that the client has got a pooled connection."""
        if self._needed_link_at is not None:
            waited, self._needed_link_at = self._stats.clock() - self._needed_link_at, None
            self._stats.link_waits.add(round(waited * 1e6), 1)

    def forwarded(self) -> None:
        """Record that the server gets the open requests only now: the wait for a link is not part of its latency."""
        self._stats.catch_up()
        opened, *rest = self.exchange.state()
        if opened:
            now = round(self._stats.clock() * 1e6)
            self.exchange.restore([[now, sum(count for _, count in opened)]], *rest)

    def abandoned(self) -> None:
        """Record that further replies are read and dropped."""
        self._stats.catch_up()
        self._dropped_from = self.upstream.replies

    def stop_after(self, chunk: bytes) -> int:
        """Return how many bytes of `chunk`, the client's last, complete lines; if any, do not count the rest."""
        self._stats.catch_up()
        whole = chunk.rfind(b"\n") + 1
        if whole:
            self.client.take_back(len(chunk) - whole)
        return whole

    def paused(self, leg: str) -> None:
        """Record that reading from a leg, ``client`` or ``upstream``, was paused."""
        self._stats.reads_paused[leg] += 1
        if leg == "upstream":
            self.is_held_up = True

    def resumed(self, leg: str) -> None:
        """Record that a paused leg is read again: replies may have been waiting for the client, not for the server."""
        if leg == "upstream":
            self._stats.catch_up()
            self.is_held_up = False
            self.exchange.resumed()

    def ignored(self, leg: str) -> None:
        """Record that the data of a leg is dropped from now on; it is not relayed, so it is not counted."""
        (self.client if leg == "client" else self.upstream).is_muted = True

    def ended(self, reason: str) -> None:
        """Record that both legs are closed, with the reason: one of `CLOSED`."""
        stats = self._stats
        stats.catch_up()
        stats.sessions.discard(self)
        stats.connections_closed[reason] += 1
        if self._dropped_from is not None:
            stats.replies_dropped += self.upstream.replies - self._dropped_from
        if unanswered := self.exchange.in_flight:
            stats.requests_unanswered[reason] += unanswered
        server, dropped = self.server, self.is_dropped(reason)
        traffic = stats.traffic if server is None else server.traffic
        traffic.troubles.ended(self, dropped, stats.clock() * 1e6, traffic.latency.replied)
        if server is not None:
            server.ended(self, dropped)
        stats.clients.ended(self)
        self.exchange.end()
        stats.on_end(self, reason)

    def is_dropped(self, reason: str) -> bool:
        """Return whether the upstream dropped the session: with requests open, or within `_MOMENT` without a word."""
        if self.exchange.in_flight:
            return reason.startswith("upstream_") or (reason in _UNHEARD and not self.is_held_up)
        return reason in ("upstream_closed", "upstream_reset") and not self.upstream.bytes and self.age < _MOMENT

    @property
    def age(self) -> float:
        """Seconds since the session began."""
        return self._stats.clock() - self.opened

    @property
    def idle(self) -> float:
        """Seconds since data last arrived, from either leg."""
        last = max(self.exchange.last, self.exchange.last_request) / 1e6
        return max(self._stats.clock() - max(self.opened, last), 0.0)
