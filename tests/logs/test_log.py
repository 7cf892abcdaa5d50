"""The log: what is below its level, or too much, is left out, and what the writer lost is told."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, formatEvent

from fooproxy.logs.limits import AT_ONCE
from fooproxy.logs.log import Log


@pytest.mark.parametrize("least", ["debug", "info", "warn", "error"])
def test_a_level_and_those_above_are_shown(least: str) -> None:
    log = Log(LogLevel.levelWithName(least), Clock())
    shown: list[Any] = []
    logger = Logger(namespace="fooproxy.x", observer=log.observer(shown.append))
    for level in LogLevel.iterconstants():
        logger.emit(level, level.name)
    names = [level.name for level in LogLevel.iterconstants()]
    assert [event["log_format"] for event in shown] == names[names.index(least) :]
    assert [level.name for level in LogLevel.iterconstants() if log.shows(level)] == names[names.index(least) :]


def test_too_many_lines_are_left_out_but_none_that_would_not_be_shown_counts() -> None:
    log = Log(LogLevel.info, Clock())
    shown: list[Any] = []
    logger = Logger(namespace="fooproxy.x", observer=log.observer(shown.append))
    for _ in range(100):
        logger.debug("a", limited="letters")
    for _ in range(100):
        logger.info("b", limited="letters")
    assert len(shown) == AT_ONCE


def test_entries_that_were_lost_are_counted_in_a_line_before_the_next() -> None:
    log = Log(LogLevel.info, Clock())
    shown: list[Any] = []

    def sink(event: dict[str, Any]) -> None:
        text = formatEvent(event)
        log.writer.put(partial(shown.append, text), 1 << 17)

    logger = Logger(namespace="fooproxy.x", observer=log.observer(sink))
    for letter in "abcde":
        logger.info(letter)
    log.writer.close()
    logger.info("f")
    log.writer.close()
    assert shown == ["a", "b", "log entries dropped because the log was not being written fast enough: 3", "f"]
