"""Checks Twisted's endpoint descriptions (``unix:/run/foo.sock:mode=660``), and says what is wrong with one.

Twisted reports errors in terms of its own code (``invalid literal for int() with base 8``), some of them only when the
address is used, and some not at all.  So descriptions are checked here first, against a table of the kinds that Twisted
comes with; only Twisted can check other kinds, which plugins add.

This module makes no endpoints: `fooproxy.net.addresses` does, and calls it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from OpenSSL import SSL, crypto
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.python.filepath import FilePath

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

EXPECTED = (
    "expected a port (8001), host:port, [IPv6 address]:port, "
    "or a Twisted endpoint description such as unix:/run/foo.sock"
)

_LONGEST_PATH = 107
"""Bytes of a unix socket's path that the kernel takes."""

_LAST_PORT = 65535

_ARGUMENT = re.compile(r"((?:[^\\:]|\\.)*)(:|$)", re.DOTALL)
"""One argument of a description, and its end; a backslash makes the next character an ordinary one."""
_NAMED = re.compile(r"((?:[^\\=]|\\.)*)=(.*)", re.DOTALL)


class _Kind(NamedTuple):
    """A kind of description: the arguments that it takes, of which the first ones may be given without their names."""

    example: str
    ordered: tuple[str, ...]
    required: int
    """How many of `ordered` must be given."""
    named: tuple[str, ...] = ()
    """Arguments that are always named."""


_LISTENING = {
    "tcp": _Kind("tcp:8002:interface=127.0.0.1", ("port", "interface", "backlog"), 1),
    "tcp6": _Kind("tcp6:8002", ("port", "backlog", "interface"), 1),
    "unix": _Kind("unix:/run/foo.sock:mode=660", ("address", "mode", "backlog", "lockfile"), 1),
    "ssl": _Kind(
        "ssl:8002:privateKey=key.pem:certKey=cert.pem",
        ("port", "privateKey", "certKey", "sslmethod", "interface", "backlog", "extraCertChain", "dhParameters"),
        1,
    ),
    "tls": _Kind("tls:directory:8002", ("path", "port", "backlog", "interface"), 1),
    "systemd": _Kind("systemd:domain=INET:index=0", ("domain", "index", "name"), 1),
}
_CONNECTING = {
    "tcp": _Kind("tcp:foo.example:8001", ("host", "port"), 2, ("timeout", "bindAddress")),
    "unix": _Kind("unix:/run/foo.sock", ("path",), 1, ("timeout", "lockfile")),
    "ssl": _Kind(
        "ssl:foo.example:8001",
        ("host", "port"),
        2,
        ("timeout", "bindAddress", "hostname", "certKey", "privateKey", "caCertsDir"),
    ),
    "tls": _Kind(
        "tls:foo.example:8001",
        ("host", "port", "timeout", "bindAddress", "certificate", "privateKey", "trustRoots", "endpoint"),
        2,
    ),
}
_LISTENING_ONLY = {*_LISTENING, "haproxy", "stdio"} - set(_CONNECTING)

_IPV6 = ("tcp6", "tls")
"""The kinds that take only IPv6 addresses as ``interface``."""

WORDS = frozenset({*_LISTENING, *_CONNECTING, "haproxy", "stdio", "tcp4", "dns", "srv"})
"""The words that start a description: "tcp" in "tcp:8001" is not a host."""


def word(text: str) -> str:
    """Return the word that a description starts with."""
    return text.partition(":")[0].lower()


def check_listening(text: str, whole: str) -> dict[str, str]:
    """Check a description to listen at, a part of `whole` or all of it, and return its arguments by name.

    :raises ValueError: it is wrong; the message quotes `whole` and says what would be right.
    """
    arguments = _arguments(text, whole, _LISTENING)
    if word(text) == "tls" and "path" in arguments:
        _check_certificates(arguments["path"], whole)
    _check(arguments, text, whole, _LISTENING)
    if word(text) == "systemd" and ("index" in arguments) == ("name" in arguments):
        raise ValueError(f"{whole!r} must have either an index or a name; expected {_LISTENING['systemd'].example}")
    return arguments


def check_connecting(text: str, whole: str) -> dict[str, str]:
    """Check a description to connect to, a part of `whole` or all of it, and return its arguments by name.

    :raises ValueError: it is wrong; the message quotes `whole` and says what would be right.
    """
    arguments = _arguments(text, whole, _CONNECTING)
    _check(arguments, text, whole, _CONNECTING)
    if word(text) in _LISTENING_ONLY:
        raise ValueError(f"{whole!r} starts with {word(text)}:, which is only for listening; {EXPECTED}")
    if "port" in arguments and not int(arguments["port"]):
        raise ValueError(f"{whole!r} names port 0, which nothing can connect to; expected the server's port")
    below = arguments.get("endpoint")
    if below is not None:
        check_connecting(below, below)
    return arguments


def in_words(error: Exception, text: str, whole: str) -> str:
    """Return what is wrong with a description, by the exception that Twisted raised for it."""
    if word(text) == "systemd" and isinstance(error, (IndexError, KeyError)):
        return (
            f"{whole!r} names a socket that was not passed to this process; "
            "expected the index or the name of one that systemd passes"
        )
    if isinstance(error, OSError):
        # Take the path from the error: a default file is not in the description.  For a directory, the error has none.
        cause = getattr(error, "originalException", error)
        path = os.fsdecode(cause.filename or "a directory")
        return f"{whole!r} needs {path}: {cause.strerror}; expected a path that exists and that this user can read"
    if isinstance(error, (SSL.Error, crypto.Error)):
        return f"{whole!r} names a file that is not a certificate or key; expected PEM files, a key without a password"
    if "Unknown endpoint type" in str(error):
        return f"{whole!r} starts with {word(text)}:, which is not a kind of address; {EXPECTED}"
    return f"{whole!r} is not an address ({error}); {EXPECTED}"


def _arguments(text: str, whole: str, kinds: Mapping[str, _Kind]) -> dict[str, str]:
    """Return the arguments of a description by name; an empty mapping if its kind is not in `kinds`."""
    if ":" not in text:
        # Twisted would parse "foo" as "tcp:foo".
        raise ValueError(f"{whole!r} is not an address; {EXPECTED}")
    kind = kinds.get(word(text))
    if kind is None:
        return {}
    unnamed, arguments = _split(text.partition(":")[2], whole)
    # For a client, Twisted takes the port first if the host is named.
    ordered = [name for name in kind.ordered if name != "host" or name not in arguments]
    if len(unnamed) > len(ordered):
        raise ValueError(
            rf"{whole!r} has more arguments than {word(text)}: takes; expected \: for a colon that separates none, and "
            f"a description such as {kind.example}"
        )
    for name, value in zip(ordered, unnamed, strict=False):
        _add(arguments, name, value, whole)
    return arguments


def _check(arguments: Mapping[str, str], text: str, whole: str, kinds: Mapping[str, _Kind]) -> None:
    """Check the arguments of a description, if its kind is in `kinds`."""
    kind = kinds.get(word(text))
    if kind is None:
        return
    if word(text) == "unix":
        _check_path(arguments.get(kind.ordered[0]), whole)
    for name in kind.ordered[: kind.required]:
        if not arguments.get(name):
            raise ValueError(f"{whole!r} has no {name}; expected a description such as {kind.example}")
    for name, value in arguments.items():
        if name not in (*kind.ordered, *kind.named):
            names = ", ".join((*kind.ordered, *kind.named))
            raise ValueError(f"{whole!r} has {name}=, which {word(text)}: does not take here; expected any of {names}")
        is_right, right = _VALUES.get(name, (_is_anything, ""))
        if name == "interface" and word(text) in _IPV6 and isIPAddress(value):
            is_right, right = isIPv6Address, r"an IPv6 address, with \: for each of its colons"
        if not is_right(value):
            raise ValueError(f"{whole!r} has {value!r} as {name}; expected {right}")


def _add(arguments: dict[str, str], name: str, value: str, whole: str) -> None:
    if name in arguments:
        raise ValueError(
            rf"{whole!r} has {name} twice; expected it once, with \: for a colon that separates no arguments"
        )
    arguments[name] = value


def _split(rest: str, whole: str) -> tuple[list[str], dict[str, str]]:
    """Return the arguments without a name, and those with one, separated as Twisted does it."""
    unnamed: list[str] = []
    named: dict[str, str] = {}
    at = 0
    while True:
        argument = _ARGUMENT.match(rest, at)
        if argument is None:
            raise ValueError(rf"{whole!r} ends with a backslash; expected \\ for a backslash")
        pair = _NAMED.fullmatch(argument[1])
        if pair is None:
            unnamed.append(_plain(argument[1]))
        else:
            _add(named, _plain(pair[1]), _plain(pair[2]), whole)
        at = argument.end()
        if not argument[2]:
            return unnamed, named


def _plain(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def _check_certificates(folder: str, whole: str) -> None:
    """Refuse ``tls:8002``: Twisted takes the first argument as a directory of certificates, and listens on port 443."""
    if folder and FilePath(folder).globChildren("*.pem"):
        if not _has_files(folder):
            raise ValueError(f"{whole!r} has {folder!r} as path; expected {_FOLDER[1]}")
        return
    port = folder if folder.isdecimal() else "8002"
    raise ValueError(
        f"{whole!r} names {folder!r}, which is not a directory of certificates (*.pem); "
        f"expected ssl:{port}:privateKey=key.pem:certKey=cert.pem, or tls:directory:{port}"
    )


def _check_path(path: str | None, whole: str) -> None:
    """Refuse a path that is empty or too long for a unix socket."""
    if path == "":
        raise ValueError(
            f"{whole!r} has an empty path; expected unix: and the path of a socket, such as unix:/run/foo.sock"
        )
    length = len(os.fsencode(path or ""))
    if length > _LONGEST_PATH:
        raise ValueError(f"{whole!r} has a path of {length} bytes; expected a path of {_LONGEST_PATH} bytes at most")


def _is_anything(value: str) -> bool:
    return True


def _is_port(value: str) -> bool:
    return re.fullmatch("[0-9]{1,5}", value) is not None and int(value) <= _LAST_PORT


def _is_file(value: str) -> bool:
    """Whether `value` is a file that can be read without blocking; a missing file is reported later."""
    try:
        return not Path(value).exists() or Path(value).is_file()
    except OSError:
        return True


def _has_files(value: str) -> bool:
    """Whether each ``*.pem`` in the directory `value` can be read without blocking."""
    return all(map(_is_file, map(str, Path(value).glob("*.pem"))))


def _is_method(value: str) -> bool:
    return value.endswith("_METHOD") and hasattr(SSL, value)


_WORD = re.compile(r"\S+").fullmatch
_WHOLE = re.compile("0*[1-9][0-9]{0,8}").fullmatch, "a whole number from 1 on"
_HOST = _WORD, "a host name or an IP address"
_FILE = _is_file, "a regular file"
_FOLDER = _has_files, "a directory whose *.pem are regular files"

_VALUES: dict[str, tuple[Callable[[str], object], str]] = {
    "backlog": _WHOLE,
    "bindAddress": (_WORD, r"an IP address of this machine, with \: for each colon in it"),
    "caCertsDir": _FOLDER,
    "certKey": _FILE,
    "certificate": _FILE,
    "dhParameters": _FILE,
    "domain": (re.compile("INET6?|UNIX").fullmatch, "INET, INET6 or UNIX"),
    "extraCertChain": _FILE,
    "host": _HOST,
    "hostname": _HOST,
    "index": (re.compile("[0-9]{1,5}").fullmatch, "the index of a socket, from 0 on"),
    "interface": (_WORD, r"the IP address of an interface, with \: for each colon in it"),
    "lockfile": (re.compile("[01]").fullmatch, "0 or 1"),
    "mode": (re.compile("[0-7]{1,4}").fullmatch, "the octal number of the file's mode, such as 660"),
    "port": (_is_port, f"a port up to {_LAST_PORT}"),
    "privateKey": _FILE,
    "sslmethod": (_is_method, "the name of one of OpenSSL's, TLS_METHOD"),
    "timeout": _WHOLE,
    "trustRoots": _FOLDER,
}
"""For each argument, a check of its value, and text that says what is right; other arguments take any value."""
