"""The JSON format: one flat object for each event, whatever is in it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.logger import LogLevel, globalLogPublisher
from twisted.python import log
from twisted.python.failure import Failure

from fooproxy.logs.formats import as_json
from fooproxy.text import one_line

HEAD = ["time", "level", "logger", "message"]


def entry(template: str | None, **fields: Any) -> dict[str, Any]:
    """Log an event, and return its JSON object."""
    event = {"log_time": 1e9, "log_namespace": "fooproxy.x", "log_level": LogLevel.warn, "log_format": template}
    line = as_json({**fields, **event})
    assert line is not None and "\n" not in line
    found: dict[str, Any] = json.loads(line)
    return found


def test_an_entry_has_the_rendered_message_and_its_values() -> None:
    found = entry("session {session} ended after {seconds:.1f} s", session=7, seconds=0.25, limited="ends")
    assert list(found) == [*HEAD, "session", "seconds"]
    assert (found["level"], found["logger"]) == ("warn", "fooproxy.x")
    assert found["message"] == "session 7 ended after 0.2 s"
    assert (found["session"], found["seconds"]) == (7, 0.25)


def test_the_time_is_rfc_3339_in_utc() -> None:
    line = as_json({"log_format": "x", "log_time": 1e9 + 0.1234})
    assert line is not None and json.loads(line)["time"] == "2001-09-09T01:46:40.123Z"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry("x")["time"])


def test_a_failure_has_its_traceback_in_one_field() -> None:
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        found = entry("it failed", log_failure=Failure())
    assert found["message"] == "it failed"
    assert found["traceback"].startswith("Traceback (most recent call last):\n")
    assert "\x1b" not in found["traceback"]


def test_a_failure_in_twisteds_old_log_has_its_traceback_in_one_field() -> None:
    lines: list[str | None] = []
    observer: Any = lambda event: lines.append(as_json(event))  # noqa: E731
    globalLogPublisher.addObserver(observer)
    try:
        log.err(ValueError("x"), "it failed")
    finally:
        globalLogPublisher.removeObserver(observer)
    (line,) = lines
    assert line is not None
    found = json.loads(line)
    assert list(found) == [*HEAD, "traceback"]
    assert (found["level"], found["message"]) == ("critical", "it failed")
    assert found["traceback"].endswith("ValueError: x")


@pytest.mark.parametrize("name", HEAD)
def test_a_value_does_not_replace_what_each_entry_has(name: str) -> None:
    assert entry("x", **{name: "forged"})[name] != "forged"


class Unprintable:
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("value", "shown"),
    [(True, True), (None, None), (3, 3), (float("nan"), "nan"), ([1], "[1]"), ("a\nb", r"a\nb"), (Unprintable(), None)],
)
def test_a_value_is_flat_and_printable(value: object, shown: object) -> None:
    found = entry("x", value=value)["value"]
    assert found == (shown if not isinstance(value, Unprintable) else "<Unprintable>")


def test_an_event_that_says_nothing_is_no_entry() -> None:
    assert as_json({"log_format": "", "log_time": 0.0}) is None


@example("x", {"log_failure": "no failure"})
@given(st.text(), st.dictionaries(st.text(min_size=1), st.text() | st.floats() | st.integers() | st.binary()))
def test_any_event_is_one_printable_line(template: str, fields: dict[str, Any]) -> None:
    line = as_json({**fields, "log_format": template, "log_time": 0.0, "log_level": LogLevel.info})
    if line is not None:
        assert one_line(line) == line
        assert all(not isinstance(value, (dict, list)) for value in json.loads(line).values())
