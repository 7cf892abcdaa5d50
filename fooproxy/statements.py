"""Reads TOML one statement at a time: TOML's own parser does not tell which line a value is on.

A statement gives one name its value, on one line or on several.  Reading always takes time in proportion to the length
of the text.  This module does not know what the names mean; `fooproxy.configuration` calls it.
"""

from __future__ import annotations

import re
import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fooproxy.text import one_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Iterator

_TOKEN = re.compile(
    r'"""(?:[^\\]|\\.)*?(?:"{3,5}|\Z)'
    r"|'''.*?(?:'{3,5}|\Z)"
    r'|"(?:[^"\\\n]|\\[^\n])*"?'
    r"|'[^'\n]*'?"
    r"|#[^\n]*"
    r"|[\n,\[\]{}]"
    r"|[^\s,\[\]{}\"'#]+",
    re.DOTALL,
)
"""Strings, which may contain all the others; comments; punctuation; words.  It also matches tokens of wrong TOML."""

_POSITION = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
"""Where a TOML error is, counted from the beginning of the statement."""

_OPENING, _CLOSING = ("[", "{"), ("]", "}")


class Malformed(Exception):
    """The text is not TOML: `line` is the number of the wrong line, and the message says what is wrong with it."""

    def __init__(self, line: int, why: str) -> None:
        super().__init__(why)
        self.line = line


class Statement:
    """The part `text` of a file, which begins on the line number `first`.

    :raises Malformed: it is not TOML.
    """

    def __init__(self, text: str, first: int) -> None:
        self.first = first
        self._text = text
        try:
            self.values: dict[str, Any] = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            what, line = "not valid TOML", first
            if isinstance(error, ValueError):
                position = _POSITION.search(str(error))
                what = one_line(_POSITION.sub("", str(error)))
                line += int(position[1]) - 1 if position and position[1] else 0
            raise Malformed(line, f"{what[:1].lower()}{what[1:]}") from None

    def line(self, index: int) -> int:
        """Return the number of the line where item number `index` of a list begins, or that of the first line."""
        return self._lines[index] if index < len(self._lines) else self.first

    @cached_property
    def _lines(self) -> list[int]:
        found: list[int] = []
        number, depth, is_new = self.first, 0, False
        for token in _TOKEN.findall(self._text):
            if token[0] == "#" or token == "\n":
                number += token == "\n"
                continue
            if token in _CLOSING:
                depth -= 1
            elif depth == 1:
                if token != "," and is_new:
                    found.append(number)
                is_new = token == ","
            if token in _OPENING:
                depth += 1
                is_new = depth == 1 or is_new
            number += token.count("\n")
        return found


def statements(text: str) -> Iterator[Statement]:
    """Read the statements in `text`, in their order.

    :raises Malformed: one of them is not TOML.
    """
    begin, first, number, depth, is_empty = 0, 1, 1, 0, True
    for match in _TOKEN.finditer(f"{text}\n"):
        token = match[0]
        number += token.count("\n")
        depth += (token in _OPENING) - (token in _CLOSING)
        if token == "\n" and depth <= 0:
            if not is_empty:
                yield Statement(text[begin : match.start()], first)
            begin, first, depth, is_empty = match.end(), number, 0, True
        elif token[0] not in "#\n":
            is_empty = False
    if not is_empty:
        yield Statement(text[begin:], first)
