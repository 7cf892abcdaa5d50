"""Text from outside: whatever it is, it becomes one line that can be written anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fooproxy.text import one_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("foo.example:8001", "foo.example:8001"),
        ("/srv/größe", "/srv/größe"),
        (b"/srv/gr\xc3\xb6\xc3\x9fe", "/srv/größe"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\nb\r", r"a\nb\r"),
        (b"\0abstract", r"\x00abstract"),
        (b"\xff", r"\xff"),
        ("\udcff", r"\xff"),
        ("\ud800", r"\ud800"),
        ("\x9b31m\x85", r"\x9b31m\x85"),
        ("\u2028\u202e", r"\u2028\u202e"),
    ],
)
def test_what_is_special_is_escaped(text: str | bytes, shown: str) -> None:
    assert one_line(text) == shown


@given(st.text() | st.binary())
def test_anything_is_one_line_of_utf_8_and_escaped_only_once(text: str | bytes) -> None:
    shown = one_line(text)
    assert shown.encode().decode() == shown
    assert len(shown.splitlines()) <= 1
    assert one_line(shown) == shown
