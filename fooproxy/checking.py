"""The answer to ``--check-config``: what the proxy would run with on this machine, and where each value comes from.

This module looks up names and examines files, but opens no port and changes nothing.  The declaration of an option
names the function here that examines its value; `fooproxy.commandline` calls `check`.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from twisted.internet.address import IPv4Address, IPv6Address

from fooproxy.creating import check_directory
from fooproxy.net.addresses import tcp_place, unix_path
from fooproxy.net.peers import shown
from fooproxy.recovery.saver import Saver
from fooproxy.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


_OF_SYSTEMD = ("/run", "/var/run")
"""Directories in which systemd creates a service's own directory at start and removes it at the stop."""


class Row(NamedTuple):
    """An option with the texts of its values; `look` returns what one of them means here, or raises `ValueError`."""

    name: str
    texts: Sequence[str]
    sources: Sequence[str]
    """The source of each value."""
    places: Sequence[str]
    """The place where to change each value."""
    look: Callable[[str], str]


def check(title: str, rows: Sequence[Row], notes: Sequence[str]) -> bool:
    """Print a title and options, and `notes` and problems on standard error; return whether there was no problem."""
    _say(title)
    problems = []
    name_width = max(len(row.name) for row in rows)
    text_width = max(len(one_line(text)) for row in rows for text in row.texts)
    for row in rows:
        for text, source, place in zip(row.texts, row.sources, row.places, strict=True):
            _say(f"{row.name:{name_width}}  {one_line(text):{text_width}}  {one_line(source)}")
            try:
                found = row.look(text)
            except ValueError as error:
                problems.append(f"{place}: {error}")
            else:
                if found:
                    _say(f"{'':{name_width}}    {one_line(found)}")
    # Flush, so that the order is right if standard output and standard error go to one file.
    _say("", end="", flush=True)
    for problem in (*notes, *problems):
        print(f"fooproxy: {one_line(problem)}", file=sys.stderr)
    return not problems


def _say(line: str, **how: Any) -> None:
    # The reader may have closed the pipe early; the exit status still counts.
    with suppress(BrokenPipeError):
        print(line, **how)


def nothing(text: str) -> str:
    """Examine nothing: the default for options whose value needs no check on this machine."""
    return ""


def listening(text: str) -> str:
    """Say what an address to listen on means; without a host, it is all of IPv4."""
    return _listening(text, "0.0.0.0")


def listening_locally(text: str) -> str:
    """Say what an address to listen on, or ``off``, means; without a host, it is 127.0.0.1."""
    return "" if text == "off" else _listening(text, "127.0.0.1")


def _listening(text: str, default: str) -> str:
    path = unix_path(text, listens=True)
    if path is not None:
        return _listening_on(text, Path(path).absolute())
    place = tcp_place(text, listens=True)
    if place is None:
        return ""
    found = _resolved(text, place.host or default, place.port)
    for address in found:
        family = socket.AF_INET6 if isinstance(address, IPv6Address) else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            try:
                # Use port 0, since a running proxy may have the real one.
                trial.bind((address.host, 0))
            except OSError as error:
                raise ValueError(
                    f"cannot listen on {text!r}: {error.strerror}; expected an address of this machine"
                ) from None
    return f"listens on {_listed(found)}"


def _listening_on(text: str, path: Path) -> str:
    """Check that a unix socket can be created at `path`."""
    folder = path.parent
    if not folder.exists() and any(Path(each) in folder.parents for each in _OF_SYSTEMD):
        return f"the directory {folder} does not exist now; systemd creates it at start if RuntimeDirectory= names it"
    try:
        if not folder.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        if (path.exists() or path.is_symlink()) and not path.is_socket():
            raise FileExistsError(errno.EEXIST, "it exists, and is not a socket")
        check_directory(folder)
    except OSError as error:
        raise ValueError(
            f"cannot listen on {text!r}: {_why(error)}; expected a path in a directory that this user can write"
        ) from None
    return ""


def connecting(text: str) -> str:
    """Say what an address to connect to means."""
    path = unix_path(text, listens=False)
    if path is not None:
        try:
            return "" if stat.S_ISSOCK(Path(path).stat().st_mode) else "there is no socket now"
        except FileNotFoundError:
            return "there is no socket now"
        except OSError as error:
            raise ValueError(
                f"cannot connect to {text!r}: {error.strerror}; expected a socket that this user can reach"
            ) from None
    place = tcp_place(text, listens=False)
    if place is None:
        return ""
    return f"connects to {_listed(_resolved(text, place.host or '127.0.0.1', place.port))}"


def recovery(text: str) -> str:
    """Say whether there is a recovery file, and check that one can be written."""
    saver = Saver(Path(text).absolute())
    try:
        saver.check()
        written = saver.path.stat().st_mtime if saver.path.exists() else None
    except OSError as error:
        raise ValueError(
            f"cannot save statistics in {text!r}: {_why(error)}; expected a file that this user can write"
        ) from None
    return f"{saver.path}: " + (
        "does not exist yet" if written is None else f"written {time.time() - written:.0f} s ago"
    )


def _why(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename is not None else str(error.strerror)


def _resolved(text: str, host: str, port: int) -> list[IPv4Address | IPv6Address]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "it is not a host name"
        raise ValueError(
            f"{text!r} names {host!r}, which cannot be resolved: {why}; expected a name that resolves, or an IP address"
        ) from None
    return [
        IPv6Address("TCP", str(address[0]), int(address[1]))
        if family == socket.AF_INET6
        else IPv4Address("TCP", str(address[0]), int(address[1]))
        for family, _, _, _, address in found
    ]


def _listed(addresses: Sequence[IPv4Address | IPv6Address]) -> str:
    return ", ".join(dict.fromkeys(map(shown, addresses)))
