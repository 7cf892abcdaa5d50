"""The values in log lines: what programs read of them as fields of JSON is a value, and not prose."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from fooproxy.logs.formats import _NOT_FIELDS

ROOT = Path(__file__).resolve().parents[2] / "fooproxy"

METHODS = {"debug", "info", "warn", "error", "critical", "failure", "emit"}

PROSE = {"how", "what", "when", "where", "who", "words"} | _NOT_FIELDS - {"limited"}
"""Names of what is a clause of the message; its parts should be values, and the rest should be in the message."""


def fields() -> Iterator[tuple[str, str]]:
    """Return the names of all values in our log lines, with where they are."""
    for path in ROOT.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            if call.func.attr in METHODS and ast.unparse(call.func.value).endswith("log"):
                yield from ((f"{path.relative_to(ROOT)}:{call.lineno}", str(each.arg)) for each in call.keywords)


def test_no_field_of_a_log_line_is_prose() -> None:
    found = list(fields())
    assert len(found) > 50
    # A start that is refused has nothing but a message.
    assert [(place, name) for place, name in found if name in PROSE and not place.startswith("launch.py:")] == []
