"""The demo's comparison of the client's figures with the proxy's."""

from __future__ import annotations

from typing import Any

import pytest

from fooproxy.driver.command import Stop
from fooproxy.driver.comparison import check_counts, table
from fooproxy.driver.tally import Tally

REPORT: dict[str, Any] = {
    "msg_total": 4,
    "msg_req": 2,
    "msg_ack": 1,
    "msg_nak": 1,
    "request_rate_10s": 0.2,
    "latency_seconds": {"p50": 0.00195, "p99": 1.5},
}


def run(acknowledged: bool, latency: float) -> Tally:
    tally = Tally()
    tally.count_sent(0.0)
    tally.count_answer(acknowledged, 0.0, latency)
    return tally


RUNS = [run(True, 0.0056), run(False, 3.0)]


def test_the_table_says_which_figure_is_the_clients_and_which_the_proxys() -> None:
    lines = table(REPORT, RUNS).splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["key", "in", "the", "report", "client", "proxy"],
        ["messages", "msg_total", "4", "4"],
        ["requests", "msg_req", "2", "2"],
        ["ACK", "msg_ack", "1", "1"],
    ]
    assert lines[6].split() == ["latency", "p50", "latency_seconds.p50", "5.58", "ms", "1.95", "ms"]
    assert lines[7].split() == ["latency", "p99", "latency_seconds.p99", "3", "s", "1.5", "s"]
    assert "The client's latency runs from" in lines[9]
    assert "The proxy's latency covers only the server" in lines[10]


def test_the_columns_of_the_table_are_aligned() -> None:
    lines = table(REPORT, RUNS).splitlines()[:8]
    assert len({len(line) for line in lines}) == 1
    assert all(len(line) < 80 for line in lines)


def test_a_figure_that_is_missing_from_the_report_does_not_fail_the_table() -> None:
    assert table({"latency_seconds": {"p50": None}}, RUNS).splitlines()[1].split() == [
        "messages",
        "msg_total",
        "4",
        "-",
    ]


def test_counts_other_than_the_clients_end_the_demo() -> None:
    check_counts(REPORT, RUNS, "the report")
    with pytest.raises(Stop, match=r"^the report does not match what the client counted: msg_ack is 2, not 1$"):
        check_counts({**REPORT, "msg_ack": 2}, RUNS, "the report")
