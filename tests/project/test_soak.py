"""The soak runs, tells a good proxy from a bad one, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.verdicts import RSS_GROWTH_KIB, judge_counts, judge_delays, judge_memory
from tests.helpers.processes import GRACE, ROOT, completed, started
from tests.helpers.proxyprocess import eventually

COMMAND = (sys.executable, "-m", "benchmarks.soak")


@pytest.mark.slow
def test_a_short_soak_passes_and_tells_its_figures(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [*COMMAND, "--minutes", "0.1", "--json", str(figures)]
    done = completed(command, cwd=ROOT, timeout=120, grace=GRACE)
    told = json.loads(figures.read_text())
    # How quick it was is this machine's affair, which runs tests.
    failed = [verdict for verdict in told["verdicts"] if not verdict["met"] and "delay" not in verdict["name"]]
    assert not failed, done.stdout + done.stderr
    assert done.returncode in (0, 1)
    assert told["report"]["msg_req"] > 1000
    assert told["report"]["connections_total"] > 20
    assert "sessions" in done.stderr
    assert len(done.stdout.splitlines()) == len(told["verdicts"])


def children(pid: int) -> list[int]:
    folders = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for folder in folders for child in folder.read_text().split()]


@pytest.mark.slow
def test_an_interrupted_soak_stops_what_it_started(tmp_path: Path) -> None:
    with (
        (tmp_path / "log").open("w+") as log,
        started([*COMMAND, "--minutes", "5"], grace=GRACE, cwd=ROOT, stdout=log, stderr=log) as process,
    ):
        eventually(lambda: "sessions" in (tmp_path / "log").read_text())
        pids = children(process.pid)
        assert len(pids) == 3
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert "interrupted" in (tmp_path / "log").read_text()


def good() -> tuple[dict[str, Any], dict[str, int], dict[str, int]]:
    report = {"msg_req": 5, "msg_ack": 4, "msg_nak": 3, "msg_invalid": 2, "connections_total": 1}
    asked = {"connections": 1, "sent_req": 5, "received_ack": 4, "received_nak": 2, "sent_invalid": 3}
    answered = {"received_req": 5, "sent_ack": 4, "sent_nak": 3, "received_invalid": 2}
    return {**report, "connections_closed": {"client_closed": 1}}, asked, answered


def test_exact_counts_are_good_and_so_is_what_a_fault_may_lose() -> None:
    assert all(verdict.met for verdict in judge_counts(*good()))


@pytest.mark.parametrize("name", ["msg_req", "msg_ack", "connections_total"])
@pytest.mark.parametrize("off", [-1, 1])
def test_a_count_that_is_off_by_one_is_bad(name: str, off: int) -> None:
    report, asked, answered = good()
    report[name] += off
    assert sum(not verdict.met for verdict in judge_counts(report, asked, answered)) == 1


@pytest.mark.parametrize(("name", "count"), [("msg_nak", 1), ("msg_nak", 4), ("msg_invalid", 1), ("msg_invalid", 4)])
def test_a_count_outside_of_what_was_sent_and_what_arrived_is_bad(name: str, count: int) -> None:
    report, asked, answered = good()
    report[name] = count
    assert sum(not verdict.met for verdict in judge_counts(report, asked, answered)) == 1


@pytest.mark.parametrize(
    ("rss", "met"),
    [
        (lambda second: 50_000, True),
        # What grows before the run is looked at, or comes and goes, is no leak.
        (lambda second: 50_000 + min(second, 50) * 1000, True),
        (lambda second: 50_000 + second % 7 * 1000, True),
        (lambda second: 50_000 + second * RSS_GROWTH_KIB // 120, False),
    ],
)
def test_memory_must_not_grow_all_the_time(rss: Callable[[int], int], met: bool) -> None:
    assert judge_memory([rss(second) for second in range(300)]).met == met


def test_delays_must_be_short_mostly_and_the_event_loop_must_never_stand_still() -> None:
    quick = [0.001] * 99
    for health, relayed, due in (
        ([*quick, 0.5], [*quick, 5.0], [True, True, True]),
        ([*quick, *[0.5] * 10], quick, [False, True, True]),
        ([*quick, 5.0], quick, [True, False, True]),
        (quick, [*quick, *[0.5] * 10], [True, True, False]),
    ):
        assert [verdict.met for verdict in judge_delays(health, relayed)] == due
