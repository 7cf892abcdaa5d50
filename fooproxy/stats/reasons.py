"""Why sessions end: every reason, with its meaning.

The relay gives one reason for each session, and the statistics count it.  The documentation, the page and the
exposition take the names from here, and the documentation takes the meanings too.
"""

from __future__ import annotations

CLOSED = {
    "client_closed": "the client closed the connection first",
    "upstream_closed": "the upstream closed the connection first",
    "client_reset": "the client reset its connection, or the connection was lost",
    "upstream_reset": "the upstream reset its connection, or the connection was lost",
    "upstream_refused": "the upstream was still refusing connections when --connect-timeout expired",
    "upstream_unresolved": "the proxy could not resolve the upstream's name within --connect-timeout",
    "upstream_tls": "TLS with the upstream failed: a certificate was rejected, for example, or it does not speak TLS",
    "upstream_unreachable": "the proxy could not connect to the upstream within --connect-timeout, for another reason",
    "connect_timeout": "the upstream did not answer connection attempts within --connect-timeout",
    "queue_timeout": "the client had waited --queue-timeout for a server with room for one more connection",
    "client_tls": "TLS with the client failed, or it took more than 10 seconds for its handshake",
    "half_close_timeout": "the client had finished sending, and no further reply arrived within --client-fin-timeout",
    "idle_timeout": "no data passed in either direction for --idle-timeout",
    "reply_timeout": "a request had waited for its reply for --reply-timeout",
    "send_timeout": "the client or the upstream did not read any of its waiting data for --send-timeout",
    "hold_timeout": "the client had a pooled link and made no progress for --pool-hold-timeout while others waited",
    "proxy_header": "the connection did not start with a valid PROXY header, which every haproxy: listener expects",
    "not_allowed": "the client's address is not among those in --allow",
    "loop": "the client was the proxy itself, because --forward leads back to --listen",
    "closed_by_operator": "an operator closed the session (fooctl close)",
    "drained": "the proxy was stopping, and the session had no request in flight",
    "crashed": "the proxy process ended without a clean stop while the session was open",
    "aborted": "the proxy was stopping, and the session was still busy when --drain-timeout expired",
}
"""All reasons, with their meanings."""

CLEAN = frozenset({"client_closed", "upstream_closed", "closed_by_operator", "drained"})
"""The reasons that need no attention from an operator."""

FAILURES = tuple(reason for reason in CLOSED if reason not in CLEAN)
"""The reasons that count as failures: all others."""

CONNECT_FAILURES = {
    "refused": "upstream_refused",
    "unresolved": "upstream_unresolved",
    "tls": "upstream_tls",
    "unreachable": "upstream_unreachable",
    "timeout": "connect_timeout",
}
"""Why connecting to the upstream failed (a label in the exposition), and the matching reason in `CLOSED`."""

LINK_STATES = {
    "idle": "waits for a client",
    "in_use": "is lent to a session",
    "draining": "its client has gone, and its replies are read and dropped",
}
"""The states of a pooled connection, with their meanings."""

LINKS_DISCARDED = {
    "age": "it was older than --pool-max-age",
    "idle": "no client needed it for --pool-idle-timeout",
    "closed": "the server closed or reset it",
    "unsolicited": "the server sent something unsolicited on it",
    "unclean": "its session left requests unanswered or a line unfinished, or said something other than requests",
    "surplus": "too many others were idle",
    "held": "an operator had paused or drained the server",
    "stopped": "the proxy was stopping",
}
"""Why pooled connections are closed, with their meanings."""
