"""The options: that each declaration is complete, and what becomes of what an operator says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from docutils import nodes
from docutils.core import publish_doctree
from twisted.python.usage import UsageError

from fooproxy.options import OPTIONS, Option, Options

README = Path(__file__).resolve().parents[1] / "README.rst"


def parsed(*arguments: str) -> Options:
    """Parse a command line."""
    options = Options()
    options.parseOptions(arguments)
    return options


def refusal(*arguments: str) -> str:
    """Parse a command line that is refused; give what is said about it."""
    with pytest.raises(UsageError) as refused:
        parsed(*arguments)
    return str(refused.value)


each = pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
"""What has to hold for each declaration."""


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, ...]]:
    """All rows of all tables in the README."""
    readme = publish_doctree(README.read_text())
    return [tuple(cell.astext() for cell in row.findall(nodes.entry)) for row in readme.findall(nodes.row)]


@each
def test_an_option_has_a_row_in_the_readme(option: Option, rows: list[tuple[str, ...]]) -> None:
    assert (option.form, option.shown_default, option.help) in rows


@each
def test_an_option_is_in_the_help(option: Option) -> None:
    words = re.sub(r"\s+", " ", Options().getUsage(width=500))
    short = f"-{option.short}, " if option.short else ""
    assert f" {short}--{option.name}{'=' if option.unit else ''} {option.help}" in words


@each
def test_an_options_default_passes_its_own_check(option: Option) -> None:
    assert parsed()[option.name] == ([] if option.repeats and not option.default else option.check(option.default))


@each
def test_an_options_meaning_is_one_sentence(option: Option) -> None:
    assert re.fullmatch(r"[A-Z].+[^.]\.", option.meaning)
    assert not re.search(r"\.\s", option.meaning)


@each
def test_an_option_has_a_default_or_a_word_for_having_none(option: Option) -> None:
    assert bool(option.default) != bool(option.absence)
    assert option.default or option.repeats


def test_no_two_options_have_a_form_in_common() -> None:
    forms = ["help", "version", "h", *(form for option in OPTIONS for form in (option.name, option.short) if form)]
    assert len(set(forms)) == len(forms)


ONCE: list[Any] = [option for option in OPTIONS if not option.repeats]


@pytest.mark.parametrize("option", ONCE, ids=lambda option: option.name)
def test_an_option_is_not_taken_twice(option: Option) -> None:
    once = [f"--{option.name}"] if option.is_flag else [f"--{option.name}", option.default]
    assert f"--{option.name}: given 2 times" in refusal(*once, *once)


def test_an_option_that_is_given_twice_is_refused_with_both_values() -> None:
    assert refusal("--listen", "8002", "--drain-timeout=5", "--listen=8003").startswith(
        "--listen: given 2 times ('8002', '8003')"
    )


def test_the_short_form_of_an_option_is_the_same_option() -> None:
    assert refusal("--listen", "8002", "-l8003").startswith("--listen: given 2 times ('8002', '8003')")


def test_an_option_that_may_be_repeated_has_all_its_values_in_their_order() -> None:
    assert list(map(str, parsed("--allow", "192.0.2.0/24", "--allow=::1")["allow"])) == ["192.0.2.0/24", "::1/128"]
