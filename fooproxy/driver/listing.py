"""Shows a proxy's answers as tables for the terminal: words aligned to the left, numbers to the right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fooproxy.driver.figures import counted, duration_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Row = Mapping[str, Any]
    Column = tuple[str, Callable[[Row], str]]


def _text(key: str) -> Callable[[Row], str]:
    return lambda row: "-" if row[key] is None else str(row[key])


def _duration(key: str) -> Callable[[Row], str]:
    return lambda row: "-" if row[key] is None else duration_text(row[key])


def _latency(name: str) -> Callable[[Row], str]:
    return lambda row: "-" if row["latency_seconds"][name] is None else duration_text(row["latency_seconds"][name])


def _state(row: Row) -> str:
    more = [word for word, holds in (("backup", row["backup"]), ("stuck", row["stuck"])) if holds]
    return ", ".join([row["state"], *more])


_WORDS = {"NAME", "STATE", "WHY", "CLIENT", "UPSTREAM"}
"""The headings of columns that are not numbers."""

_UPSTREAMS: Sequence[Column] = (
    ("NAME", _text("name")),
    ("STATE", _state),
    ("FOR", _duration("state_seconds")),
    ("WEIGHT", _text("weight")),
    ("SESSIONS", _text("connections_active")),
    ("AT MOST", _text("connections_limit")),
    ("IN FLIGHT", _text("requests_in_flight")),
    ("REQ", _text("requests")),
    ("ACK", lambda row: str(row["replies"]["ack"])),
    ("NAK", lambda row: str(row["replies"]["nak"])),
    ("P50", _latency("p50")),
    ("P99", _latency("p99")),
    ("WHY", lambda row: row["error"] or ""),
)

_CONNECTIONS: Sequence[Column] = (
    ("ID", _text("id")),
    ("CLIENT", _text("client")),
    ("UPSTREAM", lambda row: row["upstream_name"] or row["upstream"] or "-"),
    ("STATE", _text("state")),
    ("AGE", _duration("age_seconds")),
    ("IDLE", _duration("idle_seconds")),
    ("REQ", _text("msg_req")),
    ("ACK", _text("msg_ack")),
    ("NAK", _text("msg_nak")),
    ("IN FLIGHT", _text("requests_in_flight")),
    ("P50", _duration("latency_p50_seconds")),
)

_CLIENTS: Sequence[Column] = (
    ("CLIENT", _text("client")),
    ("OPEN", _text("connections_active")),
    ("SESSIONS", _text("connections_total")),
    ("REQ", _text("requests")),
    ("REPLIES", _text("replies")),
    ("INVALID", _text("msg_invalid")),
    ("BYTES IN", _text("bytes_from_client")),
    ("BYTES OUT", _text("bytes_from_upstream")),
)


def table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """Return an aligned table."""
    headings = [heading for heading, _ in columns]
    lines = [headings, *([cell(row) for _, cell in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if heading in _WORDS else cell.rjust(width)
            for heading, cell, width in zip(headings, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def upstreams(answer: Row) -> str:
    """Show the servers, and how many clients wait for one."""
    text = table(_UPSTREAMS, answer["upstreams"])
    if waiting := answer["clients_waiting"]:
        waits = "waits" if waiting == 1 else "wait, the first"
        text += f"\n{counted(waiting, 'client')} {waits} for {duration_text(answer['oldest_wait_seconds'] or 0)}"
    return text


def connections(answer: Row) -> str:
    """Show the sessions."""
    return _some(_CONNECTIONS, answer["connections"], answer["total"])


def clients(answer: Row) -> str:
    """Show the sums of the clients."""
    return _some(_CLIENTS, answer["clients"], answer["total"])


def _some(columns: Sequence[Column], rows: Sequence[Row], total: int) -> str:
    """Return a table, with a line that gives the total if there are more rows."""
    text = table(columns, rows)
    return text if len(rows) == total else f"{text}\n{len(rows)} of {total}"
