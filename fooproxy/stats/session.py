"""The statistics of one session, which are also what the relay tells of it: the observer that the bridge asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fooproxy.foo.latency import Exchange

if TYPE_CHECKING:
    from fooproxy.stats.counters import Stats


class SessionStats:
    """What passed in one session: an analyzer a leg, and the exchange of requests and replies.  The bridge's observer.

    `address` is the client's; `opened` is a time on the statistics' clock.
    """

    __slots__ = ("_stats", "address", "client", "exchange", "number", "opened", "upstream")

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self.exchange = Exchange(stats.latency)
        self.client, self.upstream = stats.analyzers(self.exchange)
        self.address = ""
        self.opened = stats.clock()
        stats.connections_total += 1
        self.number = stats.connections_total
        stats.sessions.add(self)

    def accepted(self, address: str) -> None:
        """Take notice of where the client is."""
        self.address = address

    @property
    def host(self) -> str:
        """The client's address without its port."""
        return self.address.rpartition(":")[0] or self.address

    @property
    def settled(self) -> bool:
        """Whether nothing is under way: each line of the client was answered, and no line is unfinished.

        Invalid lines count as requests here, since servers answer them too (``NAK 0 ERRDECODE``).
        """
        self._stats.catch_up()
        return not (self.exchange.in_flight or self.client.head or self.upstream.head)

    def finished(self) -> None:
        """Take notice that the client sends nothing more: servers answer a last line without a newline, too."""
        self._stats.catch_up()
        if self.client.head:
            self.client.head = b""
            self.exchange.cut_short(round(self._stats.clock() * 1e6))

    @property
    def between_requests(self) -> bool:
        """Whether the client has sent whole lines only."""
        return not self.client.mid_line

    def paused(self, leg: str) -> None:
        """Take notice that the reading of a leg, ``client`` or ``upstream``, was paused."""
        self._stats.reads_paused[leg] += 1

    def ignored(self, leg: str) -> None:
        """Take notice that what comes from a leg is dropped from now on: it does not count, as it does not pass."""
        (self.client if leg == "client" else self.upstream).is_muted = True

    def ended(self, reason: str) -> None:
        """Take notice that both legs are gone, and why: one of `CLOSED`."""
        stats = self._stats
        stats.catch_up()
        stats.sessions.discard(self)
        stats.connections_closed[reason] += 1
        stats.clients.ended(self)
        self.exchange.end()
        stats.on_end(self, reason)

    @property
    def age(self) -> float:
        """Seconds since the session began."""
        return self._stats.clock() - self.opened

    @property
    def idle(self) -> float:
        """Seconds since something came, from either leg."""
        last = max(self.exchange.last, self.exchange.last_request) / 1e6
        return max(self._stats.clock() - max(self.opened, last), 0.0)
