"""The verdict: the state of the proxy in one word, and why; the page shows it at its top, and the alerts say the same.

For each cause, `CAUSES` has the words that the page and the alert share, the name of the alert, and the part of its
expression with the threshold; a test compares them with the alert rules.  `judge` reads only reports, and does not know
about HTTP.  `fooproxy.web.resource` calls it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from fooproxy.stats.counters import LONG_WAIT, SLOW
from fooproxy.stats.troubles import STUCK_AFTER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class Cause(NamedTuple):
    """Why the proxy is not OK.

    Of the causes in one `field`, only the first is named: the others follow from it.
    """

    word: str
    """A reason or a warning of the health report."""
    state: str
    field: str
    words: str
    alert: str
    expression: str
    explain: Callable[[Situation], str]
    meaning: str = ""
    """What a warning means, for the table in the documents."""


class Situation(NamedTuple):
    """The input of the verdict: the reports of the statistics, the health, the servers and the recovery file."""

    report: Mapping[str, Any]
    health: Mapping[str, Any]
    upstream: Mapping[str, Any]
    """The address, state, reason and error of all servers together."""
    upstreams: Sequence[Mapping[str, Any]]
    """The state of each server."""
    recovery: Mapping[str, Any]

    @property
    def peer(self) -> str:
        """Return the server, or all of them, in words."""
        many = len(self.upstreams)
        return f"any of the {many} upstreams" if many > 1 else f"the upstream {self.upstream['address']}"

    @property
    def error(self) -> str:
        """Return the last connection error, and its reason."""
        return (self.upstream["error"] or "no error known") + _in_brackets(self.upstream["reason"])

    @property
    def is_served(self) -> bool:
        """Return whether there is a server for new clients."""
        return self.upstream["state"] in ("up", "unknown")

    def names(self, key: str, values: Sequence[Any], otherwise: str) -> str:
        """Return the names of the servers whose `key` is one of `values`; with a single server, return `otherwise`."""
        if len(self.upstreams) < 2:
            return otherwise
        found = [row for row in self.upstreams if row[key] in values]
        return ", ".join(row["name"] + _in_brackets(row["reason"]) for row in found) or otherwise


def _spaced(word: str) -> str:
    return word.replace("_", " ")


def _in_brackets(reason: str | None) -> str:
    return f" ({_spaced(reason)})" if reason else ""


def _sessions(count: int) -> str:
    return "1 session is" if count == 1 else f"{count:,} sessions are"


def _at_the_limit(now: Situation) -> str:
    open_now, limit = now.report["connections_active"], now.report["connections_limit"]
    what = f"all {limit:,} sessions are taken" if open_now >= limit else "file descriptors have run out"
    return (
        f"The proxy makes new clients wait: {what}. Look for sessions that should not be open, and close them "
        "(--idle-timeout does so by itself); if all are needed, raise --max-connections and the limit of open files."
    )


def _server(now: Situation) -> str:
    return "a server" if len(now.upstreams) > 1 else f"the upstream {now.upstream['address']}"


_STUCK = f"{STUCK_AFTER:g} seconds"

CAUSES = (
    Cause(
        *("draining", "draining", "server", "is stopping", "FooproxyNotReady", "fooproxy_ready == 0"),
        lambda now: (
            "The proxy is stopping and accepts no new clients; "
            f"{_sessions(now.report['connections_active'])} still open."
        ),
    ),
    Cause(
        *("loop", "not-ready", "server", "forwards to itself", "FooproxyNotReady", "fooproxy_ready == 0"),
        lambda now: (
            "Clients cannot be served: the proxy forwards to itself. "
            f"Set --forward, which is {now.upstream['address']}, to the address of the Foo server."
        ),
    ),
    Cause(
        *("upstream_unreachable", "not-ready", "server", "cannot connect to", "FooproxyNotReady"),
        "fooproxy_ready == 0",
        lambda now: f"Clients cannot be served: the proxy cannot connect to {now.peer}: {now.error}",
    ),
    Cause(
        *("starting", "not-ready", "server", "is starting", "FooproxyNotReady", "fooproxy_ready == 0"),
        lambda now: "The proxy is starting and does not accept clients yet.",
    ),
    Cause(
        *("upstream_stuck", "degraded", "server", f"no reply for {_STUCK}", "FooproxyStuck"),
        "fooproxy_upstream_stuck == 1",
        lambda now: (
            f"Requests are waiting: there has been no reply for {_STUCK} from "
            f"{now.names('stuck', [1], now.peer)}. Check whether the server hangs."
        ),
        meaning="Requests are waiting, or clients give up waiting, and no reply has been read for 10 seconds.",
    ),
    Cause(
        *("only_naks", "degraded", "server", "rejects every request with NAK", "FooproxyUpstreamFailing"),
        "fooproxy_upstream_failing",
        lambda now: f"For {_STUCK} or more, {_server(now)} rejects every request with NAK. Read the server's log.",
        meaning="The Foo server has rejected every request for 10 seconds or more, at least 10 of them and the last "
        "within a minute.",
    ),
    Cause(
        *("upstream_drops_requests", "degraded", "server", "leaves requests unanswered", "FooproxyUpstreamFailing"),
        "fooproxy_upstream_failing",
        lambda now: (
            f"Within the last {_STUCK}, {_server(now)} leaves requests unanswered, or closes connections as soon as "
            "they are made. Check that --forward leads to the Foo server, and read its log."
        ),
        meaning="Within the last 10 seconds, the Foo server has closed a connection without answering all its "
        "requests or as soon as it was made, or requests were still open when a session ended by "
        "``half_close_timeout``, ``idle_timeout`` or ``reply_timeout``.",
    ),
    Cause(
        *("upstream_down", "degraded", "server", "cannot use some of its Foo servers", "FooproxyUpstreamDown"),
        "fooproxy_upstreams_up < fooproxy_upstreams",
        lambda now: (
            "Clients are being served, but the proxy cannot use some of its Foo servers: "
            f"{now.names('state', ['down'], 'see below')}."
        ),
        meaning="One of several servers is down.",
    ),
    Cause(
        *("upstream_held", "degraded", "server", "an operator keeps them away", "FooproxyUpstreamDown"),
        "fooproxy_upstreams_up < fooproxy_upstreams",
        lambda now: (
            f"{'Clients are being served, but' if now.is_served else 'New clients wait:'} an operator keeps them away "
            f"from {now.names('state', ['paused', 'draining'], now.peer)}; fooctl resume or fooctl ready ends that."
        ),
        meaning="A server is ``paused`` or ``draining``, as an operator asked.",
    ),
    Cause(
        *("discovery_failing", "degraded", "names", "cannot look up", "FooproxyLookupsFailing"),
        "fooproxy_lookups_failing > 0",
        lambda now: (
            f"The proxy cannot look up {now.report['lookups_failing']} of the names of its Foo servers, and keeps "
            "the servers that it knows. Check the name server; /upstreams says what is wrong."
        ),
        meaning="A name of servers (``dns:``, ``srv:``) cannot be looked up; the servers found before are kept.",
    ),
    Cause(
        *("slow_replies", "degraded", "server", "Replies are slow", "FooproxyLatencyHigh"),
        f"instance:fooproxy_request_duration_seconds:p99_5m > {SLOW:g}",
        lambda now: (
            f"Replies are slow: of those in the last 10 seconds, 1 % took "
            f"{now.report['latency_seconds_10s']['p99'] or 0.0:.3g} s or more; --slow-replies is the threshold. "
            "If p50 is high too, the server or the network to it is slow."
        ),
        meaning="1 % of the replies of the last 10 seconds took longer than ``--slow-replies`` (1 second); raise that "
        "if your server is slower by nature, and the threshold of the alert ``FooproxyLatencyHigh`` with it.",
    ),
    Cause(
        *(
            "upstream_connect_failed",
            "degraded",
            "server",
            "cannot connect clients to",
            "FooproxyUpstreamConnectFailures",
        ),
        "fooproxy_upstream_connect_failures_total",
        lambda now: f"The proxy cannot connect clients to {now.peer}; the last attempt failed: {now.error}",
    ),
    Cause(
        *("clients_waiting", "degraded", "limit", "makes new clients wait", "FooproxyConnectionLimitReached"),
        "fooproxy_connections_active >= fooproxy_connections_limit",
        _at_the_limit,
        meaning="New clients have to wait, because ``--max-connections`` is reached or there are no file descriptors "
        "left.",
    ),
    Cause(
        *("clients_queued", "degraded", "limit", "wait for a server", "FooproxyClientsWaiting"),
        f"fooproxy_oldest_wait_seconds > {LONG_WAIT:g}",
        lambda now: (
            f"Clients wait for a server: {now.report['clients_waiting']:,} now, the first for "
            f"{now.report['oldest_wait_seconds']:.1f} s, because no server can be reached or all have reached "
            "their connection limits."
        ),
        meaning="A client has waited for more than 1 second for a server that can be reached and has room.",
    ),
    Cause(
        *("recovery_failing", "degraded", "disk", "cannot save its statistics", "FooproxyRecoverySavesFailing"),
        "fooproxy_recovery_saves_total",
        lambda now: (
            f"Traffic passes, but the proxy cannot save its statistics to {now.recovery['path']}; "
            "a restart would lose the counts since the last save. Check the disk and the permissions."
        ),
        meaning="The statistics cannot be saved.",
    ),
)
"""All causes, the gravest of each field first."""


def judge(now: Situation) -> dict[str, Any]:
    """Return the `state`, and `why` in one or two sentences; `also` lists the other causes."""
    holding = {*now.health["reasons"], *now.health["warnings"]}
    if now.recovery["failing"]:
        holding.add("recovery_failing")
    if now.upstream["state"] == "down":
        holding.add("upstream_connect_failed")
    found: dict[str, tuple[str, str]] = {}
    for cause in CAUSES:
        if cause.word in holding:
            found.setdefault(cause.field, (cause.state, cause.explain(now)))
    if found:
        (state, why), *others = found.values()
        return {"state": state, "why": why, "also": [explained for _, explained in others]}
    known = {cause.word for cause in CAUSES}
    if unknown := sorted(holding - known):
        state = "degraded" if now.health["ready"] else "not-ready"
        return {"state": state, "why": f"The proxy reports: {', '.join(map(_spaced, unknown))}.", "also": []}
    some = f"at least one of the {len(now.upstreams)} upstreams" if len(now.upstreams) > 1 else now.peer
    reached = "is reachable" if now.upstream["state"] == "up" else "has not been needed yet"
    return {
        "state": "ok",
        "why": f"Clients are being served, {some} {reached}, and the statistics are being saved.",
        "also": [],
    }
