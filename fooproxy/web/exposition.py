"""The exposition: the statistics in the text formats that Prometheus scrapes.

`prometheus_client` writes the formats, and the declarations in `Stats` determine the metric families.  Of HTTP, this
module knows only the ``Accept`` header; `fooproxy.web.resource` calls it for each scrape.
"""

from __future__ import annotations

import os
import resource
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from fooproxy.stats.counters import Stats
from fooproxy.stats.servers import ServerStats
from fooproxy.web.upstreams import STATES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.core import Metric

    from fooproxy.foo.latency import Histogram
    from fooproxy.stats.fields import Field

_TEXT_TYPES = ("text/plain", "application/openmetrics-text")
_LOADED = time.time()
"""When this module was loaded, a moment after the process was started."""

_BOUNDS = [2**power / 1e6 for power in range(6, 27)]
"""Upper bounds of the histogram's buckets, from 64 microseconds to 67 seconds, in seconds."""


def exposition(
    stats: Stats, ready: bool, accept: str, states: Mapping[str, str] | None = None
) -> tuple[str, bytes] | None:
    """Return the content type and the body of the exposition, in the format that ``Accept: <accept>`` prefers.

    `ready` is exposed along with `stats`, and so are the `states` of several servers, by name.  `None` unless the
    header ranks a text type above JSON.
    """
    if not _asks_for_text(accept):
        return None
    registry = CollectorRegistry()
    registry.register(_Collector(stats, ready))
    if stats.servers:
        registry.register(_Servers(stats, states or {}))
    registry.register(_Process())
    try:
        encoder, content_type = choose_encoder(accept)
    except (TypeError, ValueError):
        # The header asks for a format version that is not a number.
        encoder, content_type = choose_encoder("text/plain")
    return content_type, encoder(registry)


def _asks_for_text(accept: str) -> bool:
    """Return whether the header names a text type (a wildcard does not) and ranks it above JSON."""
    accepted = parse_accept_header(accept, MIMEAccept)
    named = {type_.partition(";")[0].strip().lower(): quality for type_, quality in reversed(list(accepted))}
    return max(named.get(type_, 0) for type_ in _TEXT_TYPES) > named.get("application/json", 0)


class _Collector:
    """Yields a family with the current value of each statistic of `stats` that declares a series."""

    def __init__(self, stats: Stats, ready: bool) -> None:
        self._stats = stats
        self._ready = ready

    def collect(self) -> Iterator[Metric]:
        since_start = self._stats.since_start()
        for field in Stats.fields:
            if field.series is not None:
                # A gauge shows the present value, whatever earlier processes counted.
                yield _family(field, field.value(self._stats if field.kind == "gauge" else since_start))
        yield GaugeMetricFamily("fooproxy_ready", "1 if the proxy should get traffic, else 0.", value=self._ready)


class _Servers:
    """Yields the families of the statistics of several servers, and their states."""

    def __init__(self, stats: Stats, states: Mapping[str, str]) -> None:
        self._now = stats.servers
        self._since_start = stats.since_start().servers
        self._states = states

    def collect(self) -> Iterator[Metric]:
        for field in ServerStats.fields:
            if field.series is not None:
                servers = self._now if field.kind == "gauge" else self._since_start
                yield _family_of_all(field, {server.name: field.value(server) for server in servers})
        family = GaugeMetricFamily(
            "fooproxy_server_state", "1 for the state that the server is in, else 0.", labels=["upstream", "state"]
        )
        for name, now in self._states.items():
            for state in STATES:
                family.add_metric([name, state], state == now)
        yield family


class _Process:
    """Yields the standard ``process_*`` families.

    The collector in `prometheus_client` lists all open files to count them, which blocks the relay: 27 ms for 19,000.
    """

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily("process_cpu_seconds", "User and system CPU time spent.", value=time.process_time())
        with suppress(OSError):
            virtual, resident = map(int, Path("/proc/self/statm").read_text().split()[:2])
            page = os.sysconf("SC_PAGE_SIZE")
            yield GaugeMetricFamily("process_virtual_memory_bytes", "Virtual memory size.", value=virtual * page)
            yield GaugeMetricFamily("process_resident_memory_bytes", "Resident memory size.", value=resident * page)
            # Since Linux 6.2, the size of this directory is the number of open files.
            files = Path("/proc/self/fd").stat().st_size or len([*Path("/proc/self/fd").iterdir()])
            yield GaugeMetricFamily("process_open_fds", "Open file descriptors.", value=files)
        yield GaugeMetricFamily("process_start_time_seconds", "Start time since 1970.", value=_started(os.getpid()))
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        yield GaugeMetricFamily("process_max_fds", "Maximum number of open file descriptors.", value=limit)


@cache
def _started(pid: int) -> float:
    """Return when this process, `pid`, was started; the result stays the same even if the clock is set."""
    try:
        # Field 22 is in clock ticks since boot.  Field 2, in parentheses, may contain spaces, so split after it.
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        # After a change of root there may be no /proc.
        return round(_LOADED, 1)
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return round(booted + ticks / os.sysconf("SC_CLK_TCK"), 1)


def _family(field: Field, value: Any) -> Metric:
    """Return the metric family of the statistic `field`: one sample, or one for each value of its label."""
    name = f"fooproxy_{field.series}"
    if field.kind == "histogram":
        return _durations(name, field.meaning, value)
    if field.kind == "info":
        return InfoMetricFamily(name, field.meaning, value=value)
    kind = CounterMetricFamily if field.kind == "counter" else GaugeMetricFamily
    if not field.label:
        return kind(name, field.meaning, value=value)
    metric = kind(name, field.meaning, labels=[field.label])
    for label, number in value.items():
        metric.add_metric([label], number)
    return metric


def _family_of_all(field: Field, values: Mapping[str, Any]) -> Metric:
    """Return the metric family of a per-server statistic, from its values by server name."""
    name = f"fooproxy_server_{field.series}"
    if field.kind == "histogram":
        histogram = HistogramMetricFamily(name, field.meaning, labels=["upstream"])
        for server, latencies in values.items():
            histogram.add_metric([server], _buckets(latencies), latencies.sum / 1e6)
        return histogram
    kind = CounterMetricFamily if field.kind == "counter" else GaugeMetricFamily
    metric = kind(name, field.meaning, labels=["upstream", field.label] if field.label else ["upstream"])
    for server, value in values.items():
        for label, number in value.items() if field.label else [(None, value)]:
            metric.add_metric([server, label] if label else [server], number)
    return metric


def _durations(name: str, meaning: str, latencies: Histogram) -> Metric:
    """Return the histogram family."""
    return HistogramMetricFamily(name, meaning, buckets=_buckets(latencies), sum_value=latencies.sum / 1e6)


def _buckets(latencies: Histogram) -> list[tuple[str, int]]:
    """Return the buckets; their bounds are powers of two of microseconds, which our own buckets share."""
    bounds, passed = dict.fromkeys(_BOUNDS, 0), 0
    found = latencies.upper_bounds()
    upper, count = next(found, (float("inf"), 0))
    for bound in _BOUNDS:
        while upper <= bound:
            passed += count
            upper, count = next(found, (float("inf"), 0))
        bounds[bound] = passed
    return [*((str(bound), total) for bound, total in bounds.items()), ("+Inf", latencies.count)]
