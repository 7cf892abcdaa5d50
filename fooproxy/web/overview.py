"""The overview: lists of sessions and clients at one instant, in a form that JSON can represent.

This module reads the bridge's sessions and the statistics, and changes neither.  There may be thousands of sessions, so
it computes full rows only for those that are shown.  `fooproxy.web.resource` calls it.
"""

from __future__ import annotations

import heapq
from operator import itemgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from fooproxy.relay.session import Session
    from fooproxy.stats.counters import Stats
    from fooproxy.stats.session import SessionStats
    from fooproxy.web.query import Query

MOST = 500
"""The maximum number of sessions or clients in one answer."""


def _upstream_peer(session: Session[SessionStats], stats: SessionStats) -> str | None:
    leg = session.upstream
    return None if leg is None or leg.lost else leg.peer


COLUMNS: dict[str, Callable[[Session[SessionStats], SessionStats], Any]] = {
    "id": lambda session, stats: stats.number,
    "client": lambda session, stats: session.client.peer,
    "upstream": _upstream_peer,
    "upstream_name": lambda session, stats: None if stats.server is None else stats.server.name,
    "state": lambda session, stats: session.state,
    "paused": lambda session, stats: session.paused,
    "age_seconds": lambda session, stats: stats.age,
    "idle_seconds": lambda session, stats: stats.idle,
    "msg_req": lambda session, stats: stats.client.req + stats.upstream.req,
    "msg_ack": lambda session, stats: stats.client.ack + stats.upstream.ack,
    "msg_nak": lambda session, stats: stats.client.nak + stats.upstream.nak,
    "msg_invalid": lambda session, stats: stats.client.invalid + stats.upstream.invalid,
    "bytes_from_client": lambda session, stats: stats.client.bytes,
    "bytes_from_upstream": lambda session, stats: stats.upstream.bytes,
    "requests_in_flight": lambda session, stats: stats.exchange.in_flight,
    "latency_p50_seconds": lambda session, stats: stats.exchange.quantile(0.5),
    "latency_p99_seconds": lambda session, stats: stats.exchange.quantile(0.99),
}
"""The fields of a session in the answer, by name."""

_SOUGHT = ("client", "state", "upstream", "upstream_name")
"""The fields that are searched."""

LONGEST_SOUGHT = 100
"""Maximum characters of the text to search for."""

SORTABLE = [name for name in COLUMNS if name != "paused"]


def connections(
    stats: Stats,
    sessions: Collection[Session[SessionStats]],
    sort: str,
    descending: bool,
    limit: int,
    sought: str = "",
) -> dict[str, Any]:
    """Return the first `limit` of `sessions`, sorted by the column `sort`; sessions without a value come last.

    Only sessions with the text `sought` in their client, state or server are shown.
    """
    stats.catch_up()
    total = len(sessions)
    if sought:
        sessions = [session for session in sessions if _has(session, sought.lower())]
    value = COLUMNS[sort]
    # This runs for all sessions, perhaps thousands: each saved step saves milliseconds.
    valued = [(value(session, session.observer), session) for session in sessions]
    others = [session for found, session in valued if found is None]
    if others:
        valued = [pair for pair in valued if pair[0] is not None]
    first = (heapq.nlargest if descending else heapq.nsmallest)(limit, valued, key=itemgetter(0))
    shown = [session for _, session in first] + others[: limit - len(first)]
    return {
        "total": total,
        "matching": len(sessions),
        "connections": [{name: read(session, session.observer) for name, read in COLUMNS.items()} for session in shown],
    }


def listed(stats: Stats, sessions: Collection[Session[SessionStats]], query: Query) -> dict[str, Any]:
    """Return the sessions that `query` asks for, in the order that it asks for."""
    sort = query.choice("sort", "age_seconds", SORTABLE)
    descending = query.choice("order", "desc", ("desc", "asc")) == "desc"
    sought = query.text("filter", LONGEST_SOUGHT)
    return connections(stats, sessions, sort, descending, query.number("limit", 100, MOST), sought)


def _has(session: Session[SessionStats], sought: str) -> bool:
    return any(sought in str(COLUMNS[name](session, session.observer) or "").lower() for name in _SOUGHT)


def clients(stats: Stats, limit: int) -> dict[str, Any]:
    """Return the `limit` client addresses with the most messages, and the sum of all others."""
    stats.catch_up()
    return stats.clients.report(stats.sessions, limit)
