"""The exposition: the statistics in the text formats that Prometheus scrapes.

`prometheus_client` writes the formats; this module only says which families there are, from a snapshot of `Stats`.
It knows no HTTP but the ``Accept`` header.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from fooproxy import __version__
from fooproxy.stats import FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.core import Metric

    from fooproxy.latency import Histogram
    from fooproxy.stats import Stats

_TEXT_TYPES = ("text/plain", "application/openmetrics-text")
_MEANINGS = {field.name: field.meaning for field in FIELDS} | {"bytes_received": "Bytes received, by leg."}
_BOUNDS = [2**power / 1e6 for power in range(6, 27)]
"""Seconds: from 64 microseconds to 67 seconds."""


def exposition(stats: Stats, ready: bool, accept: str) -> tuple[str, bytes] | None:
    """Render `stats`, and whether the proxy is `ready`, as ``Accept: <accept>`` asks for: content type and body.

    `None` when it asks for something else, or names JSON before a text type.
    """
    if not _asks_for_text(accept):
        return None
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(stats, ready))
    ProcessCollector(registry=registry)
    encoder, content_type = choose_encoder(accept)
    return content_type, encoder(registry)


def _asks_for_text(accept: str) -> bool:
    """Tell whether a text type is named (a wildcard names nothing) and liked at least as well as JSON."""
    accepted = parse_accept_header(accept, MIMEAccept)
    named = {type_.partition(";")[0].strip().lower(): quality for type_, quality in reversed(list(accepted))}
    text = max((named.get(type_, 0) for type_ in _TEXT_TYPES), default=0)
    return text > 0 and text > named.get("application/json", 0)


class _Collector:
    """Gives the families of `stats` as they are at the moment of the scrape."""

    def __init__(self, stats: Stats, ready: bool) -> None:
        self._stats = stats
        self._ready = ready

    def collect(self) -> Iterator[Metric]:
        stats = self._stats
        client, upstream = stats.client, stats.upstream
        report = stats.report()
        yield _counter("messages", "msg_total", {kind: report[f"msg_{kind}"] for kind in ("req", "ack", "nak")}, "type")
        yield _counter(
            "invalid_messages", "msg_invalid", {"client": client.invalid, "upstream": upstream.invalid}, "leg"
        )
        yield _counter("misdirected_messages", "msg_misdirected", report)
        yield _counter("received_bytes", "bytes_received", {"client": client.bytes, "upstream": upstream.bytes}, "leg")
        yield _gauge("requests_in_flight", report)
        yield _counter("responses_unmatched", "responses_unmatched", report)
        yield _durations(stats.latency.answered)
        yield _gauge("connections_active", report)
        yield _counter("connections", "connections_total", report)
        yield _counter("connections_closed", "connections_closed", report["connections_closed"], "reason")
        yield _counter("upstream_connect_failures", "upstream_connect_failures", stats.connect_failures, "reason")
        yield _counter("reads_paused", "reads_paused", report["reads_paused"], "leg")
        yield _counter("recovery_saves", "recovery_saves", report["recovery_saves"], "result")
        yield GaugeMetricFamily("fooproxy_ready", "1 when the proxy should get traffic, else 0.", value=self._ready)
        yield InfoMetricFamily("fooproxy_build", _MEANINGS["version"], value={"version": __version__})


def _counter(family: str, name: str, values: Mapping[str, int], label: str | None = None) -> Metric:
    """Make the family of the statistic `name`: one value, or one for each value of `label`."""
    if label is None:
        return CounterMetricFamily(f"fooproxy_{family}", _MEANINGS[name], value=values[name])
    metric = CounterMetricFamily(f"fooproxy_{family}", _MEANINGS[name], labels=[label])
    for value, count in values.items():
        metric.add_metric([value], count)
    return metric


def _gauge(name: str, report: Mapping[str, int]) -> Metric:
    return GaugeMetricFamily(f"fooproxy_{name}", _MEANINGS[name], value=report[name])


def _durations(latencies: Histogram) -> Metric:
    """Make the histogram: its bounds are powers of two of microseconds, at which our own buckets have bounds too."""
    bounds, passed = dict.fromkeys(_BOUNDS, 0), 0
    found = latencies.upper_bounds()
    upper, count = next(found, (float("inf"), 0))
    for bound in _BOUNDS:
        while upper <= bound:
            passed += count
            upper, count = next(found, (float("inf"), 0))
        bounds[bound] = passed
    buckets = [*((str(bound), total) for bound, total in bounds.items()), ("+Inf", latencies.count)]
    meaning = _MEANINGS["latency_seconds"]
    return HistogramMetricFamily(
        "fooproxy_request_duration_seconds", meaning, buckets=buckets, sum_value=latencies.sum / 1e6
    )
