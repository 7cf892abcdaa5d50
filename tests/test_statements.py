"""The statements of a TOML file: that each is found, with the line that it and each of its items is on."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fooproxy.statements import Malformed, statements

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCALARS = ["1", '"a # b"', "'[,'", '"\\"]"', '"""x\n]"y\\""""', "'''\n['\n,'''", '""', "1979-05-27"]
BETWEEN = ["", " ", "\n", ' # ], "\n', "\n\n"]


@st.composite
def lists(draw: Any) -> tuple[str, list[int]]:
    """Draw a list as text, and in which line of it each item begins."""
    text, lines = "[", []
    for item in draw(st.lists(st.sampled_from([*SCALARS, "[1,\n2]", "{a = [3, 4]}"]), max_size=4)):
        text += draw(st.sampled_from(BETWEEN))
        lines.append(text.count("\n"))
        text += item + draw(st.sampled_from(BETWEEN)) + ","
    return text + draw(st.sampled_from(BETWEEN)) + "]", lines


@given(st.lists(st.sampled_from(SCALARS).map(lambda text: (text, [0])) | lists()), st.sampled_from(["\n", " # [\n\n"]))
def test_each_statement_and_each_item_is_known_by_its_line(values: list[tuple[str, list[int]]], end: str) -> None:
    text, expected = "", []
    for number, (value, lines) in enumerate(values):
        first = text.count("\n") + 1
        expected.append((f"k{number}", first, [first + line for line in lines]))
        text += f"k{number} = {value}{end}"
    found = list(statements(text))
    assert [(*each.values, each.first) for each in found] == [(name, first) for name, first, _ in expected]
    for each, (_, _, lines) in zip(found, expected, strict=True):
        assert [each.line(index) for index in range(len(lines))] == lines
    assert {name: value for each in found for name, value in each.values.items()} == tomllib.loads(text)


@given(st.text("a1=\"'[]{},#\n\\ ."))
def test_of_any_text_either_a_line_is_wrong_or_all_values_are_found(text: str) -> None:
    found: dict[str, Any] = {}
    try:
        for each in statements(text):
            found.update(each.values)
    except Malformed as error:
        assert 1 <= error.line <= text.count("\n") + 1
        with pytest.raises((ValueError, RecursionError)):
            tomllib.loads(text)


@pytest.mark.parametrize("start", ["x = [\n", "x = '''\n", 'x = """\n', "x = {\n"])
def test_what_is_never_closed_takes_no_more_time_than_any_other_text(start: str) -> None:
    with pytest.raises(Malformed):
        list(statements(start + "1,\n" * 100_000))
