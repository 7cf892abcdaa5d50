"""The reasons for which sessions end: each that is declared is given somewhere, and each that is given is declared."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import fooproxy
from fooproxy.stats.reasons import CLOSED, CONNECT_FAILURES
from tests.helpers.sources import other_tests

PACKAGE = Path(fooproxy.__file__).parent
CALLED = {"NotServed", "_turn_away", "because", "connect_failed", "dismiss", "turned_away"}
"""What is called with a reason."""

TESTS = other_tests(__file__)

COMPOSED = {f"{leg}_{how}" for leg in ("client", "upstream") for how in ("closed", "reset", "tls")}
COMPOSED |= set(CONNECT_FAILURES.values())
"""Those that are put together from a leg and what happened to it."""


def _written() -> Iterator[tuple[str, str]]:
    """Yield each reason that is written out where a session ends, with the file."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                found: list[ast.expr] = node.args if called in CALLED else []
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).endswith(".reason"):
                found = [node.value] if path.parent.name == "relay" else []
            else:
                continue
            for value in found:
                branches = [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]
                for branch in branches:
                    if isinstance(branch, ast.Constant) and isinstance(branch.value, str):
                        yield branch.value, path.name


@cache
def given() -> list[tuple[str, str]]:
    """Return all of them; reading the whole package takes half a second."""
    return [*_written()]


def test_a_reason_that_is_given_is_declared() -> None:
    undeclared = {f"{reason} ({file})" for reason, file in given() if reason not in CLOSED}
    assert not undeclared, f"declare {sorted(undeclared)} in CLOSED in fooproxy/stats/reasons.py"


@pytest.mark.parametrize("reason", CLOSED)
def test_a_reason_that_is_declared_is_given(reason: str) -> None:
    # A process that has crashed says nothing any more; the next one counts its sessions.
    somewhere = COMPOSED | {reason for reason, _ in given()} | {"crashed"}
    assert reason in somewhere, f"no session ends for {reason}: call because({reason!r}) in fooproxy/relay"


@pytest.mark.parametrize("reason", CLOSED)
def test_a_test_has_a_session_end_for_a_reason(reason: str) -> None:
    assert f'"{reason}"' in TESTS, f"write a test in which a session ends for {reason}"
