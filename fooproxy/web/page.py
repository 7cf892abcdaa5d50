"""The files of the page, ready to be served.

The lists of counters and of reasons in `index.html` are generated here from their declarations, and so are rows for
the gauges that it does not show itself, so that a new one appears on the page as soon as it is declared.  Everything
else about the page is in `static/`.  This module does not know about HTTP, except for content types;
`fooproxy.web.resource` serves the files.
"""

from __future__ import annotations

import re
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from fooproxy.stats.counters import Stats
from fooproxy.stats.reasons import CLEAN, CLOSED, FAILURES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fooproxy.stats.fields import Field

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Content types by file suffix; other files are not served."""

_LISTED_ELSEWHERE = {"connections_closed"}
"""Counters that have a list of their own on the page."""

_SAID = {"upstream_stuck", "upstream_failing", "lookups_failing"}
"""Gauges that the word at the top of the page covers."""

_SHOWN_AS = {"bytes": "size", "seconds": "age", "messages/s": "rate"}
"""How figures in a unit are written; others are whole numbers."""

_FEW = 4
"""Maximum values of one statistic that get a row each; with more values, there is one row for their sum."""


def files() -> dict[str, bytes]:
    """Return the content of each file of the page, by file name."""
    static = (resources.files("fooproxy.web") / "static").iterdir()
    content = {file.name: file.read_bytes() for file in static if Path(file.name).suffix in TYPES}
    index = content["index.html"].decode()
    planned = [reason for reason in CLOSED if reason in CLEAN]
    lists = {
        "counters": _rows(),
        "gauges": _further_gauges(index),
        "planned ends": _reasons(planned),
        "failures": _reasons(FAILURES),
    }
    for name, rows in lists.items():
        place = f"<!-- {name} -->\n"
        assert place in index
        index = index.replace(place, "".join(rows))
    content["index.html"] = index.encode()
    return content


def _reasons(reasons: Iterable[str]) -> Iterator[str]:
    for reason in reasons:
        yield f'<div title="{escape(CLOSED[reason])}" data-reason="{reason}" hidden><dt></dt><dd></dd></div>\n'


def _rows() -> Iterator[str]:
    for field in Stats.reported:
        if field.kind == "counter" and field.name not in _LISTED_ELSEWHERE:
            yield from _rows_of(field)


def _further_gauges(index: str) -> Iterator[str]:
    for field in Stats.reported:
        is_shown = field.name in _SAID or re.search(rf'"report\.{field.name}["\.]', index)
        if field.kind == "gauge" and not is_shown:
            yield from _rows_of(field)


def _rows_of(field: Field) -> Iterator[str]:
    shown_as = _SHOWN_AS.get(field.unit, "count")
    if not field.label or field.summed:
        yield _row(field, field.title, field.name, shown_as)
    elif len(field.labels) > _FEW:
        yield _row(field, field.title, field.name, "sum")
    else:
        for label in field.labels:
            title = f"{field.title}: {label.replace('_', ' ')}"
            yield _row(field, title, f"{field.name}.{label}", shown_as)


def _row(field: Field, title: str, path: str, shown_as: str) -> str:
    return (
        f'<div class="listed" title="{escape(field.meaning)}"><dt>{escape(title)}</dt>'
        f'<dd data-show="report.{path}" data-as="{shown_as}">&ndash;</dd></div>\n'
    )
