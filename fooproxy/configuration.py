"""The configuration file: TOML with the options' names, converted to texts as on the command line.

A value may be text, a number, or ``true`` and ``false`` for a flag; an option that may be repeated takes a list.  This
module knows the options' names and kinds, but not what their values mean.  `fooproxy.commandline` calls it.
"""

from __future__ import annotations

import difflib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fooproxy.statements import Malformed, statements
from fooproxy.text import one_line

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from fooproxy.statements import Statement

_LARGEST = 1 << 20

_EXAMPLE = 'expected lines such as listen = ":8002" or drain-timeout = 10, with quotes around text'


class Declared(Protocol):
    """The properties of an option that the file's reader needs."""

    @property
    def repeats(self) -> bool:
        """Whether it may have several values."""

    @property
    def is_flag(self) -> bool:
        """Whether it is on or off."""


class ConfigurationFile:
    """The values of `options` in the file `path`; options named in `elsewhere` are valid only on the command line.

    :raises ValueError: the file cannot be read, or is wrong; the message names the file and the line.
    """

    def __init__(self, path: str, options: Mapping[str, Declared], elsewhere: Collection[str]) -> None:
        self.path = one_line(path)
        self._statements: dict[str, Statement] = {}
        self.texts: dict[str, list[str]] = {}
        """The values that each option has, as texts."""
        try:
            for statement in statements(_text_of(path)):
                for name, value in statement.values.items():
                    if name not in options:
                        why = _unknown(name, value, options, elsewhere)
                        raise ValueError(f"{self.path}:{statement.first}: {why}")
                    self._add(name, options[name], value, statement)
        except Malformed as error:
            raise ValueError(f"{self.path}:{error.line}: {error}; {_EXAMPLE}") from None

    def _add(self, name: str, option: Declared, value: object, statement: Statement) -> None:
        before = self._statements.setdefault(name, statement)
        try:
            if before is not statement:
                raise ValueError(f"given a second time, after line {before.first}; expected only once")
            self.texts[name] = _texts(name, option, value)
        except ValueError as error:
            raise ValueError(f"{self.path}:{statement.first}: {name}: {error}") from None

    def place(self, name: str, index: int = 0) -> str:
        """Return the file, the line and the name of the option's value number `index`: ``FILE:LINE: NAME``."""
        return f"{self.path}:{self._statements[name].line(index)}: {name}"


def _text_of(path: str) -> str:
    shown = one_line(path)
    quoted = f"'{shown}'"
    try:
        # Check the kind of file first, and open it without blocking: opening a pipe would wait for a writer.
        found = Path(path).stat()
        if not stat.S_ISREG(found.st_mode) and not os.path.samestat(found, Path(os.devnull).stat()):
            kind = _KINDS_OF_FILES.get(stat.S_IFMT(found.st_mode), "a device")
            raise ValueError(f"{quoted} is {kind}; expected a regular file, which is TOML with options")
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY), "rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        is_dangling = isinstance(error, FileNotFoundError) and Path(path).is_symlink()
        why = "it is a symbolic link to a missing file" if is_dangling else error.strerror
        raise ValueError(f"cannot read {quoted}: {why}; expected a TOML file that this user can read") from None
    if len(content) > _LARGEST:
        raise ValueError(f"{quoted} is larger than 1 MiB; expected a TOML file with options")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{shown}:{line}: not UTF-8; expected a TOML file, which is UTF-8 text") from None


def _unknown(name: str, value: object, options: Mapping[str, Declared], elsewhere: Collection[str]) -> str:
    if isinstance(value, dict):
        return f"{one_line(name)!r} is a table; expected options without tables, such as idle-timeout = 60"
    said = f"{one_line(name)!r} is not an option that a configuration file can have"
    written = name.lower().replace("_", "-")
    if written in elsewhere:
        return f"{said}; expected --{written} on the command line"
    near = difflib.get_close_matches(written, options, 1)
    hint = f"did you mean {near[0]}?" if near else "expected the name of an option, such as listen (see --help)"
    return f"{said}; {hint}"


def _texts(name: str, option: Declared, value: object) -> list[str]:
    items = value if option.repeats and isinstance(value, list) else [value]
    if not items:
        raise ValueError("[] has no value; expected one or more, or no such line")
    try:
        return [_text(option, item) for item in items]
    except ValueError as error:
        inside = " in a list" if items is value else ""
        if option.is_flag:
            right = "true or false"
        elif option.repeats:
            right = f'one text in quotes or one number, or a list of them: {name} = ["...", "..."]'
        else:
            right = "one text in quotes or one number"
        raise ValueError(f"has {error}{inside}; expected {right}") from None


def _text(option: Declared, value: object) -> str:
    """Return a value as it would be on the command line.

    :raises ValueError: it is something else; the message says what.
    """
    if isinstance(value, bool) and option.is_flag:
        return "on" if value else "off"
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    raise ValueError(_KINDS.get(type(value), "a date or time"))


_KINDS: dict[type, str] = {bool: "true or false", list: "a list", dict: "a table"}

_KINDS_OF_FILES = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
