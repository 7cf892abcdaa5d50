"""The statistics of one of several servers, declared like all others, in a row of the same array.

They begin with the process: what earlier ones counted is in the totals only.  `fooproxy.stats.counters` makes a row for
each server, the sessions count in the row of their server, and the web side shows the rows, labelled by server.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

from fooproxy.foo.analyzer import Counts
from fooproxy.foo.latency import Histogram, Latency
from fooproxy.stats.fields import Counted, Counter, Counters, Declared, computed
from fooproxy.stats.reasons import CONNECT_FAILURES
from fooproxy.stats.traffic import Figures, Traffic

if TYPE_CHECKING:
    from collections.abc import Callable, MutableSequence

    from fooproxy.foo.counting import Twin
    from fooproxy.stats.clients import Session


class ServerStats(Declared):
    """The statistics of the server `name`, counted in `numbers` by `twin`; `before` is the traffic counted first."""

    connections_total = Counter("sessions", "Sessions that the server got.", series="connections", saved=None)

    @computed("gauge", "sessions")
    def connections_active(self) -> int:
        """Open sessions of the server."""
        return len(self.sessions)

    connections_dropped = Counter(
        "sessions",
        "Sessions that the server left with requests unanswered, or ended as soon as they began.",
        saved=None,
    )
    connect_failures = Counters(
        "attempts",
        "Attempts to connect to the server that failed, by reason.",
        "reason",
        tuple(CONNECT_FAILURES),
        saved=None,
    )
    checks = Counters("checks", "Checks of the server, by result.", "result", ("passed", "failed"), saved=None)
    ejections = Counter("ejections", "Times the server was taken out because of its requests.", saved=None)

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

    requests_unanswered = Counter(
        "messages", "Requests that the server never answered because their session ended.", saved=None
    )

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
    ) -> None:
        super().__init__(numbers)
        self.name = name
        self._clock = clock
        self.traffic = Traffic(numbers, ServerStats._client.place, twin, before)
        self.figures: Figures = self.traffic
        self.sessions: set[Session] = set()
        self.when_ended: Callable[[bool, float], object] = lambda dropped, replied: None
        """Called when a session has ended: whether the server is to blame, and when the last reply was read, if any."""

    def bound(self, numbers: MutableSequence[int]) -> ServerStats:
        """Return the same statistics of other `numbers`."""
        view = copy(self)
        view.numbers = numbers
        view.figures = Figures(numbers, ServerStats._client.place)
        return view

    @property
    def load(self) -> int:
        """Open sessions and requests in flight together: what servers are compared by."""
        return len(self.sessions) + max(self.figures.in_flight, 0)

    def joined(self, session: Session) -> None:
        """Count a session that the server gets."""
        self.connections_total += 1
        self.sessions.add(session)

    def left(self, session: Session) -> None:
        """Forget a session that goes on elsewhere."""
        self.sessions.discard(session)

    def ended(self, session: Session, dropped: bool) -> None:
        """Count the end of a session, and whether the server is to blame."""
        self.left(session)
        self.requests_unanswered += session.exchange.in_flight
        self.connections_dropped += dropped
        exchange = session.exchange
        self.when_ended(dropped, exchange.last / 1e6 if exchange.replies else float("-inf"))

    def waiting(self, since: float) -> int:
        """Return how many sessions have a request that has waited since `since`, on the clock in seconds, or longer."""
        return len([session for session in self.sessions if _waits(session, since * 1e6)])

    def is_answering(self, since: float) -> bool:
        """Return whether an open session got a reply after `since`, on the clock in seconds."""
        return any(each.exchange.replies and each.exchange.last > since * 1e6 for each in self.sessions)


def _waits(session: Session, since: float) -> bool:
    exchange = session.exchange
    return not session.is_held_up and exchange.open > 0 and exchange.waiting_since <= since
