"""Compares the figures of the demo's client with the proxy's report.

It knows the report's keys but not how a report is fetched; `demo` calls it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fooproxy.driver.command import Stop
from fooproxy.driver.figures import duration_text, rate_text
from fooproxy.driver.tally import Latencies

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fooproxy.driver.tally import Tally

_NONE = "-"

_EXPLANATION = """\
The client's latency runs from sending a request to reading its reply.
The proxy's latency covers only the server: from reading a request to reading its reply."""


def table(report: Mapping[str, Any], tallies: Sequence[Tally]) -> str:
    """Format the client's and the proxy's figures side by side, with each figure's key in the report."""
    expected = _expected_counts(tallies)
    latencies = Latencies.merged([tally.latencies for tally in tallies])
    rows = [("", "key in the report", "client", "proxy")]
    for name, key in (("messages", "msg_total"), ("requests", "msg_req"), ("ACK", "msg_ack"), ("NAK", "msg_nak")):
        rows.append((name, key, str(expected[key]), _count(report.get(key))))
    rows.append(("requests/s, last 10 s", "request_rate_10s", _NONE, _rate(report.get("request_rate_10s"))))
    served = report.get("latency_seconds") or {}
    for name, percent in (("p50", 50), ("p99", 99)):
        own = duration_text(latencies.percentile(percent))
        rows.append((f"latency {name}", f"latency_seconds.{name}", own, _duration(served.get(name))))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        f"  {name:{widths[0]}}  {key:{widths[1]}}  {client:>{widths[2]}}  {proxy:>{widths[3]}}"
        for name, key, client, proxy in rows
    ]
    return "\n".join([*lines, "", _EXPLANATION])


def check_counts(counts: Mapping[str, Any], tallies: Sequence[Tally], source: str) -> None:
    """Compare the proxy's counts, obtained from `source`, with the client's.

    :raises Stop: they differ.
    """
    expected = _expected_counts(tallies)
    wrong = [f"{key} is {counts.get(key)}, not {right}" for key, right in expected.items() if counts.get(key) != right]
    if wrong:
        raise Stop(f"{source} does not match what the client counted: {', '.join(wrong)}")


def _expected_counts(tallies: Sequence[Tally]) -> dict[str, int]:
    sent, acks, naks = (sum(getattr(tally, name) for tally in tallies) for name in ("sent", "acks", "naks"))
    return {"msg_total": sent + acks + naks, "msg_req": sent, "msg_ack": acks, "msg_nak": naks}


def _count(value: Any) -> str:
    return _NONE if value is None else str(value)


def _rate(value: Any) -> str:
    return _NONE if value is None else rate_text(value)


def _duration(value: Any) -> str:
    return _NONE if value is None else duration_text(value)
