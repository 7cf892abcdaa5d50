"""The exposition: the statistics in the text formats that Prometheus scrapes.

`prometheus_client` writes the formats; this module only says which families there are, from a snapshot of `Stats`.
It knows no HTTP but the ``Accept`` header.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from fooproxy import __version__
from fooproxy.stats import FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.core import Metric

    from fooproxy.stats import Stats

_TEXT_TYPES = ("text/plain", "application/openmetrics-text")
_MEANINGS = {field.name: field.meaning for field in FIELDS}


def exposition(stats: Stats, accept: str) -> tuple[str, bytes] | None:
    """Render `stats` as ``Accept: <accept>`` asks for: content type and body.

    `None` when it asks for something else, or names JSON before a text type.
    """
    if not _asks_for_text(accept):
        return None
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(stats))
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

    def __init__(self, stats: Stats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats
        legs = {"client": stats.client, "upstream": stats.upstream}
        report = stats.report()
        yield _by(
            "messages", "type", _MEANINGS["msg_total"], {kind: report[f"msg_{kind}"] for kind in ("req", "ack", "nak")}
        )
        yield _by(
            "invalid_messages", "leg", _MEANINGS["msg_invalid"], {leg: counts.invalid for leg, counts in legs.items()}
        )
        yield _by("received_bytes", "leg", "Bytes received.", {leg: counts.bytes for leg, counts in legs.items()})
        for family, name in (
            ("misdirected_messages", "msg_misdirected"),
            ("connections", "connections_total"),
            ("upstream_connect_failures", "upstream_connect_failures"),
            ("recovery_save_failures", "recovery_save_failures"),
        ):
            yield CounterMetricFamily(f"fooproxy_{family}", _MEANINGS[name], value=report[name])
        yield GaugeMetricFamily(
            "fooproxy_connections_active", _MEANINGS["connections_active"], value=report["connections_active"]
        )
        yield InfoMetricFamily("fooproxy_build", _MEANINGS["version"], value={"version": __version__})


def _by(family: str, label: str, meaning: str, values: Mapping[str, int]) -> Metric:
    metric = CounterMetricFamily(f"fooproxy_{family}", meaning, labels=[label])
    for value, count in values.items():
        metric.add_metric([value], count)
    return metric
