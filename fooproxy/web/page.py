"""The files of the page, as they are served.

`index.html` has a list of the counters, which is made here from their declarations, so that a new counter is on the
page as soon as it is declared.  Everything else about the page is in `static/`.
"""

from __future__ import annotations

from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from fooproxy.stats.counters import Stats

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fooproxy.stats.fields import Field

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""The content types of the files, by suffix."""

_PLACE = b"<!-- counters -->\n"

_LISTED_ELSEWHERE = {"connections_closed"}
"""Counters that the page shows in a list of their own."""


def files() -> dict[str, bytes]:
    """Return the files of the page by their names."""
    static = (resources.files("fooproxy.web") / "static").iterdir()
    content = {file.name: file.read_bytes() for file in static if Path(file.name).suffix in TYPES}
    before, place, after = content["index.html"].partition(_PLACE)
    assert place
    content["index.html"] = before + "".join(_rows()).encode() + after
    return content


def _rows() -> Iterator[str]:
    for field in Stats.reported:
        if field.kind == "counter" and field.name not in _LISTED_ELSEWHERE:
            if field.label and not field.summed:
                for label in field.labels:
                    yield _row(field, f"{field.title}, {label}", f"{field.name}.{label}")
            else:
                yield _row(field, field.title, field.name)


def _row(field: Field, title: str, path: str) -> str:
    shown_as = "size" if field.unit == "bytes" else "count"
    return (
        f'<div title="{escape(field.meaning)}"><dt>{escape(title)}</dt>'
        f'<dd data-show="report.{path}" data-as="{shown_as}">&ndash;</dd></div>\n'
    )
