"""The limits: a flood of lines costs a few, and none is forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, formatEvent, globalLogPublisher

from fooproxy.logs.limits import AT_ONCE, INTERVAL, Limits

KIND = "session ends"


@pytest.fixture
def events() -> Iterator[list[dict[str, Any]]]:
    """What the limits themselves log."""
    found: list[dict[str, Any]] = []
    observer: Any = found.append
    globalLogPublisher.addObserver(observer)
    yield found
    globalLogPublisher.removeObserver(observer)


def told(events: list[dict[str, Any]]) -> list[str]:
    return [formatEvent(event) for event in events]


def shown(limits: Limits, count: int, kind: str = KIND, reason: str = "client_reset") -> int:
    """Ask for `count` lines, and give the number of those that are shown."""
    return sum(limits.admits(kind, reason) for _ in range(count))


def logged(limits: Limits, level: Any = LogLevel.info, failure: Exception | None = None, **event: Any) -> bool:
    """Log an event of a logger of the proxy's, or another one, and return whether it is shown."""
    found: list[bool] = []
    observer: Any = lambda event: found.append(limits.admit(event))  # noqa: E731
    log = Logger(namespace=event.pop("namespace", "fooproxy.x"), observer=observer)
    if failure is None:
        log.emit(level, event.pop("text", "it happened"), **event)
    else:
        try:
            raise failure
        except Exception:
            log.failure(event.pop("text", "it failed"), **event)
    return found[0]


def test_the_first_lines_of_a_kind_are_shown(events: list[dict[str, Any]]) -> None:
    assert shown(Limits(Clock()), 1000) == AT_ONCE
    assert not events


def test_one_line_a_minute_counts_the_rest_by_reason(events: list[dict[str, Any]]) -> None:
    limits = Limits(clock := Clock())
    shown(limits, AT_ONCE + 7)
    shown(limits, 4, reason="idle_timeout")
    clock.advance(INTERVAL)
    assert told(events) == ["not logged in the last 60 s: 10 session ends (7 client_reset, 3 idle_timeout)"]


def test_a_flood_that_lasts_has_one_line_a_minute(events: list[dict[str, Any]]) -> None:
    limits = Limits(clock := Clock())
    lines = 0
    for _ in range(int(10 * INTERVAL)):
        lines += shown(limits, 100)
        clock.advance(1)
    assert lines == AT_ONCE
    assert len(events) == 10
    assert lines + sum(event["count"] for event in events) == 100 * 10 * INTERVAL


def test_the_first_line_for_another_reason_is_shown_in_the_middle_of_a_flood() -> None:
    limits = Limits(clock := Clock())
    shown(limits, 1000)
    assert shown(limits, 1000, reason="upstream_reset") == 1
    clock.advance(INTERVAL)
    assert shown(limits, 1000, reason="upstream_reset") == 0
    assert shown(limits, 1000, reason="idle_timeout") == 1


def test_more_reasons_than_there_should_be_are_no_way_around_the_limit(events: list[dict[str, Any]]) -> None:
    limits = Limits(clock := Clock())
    assert sum(limits.admits(KIND, str(number)) for number in range(1000)) == 30
    clock.advance(INTERVAL)
    assert told(events) == ["not logged in the last 60 s: 970 session ends (970 others)"]


def test_after_a_minute_with_few_lines_they_are_shown_again() -> None:
    limits = Limits(clock := Clock())
    shown(limits, 1000)
    clock.advance(INTERVAL)
    assert shown(limits, AT_ONCE) == 0
    clock.advance(INTERVAL)
    assert shown(limits, 1000) == AT_ONCE


def test_lines_that_are_few_are_all_shown(events: list[dict[str, Any]]) -> None:
    limits = Limits(clock := Clock())
    for _ in range(100):
        assert shown(limits, 1) == 1
        clock.advance(INTERVAL / AT_ONCE)
    assert not events


def test_a_minute_that_ends_late_is_told_with_its_length(events: list[dict[str, Any]]) -> None:
    limits = Limits(clock := Clock())
    shown(limits, AT_ONCE + 5)
    clock.rightNow += 90
    assert shown(limits, 1) == 1
    assert told(events) == ["not logged in the last 90 s: 5 session ends (5 client_reset)"]
    assert not clock.getDelayedCalls()


def test_one_kind_does_not_hide_another() -> None:
    limits = Limits(Clock())
    shown(limits, 1000)
    assert shown(limits, 1, "rejected clients") == 1


def test_what_was_not_shown_is_told_at_the_end(events: list[dict[str, Any]]) -> None:
    limits = Limits(clock := Clock())
    shown(limits, 100)
    clock.advance(3)
    limits.finish()
    assert told(events) == ["not logged in the last 3 s: 80 session ends (80 client_reset)"]
    assert not clock.getDelayedCalls()


def test_the_count_has_the_level_of_the_highest_line_that_it_counts(events: list[dict[str, Any]]) -> None:
    limits = Limits(clock := Clock())
    for level in (LogLevel.info, LogLevel.error, LogLevel.warn):
        for _ in range(AT_ONCE):
            limits.admits(KIND, "", level)
    clock.advance(INTERVAL)
    assert [event["log_level"] for event in events] == [LogLevel.error]


def test_an_event_names_its_kind() -> None:
    limits = Limits(Clock())
    shown(limits, 1000, reason="")
    assert not logged(limits, limited=KIND)
    assert logged(limits, limited="rejected clients")


def test_an_event_may_be_without_a_limit() -> None:
    limits = Limits(Clock())
    assert all(logged(limits, limited="") for _ in range(100))


def test_an_event_that_names_no_kind_is_limited_by_its_text(events: list[dict[str, Any]]) -> None:
    limits = Limits(clock := Clock())
    assert sum(logged(limits, text="{name} failed", name=str(number)) for number in range(100)) == AT_ONCE
    assert logged(limits, text="{name} works")
    clock.advance(INTERVAL)
    assert told(events) == ["not logged in the last 60 s: 80 lines like '{name} failed'"]


def test_events_of_other_packages_are_limited_by_their_logger() -> None:
    limits = Limits(Clock())
    assert sum(logged(limits, namespace="twisted.web.http", text=str(number)) for number in range(100)) == AT_ONCE


def test_failures_are_counted_by_the_type_of_the_exception(events: list[dict[str, Any]]) -> None:
    limits = Limits(clock := Clock())
    assert sum(logged(limits, failure=KeyError("x")) for _ in range(30)) == AT_ONCE
    assert sum(logged(limits, failure=OSError("x")) for _ in range(30)) == 1
    clock.advance(INTERVAL)
    assert told(events) == ["not logged in the last 60 s: 39 lines like 'it failed' (29 OSError, 10 KeyError)"]
