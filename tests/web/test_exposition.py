"""The exposition, in memory: what each family has, and where its numbers come from."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fooproxy.stats.counters import Stats
from fooproxy.stats.servers import SavedServer
from fooproxy.stats.session import SessionStats
from fooproxy.web.exposition import _started, exposition


def samples(stats: Stats, ready: bool = True) -> dict[tuple[str, ...], float]:
    """Each sample by its name and the values of its labels."""
    found = exposition(stats, ready, "text/plain")
    assert found is not None
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(found[1].decode())
        for sample in family.samples
    }


def answered(stats: Stats, *microseconds: int, by: Any = None) -> None:
    """A session whose replies took so long."""
    session = SessionStats(stats)
    if by is not None:
        session.served_by(by)
    for now, duration in enumerate(microseconds, 1):
        session.client.feed(b"REQ 1\n", now * 1_000_000_000)
        session.upstream.feed(b"ACK 1\n", now * 1_000_000_000 + duration)


@pytest.fixture
def stats() -> Stats:
    return Stats(lambda: 5.0)


def test_the_bounds_of_the_histogram_are_powers_of_two_from_64_microseconds_to_67_seconds(stats: Stats) -> None:
    name = "fooproxy_request_duration_seconds_bucket"
    bounds = [labels[0] for found, *labels in samples(stats) if found == name]
    assert [float(bound) for bound in bounds] == [*(2**power / 1e6 for power in range(6, 27)), float("inf")]
    assert (bounds[0], bounds[-2]) == ("6.4e-05", "67.108864")


def test_a_bucket_counts_all_latencies_up_to_its_bound(stats: Stats) -> None:
    answered(stats, 10, 63, 64, 1000, 1_000_000, 100_000_000)
    found = samples(stats)
    series = "fooproxy_request_duration_seconds"
    buckets = [found[f"{series}_bucket", bound] for bound in ("6.4e-05", "0.000128", "0.001024", "1.048576", "+Inf")]
    assert buckets == [2, 3, 4, 5, 6]
    assert found[f"{series}_bucket", "67.108864"] == 5
    assert found[f"{series}_sum",] == pytest.approx(101.001137)


def test_a_server_has_a_histogram_of_its_own_in_the_same_unit() -> None:
    stats = Stats(lambda: 5.0, servers=("a", "b"))
    answered(stats, 1000, 2_000_000, by=SimpleNamespace(number=1))
    found = samples(stats)
    series = "fooproxy_server_request_duration_seconds"
    assert found[f"{series}_bucket", "0.001024", "b"] == 1
    assert found[f"{series}_sum", "b"] == pytest.approx(2.001)
    assert found[f"{series}_count", "a"] == 0


def test_a_proxy_that_is_not_ready_says_so(stats: Stats) -> None:
    assert samples(stats)["fooproxy_ready",] == 1
    assert samples(stats, ready=False)["fooproxy_ready",] == 0


@pytest.mark.parametrize("servers", [(), ("a", "b")])
def test_counters_begin_with_the_process_and_gauges_show_the_present(servers: tuple[str, ...]) -> None:
    earlier, stats = Stats(lambda: 5.0, servers=servers), Stats(lambda: 5.0, servers=servers)
    by = SimpleNamespace(number=0) if servers else None
    for _ in range(3):
        answered(earlier, 1000, by=by)
    counters, latencies = earlier.counters(), earlier.latency_seconds
    stats.restore(counters, latencies, {name: SavedServer(counters, latencies) for name in servers[:1]})
    answered(stats, 1000, 2000, by=by)
    found = samples(stats)
    prefix, labels = ("fooproxy_server", ("a",)) if servers else ("fooproxy", ())
    assert found[(f"{prefix}_connections_total", *labels)] == 1
    assert found[(f"{prefix}_request_duration_seconds_count", *labels)] == 2
    assert found[(f"{prefix}_connections_active", *labels)] == 1


def test_the_memory_is_that_of_the_process_in_bytes(stats: Stats) -> None:
    found = samples(stats)
    pages = [float(number) for number in Path("/proc/self/statm").read_text().split()]
    for series, number in zip(("virtual", "resident"), pages, strict=False):
        expected = number * os.sysconf("SC_PAGE_SIZE")
        assert found[f"process_{series}_memory_bytes",] == pytest.approx(expected, rel=0.2)


def test_open_files_and_their_limit_are_counted(stats: Stats) -> None:
    before = samples(stats)["process_open_fds",]
    descriptors = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
    found = samples(stats)
    for descriptor in descriptors:
        os.close(descriptor)
    assert found["process_open_fds",] - before == 20
    assert found["process_max_fds",] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_the_processor_time_grows(stats: Stats) -> None:
    before = time.process_time()
    assert before <= samples(stats)["process_cpu_seconds_total",] <= time.process_time()


def test_the_start_time_is_that_of_the_process(stats: Stats) -> None:
    with Path("/proc/uptime").open() as uptime:
        booted = time.time() - float(uptime.read().split()[0])
    started = samples(stats)["process_start_time_seconds",]
    assert booted < started < time.time()
    # The processor time is a lower bound of the age; nothing above it is certain.
    assert started + time.process_time() / (os.cpu_count() or 1) < time.time() + 1


def test_without_proc_the_start_time_is_when_the_module_was_loaded() -> None:
    nobody = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    assert time.time() - 3600 < _started(nobody) <= time.time()


@pytest.mark.parametrize(
    ("accept", "is_text"),
    [
        ("text/plain", True),
        ("text/plain, application/json", False),
        ("application/json;q=0.5, text/plain;q=0.6", True),
        ("text/plain;q=0, application/json;q=0", False),
        ("text/plain;q=0.2, application/openmetrics-text;q=0.9, application/json;q=0.5", True),
        ("TEXT/PLAIN;version=0.0.4", True),
    ],
)
def test_a_text_type_must_be_ranked_above_json(stats: Stats, accept: str, is_text: bool) -> None:
    assert (exposition(stats, True, accept) is not None) == is_text
