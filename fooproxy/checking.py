"""The answer to ``--check-config``: what the proxy would run with on this machine, and where each value comes from.

It looks names up and looks at files, but opens no port and changes nothing.  What an option's value is worth looking at
for, its declaration says; `fooproxy.options` calls it.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from twisted.internet.address import IPv4Address, IPv6Address

from fooproxy.net.addresses import tcp_place, unix_path
from fooproxy.net.peers import shown
from fooproxy.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Row(NamedTuple):
    """An option with the texts of its values; `look` returns what one of them means here, or raises `ValueError`."""

    name: str
    texts: Sequence[str]
    sources: Sequence[str]
    """Where each of them comes from."""
    places: Sequence[str]
    """Where to change each of them."""
    look: Callable[[str], str]


def check(rows: Sequence[Row]) -> bool:
    """Print the options, and problems on standard error; return whether there was none."""
    problems = []
    name_width = max(len(row.name) for row in rows)
    text_width = max(len(one_line(text)) for row in rows for text in row.texts)
    for row in rows:
        for text, source, place in zip(row.texts, row.sources, row.places, strict=True):
            print(f"{row.name:{name_width}}  {one_line(text):{text_width}}  {one_line(source)}")
            try:
                found = row.look(text)
            except ValueError as error:
                problems.append(f"{place}: {error}")
            else:
                if found:
                    print(f"{'':{name_width}}    {one_line(found)}")
    # In the order in which they were written, also if both go to one file.
    sys.stdout.flush()
    for problem in problems:
        print(f"fooproxy: {one_line(problem)}", file=sys.stderr)
    return not problems


def nothing(text: str) -> str:
    """Look at nothing: the value says it all."""
    return ""


def listening(text: str) -> str:
    """Resolve an address to listen on; all of IPv4 if it names no host."""
    return _listening(text, "0.0.0.0")


def listening_locally(text: str) -> str:
    """Resolve an address to listen on, unless it is off; 127.0.0.1 if it names no host."""
    return "" if text == "off" else _listening(text, "127.0.0.1")


def _listening(text: str, default: str) -> str:
    path = unix_path(text, listens=True)
    if path is not None:
        # Not an error: systemd creates one when it starts the proxy.
        folder = Path(path).absolute().parent
        return "" if folder.is_dir() else f"the directory {folder} does not exist now"
    place = tcp_place(text, listens=True)
    if place is None:
        return ""
    found = _resolved(text, place.host or default, place.port)
    for address in found:
        family = socket.AF_INET6 if isinstance(address, IPv6Address) else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            try:
                # Another port, since a proxy may be running.
                trial.bind((address.host, 0))
            except OSError as error:
                raise ValueError(
                    f"{text!r} cannot be listened on: {error.strerror}; expected an address of this machine"
                ) from None
    return f"listens on {_listed(found)}"


def connecting(text: str) -> str:
    """Resolve an address to connect to."""
    path = unix_path(text, listens=False)
    if path is not None:
        return "" if Path(path).is_socket() else "there is no socket now"
    place = tcp_place(text, listens=False)
    if place is None:
        return ""
    return f"connects to {_listed(_resolved(text, place.host or '127.0.0.1', place.port))}"


def recovery(text: str) -> str:
    """Look whether there is a recovery file, and whether there can be one."""
    path = Path(text).absolute()
    there = next(each for each in (path, *path.parents) if each.exists() or each.is_symlink())
    if path.is_dir():
        raise ValueError(f"{text!r} is a directory; expected a file")
    if there != path and not there.is_dir():
        raise ValueError(f"{text!r} is below {there}, which is not a directory; expected a path that can be created")
    age = f"written {time.time() - path.stat().st_mtime:.0f} s ago" if path.exists() else "does not exist yet"
    folder = there if there.is_dir() else path.parent
    # Not an error, since the proxy may run as another user than this check.
    return f"{path}: {age}" + ("" if os.access(folder, os.W_OK) else "; this user cannot write there")


def _resolved(text: str, host: str, port: int) -> list[IPv4Address | IPv6Address]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        why = error.strerror or str(error)
        raise ValueError(
            f"{text!r} names {host!r}, which cannot be resolved: {why}; expected a host that is known, or an IP address"
        ) from None
    return [
        IPv6Address("TCP", str(address[0]), int(address[1]))
        if family == socket.AF_INET6
        else IPv4Address("TCP", str(address[0]), int(address[1]))
        for family, _, _, _, address in found
    ]


def _listed(addresses: Sequence[IPv4Address | IPv6Address]) -> str:
    return ", ".join(dict.fromkeys(map(shown, addresses)))
