"""The sinks: where log entries go, each written by the `Writer` it is given, in whole lines of UTF-8.

A sink is called with one event at a time, and formats it.  This module knows nothing of levels and limits; `launch`
chooses the sink and the format.
"""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.logger import LegacyLogObserverWrapper, formatEvent
from twisted.python.logfile import LogFile
from twisted.python.syslog import SyslogObserver

from fooproxy.logs.formats import as_json, as_text
from fooproxy.logs.writer import write_all
from fooproxy.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from fooproxy.logs.formats import Format
    from fooproxy.logs.writer import Writer

    Sink: TypeAlias = Callable[[dict[str, Any]], object]


def to_descriptor(writer: Writer, descriptor: int, form: Format = as_text) -> Sink:
    """Write to a file descriptor, which may belong to a pipe."""
    return _Lines(writer, partial(write_all, descriptor), form)


def to_file(writer: Writer, path: str, form: Format = as_text) -> tuple[Sink, LogFile | None]:
    """Append to a file; also return the file if it can be rotated, which only the writer's thread may do.

    :raises OSError: the file cannot be opened.
    """
    descriptor = _special(path)
    if descriptor is not None:
        return to_descriptor(writer, descriptor, form), None
    file = _File.fromFullPath(path)
    return _Lines(writer, file.write, form), file


def to_syslog(writer: Writer, prefix: str, form: Format = as_text) -> Sink:
    """Send to the syslog daemon, which adds the time itself; text has one entry for each line of a traceback."""
    emit: Any = _Syslog(writer, prefix).emit
    send = LegacyLogObserverWrapper(emit)

    def sink(event: dict[str, Any]) -> None:
        if form is as_json or "log_failure" not in event:
            text = as_json(event) if form is as_json else formatEvent(event)
            if not text:
                return
            # Otherwise there would be an entry for each line, or the parts of a legacy event or the traceback
            # would appear twice.
            event = {name: event[name] for name in event if name not in ("format", "message", "log_failure")}
            event.update(log_format="{line}", line=one_line(text))
        send(event)

    return sink


class Stream:
    """A text file for Twisted's own observers, such as that for JSON; they call `flush` after each event."""

    def __init__(self, writer: Writer, descriptor: int) -> None:
        self._writer = writer
        self._descriptor = descriptor

    def write(self, text: str) -> None:
        """Queue `text` for the writer."""
        data = text.encode(errors="backslashreplace")
        self._writer.put(partial(write_all, self._descriptor, data), len(data))

    def flush(self) -> None:
        """Do nothing: the writer does not buffer."""


class _Lines:
    """Formats events with `form`, and queues calls of `write` with the lines."""

    def __init__(self, writer: Writer, write: Callable[[bytes], object], form: Format) -> None:
        self._writer = writer
        self._write = write
        self._form = form

    def __call__(self, event: dict[str, Any]) -> None:
        text = self._form(event)
        if text is not None:
            data = text.encode() + b"\n"
            self._writer.put(partial(self._write, data), len(data))


class _File(LogFile):
    """A log file that notices, when it rotates, that another program has already moved it.

    From then on it leaves rotation to that program.  A new file has the permissions of the one before; Twisted would
    ensure that by changing the umask, for all threads.
    """

    def __init__(self, name: str, directory: str) -> None:
        super().__init__(name, directory)
        self._identity = self._found()

    def rotate(self) -> None:
        """Rotate, or open a new file if the old one was moved; if that fails, continue with the old one."""
        with suppress(OSError):
            if self._found() == self._identity:
                self.defaultMode = stat.S_IMODE(Path(self.path).stat().st_mode)
                for number in reversed(self.listLogs()):
                    Path(f"{self.path}.{number}").rename(f"{self.path}.{number + 1}")
                Path(self.path).rename(f"{self.path}.1")
            else:
                self.rotateLength = None
            self._create()
            self.reopen()
            self._identity = self._found()

    def _create(self) -> None:
        """Create the new file, unless the program that moved the old one has done so, with its own permissions."""
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, self.defaultMode or 0o666))
        except FileExistsError:
            self.defaultMode = stat.S_IMODE(Path(self.path).stat().st_mode)

    def _found(self) -> tuple[int, int] | None:
        try:
            found = Path(self.path).stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


class _Syslog(SyslogObserver):
    """Twisted's syslog observer, except that the writer makes the calls to syslog, which may block."""

    def __init__(self, writer: Writer, prefix: str) -> None:
        self._writer = writer
        super().__init__(prefix)
        self._send = SyslogObserver.syslog

    def syslog(self, priority: int, line: str) -> None:
        """Queue a line for the writer."""
        self._writer.put(partial(self._send, priority, one_line(line)), len(line))


def _special(path: str) -> int | None:
    """Open a pipe, a device, or the file behind standard output or error; return `None` for any other path.

    Such a file cannot be rotated, and Twisted's log files fail if a file cannot be read or has no positions.
    """
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        return None
    for descriptor, stream in (1, sys.__stdout__), (2, sys.__stderr__):
        if stream is not None and os.path.samestat(found, os.fstat(descriptor)):
            # Going to the background replaces the original descriptor.
            return os.dup(descriptor)
    if stat.S_ISREG(found.st_mode):
        return None
    # Opening a FIFO for writing only would wait for its reader.
    mode = os.O_RDWR if stat.S_ISFIFO(found.st_mode) else os.O_WRONLY
    return os.open(path, mode | os.O_APPEND | os.O_NOCTTY)
