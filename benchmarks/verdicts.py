"""The verdict on a soak: each criterion with its reason, and what is judged by it; knows no processes."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WARM_UP = 0.2
"""Share of the run that is not looked at: memory is taken for the first sessions, and for the caches of Python."""

RSS_GROWTH_KIB = 4096
"""What the memory's median may be higher in the last quarter of what is looked at than in the first.

Not a leak are the history of the last 15 minutes, which fills while a run lasts (about 200 KiB), and the blocks of the
allocator that a few large reads leave behind; a leak of one small object a session is ten times this in half an hour.
"""

DELAY_P99 = 0.25
"""Seconds that 99 of 100 answers to ``/health``, and of 100 small requests through the proxy, may take.

The proxy needs some ms for it; but on two cores the load takes its turns too.  More means that something blocks the
event loop often: it gives the web side a turn every 80 ms under any load.
"""

DELAY_LONGEST = 2.0
"""Seconds that no answer to ``/health`` may take: then the event loop stood still.

Requests through the proxy are not judged by this.  A single one may wait for the server, whose threads take turns, or
for the kernel, which backs off to seconds where it had to send a segment once more.
"""


class Verdict(NamedTuple):
    """One criterion: what it is about, whether it was met, and the figures."""

    name: str
    met: bool
    figures: str


def judge_counts(report: dict[str, Any], asked: Mapping[str, int], answered: Mapping[str, int]) -> list[Verdict]:
    """Compare the report with what the clients and the server count themselves.

    Each count must lie between what was sent and what has come; where no fault can lose anything the two are one.
    """
    found = {
        "sessions": (asked["connections"], report["connections_total"], sum(report["connections_closed"].values()))
    }
    for kind, sender, receiver in (("req", asked, answered), ("ack", answered, asked)):
        found[kind] = (sender.get(f"sent_{kind}", 0), report[f"msg_{kind}"], receiver.get(f"received_{kind}", 0))
    exact = [
        Verdict(f"{name} exact", len(set(counts)) == 1, f"{counts[0]} sent, {counts[1]} counted, {counts[2]} arrived")
        for name, counts in found.items()
    ]
    for kind, sender, receiver in (("invalid", asked, answered), ("nak", answered, asked)):
        most, count, least = sender.get(f"sent_{kind}", 0), report[f"msg_{kind}"], receiver.get(f"received_{kind}", 0)
        exact.append(
            Verdict(f"{kind} possible", least <= count <= most, f"{most} sent, {count} counted, {least} arrived")
        )
    return exact


def judge_memory(rss: Sequence[int]) -> Verdict:
    """Judge whether the memory (samples in KiB, evenly over the run) stays as it is."""
    looked_at = rss[int(len(rss) * WARM_UP) :]
    quarter = max(1, len(looked_at) // 4)
    first, last = statistics.median(looked_at[:quarter]), statistics.median(looked_at[-quarter:])
    return Verdict("memory", last - first <= RSS_GROWTH_KIB, f"{first:.0f} KiB at first, {last:.0f} KiB at last")


def judge_delays(health: Sequence[float], relayed: Sequence[float]) -> list[Verdict]:
    """Judge the times, in seconds, of ``/health`` and of small requests through the proxy."""
    loop, relay = spread(health), spread(relayed)
    return [
        Verdict("loop delay", loop["p99"] <= DELAY_P99, f"{_told(loop)}, of {len(health)} answers to /health"),
        Verdict("longest loop delay", loop["max"] <= DELAY_LONGEST, f"{1000 * loop['max']:.1f} ms"),
        Verdict("relay delay", relay["p99"] <= DELAY_P99, f"{_told(relay)}, of {len(relayed)} requests relayed"),
    ]


def spread(times: Sequence[float]) -> dict[str, float]:
    """Sum up times by their median, 99th percentile and maximum."""
    ordered = sorted(times)
    return {name: ordered[int(share * (len(ordered) - 1))] for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1))}


def _told(times: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in times.items())
