"""How the driver writes durations, rates and counts, and where it uses them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm
from twisted.internet.task import Clock

from fooproxy.driver.figures import counted, duration_text, rate_text
from fooproxy.driver.progress import BAR_FORMAT, Progress
from fooproxy.driver.tally import Tally


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (41.2e-6, "41.2 µs"),
        (0.0009994, "999 µs"),
        (0.0009996, "1 ms"),
        (0.00563, "5.63 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1 s"),
        (3.012, "3.01 s"),
        (10.0, "10 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (125.4, "2 min 5 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (86400.0, "24 h 0 min"),
    ],
)
def test_a_duration_is_written_in_the_unit_that_suits_it(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@given(st.floats(min_value=1e-7, max_value=1e6))
def test_no_duration_has_an_exponent(seconds: float) -> None:
    assert "e+" not in duration_text(seconds)


@pytest.mark.parametrize(
    ("rate", "text"), [(0.0, "0"), (0.333333, "0.333"), (12.0, "12"), (99.96, "100"), (82000.7, "82001")]
)
def test_a_low_rate_keeps_its_digits(rate: float, text: str) -> None:
    assert rate_text(rate) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 sessions"), (1, "1 session"), (2, "2 sessions")])
def test_only_one_is_singular(number: int, text: str) -> None:
    assert counted(number, "session") == text


def test_a_noun_may_have_a_plural_of_its_own() -> None:
    assert counted(2, "reply", "replies") == "2 replies"


def test_the_summary_of_one_request_is_in_the_singular() -> None:
    tally = Tally()
    tally.count_sent(0.0)
    tally.count_answer(True, 0.0, 0.5)
    assert tally.summary().startswith("1 request, 1 ACK, 0 NAK")


def slow_run() -> Tally:
    tally = Tally()
    for number in range(3):
        tally.count_sent(number * 3.0)
        tally.count_answer(True, number * 3.0, number * 3.0 + 3.0)
    return tally


def test_the_summary_of_a_slow_run_is_in_seconds() -> None:
    assert slow_run().summary() == ("3 requests, 3 ACK, 0 NAK in 9 s: 0.333 requests/s, latency p50 3 s, p99 3 s")


def test_the_bar_of_a_slow_run_shows_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    Progress(Clock(), slow_run(), 1000).close(succeeded=True)
    assert "latency p50 3 s, p99 3 s" in capsys.readouterr().err


def test_the_bar_of_a_slow_run_shows_requests_per_second_and_not_seconds_per_request() -> None:
    bar = tqdm.format_meter(3, 1000, 9.0, unit=" requests", bar_format=BAR_FORMAT)
    assert bar.endswith(" 0.33 requests/s]")
