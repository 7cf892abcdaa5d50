"""What fooproxy knows about the traffic: cumulative counters, and the report that shows them.

Counters are plain integers that only grow and add up over
sessions (and one day over processes); rates and other instants are computed when somebody asks.

It knows no sockets and no HTTP.  The bridge tells a `SessionStats` what happens to its session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fooproxy.foo.analyzer import Analysis, Analyzer, Counts
from fooproxy.foo.latency import Exchange, Latency
from fooproxy.stats.clients import Clients
from fooproxy.stats.fields import CLOSED, CONNECT_FAILURES, FIELDS
from fooproxy.stats.history import History
from fooproxy.stats.timetable import TimeTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


def _ignore(session: SessionStats, reason: str) -> None:
    """Take no notice of the end of a session."""


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
        stats.closed[reason] += 1
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


class Stats:
    """All counters of this process, and the rates that come from them.

    `clock` is monotonic, in seconds.  `on_end` is told of each session that has ended, and of the reason.
    """

    def __init__(self, clock: Callable[[], float], on_end: Callable[[SessionStats, str], None] = _ignore) -> None:
        self._latency = Latency()
        self._client = Analysis(self._latency, requests=True)
        self._upstream = Analysis(self._latency, requests=False, before=self._client)
        # Of an earlier process's requests none is open.
        self._answered_before = 0
        self.clock = clock
        self.on_end = on_end
        self.connections_total: int = 0
        self.closed: dict[str, int] = dict.fromkeys(CLOSED, 0)
        self.reads_paused: dict[str, int] = {"client": 0, "upstream": 0}
        self.accepts_paused: dict[str, int] = {"limit": 0, "descriptors": 0}
        self.connections_limit: int = 0
        """Sessions that may be open at once."""
        self.saves: dict[str, int] = {"ok": 0, "failed": 0}
        self.sessions: set[SessionStats] = set()
        self.clients = Clients()
        self.times: TimeTable = TimeTable(clock, lambda: (self.requests, self.responses))
        self.history: History = History(self)
        self._started = clock()

    def analyzers(self, exchange: Exchange) -> tuple[Analyzer, Analyzer]:
        """Make the analyzers of a session's client and upstream leg."""
        return Analyzer(self._client, exchange), Analyzer(self._upstream, exchange)

    def catch_up(self) -> None:
        """Have all that was fed counted; every figure below does so first."""
        self._upstream.catch_up()

    def digest(self) -> None:
        """Have what was fed counted if it is much already; whoever has a good time for it calls this."""
        self._client.digest()
        self._upstream.digest()

    @property
    def client(self) -> Counts:
        """What came from clients."""
        self.catch_up()
        return self._client.total

    @property
    def upstream(self) -> Counts:
        """What came from the upstream."""
        self.catch_up()
        return self._upstream.total

    @property
    def latency(self) -> Latency:
        """How long replies took."""
        self.catch_up()
        return self._latency

    @property
    def in_flight(self) -> int:
        """Requests, in sessions that are open, that were not answered yet."""
        latency = self.latency
        return latency.asked - latency.given_up - (latency.answered.count - self._answered_before)

    def restore_latency(self, buckets: Mapping[int, int], total: int, longest: int) -> None:
        """Take back the latencies of an earlier process, as `Histogram.restore` does."""
        self.latency.answered.restore(buckets, total, longest)
        self._answered_before = self.latency.answered.count

    @property
    def requests(self) -> int:
        """All REQ, whichever leg they came from."""
        return self.client.req + self.upstream.req

    @property
    def responses(self) -> int:
        """All ACK and NAK, whichever leg they came from."""
        return self.client.replies + self.upstream.replies

    @property
    def naks(self) -> int:
        """All NAK, whichever leg they came from."""
        return self.client.nak + self.upstream.nak

    def not_allowed(self) -> None:
        """Take notice of a client that was closed at once and never became a session."""
        self.connections_total += 1
        self.closed["not_allowed"] += 1

    @property
    def connect_failures(self) -> dict[str, int]:
        """Sessions that got no upstream leg, by reason."""
        return {name: self.closed[reason] for name, reason in CONNECT_FAILURES.items()}

    @property
    def uptime(self) -> float:
        """Seconds since this process began to count."""
        return self.clock() - self._started

    def report(self) -> dict[str, Any]:
        """Give every statistic under its public name, in the order of `FIELDS`."""
        return {field.name: field.read(self) for field in FIELDS}

    def counters(self) -> dict[str, int]:
        """Give the counters that outlive the process, under names of their own (see `restore`)."""
        return {name: holder[key] for name, holder, key in self._lasting()}

    def restore(self, counters: Mapping[str, int]) -> None:
        """Take back what `counters` gave; counters that it does not name stay as they are.

        Sessions that were open then have ended with their process.
        """
        for name, holder, key in self._lasting():
            holder[key] = counters.get(name, holder[key])
        self.closed["crashed"] += max(self.connections_total - sum(self.closed.values()), 0)

    def _lasting(self) -> Iterator[tuple[str, Any, str]]:
        for leg, counts in (("client", self.client), ("upstream", self.upstream)):
            for attribute in Counts.__slots__:
                yield f"{leg}_{attribute}", _Attributes(counts), attribute
        yield "connections_total", _Attributes(self), "connections_total"
        yield "responses_unmatched", _Attributes(self.latency), "unmatched"
        for name, counters in (
            ("closed", self.closed),
            ("paused", self.reads_paused),
            ("accepts_paused", self.accepts_paused),
            ("saves", self.saves),
        ):
            for key in counters:
                yield f"{name}_{key}", counters, key


class _Attributes:
    """The attributes of an object as a mapping."""

    def __init__(self, holder: object) -> None:
        self._holder = holder

    def __getitem__(self, name: str) -> Any:
        return getattr(self._holder, name)

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self._holder, name, value)
