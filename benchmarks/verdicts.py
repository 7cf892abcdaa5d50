"""The verdict on a soak: each criterion with its reason, and the check of it; knows no processes."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WARM_UP = 0.2
"""The fraction of the run, at its start, that is ignored: the first sessions and Python's caches take memory."""

RSS_GROWTH_KIB = 4096
"""KiB by which the median of the memory may grow from the first to the last quarter of the rest of the run.

Two things are not leaks: the history of the last 15 minutes, which fills during a run (about 200 KiB), and blocks that
a few large reads leave in the allocator.  A leak of one small object per session is ten times this in half an hour.
"""

DELAY_P99 = 0.25
"""Seconds that 99 of 100 answers to ``/health``, and of 100 small requests through the proxy, may take.

The proxy needs a few ms, but shares two cores with the load.  A longer time means that something often blocks the event
loop, which gives the web side a turn every 80 ms under any load.
"""

DELAY_LONGEST = 2.0
"""Maximum seconds for any answer to ``/health``; a longer time means that the event loop stood still.

This does not apply to requests through the proxy: a single one may wait for the server, whose threads take turns, or
for the kernel, which backs off for seconds when it retransmits a segment.
"""


class Verdict(NamedTuple):
    """One criterion: its subject, whether it was met, and the figures."""

    name: str
    met: bool
    figures: str


def judge_counts(report: dict[str, Any], asked: Mapping[str, int], answered: Mapping[str, int]) -> list[Verdict]:
    """Compare the report with the clients' and the server's own counts.

    Each count must lie between the numbers sent and received; these are equal where no fault can lose anything.
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
    """Judge whether the memory (samples in KiB, evenly over the run) stays constant."""
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
    """Summarize times by their median, 99th percentile and maximum."""
    ordered = sorted(times)
    return {name: ordered[int(share * (len(ordered) - 1))] for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1))}


def _told(times: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in times.items())
