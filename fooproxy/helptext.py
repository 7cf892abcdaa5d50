"""The help: arranges the texts from the options' declarations for a terminal.

This module knows no options; `fooproxy.commandline` calls it.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_COLUMN = 32
"""The column where meanings begin; after a longer form, the meaning begins on the next line."""

_LEAST, _MOST = 60, 120
"""The minimum and maximum width of lines, in columns, whatever the width of the terminal."""


def formatted(about: str, groups: Mapping[str, Sequence[tuple[str, str]]], notes: str, width: int) -> str:
    """Return the help: forms and meanings by group, between paragraphs of text, in lines of `width` columns."""
    width = min(max(width, _LEAST), _MOST)
    parts = [_paragraphs(about, width)]
    for name, entries in groups.items():
        if entries:
            lines = (line for form, meaning in entries for line in _entry(form, meaning, width))
            parts.append("\n".join([f"{name[0].upper()}{name[1:]}:", *lines]))
    return "\n" + "\n\n".join([*parts, _paragraphs(notes, width)])


def _entry(form: str, meaning: str, width: int) -> Iterator[str]:
    # Long forms are aligned, with or without a short one before.
    start = f"  {form}  " if form.startswith("-") and not form.startswith("--") else f"      {form}  "
    meanings = textwrap.wrap(meaning, width - _COLUMN, break_long_words=False, break_on_hyphens=False)
    if len(start) > _COLUMN:
        yield start.rstrip()
    else:
        yield f"{start:{_COLUMN}}{meanings.pop(0)}"
    yield from (" " * _COLUMN + line for line in meanings)


def _paragraphs(text: str, width: int) -> str:
    return "\n\n".join(
        textwrap.fill(each, width, break_long_words=False, break_on_hyphens=False) for each in text.split("\n\n")
    )
