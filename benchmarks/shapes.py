"""The load shapes, and the figures measured for each, declared once for the runs, the tables and the chart."""

from __future__ import annotations

from typing import NamedTuple


class Figure(NamedTuple):
    """A measured figure: its `heading` with the unit, `digits` after its decimal point in tables, its `meaning`."""

    heading: str
    digits: int
    meaning: str


FIGURES = {
    "rate": Figure("per s", 0, "requests, or whole connections, per second"),
    "p50_us": Figure("p50 µs", 1, "median time from request to reply"),
    "p99_us": Figure("p99 µs", 1, "the same, 99th percentile"),
    "p999_us": Figure("p99.9 µs", 1, "the same, 99.9th percentile"),
    "max_us": Figure("max µs", 0, "the same, longest"),
    "added_us": Figure("added p50 µs", 1, "median latency that the proxy adds"),
    "added_p99_us": Figure("added p99 µs", 1, "99th percentile of the latency, less that without a proxy"),
    "cpu_us": Figure("CPU µs", 2, "CPU time of the proxy per request and its reply"),
    "busy": Figure("busy %", 0, "part of its core that the proxy used"),
    "rss_kib": Figure("KiB/session", 2, "memory of the proxy per idle session"),
    "idle_cpu": Figure("CPU %", 2, "part of its core that the proxy used while all sessions idled"),
}

LATENCIES = ("p50_us", "p99_us", "p999_us")


class Shape(NamedTuple):
    """One kind of load.

    `mode` is the load generator's; `connections` are open (for ``connect``: busy) at once, each with `inflight`
    requests of `size` bytes of data.  `figures` are shown, and peers are compared by those `compared`.
    """

    name: str
    title: str
    mode: str
    connections: int
    inflight: int
    size: int
    figures: tuple[str, ...]
    compared: tuple[str, ...]


MORE_IS_BETTER = {"rate"}
"""The compared figures of which more is better; all others are costs."""

ADDED = {"added_us": "p50_us", "added_p99_us": "p99_us"}
"""Figures that are the excess of others over a run without a proxy in the same round."""


# A proxy that is not always busy gets less load than it could handle, so its rate says little.
_FLOW = ("rate", *LATENCIES, "busy", "cpu_us")

SHAPES = (
    Shape("64x1x32", "64 connections, 1 request in flight, 32 B", "steady", 64, 1, 32, _FLOW, ("cpu_us",)),
    Shape("64x16x32", "64 connections, 16 requests in flight, 32 B", "steady", 64, 16, 32, _FLOW, ("cpu_us",)),
    Shape("4x64x1000", "4 connections, 64 requests in flight, 1000 B", "steady", 4, 64, 1000, _FLOW, ("cpu_us",)),
    Shape("4x16x16000", "4 connections, 16 requests in flight, 16,000 B", "steady", 4, 16, 16_000, _FLOW, ("cpu_us",)),
    Shape("connects", "connect, 1 request, close; 64 at once", "connect", 64, 1, 32, _FLOW, ("rate",)),
    Shape("idle", "idle sessions", "idle", 10_000, 1, 32, ("rss_kib", "idle_cpu"), ("rss_kib",)),
    Shape("latency", "1 connection, 1 request in flight, 32 B", "steady", 1, 1, 32, (*ADDED, *_FLOW), tuple(ADDED)),
)
