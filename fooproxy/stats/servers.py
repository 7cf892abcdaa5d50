"""The statistics of one of several servers, declared like all others, in a row of the same array.

These statistics are saved and restored by the server's name.  `fooproxy.stats.counters` assigns a row to each server,
and reuses the row of a server that is gone.  The sessions count in the row of their server, and the web side shows the
rows, labelled by server.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fooproxy.foo.analyzer import Counts
from fooproxy.foo.latency import Histogram, Latency
from fooproxy.foo.numbers import LARGEST
from fooproxy.stats.fields import Counted, Counter, Counters, Declared, computed
from fooproxy.stats.reasons import CONNECT_FAILURES
from fooproxy.stats.traffic import Figures, Traffic
from fooproxy.stats.troubles import Troubles

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableSequence
    from typing import Any

    from fooproxy.foo.counting import Twin
    from fooproxy.stats.clients import Session


class ServerStats(Declared):
    """The statistics of the server `name`, counted in `numbers` by `twin`; `before` is the traffic counted first."""

    connections_total = Counter("sessions", "Sessions that the server got.", series="connections")

    @computed("gauge", "sessions")
    def connections_active(self) -> int:
        """Open sessions of the server."""
        return len(self.sessions)

    connections_dropped = Counter(
        "sessions",
        "Sessions that the server left with requests unanswered, or ended as soon as they began.",
    )
    connect_failures = Counters(
        "attempts",
        "Attempts to connect to the server that failed, by reason.",
        "reason",
        tuple(CONNECT_FAILURES),
    )
    checks = Counters("checks", "Checks of the server, by result.", "result", ("passed", "failed"))
    ejections = Counter("ejections", "Times the server was taken out because of its requests.")

    @computed("counter", "messages")
    def requests(self) -> int:
        """Requests that the server got."""
        return self.figures.client.req

    @computed("counter", "messages", label="type", labels=("ack", "nak"))
    def replies(self) -> dict[str, int]:
        """Replies from the server, by type."""
        return {"ack": self.figures.upstream.ack, "nak": self.figures.upstream.nak}

    @computed("gauge", "messages")
    def requests_in_flight(self) -> int:
        """Lines from clients that the server has not answered yet."""
        return self.figures.in_flight

    requests_unanswered = Counter("messages", "Requests that the server never answered because their session ended.")

    @computed("gauge", "0 or 1")
    def stuck(self) -> int:
        """1 if requests have been waiting and no reply of the server has been read for 10 seconds, else 0."""
        waiting = self.sessions if self.figures.in_flight > 0 else ()
        return int(self.traffic.troubles.is_stuck(waiting, self._clock() * 1e6, self.figures.latency.replied))

    @computed("histogram", "seconds", series="request_duration_seconds")
    def latency_seconds(self) -> Histogram:
        """Time from reading a request to reading the server's reply."""
        return self.figures.latency.answered

    _client = Counted(Counts.names, saved="client")
    _upstream = Counted(Counts.names, saved="upstream")
    _latency = Counted(Latency.names, saved={"unmatched": "responses_unmatched", "late": "replies_late"})

    def __init__(
        self,
        name: str,
        clock: Callable[[], float],
        numbers: MutableSequence[int],
        twin: Twin,
        before: Traffic | None = None,
        place: int = 0,
    ) -> None:
        super().__init__(numbers)
        self.place = place
        """The number of the server's row."""
        self._clock = clock
        self.traffic = Traffic(numbers, ServerStats._client.place, twin, before)
        self.figures: Figures = self.traffic
        self.begin(name)

    def begin(self, name: str) -> None:
        """Begin to be the statistics of the server `name`."""
        self.name = name
        self.traffic.troubles = Troubles()
        self.sessions: set[Session] = set()
        self.when_ended: Callable[[bool, float], object] = lambda dropped, replied: None
        """Called when a session has ended: whether the server dropped it, and when the last reply was read, if any."""

    def bound(self, numbers: MutableSequence[int]) -> ServerStats:
        """Return the same statistics of other `numbers`."""
        view = copy(self)
        view.numbers = numbers
        view.figures = Figures(numbers, ServerStats._client.place)
        return view

    def saved(self) -> SavedServer:
        """Return the part that is saved; open requests are counted as unanswered in it."""
        counters = self.counters()
        counters[_UNANSWERED] = min(counters[_UNANSWERED] + max(self.figures.in_flight, 0), LARGEST)
        return SavedServer(counters, self.latency_seconds)

    @property
    def load(self) -> int:
        """The sum of open sessions and requests in flight, by which servers are compared."""
        return len(self.sessions) + self.in_flight

    @property
    def in_flight(self) -> int:
        """Requests in flight."""
        return max(self.figures.in_flight, 0)

    def joined(self, session: Session) -> None:
        """Count a new session of the server."""
        self.connections_total += 1
        self.sessions.add(session)

    def left(self, session: Session) -> None:
        """Forget a session that continues with another server or without one."""
        self.sessions.discard(session)

    def ended(self, session: Session, dropped: bool) -> None:
        """Count the end of a session, and whether the server dropped it."""
        self.left(session)
        self.requests_unanswered += session.exchange.in_flight
        self.connections_dropped += dropped
        exchange = session.exchange
        # Earlier replies may come from another server.
        last = min(exchange.last, self.figures.latency.replied)
        self.when_ended(dropped, last / 1e6 if exchange.replies and last else float("-inf"))

    def waiting(self, since: float) -> int:
        """Return how many sessions have a request that has waited since `since`, on the clock in seconds, or longer."""
        return len([session for session in self.sessions if _waits(session, since * 1e6)])

    def is_answering(self, since: float) -> bool:
        """Return whether an open session got a reply after `since`, on the clock in seconds."""
        if self.figures.latency.replied <= since * 1e6:
            # Replies to its sessions since then came from the servers that they had before.
            return False
        return any(each.exchange.replies and each.exchange.last > since * 1e6 for each in self.sessions)


SHARED = {
    name: place
    for field in ServerStats.fields
    if isinstance(field, Counted)
    for name, place in ServerStats.lasting().items()
    if field.place <= place < field.place + len(field.cells)
}
"""The places of the numbers that are also part of the totals, by their names in the recovery file."""

_UNANSWERED = ServerStats.requests_unanswered.name
_TRAFFIC = ServerStats._client.place
_SIZE = 2 * len(Counts.names) + len(Latency.names)
_LATENCY = _SIZE - len(Latency.names)


@dataclass(frozen=True)
class SavedServer:
    """The saved statistics of a server: the `counters`, by their names, and the `latencies`."""

    counters: Mapping[str, int]
    latencies: Histogram

    def state(self) -> dict[str, Any]:
        """Return these statistics in a form that JSON can represent."""
        return {"counters": dict(self.counters), "latency": self.latencies.state()}

    @property
    def matched(self) -> int:
        """The number of replies to requests according to the latencies; it must equal `replied`."""
        return self.latencies.count + self.counters.get("replies_late", 0)

    @property
    def replied(self) -> int:
        """The number of replies to requests according to the counters."""
        replies = self.counters.get("upstream_ack", 0) + self.counters.get("upstream_nak", 0)
        return replies - self.counters.get("responses_unmatched", 0)

    def move(self, numbers: MutableSequence[int], start: int, row: MutableSequence[int]) -> None:
        """Move these numbers to an empty `row`: subtract the shared ones from the traffic at `start` of `numbers`."""
        for name, place in ServerStats.lasting().items():
            row[place] = self.counters.get(name, 0)
        latency = Latency(row, _TRAFFIC + _LATENCY)
        latency.restore(self.latencies)
        for offset in range(_SIZE):
            if offset not in _LARGEST:
                numbers[start + offset] -= row[_TRAFFIC + offset]


_LARGEST = frozenset(_LATENCY + Latency.names.index(name) for name in Latency.largest)
"""The places of the traffic's numbers that are not additive: the largest one counts."""


def give_back(row: MutableSequence[int], numbers: MutableSequence[int], start: int) -> None:
    """Empty a `row`, and add its traffic to the traffic at `start` of `numbers`."""
    for offset in range(_SIZE):
        here, there = start + offset, _TRAFFIC + offset
        numbers[here] = max(numbers[here], row[there]) if offset in _LARGEST else numbers[here] + row[there]
    for place in range(ServerStats.size):
        row[place] = 0


def _waits(session: Session, since: float) -> bool:
    exchange = session.exchange
    return not session.is_held_up and exchange.open > 0 and exchange.waiting_since <= since
