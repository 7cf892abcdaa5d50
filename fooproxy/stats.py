"""What fooproxy knows about the traffic: cumulative counters, and the report that shows them.

`FIELDS` declares each statistic once, with its name, kind, unit and meaning and with how it is read; the report, the
exposition and the documentation all derive from it.  Counters are plain integers that only grow and add up over
sessions (and one day over processes); rates and other instants are computed when somebody asks.

It knows no sockets and no HTTP.  The bridge tells a `SessionStats` what happens to its session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from fooproxy import __version__
from fooproxy.analyzer import Analysis, Analyzer, Counts
from fooproxy.timetable import TimeTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


class Field(NamedTuple):
    """One statistic: `kind` is counter (only grows), gauge (an instant) or info (a text)."""

    name: str
    kind: str
    unit: str
    meaning: str
    read: Callable[[Stats], int | float | str]


class SessionStats:
    """What passed in one session: an analyzer a leg.  The bridge's observer."""

    __slots__ = ("_stats", "client", "upstream")

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self.client, self.upstream = stats.analyzers()
        stats.connections_total += 1
        stats.sessions.add(self)

    @property
    def settled(self) -> bool:
        """Whether nothing is under way: each line of the client was answered, and no line is unfinished.

        Invalid lines count as requests here, since servers answer them too (``NAK 0 ERRDECODE``), and so does an
        unfinished line, which a server may answer when the client's FIN ends it.
        """
        unanswered = self.client.counts.lines + self.client.mid_line - self.upstream.counts.replies
        return unanswered <= 0 and not self.upstream.mid_line

    @property
    def between_requests(self) -> bool:
        """Whether the client has sent whole lines only."""
        return not self.client.mid_line

    def connect_failed(self) -> None:
        """Tell that the session gets no upstream leg."""
        self._stats.upstream_connect_failures += 1

    def ended(self) -> None:
        """Tell that both legs are gone."""
        self._stats.sessions.discard(self)


class Stats:
    """All counters of this process, and the rates that come from them.

    `clock` is monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._client = Analysis(requests=True)
        self._upstream = Analysis(requests=False)
        self.connections_total = 0
        self.upstream_connect_failures = 0
        self.recovery_save_failures = 0
        self.sessions: set[SessionStats] = set()
        self.times = TimeTable(clock, lambda: (self.requests, self.responses))
        self._clock = clock
        self._started = clock()

    def analyzers(self) -> tuple[Analyzer, Analyzer]:
        """Make the analyzers of a session's client and upstream leg."""
        return Analyzer(self._client), Analyzer(self._upstream)

    def catch_up(self) -> None:
        """Have all that was fed counted; every figure below does so first."""
        self._client.catch_up()
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
    def requests(self) -> int:
        """All REQ, whichever leg they came from."""
        return self.client.req + self.upstream.req

    @property
    def responses(self) -> int:
        """All ACK and NAK, whichever leg they came from."""
        return self.client.replies + self.upstream.replies

    @property
    def uptime(self) -> float:
        """Seconds since this process began to count."""
        return self._clock() - self._started

    def report(self) -> dict[str, Any]:
        """Give every statistic under its public name, in the order of `FIELDS`."""
        return {field.name: field.read(self) for field in FIELDS}

    def counters(self) -> dict[str, int]:
        """Give the counters that outlive the process, under names of their own (see `restore`)."""
        return {name: getattr(holder, attribute) for name, holder, attribute in self._lasting()}

    def restore(self, counters: Mapping[str, int]) -> None:
        """Take back what `counters` gave; counters that it does not name stay as they are."""
        for name, holder, attribute in self._lasting():
            setattr(holder, attribute, counters.get(name, getattr(holder, attribute)))

    def _lasting(self) -> Iterator[tuple[str, object, str]]:
        for leg, counts in (("client", self.client), ("upstream", self.upstream)):
            for attribute in Counts.__slots__:
                yield f"{leg}_{attribute}", counts, attribute
        for attribute in ("connections_total", "upstream_connect_failures", "recovery_save_failures"):
            yield attribute, self, attribute


FIELDS = (
    Field(
        "msg_total",
        "counter",
        "messages",
        "All messages, from either leg: msg_req + msg_ack + msg_nak.",
        lambda s: s.requests + s.responses,
    ),
    Field("msg_req", "counter", "messages", "REQ messages, from either leg.", lambda s: s.requests),
    Field("msg_ack", "counter", "messages", "ACK messages, from either leg.", lambda s: s.client.ack + s.upstream.ack),
    Field("msg_nak", "counter", "messages", "NAK messages, from either leg.", lambda s: s.client.nak + s.upstream.nak),
    Field("request_rate_1s", "gauge", "messages/s", "REQ counted in the last second.", lambda s: s.times.rates(1)[0]),
    Field(
        "request_rate_10s",
        "gauge",
        "messages/s",
        "REQ counted in the last 10 seconds, per second.",
        lambda s: s.times.rates(10)[0],
    ),
    Field(
        "response_rate_1s",
        "gauge",
        "messages/s",
        "ACK and NAK counted in the last second.",
        lambda s: s.times.rates(1)[1],
    ),
    Field(
        "response_rate_10s",
        "gauge",
        "messages/s",
        "ACK and NAK counted in the last 10 seconds, per second.",
        lambda s: s.times.rates(10)[1],
    ),
    Field(
        "msg_invalid",
        "counter",
        "lines",
        "Lines, from either leg, that are no message; they count nowhere else.",
        lambda s: s.client.invalid + s.upstream.invalid,
    ),
    Field(
        "msg_misdirected",
        "counter",
        "messages",
        "REQ sent by the upstream and replies sent by clients; they count by type as well.",
        lambda s: s.upstream.req + s.client.replies,
    ),
    Field("bytes_from_clients", "counter", "bytes", "Bytes received from clients.", lambda s: s.client.bytes),
    Field("bytes_from_upstream", "counter", "bytes", "Bytes received from the upstream.", lambda s: s.upstream.bytes),
    Field("connections_active", "gauge", "sessions", "Sessions that are open now.", lambda s: len(s.sessions)),
    Field("connections_total", "counter", "sessions", "Client connections accepted.", lambda s: s.connections_total),
    Field(
        "upstream_connect_failures",
        "counter",
        "sessions",
        "Sessions closed because the upstream could not be connected within --connect-timeout.",
        lambda s: s.upstream_connect_failures,
    ),
    Field(
        "recovery_save_failures",
        "counter",
        "saves",
        "Saves of the recovery file that failed.",
        lambda s: s.recovery_save_failures,
    ),
    Field("uptime_seconds", "gauge", "seconds", "Time since this process started.", lambda s: s.uptime),
    Field("version", "info", "", "fooproxy's version.", lambda s: __version__),
)
"""Every statistic of the report, in its order."""
