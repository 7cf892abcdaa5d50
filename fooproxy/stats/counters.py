"""Every statistic of the proxy, declared once and in the order of the report, and the array that holds the counts.

To add a statistic, declare it here and count it in one line elsewhere.  Counters only grow, and they can be added up
over sessions (later also over upstreams and processes); rates and other gauges are computed on request.

This module does not know about sockets or HTTP.  The analyzers of `fooproxy.foo` count the traffic, in the same array;
the relay's sessions count through `fooproxy.stats.session`; the web side, recovery and SIGUSR2 read.
"""

from __future__ import annotations

from array import array
from copy import copy
from itertools import islice
from operator import sub
from typing import TYPE_CHECKING

from fooproxy import __version__
from fooproxy.core import IMPLEMENTATION
from fooproxy.foo.analyzer import Counts
from fooproxy.foo.counting import CHOSEN
from fooproxy.foo.latency import Histogram, Latency
from fooproxy.foo.numbers import LARGEST, zeros
from fooproxy.stats.clients import Clients
from fooproxy.stats.fields import Counted, Counter, Counters, Declared, computed
from fooproxy.stats.history import History, Totals
from fooproxy.stats.reasons import CLOSED, CONNECT_FAILURES, FAILURES, LINK_STATES, LINKS_DISCARDED
from fooproxy.stats.servers import SHARED, SavedServer, ServerStats, give_back
from fooproxy.stats.timetable import TimeTable
from fooproxy.stats.traffic import Figures, Traffic, total

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableSequence, Sequence
    from typing import Any

    from fooproxy.foo.counting import Twin
    from fooproxy.foo.latency import Exchange
    from fooproxy.stats.clients import Session

_LEGS = ("client", "upstream")

_OPEN = "requests_in_flight"
"""The name in the recovery file for open requests, which are counted as unanswered if the process crashes."""

MANY_NAKS = 10
"""The number of NAKs in a row, without any ACK, that deserves an operator's attention."""

SLOW = 1.0
"""The default for `Stats.slow`, in seconds."""

LONG_WAIT = 1.0
"""Seconds of waiting for a server that deserve an operator's attention."""


def _ignore(session: Any, reason: str) -> None:
    """Do nothing when a session ends."""


class Stats(Declared):
    """All statistics of this process.

    `clock` returns monotonic seconds.  `on_end` is called with the statistics of each session that ends, and the
    reason.  `numbers` is the array to count in, `size` 64-bit integers; by default a new one is created.  `twin` counts
    the traffic.  `servers` are the names of the servers if there are several; each then has numbers of its own, in a
    row after the common ones.  There are at least `rows` such rows, for servers that `join` later.
    """

    @computed(
        "counter",
        "messages",
        label="type",
        labels=("req", "ack", "nak"),
        summed=True,
        series="messages",
        title="Messages",
    )
    def msg_total(self) -> dict[str, int]:
        """All messages, from either leg: msg_req + msg_ack + msg_nak."""
        return {"req": self.msg_req, "ack": self.msg_ack, "nak": self.msg_nak}

    @computed("counter", "messages", series=None, title="Requests")
    def msg_req(self) -> int:
        """REQ messages, from either leg."""
        return self.client.req + self.upstream.req

    @computed("counter", "messages", series=None, title="ACK")
    def msg_ack(self) -> int:
        """ACK messages, from either leg."""
        return self.client.ack + self.upstream.ack

    @computed("counter", "messages", series=None, title="NAK")
    def msg_nak(self) -> int:
        """NAK messages, from either leg."""
        return self.client.nak + self.upstream.nak

    @computed("gauge", "messages/s", series=None)
    def request_rate_1s(self) -> float:
        """REQ messages per second, over the last second."""
        return self.times.rates(1)[0]

    @computed("gauge", "messages/s", series=None)
    def request_rate_10s(self) -> float:
        """REQ messages per second, averaged over the last 10 seconds."""
        return self.times.rates(10)[0]

    @computed("gauge", "messages/s", series=None)
    def response_rate_1s(self) -> float:
        """ACK and NAK messages per second, over the last second."""
        return self.times.rates(1)[1]

    @computed("gauge", "messages/s", series=None)
    def response_rate_10s(self) -> float:
        """ACK and NAK messages per second, averaged over the last 10 seconds."""
        return self.times.rates(10)[1]

    @computed(
        "counter", "lines", label="leg", labels=_LEGS, summed=True, series="invalid_messages", title="Invalid lines"
    )
    def msg_invalid(self) -> dict[str, int]:
        """Lines that are not valid messages, from either leg; not part of any other counter."""
        return {"client": self.client.invalid, "upstream": self.upstream.invalid}

    @computed("counter", "messages", series="misdirected_messages", title="Misdirected messages")
    def msg_misdirected(self) -> int:
        """REQ messages from the upstream and replies from clients; these are also counted by type."""
        return self.upstream.req + self.client.replies

    @computed("counter", "bytes", label="leg", labels=_LEGS, in_report=False, series="received_bytes")
    def bytes_received(self) -> dict[str, int]:
        """Bytes received, by leg."""
        return {"client": self.bytes_from_clients, "upstream": self.bytes_from_upstream}

    @computed("counter", "bytes", series=None)
    def bytes_from_clients(self) -> int:
        """Bytes received from clients."""
        return self.client.bytes

    @computed("counter", "bytes", series=None)
    def bytes_from_upstream(self) -> int:
        """Bytes received from the upstream."""
        return self.upstream.bytes

    @computed("gauge", "messages")
    def requests_in_flight(self) -> int:
        """Lines from clients that have not been answered yet, in open sessions."""
        return self.latency.in_flight

    @computed("counter", "messages", title="Unmatched replies")
    def responses_unmatched(self) -> int:
        """Replies that arrived while their session had no request in flight."""
        return self.latency.unmatched

    @computed("counter", "messages", title="Late replies")
    def replies_late(self) -> int:
        """Replies to requests that were read before their upstream leg was last resumed; not part of the latency."""
        return self.latency.late

    requests_unanswered = Counters(
        "messages",
        "Requests never answered because their session ended, by its reason.",
        "reason",
        CLOSED,
        title="Unanswered requests",
    )

    replies_dropped = Counter(
        "messages",
        "Replies read and dropped because their client was gone, so that its link could be used again.",
        title="Dropped replies",
    )

    @computed("counter", "messages", label="type", labels=("ack", "nak"), in_report=False)
    def replies(self) -> dict[str, int]:
        """Replies from the upstream, by type."""
        return {"ack": self.upstream.ack, "nak": self.upstream.nak}

    @computed("gauge", "0 or 1")
    def upstream_stuck(self) -> int:
        """1 if requests have been waiting and no reply has been read for 10 seconds, else 0."""
        if self.most_servers:
            return max((server.stuck for server in self.servers), default=0)
        latency = self.latency
        waiting = self.sessions if latency.in_flight else ()
        return int(self.traffic.troubles.is_stuck(waiting, self.clock() * 1e6, latency.replied))

    @computed("gauge", "0 or 1")
    def upstream_failing(self) -> int:
        """1 if the upstream has dropped a session in the last 10 seconds, or rejects every request, else 0."""
        return int(self.drops_requests or self.only_naks)

    @computed("histogram", "seconds", series="request_duration_seconds")
    def latency_seconds(self) -> Histogram:
        """Time from reading a request to reading its reply, since the counters began."""
        return self.latency.answered

    @computed("histogram", "seconds", series=None)
    def latency_seconds_10s(self) -> Histogram:
        """Time from reading a request to reading its reply, for replies in the last 10 seconds."""
        return self.history.recent()

    @computed("gauge", "servers")
    def upstreams_up(self) -> int:
        """Servers that are up, or that have not been tried yet."""
        return self.reachable()[0]

    @computed("gauge", "servers", series="upstreams")
    def upstreams_total(self) -> int:
        """Servers that the proxy forwards to."""
        return self.reachable()[1]

    @computed("gauge", "names")
    def lookups_failing(self) -> int:
        """Names of servers (dns:, srv:) that could not be looked up the last time; the known servers stay."""
        return self.unfound()

    @computed("gauge", "links", label="state", labels=tuple(LINK_STATES))
    def links(self) -> dict[str, int]:
        """Pooled connections to servers, by state."""
        return self.linked()

    links_taken = Counter("links", "Times a session was lent a pooled connection, new or used.", title="Links taken")
    links_reused = Counter("links", "Times a used connection was lent to another session.", title="Links reused")
    links_discarded = Counters(
        "links", "Pooled connections that were closed, by reason.", "reason", LINKS_DISCARDED, title="Links discarded"
    )

    @computed("histogram", "seconds", title="Waits for links")
    def link_wait_seconds(self) -> Histogram:
        """Time that clients waited for a pooled connection, from their first byte on; not part of the latency."""
        return self.link_waits.answered

    @computed("gauge", "sessions")
    def clients_waiting(self) -> int:
        """Sessions whose clients wait, unread, for a server that can be reached and has room."""
        return self.queue()[0]

    @computed("gauge", "seconds")
    def oldest_wait_seconds(self) -> float:
        """How long the first waiting client has waited; 0 if none waits."""
        return self.queue()[1]

    @computed("gauge", "sessions")
    def connections_active(self) -> int:
        """Open sessions."""
        return len(self.sessions)

    @computed("gauge", "sessions")
    def connections_limit(self) -> int:
        """Maximum number of sessions open at once."""
        return self.limit

    connections_total = Counter(
        "sessions", "Client connections accepted.", series="connections", title="Connections accepted"
    )
    connections_closed = Counters("sessions", "Sessions that have ended, by reason.", "reason", CLOSED, saved="closed")

    @computed(
        "counter",
        "sessions",
        label="reason",
        labels=tuple(CONNECT_FAILURES),
        summed=True,
        title="Failed connects to the upstream",
    )
    def upstream_connect_failures(self) -> dict[str, int]:
        """Sessions that ended because the proxy could not connect to the upstream within --connect-timeout."""
        return {name: self.connections_closed[reason] for name, reason in CONNECT_FAILURES.items()}

    upstream_checks = Counters(
        "checks",
        "Checks of servers (--check), by result; they are part of no other counter.",
        "result",
        ("passed", "failed"),
        saved="checks",
        title="Checks of the upstream",
    )
    reads_paused = Counters(
        "pauses",
        "Times the proxy paused reading from a leg because the other leg could not keep up, by leg.",
        "leg",
        _LEGS,
        saved="paused",
        title="Pauses in reading",
    )
    accepts_paused = Counters(
        "pauses",
        "Times the proxy paused accepting clients, at the session limit or without file descriptors, by cause.",
        "cause",
        ("limit", "descriptors"),
        title="Pauses in accepting",
    )
    recovery_saves = Counters(
        "saves",
        "Saves of the recovery file, by result.",
        "result",
        ("ok", "failed"),
        saved="saves",
        title="Saves of statistics",
    )

    @computed("gauge", "seconds", series=None)
    def uptime_seconds(self) -> float:
        """Time since this process started."""
        return self.clock() - self._started

    @computed("info", "", series=None)
    def version(self) -> str:
        """The version of fooproxy."""
        return __version__

    @computed("info", "", series=None)
    def implementation(self) -> str:
        """How messages are relayed and counted: compiled, or pure for Python alone."""
        return IMPLEMENTATION

    @computed("info", "", in_report=False)
    def build(self) -> dict[str, str]:
        """The version of fooproxy, and whether relaying and counting are compiled."""
        return {"version": self.version, "implementation": self.implementation}

    _client = Counted(Counts.names, saved="client")
    _upstream = Counted(Counts.names, saved="upstream")
    # The latencies themselves are saved as a histogram; open requests do not outlive the process.
    _latency = Counted(Latency.names, saved={"unmatched": "responses_unmatched", "late": "replies_late"})
    # Client waits in this process; only the durations are used.
    _link_waits = Counted([f"link_wait_{name}" for name in Latency.names], saved={})

    def __init__(
        self,
        clock: Callable[[], float],
        on_end: Callable[[Any, str], None] = _ignore,
        numbers: MutableSequence[int] | None = None,
        twin: Twin = CHOSEN,
        servers: Sequence[str] = (),
        rows: int = 0,
    ) -> None:
        self.most_servers = max(len(servers), rows)
        """The maximum number of servers at once; 0 if there is just one, which has no numbers of its own."""
        super().__init__(zeros(self.size + self.most_servers * ServerStats.size) if numbers is None else numbers)
        self.traffic = Traffic(self.numbers, Stats._client.place, twin)
        """All traffic; with several servers, only the part that is not assigned to one of them yet."""
        self._bind(self.numbers)
        self.clock = clock
        self._twin = twin
        self.servers: list[ServerStats] = []
        """The statistics of the present servers, in the order in which they joined."""
        self.rows: list[ServerStats] = []
        """The statistics of present and former servers, by the numbers of their rows."""
        self._free: list[ServerStats] = []
        self._last = self.traffic
        self.defers: bool = self.traffic.requests.defers
        """Whether `digest` has to be called from time to time."""
        self._restored: MutableSequence[int] = self.numbers[:]
        """The numbers as they were when this process began to count."""
        self._remembered: dict[str, SavedServer] = {}
        """The counts by earlier processes of servers that have not joined yet; the totals include them."""
        for name in servers:
            self.join(name)
        self.on_end = on_end
        self.slow = SLOW
        """Replies are slow if one in a hundred of the last 10 seconds took longer than this many seconds; 0: never."""
        self.limit = 0
        """The maximum number of sessions open at once."""
        self.reachable: Callable[[], tuple[int, int]] = lambda: (0, 0)
        """Returns how many servers are up, and how many there are."""
        self.unfound: Callable[[], int] = lambda: 0
        """Returns how many names of servers failed at their last look-up."""
        self.queue: Callable[[], tuple[int, float]] = lambda: (0, 0.0)
        """Returns the number of clients that wait for a server, and the seconds that the first one has waited."""
        self.linked: Callable[[], dict[str, int]] = lambda: dict.fromkeys(LINK_STATES, 0)
        """Returns the number of links in each state."""
        self._when_settled: dict[Exchange, Callable[[], None]] = {}
        self.sessions: set[Session] = set()
        self.clients = Clients()
        self.times = TimeTable(clock, lambda: (self.msg_req, self.responses), self._seen)
        self.history = History(clock, self._totals, lambda: self.latency.answered)
        self._started = clock()

    def join(self, name: str) -> ServerStats:
        """Return the statistics of a new server: the counts by earlier processes under this name, or zeros.

        There must be fewer than `most_servers` servers.
        """
        if self._free:
            server = self._free.pop()
            server.begin(name)
        else:
            place = len(self.rows)
            server = ServerStats(name, self.clock, self._row(self.numbers, place), self._twin, self._last, place)
            self.rows.append(server)
            self._last = server.traffic
        self.servers.append(server)
        saved = self._remembered.pop(name, None)
        if saved is not None:
            for numbers in (self.numbers, self._restored):
                saved.move(numbers, Stats._client.place, self._row(numbers, server.place))
        return server

    def leave(self, server: ServerStats) -> None:
        """Forget a server that has no sessions; its traffic stays in the totals, and another server may get its row."""
        self.catch_up()
        for numbers in (self.numbers, self._restored):
            give_back(self._row(numbers, server.place), numbers, Stats._client.place)
        self.servers.remove(server)
        self._free.append(server)

    @classmethod
    def _row(cls, numbers: MutableSequence[int], place: int) -> MutableSequence[int]:
        """Return the numbers of one server; they follow those declared here."""
        whole: Any = memoryview(numbers)  # type: ignore[arg-type]
        start = cls.size + place * ServerStats.size
        return whole[start : start + ServerStats.size]  # type: ignore[no-any-return]

    def _bind(self, numbers: MutableSequence[int]) -> None:
        """Name the places in `numbers` that the analyzers count in."""
        self.numbers = numbers
        self._figures = Figures(numbers, Stats._client.place)
        self.link_waits = Latency(numbers, Stats._link_waits.place)

    def _seen(self) -> float:
        """Return the time at which the last counted data was read."""
        seen = self._figures.latency.seen
        return max([seen, *(server.figures.latency.seen for server in self.servers)] if self.servers else (seen,)) / 1e6

    def since_start(self) -> Stats:
        """Return these statistics without the counts of earlier processes.

        If a counter decreases, Prometheus assumes that it restarted at 0, and counts all of it again.  A restored
        counter can be a little smaller than at the last scrape, so the exposed counters begin at 0 instead.
        """
        self.catch_up()
        view = copy(self)
        used = self.size + len(self.rows) * ServerStats.size
        view._bind(array("q", map(sub, self.numbers[:used], self._restored)))
        view.servers = [server.bound(self._row(view.numbers, server.place)) for server in self.servers]
        return view

    def counters(self) -> dict[str, int]:
        """Return the numbers that outlive the process, by the names in the recovery file."""
        self.catch_up()
        found = super().counters()
        for server in self.servers:
            for name, place in SHARED.items():
                found[name] += server.numbers[place]
        return {**found, _OPEN: max(self.latency.in_flight, 0)}

    def saved_servers(self) -> dict[str, dict[str, Any]]:
        """Return the saved part of each server's statistics, by its name: its counters and latencies."""
        self.catch_up()
        rows = {server.name: server.saved() for server in self.servers}
        return {name: saved.state() for name, saved in {**rows, **self._remembered}.items()}

    def catch_up(self) -> None:
        """Count all chunks fed to the analyzers; every figure of traffic above does this first."""
        self._last.replies.catch_up()

    def watch(self, exchange: Exchange, then: Callable[[], None] | None) -> None:
        """Make `tell_settled` call `then` whenever `exchange` has become settled; `None` ends this."""
        self.traffic.requests.watch(exchange, then is not None)
        if then is None:
            self._when_settled.pop(exchange, None)
        else:
            self._when_settled[exchange] = then

    def tell_settled(self) -> None:
        """Call the functions of the watched exchanges that have become settled and still are."""
        if not self._when_settled:
            return
        self.catch_up()
        settled = self.traffic.requests.settled
        told = settled[:]
        settled.clear()
        for exchange in told:
            then = self._when_settled.get(exchange)
            if then is not None and exchange.settled:
                then()

    def digest(self) -> None:
        """Count the chunks fed to the analyzers if many wait; call this when nothing more urgent is left to do."""
        self.traffic.digest()
        for server in self.servers:
            server.traffic.digest()

    @property
    def client(self) -> Counts:
        """The counts of all client legs."""
        self.catch_up()
        return total([self._figures.client, *(server.figures.client for server in self.servers)])

    @property
    def upstream(self) -> Counts:
        """The counts of all upstream legs."""
        self.catch_up()
        return total([self._figures.upstream, *(server.figures.upstream for server in self.servers)])

    @property
    def latency(self) -> Latency:
        """The requests and latencies of all sessions."""
        self.catch_up()
        return total([self._figures.latency, *(server.figures.latency for server in self.servers)])

    @property
    def responses(self) -> int:
        """ACK and NAK messages, from either leg."""
        return self.client.replies + self.upstream.replies

    @property
    def only_naks(self) -> bool:
        """Whether the upstream has rejected every request for 10 seconds or more, and at least `MANY_NAKS` of them."""
        return self.history.rejections() >= MANY_NAKS

    @property
    def is_slow(self) -> bool:
        """Whether one in a hundred of the replies of the last 10 seconds was slow."""
        p99 = self.history.recent().quantile(0.99)
        return p99 is not None and 0 < self.slow < p99

    @property
    def drops_requests(self) -> bool:
        """Whether the upstream has dropped a session in the last 10 seconds: it left requests open, or left at once."""
        now = self.clock() * 1e6
        return any(each.troubles.drops(now) for each in (self.traffic, *(server.traffic for server in self.servers)))

    def turned_away(self, reason: str) -> None:
        """Count a client that was closed at once, for a reason in `CLOSED`, and never became a session."""
        self.connections_total += 1
        self.connections_closed[reason] += 1

    def restore(
        self,
        counters: Mapping[str, int],
        latencies: Histogram,
        servers: Mapping[str, SavedServer] | None = None,
    ) -> None:
        """Take over the counters and latencies of an earlier process; counters missing from `counters` do not change.

        `servers` has the part of them that belongs to each server; a server that joins later gets its part then.
        Sessions that were open at the save ended with their process: they count as crashed, their open requests as
        unanswered.
        """
        self.catch_up()
        for name, place in self.lasting().items():
            self.numbers[place] = counters.get(name, self.numbers[place])
        self._figures.latency.restore(latencies)
        closed = self.connections_closed
        closed["crashed"] += max(self.connections_total - sum(closed.values()), 0)
        unanswered = self.requests_unanswered
        unanswered["crashed"] = min(unanswered["crashed"] + counters.get(_OPEN, 0), LARGEST)
        left = dict(servers or {})
        for server in self.servers:
            if server.name in left:
                left.pop(server.name).move(self.numbers, Stats._client.place, server.numbers)
        # Other servers may join later, if there is room for any.
        room = self.most_servers if self.most_servers > len(self.servers) else 0
        self._remembered = dict(islice(left.items(), room))
        self._restored = self.numbers[:]

    def _totals(self) -> Totals:
        client, upstream, closed = self.client, self.upstream, self.connections_closed
        return Totals(
            *(client.req + upstream.req, client.replies + upstream.replies, client.nak + upstream.nak),
            *(len(self.sessions), upstream.ack, upstream.nak),
            *(self.connections_total, client.bytes, upstream.bytes),
            tuple(closed[reason] for reason in FAILURES),
        )
