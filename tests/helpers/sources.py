"""What the tests themselves say, for tests that look whether something is tested."""

from __future__ import annotations

from pathlib import Path

_TESTS = Path(__file__).resolve().parents[1]


def other_tests(own: str) -> str:
    """Return the text of all modules with tests but that of the module whose `__file__` is `own`."""
    return "".join(path.read_text() for path in _TESTS.rglob("test_*.py") if path != Path(own).resolve())
