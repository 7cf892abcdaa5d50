"""Reading what --forward says of a server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fooproxy.upstreams.forward import Forward, read_forward, twice


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("8001", Forward("8001")),
        ("foo:8001,weight=3", Forward("foo:8001", weight=3)),
        ("foo:8001,backup,name=second server", Forward("foo:8001", backup=True, label="second server")),
        ("foo:8001,name=a,weight=1000,backup", Forward("foo:8001", 1000, True, "a")),
        ("foo:8001,max=0,weight=2", Forward("foo:8001", 2, most=0)),
        ("foo:8001,max=200", Forward("foo:8001", most=200)),
        ("unix:/run/a,max=-1", Forward("unix:/run/a,max=-1")),
        # Commas of the address, and what is not exactly one of the words.
        ("unix:/run/a,b", Forward("unix:/run/a,b")),
        ("unix:/run/a,backup,b,weight=2", Forward("unix:/run/a,backup,b", weight=2)),
        ("unix:/run/a,weight=", Forward("unix:/run/a,weight=")),
        ("unix:/run/a,weight=0", Forward("unix:/run/a,weight=0")),
        ("unix:/run/a,weight=10000", Forward("unix:/run/a,weight=10000")),
        ("unix:/run/a,backups", Forward("unix:/run/a,backups")),
        ("unix:/run/a, backup", Forward("unix:/run/a, backup")),
        ("unix:/run/a,name=", Forward("unix:/run/a,name=")),
    ],
)
def test_the_words_behind_the_last_commas_are_read_and_the_rest_is_the_address(text: str, found: Forward) -> None:
    assert read_forward(text) == found


@given(st.text(alphabet=st.characters(exclude_characters=","), min_size=1), st.integers(1, 9999), st.booleans())
def test_what_is_written_is_read(address: str, weight: int, backup: bool) -> None:
    text = f"{address},weight={weight}{',backup' * backup},name=x"
    assert read_forward(text) == Forward(address, weight, backup, "x")


def test_a_server_is_called_by_its_name_or_its_address_in_one_line() -> None:
    assert [read_forward(text).name for text in ("foo:1", "foo:1,name=a\nb")] == ["foo:1", "a\\nb"]


def test_a_second_server_with_the_same_name_is_found() -> None:
    first, second = read_forward("foo:1"), read_forward("bar:1,name=foo:1")
    assert twice([first, second]) is second
    assert twice([first, read_forward("bar:1")]) is None


@pytest.mark.parametrize("word", ["weight=2", "backup", "max=2", "name=a"])
def test_each_word_is_taken_once(word: str) -> None:
    with pytest.raises(ValueError, match="twice"):
        read_forward(f"foo:1,{word},{word}")
