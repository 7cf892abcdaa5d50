"""The servers behind the proxy at one instant: each with its state, its figures, and whether it is an outlier.

This module reads the set of servers and the statistics, and changes neither.  `fooproxy.web.resource` and
`fooproxy.web.exposition` call it.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fooproxy.stats.counters import Stats
    from fooproxy.upstreams.servers import Servers

STATES = ("unknown", "up", "down", "draining", "paused")
"""All states of a server."""

_ENOUGH = 100
"""Minimum replies for comparing a server with others."""

_FAR = 3
"""A server whose p50 or share of NAKs is more than this many times the others' median is an outlier."""

_FEW_NAKS = 0.05
"""The share of NAKs below which a server is never an outlier, however few NAKs the others send."""


def rows(stats: Stats, upstreams: Servers) -> list[dict[str, Any]]:
    """Return the state and the figures of each server, in the order of the options."""
    stats.catch_up()
    servers = upstreams.servers
    records = [stats.rows[each.number].report() for each in servers] if stats.most_servers else [_only(stats)]
    outliers = _outliers(records)
    return [
        {
            "name": server.name,
            "state": server.state,
            "state_seconds": server.since,
            "reason": server.reason if server.held is None else "operator",
            "error": server.error if server.held is None else f"{server.held} by {server.held_by}",
            "weight": server.weight,
            "backup": server.backup,
            "connections_limit": None if server.slots is None else server.slots.limit,
            "outlier": outlier,
            "check": None if server.check is None else server.check.report(),
            "links": None if server.links is None else server.links.states,
            **record,
        }
        for server, record, outlier in zip(servers, records, outliers, strict=True)
    ]


def report(stats: Stats, upstreams: Servers) -> dict[str, Any]:
    """Return the rows, the number of waiting clients, and the seconds that the first of them has waited."""
    return {
        "upstreams": rows(stats, upstreams),
        "clients_waiting": len(upstreams.waiting),
        "oldest_wait_seconds": upstreams.oldest_wait,
    }


def _only(stats: Stats) -> dict[str, Any]:
    """Return the figures of a single server, which has all the traffic."""
    return {
        "connections_total": stats.connections_total,
        "connections_active": stats.connections_active,
        "connections_dropped": None,
        "connect_failures": None,
        "checks": dict(stats.upstream_checks),
        "ejections": 0,
        "requests": stats.client.req,
        "replies": stats.replies,
        "requests_in_flight": stats.requests_in_flight,
        "requests_unanswered": sum(stats.requests_unanswered.values()),
        "stuck": stats.upstream_stuck,
        "latency_seconds": stats.latency_seconds.summary(),
    }


def _outliers(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return for each server the list of figures that are outliers: ``latency``, ``naks``, both or none."""
    figures = [_compared(record) for record in records]
    found: list[list[str]] = []
    for number, mine in enumerate(figures):
        others = [each for place, each in enumerate(figures) if each and place != number]
        if not mine or not others:
            found.append([])
            continue
        latency, naks = (median(each[place] for each in others) for place in (0, 1))
        is_far = {"latency": mine[0] > _FAR * latency, "naks": mine[1] > max(_FAR * naks, _FEW_NAKS)}
        found.append([word for word, is_so in is_far.items() if is_so])
    return found


def _compared(record: Mapping[str, Any]) -> tuple[float, float] | None:
    replies = sum(record["replies"].values())
    p50 = record["latency_seconds"]["p50"]
    return None if replies < _ENOUGH or p50 is None else (p50, record["replies"]["nak"] / replies)
