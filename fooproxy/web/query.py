"""The query parameters of a request, checked; errors do not repeat the input.  The routes use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


class BadQuery(Exception):
    """A parameter of a request is wrong; the message says what would be right, without repeating the input."""


class Query:
    """The query parameters of a request."""

    def __init__(self, request: Any) -> None:
        self._arguments: dict[bytes, list[bytes]] = request.args or {}

    def number(self, name: str, default: int, most: int) -> int:
        """Return the parameter `name`, an integer from 0 to `most`; raise `BadQuery` for anything else."""
        text = self._arguments.get(name.encode(), [b"%d" % default])[-1]
        if not text.isdigit() or len(text) > 15 or int(text) > most:
            raise BadQuery(f"{name} must be a number from 0 to {most}")
        return int(text)

    def text(self, name: str, most: int) -> str:
        """Return the parameter `name`, at most `most` characters; raise `BadQuery` for a longer one."""
        text = self._arguments.get(name.encode(), [b""])[-1].decode("utf-8", "replace")
        if len(text) > most:
            raise BadQuery(f"{name} must be at most {most} characters")
        return text

    def choice(self, name: str, default: str, choices: Sequence[str]) -> str:
        """Return the parameter `name`, one of `choices`; raise `BadQuery` for anything else."""
        text = self._arguments.get(name.encode(), [default.encode()])[-1].decode("latin-1")
        if text not in choices:
            raise BadQuery(f"{name} must be one of {', '.join(choices)}")
        return text
