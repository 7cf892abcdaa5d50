"""The configuration file: TOML with the options' names, from which it returns texts as on the command line.

A value may be text, a number, or ``true`` and ``false`` for a flag; an option that may be repeated takes a list.  It
knows the options' names and kinds, but not what their values mean.  `fooproxy.options` calls it.
"""

from __future__ import annotations

import difflib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fooproxy.text import one_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Mapping

_LARGEST = 1 << 20

_POSITION = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
"""Where a TOML error is; we name the line ourselves."""

_EXAMPLE = 'expected lines such as listen = ":8002" or drain-timeout = 10, with quotes around text'


class Declared(Protocol):
    """What has to be known about an option."""

    @property
    def repeats(self) -> bool:
        """Whether it may have several values."""

    @property
    def is_flag(self) -> bool:
        """Whether it is on or off."""


class _Statement(NamedTuple):
    """The lines that give one name its value."""

    first: int
    """The number of the first line."""
    text: str
    value: Any


class ConfigurationFile:
    """The values in the file `path` of `options`, by their names.

    :raises ValueError: the file cannot be read, or is wrong; the message names the file and the line.
    """

    def __init__(self, path: str, options: Mapping[str, Declared]) -> None:
        self.path = one_line(path)
        self._statements = self._read(_text_of(path))
        self.texts: dict[str, list[str]] = {}
        """The values that each option has, as texts."""
        for name, statement in self._statements.items():
            if name not in options:
                raise ValueError(f"{self.path}:{statement.first}: {_unknown(name, statement.value, options)}")
            try:
                self.texts[name] = _texts(options[name], statement.value)
            except ValueError as error:
                raise ValueError(f"{self.place(name)}: {error}") from None

    def place(self, name: str, index: int = 0) -> str:
        """Return the file, the line and the name of the option's value number `index`: ``FILE:LINE: NAME``."""
        return f"{self.path}:{self.line(name, index)}: {name}"

    def line(self, name: str, index: int = 0) -> int:
        """Return the number of the line where the option's value number `index` is."""
        first, text, value = self._statements[name]
        if not isinstance(value, list):
            return first
        lines = text.split("\n")
        # The item is on the line with which the beginning of the list holds it.
        return next(
            (first + number for number in range(len(lines)) if len(_beginning(name, lines[: number + 1])) > index),
            first,
        )

    def _read(self, text: str) -> dict[str, _Statement]:
        """Return what the file says, by name: TOML's own parser does not tell which line a value is on."""
        found: dict[str, _Statement] = {}
        first, pending = 1, ""
        for number, line in enumerate(text.split("\n"), 1):
            pending = f"{pending}\n{line}" if pending else line
            try:
                content = tomllib.loads(pending)
            except (ValueError, RecursionError):
                # More lines belong to it, or it is wrong.
                continue
            for name, value in content.items():
                if name in found and not isinstance(value, dict):
                    raise ValueError(
                        f"{self.path}:{first}: {one_line(name)}: given a second time, after line "
                        f"{found[name].first}; expected only once"
                    )
                found.setdefault(name, _Statement(first, pending, value))
            first, pending = number + 1, ""
        if pending:
            raise ValueError(self._why(pending, first))
        return found

    def _why(self, pending: str, first: int) -> str:
        """Say what is wrong with lines that are no statement."""
        what, line = "not valid TOML", first
        try:
            tomllib.loads(pending)
        except (ValueError, RecursionError) as error:
            position = _POSITION.search(str(error))
            what = one_line(_POSITION.sub("", str(error)))
            line += int(position[1]) - 1 if position and position[1] else 0
        return f"{self.path}:{line}: {what[:1].lower()}{what[1:]}; {_EXAMPLE}"


def _text_of(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            content = file.read(_LARGEST + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(
            f"cannot read {one_line(path)!r}: {why}; expected a TOML file that this user can read"
        ) from None
    if len(content) > _LARGEST:
        raise ValueError(f"{one_line(path)!r} is larger than 1 MiB; expected a TOML file with options")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{one_line(path)}:{line}: not UTF-8; expected a TOML file, which is UTF-8 text") from None


def _beginning(name: str, lines: list[str]) -> list[Any]:
    """Return the items of the list that begins in `lines`, which may have its end elsewhere."""
    for end in ("", "\n]"):
        try:
            found = tomllib.loads("\n".join(lines) + end)[name]
        except tomllib.TOMLDecodeError:
            continue
        return found if isinstance(found, list) else []
    return []


def _unknown(name: str, value: object, options: Mapping[str, Declared]) -> str:
    if isinstance(value, dict):
        return f"{one_line(name)!r} is a table; expected options without tables, such as idle-timeout = 60"
    near = difflib.get_close_matches(name.lower().replace("_", "-"), options, 1)
    hint = f"did you mean {near[0]}?" if near else "expected the name of an option, such as listen (see --help)"
    return f"{one_line(name)!r} is not an option that a configuration file can have; {hint}"


def _texts(option: Declared, value: object) -> list[str]:
    if not option.repeats or not isinstance(value, list):
        return [_text(option, value)]
    if not value:
        raise ValueError("[] has no value; expected one or more, or no such line")
    return [_text(option, each) for each in value]


def _text(option: Declared, value: object) -> str:
    """Return a value as it would be on the command line."""
    if isinstance(value, bool) and option.is_flag:
        return "on" if value else "off"
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    kind = _KINDS.get(type(value), "a date or time")
    right = "true or false" if option.is_flag else "one text in quotes or one number"
    raise ValueError(f"has {kind}; expected {right}")


_KINDS: dict[type, str] = {bool: "true or false", list: "a list", dict: "a table"}
