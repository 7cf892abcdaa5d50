"""Common code of the driver's commands: parsing options, running on the reactor, ending with one clear line.

Expected failures are raised as `Stop`, with the line for standard error and the exit status.  A command is a coroutine
that takes the reactor and returns its exit status.  SIGINT, SIGTERM and SIGHUP cancel it, and the reactor waits until
it has cleaned up.  Nothing here knows the Foo protocol.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import resource
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from twisted.internet import task
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.logger import ILogObserver, LogLevel, globalLogBeginner
from zope.interface import implementer

from fooproxy.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from twisted.logger import LogEvent

_T = TypeVar("_T")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ms|s)?")
_LONGEST = 86400.0

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# What a shell reports for a command that SIGINT ended.
INTERRUPTED = 130


class Stop(Exception):
    """Ends a command with one line on standard error."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


UNSET = argparse.SUPPRESS
"""The default for an option that both a command and its subcommand have."""

KeepsLines = argparse.RawDescriptionHelpFormatter
"""Keeps the line breaks of the text before and after the options in the help."""


class Parser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with `message` and status 2."""
        self.exit(2, f"{self.prog}: {one_line(message)}\n")


def duration(text: str) -> float:
    """Parse ``5ms``, ``0.5s`` or ``2`` into seconds."""
    match = _DURATION.fullmatch(text)
    seconds = float(match[1]) / (1000 if match[2] == "ms" else 1) if match else _LONGEST + 1
    if seconds > _LONGEST:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a duration; expected 5ms, 0.5s or 2 (seconds), up to one day"
        )
    return seconds


def timeout(text: str) -> float:
    """Parse a duration greater than zero."""
    seconds = duration(text)
    if not seconds:
        raise argparse.ArgumentTypeError(f"{text!r} is too short; expected more than zero: 500ms, 0.5s or 10 (seconds)")
    return seconds


def share(text: str) -> float:
    """Parse a number from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share; expected a number from 0 to 1, such as 0.2")
    return number


def whole(least: int) -> Callable[[str], int]:
    """Return a parser of whole numbers that are at least `least`."""

    def read(text: str) -> int:
        if not re.fullmatch("[0-9]{1,15}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not valid; expected a whole number, {least} or more")
        return int(text)

    return read


def check_shares(parser: Parser, options: argparse.Namespace) -> None:
    """Exit with an error if ``--requests`` is given and lower than ``--connections``."""
    if options.requests is not None and options.requests < options.connections:
        parser.error(
            f"argument --requests: {options.requests} is too few for {options.connections} connections; "
            f"expected {options.connections} or more"
        )


def endpoint(option: str, make: Callable[[Any, str], _T], reactor: Any, text: str) -> _T:
    """Make the endpoint for `option` from its value, `text`.

    :raises Stop: `text` is not an address.
    """
    try:
        return make(reactor, text)
    except ValueError as error:
        raise Stop(f"argument {option}: {error}", status=2) from error


def replace_unprintable() -> None:
    """Let a terminal whose encoding has no "µ" show "?s" instead; that is no reason to fail."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def run(name: str, main: Callable[[Any], Coroutine[Deferred[Any], Any, int]]) -> NoReturn:
    """Run the command `name` on the reactor and exit with the status that `main` returns."""
    _allow_many_sockets()
    replace_unprintable()
    globalLogBeginner.beginLoggingTo([_Complaints(name)], redirectStandardIO=False, discardBuffer=True)

    def start(reactor: Any) -> Deferred[None]:
        running = Deferred.fromCoroutine(_ended(name, main, reactor))
        reactor.addSystemEventTrigger("before", "shutdown", _cancel, running)
        reactor.callWhenRunning(_stop_on_hangup, reactor)
        return running

    task.react(start)


async def _ended(name: str, main: Callable[[Any], Coroutine[Deferred[Any], Any, int]], reactor: Any) -> None:
    """Run `main` and exit with the status that its outcome stands for."""
    try:
        status = await main(reactor)
    except Stop as stop:
        status = stop.status
        sys.stderr.write(f"{name}: {stop}\n")
    except CancelledError:
        status = INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone.  The interpreter flushes at exit and must not report that either.
        status = 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for number in _ENDING:
        # A signal that arrives after cleanup must not change the exit status.
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(status)


def _stop_on_hangup(reactor: Any) -> None:
    """End the command when its terminal closes, as SIGTERM would, unless nohup ignores SIGHUP."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda number, frame: reactor.callFromThread(reactor.stop))


def _cancel(running: Deferred[None]) -> Deferred[None] | None:
    """Cancel the command; the reactor delays its shutdown until the returned Deferred fires."""
    if running.called:
        return None
    ended: Deferred[None] = Deferred()

    def pass_on(result: _T) -> _T:
        ended.callback(None)
        return result

    running.addBoth(pass_on)
    running.cancel()
    return ended


@implementer(ILogObserver)
class _Complaints:
    """A log observer that prints unexpected errors, one line each, and drops everything else."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, event: LogEvent) -> None:
        # task.react uses legacy logging, which has the second key.
        failure = event.get("log_failure") or event.get("failure")
        # ReactorNotRunning: a second Ctrl-C while the reactor is already stopping.
        if event["log_level"] is LogLevel.critical and failure and not failure.check(ReactorNotRunning):
            sys.stderr.write(f"{self._name}: unexpected {failure.type.__name__}: {failure.getErrorMessage()}\n")


def _allow_many_sockets() -> None:
    """Raise the soft limit of open files, often 1024, to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The kernel refuses a hard limit above fs.nr_open, even one that is already in force.
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
