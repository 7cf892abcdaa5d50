"""What there is to know: each statistic declared once, and the reasons for which sessions end.

The report, the exposition and the documentation all derive from `FIELDS`.  How a statistic is counted is the business
of `fooproxy.stats.counters`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from fooproxy import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from fooproxy.stats.counters import Stats


class Field(NamedTuple):
    """One statistic: `kind` is counter (only grows), gauge (an instant), histogram (summed up) or info (a text)."""

    name: str
    kind: str
    unit: str
    meaning: str
    read: Callable[[Stats], Any]


CLOSED = {
    "client_closed": "the client closed first",
    "upstream_closed": "the upstream closed first",
    "client_reset": "the client's connection was reset or lost",
    "upstream_reset": "the upstream's connection was reset or lost",
    "upstream_refused": "the upstream refused the connection until --connect-timeout",
    "upstream_unresolved": "the upstream's name could not be resolved until --connect-timeout",
    "upstream_unreachable": "the upstream could not be connected for another reason until --connect-timeout",
    "connect_timeout": "the upstream did not answer until --connect-timeout",
    "half_close_timeout": "the client had closed its side, and no further reply came within --client-fin-timeout",
    "idle_timeout": "nothing had passed in either direction for --idle-timeout",
    "send_timeout": "a peer read nothing of what was waiting for it for --send-timeout",
    "not_allowed": "the client's address was none that --allow names",
    "drained": "the proxy was told to stop, and the session had no request in flight",
    "crashed": "the proxy itself ended, without having been told to stop",
    "aborted": "the proxy was told to stop, and the session was still busy at --drain-timeout",
}
"""Why sessions end: all reasons there are, with their meanings."""

CLEAN = frozenset({"client_closed", "upstream_closed", "drained"})
"""The reasons that nobody need worry about."""

CONNECT_FAILURES = {
    "refused": "upstream_refused",
    "unresolved": "upstream_unresolved",
    "unreachable": "upstream_unreachable",
    "timeout": "connect_timeout",
}
"""The reasons for which a session gets no upstream leg, and what they are among those of `CLOSED`."""


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
    Field("msg_nak", "counter", "messages", "NAK messages, from either leg.", lambda s: s.naks),
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
    Field(
        "requests_in_flight",
        "gauge",
        "messages",
        "Lines of clients, in sessions that are open, that were not answered yet.",
        lambda s: s.in_flight,
    ),
    Field(
        "responses_unmatched",
        "counter",
        "messages",
        "Replies that came while their session had no request in flight.",
        lambda s: s.latency.unmatched,
    ),
    Field(
        "latency_seconds",
        "histogram",
        "seconds",
        "Time from a request to its reply, from when each was read, since the counters began.",
        lambda s: s.latency.answered.summary(),
    ),
    Field(
        "latency_seconds_10s",
        "histogram",
        "seconds",
        "The same, of replies in the last 10 seconds, counted by whole seconds.",
        lambda s: s.history.recent().summary(),
    ),
    Field("connections_active", "gauge", "sessions", "Sessions that are open now.", lambda s: len(s.sessions)),
    Field(
        "connections_limit", "gauge", "sessions", "Sessions that may be open at once.", lambda s: s.connections_limit
    ),
    Field("connections_total", "counter", "sessions", "Client connections accepted.", lambda s: s.connections_total),
    Field(
        "connections_closed", "counter", "sessions", "Sessions that have ended, by reason.", lambda s: dict(s.closed)
    ),
    Field(
        "upstream_connect_failures",
        "counter",
        "sessions",
        "Sessions closed because the upstream could not be connected within --connect-timeout.",
        lambda s: sum(s.connect_failures.values()),
    ),
    Field(
        "reads_paused",
        "counter",
        "pauses",
        "Times that a leg was not read for a while, since the other could not be written to, by leg.",
        lambda s: dict(s.reads_paused),
    ),
    Field(
        "accepts_paused",
        "counter",
        "pauses",
        "Times that clients were left waiting, at the limit or without file descriptors, by cause.",
        lambda s: dict(s.accepts_paused),
    ),
    Field("recovery_saves", "counter", "saves", "Saves of the recovery file, by result.", lambda s: dict(s.saves)),
    Field("uptime_seconds", "gauge", "seconds", "Time since this process started.", lambda s: s.uptime),
    Field("version", "info", "", "fooproxy's version.", lambda s: __version__),
)
"""Every statistic of the report, in its order."""
