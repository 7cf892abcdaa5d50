"""The sinks: each event is a line, wherever it goes and whatever is in it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import Logger
from twisted.python.logfile import LogFile
from twisted.python.syslog import SyslogObserver

from fooproxy.logs.formats import as_json
from fooproxy.logs.sinks import to_descriptor, to_file, to_syslog
from fooproxy.logs.writer import Writer

NAMES = ["\x1b[2Jx", "a\n2026-01-01T00:00:00+0000 [fooproxy#info] forged", "\udcff", "\x9b", "\r"]


def logger(sink: Any) -> Logger:
    return Logger(namespace="fooproxy.x", observer=sink)


@contextmanager
def opened(writer: Writer, path: Path) -> Iterator[tuple[Logger, LogFile]]:
    """Log to a file."""
    sink, file = to_file(writer, str(path))
    assert file is not None
    yield logger(sink), file
    writer.close()
    file.close()


@pytest.fixture
def writer() -> Writer:
    # Never started: it writes when it is closed.
    return Writer("test")


@pytest.mark.parametrize("name", NAMES)
def test_an_event_is_one_printable_line(tmp_path: Path, writer: Writer, name: str) -> None:
    with opened(writer, tmp_path / "log") as (log, _):
        log.info("connected to {name}", name=name)
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert "[fooproxy.x#info] connected to " in line
    assert line.isprintable()


def test_a_traceback_keeps_its_lines_which_are_indented_and_printable(tmp_path: Path, writer: Writer) -> None:
    with opened(writer, tmp_path / "log") as (log, _):
        try:
            raise ValueError("".join(NAMES))
        except ValueError:
            log.failure("it failed")
    first, *others = (tmp_path / "log").read_text().split("\n")
    assert first.endswith("it failed")
    assert "\tTraceback (most recent call last):" in others
    assert all(line.startswith("\t") and line[1:].isprintable() for line in others[:-1])


@pytest.mark.parametrize("name", NAMES)
def test_syslog_gets_printable_lines(monkeypatch: pytest.MonkeyPatch, writer: Writer, name: str) -> None:
    sent: list[str] = []
    monkeypatch.setattr(SyslogObserver, "syslog", lambda priority, line: sent.append(line))
    logger(to_syslog(writer, "test")).info("connected to {name}", name=name)
    assert sent == []
    writer.close()
    (line,) = sent
    assert line.startswith("[-] connected to ") and line.isprintable()


def test_syslog_gets_a_line_for_each_line_of_a_traceback(monkeypatch: pytest.MonkeyPatch, writer: Writer) -> None:
    sent: list[str] = []
    monkeypatch.setattr(SyslogObserver, "syslog", lambda priority, line: sent.append(line))
    try:
        raise ValueError
    except ValueError:
        logger(to_syslog(writer, "test")).failure("it failed")
    writer.close()
    assert sent[0] == "[-] it failed"
    assert sent[-1].endswith("builtins.ValueError: ")


def test_syslog_gets_one_json_object_for_a_failure(monkeypatch: pytest.MonkeyPatch, writer: Writer) -> None:
    sent: list[str] = []
    monkeypatch.setattr(SyslogObserver, "syslog", lambda priority, line: sent.append(line))
    try:
        raise ValueError("no")
    except ValueError:
        logger(to_syslog(writer, "test", as_json)).failure("it failed")
    writer.close()
    (line,) = sent
    entry = json.loads(line.partition("] ")[2])
    assert (entry["message"], entry["level"]) == ("it failed", "critical")
    assert "ValueError: no" in entry["traceback"]


def test_an_event_without_a_text_is_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: Writer) -> None:
    sent: list[str] = []
    monkeypatch.setattr(SyslogObserver, "syslog", lambda priority, line: sent.append(line))
    # Such as Twisted's own about the ports it opens, see `fooproxy.net.listening`.
    logger(to_syslog(writer, "test")).info("", message=("InterceptorFactory starting on 8002",))
    with opened(writer, tmp_path / "log") as (log, _):
        log.info("", message=("InterceptorFactory starting on 8002",))
    assert sent == []
    assert (tmp_path / "log").read_text() == ""


def test_a_file_is_continued_and_rotated_with_its_permissions(tmp_path: Path, writer: Writer) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    path.chmod(0o640)
    (tmp_path / "log.1").write_text("older\n")
    before = os.umask(0o077)
    try:
        with opened(writer, path) as (log, file):
            log.info("a")
            writer.order(file.rotate)
            log.info("b")
    finally:
        os.umask(before)
    assert (tmp_path / "log.2").read_text() == "older\n"
    assert (tmp_path / "log.1").read_text().startswith("before\n")
    assert path.read_text().endswith("b\n") and path.read_text().count("\n") == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("created", [False, True])
def test_a_file_that_was_moved_is_opened_anew_and_no_longer_rotated_by_size(
    tmp_path: Path, writer: Writer, created: bool
) -> None:
    path = tmp_path / "log"
    with opened(writer, path) as (log, file):
        path.rename(tmp_path / "moved")
        log.info("a")
        writer.close()
        if created:
            path.touch()
            path.chmod(0o604)
        file.rotate()
        for _ in range(11):
            log.info(100_000 * "b")
            writer.close()
    assert (tmp_path / "moved").read_text().endswith("a\n")
    assert path.stat().st_size > 1_000_000
    assert sorted(each.name for each in tmp_path.iterdir()) == ["log", "moved"]
    assert not created or stat.S_IMODE(path.stat().st_mode) == 0o604


def test_a_rotation_that_fails_loses_no_line(tmp_path: Path, writer: Writer) -> None:
    path = tmp_path / "log"
    (tmp_path / "log.1" / "directory").mkdir(parents=True)
    (tmp_path / "log.2").write_text("in the way of a directory")
    (tmp_path / "log.3" / "directory").mkdir(parents=True)
    with opened(writer, path) as (log, file):
        file.rotate()
        log.info("a")
    assert path.read_text().endswith("a\n")


@pytest.mark.parametrize("name", ["/dev/null", "/dev/full"])
def test_a_device_is_not_rotated(writer: Writer, name: str) -> None:
    sink, file = to_file(writer, name)
    assert file is None
    logger(sink).info("a")
    writer.close()
    assert writer.lost() == (name == "/dev/full")


def test_a_fifo_does_not_wait_for_its_reader(tmp_path: Path, writer: Writer) -> None:
    os.mkfifo(tmp_path / "fifo")
    sink, file = to_file(writer, str(tmp_path / "fifo"))
    assert file is None
    logger(sink).info("a")
    writer.close()
    reading = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reading, 4096).endswith(b"a\n")
    os.close(reading)


def test_a_descriptor_gets_whole_lines(writer: Writer) -> None:
    reading, writing = os.pipe()
    logger(to_descriptor(writer, writing)).info("a")
    writer.close()
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.read().endswith("[fooproxy.x#info] a\n")
