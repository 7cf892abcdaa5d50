"""Writes the tables in the documents from the declarations in the code, so that the two cannot differ.

Run it after a change to an option, a statistic, a route or whatever else a table shows::

    python docs/tables.py            # writes the tables
    python docs/tables.py --check    # only names the tables that differ, and exits with status 1

A table stands between two comments, ``.. table NAME: written by docs/tables.py`` and ``.. end of table NAME``.
`PLACES` lists the tables of each document; each table is a function that yields its headings, then its rows.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# The checkout need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fooproxy.options import OPTIONS
from fooproxy.stats.counters import Stats
from fooproxy.stats.reasons import CLOSED
from fooproxy.web.control import Control
from fooproxy.web.exposition import exposition
from fooproxy.web.resource import Web
from fooproxy.web.verdict import CAUSES

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 120
"""The last column is wrapped so that no line is longer."""


def options() -> Iterator[tuple[str, ...]]:
    """List the options of the command line."""
    yield "Option", "Default", "Meaning"
    for option in OPTIONS:
        yield f"``{option.form}``", f"``{option.shown_default}``", option.help


def report() -> Iterator[tuple[str, ...]]:
    """List the fields of the report."""
    yield "Name", "Kind", "Unit", "Meaning"
    for field in Stats.reported:
        yield f"``{field.name}``", field.kind, field.unit, field.meaning


def reasons() -> Iterator[tuple[str, ...]]:
    """List the reasons for which sessions end."""
    yield "Reason", "Meaning"
    for reason, meaning in CLOSED.items():
        yield f"``{reason}``", f"{meaning[0].upper()}{meaning[1:]}."


def exposed() -> Iterator[tuple[str, ...]]:
    """List the proxy's own series in the exposition, from a scrape of a proxy that has done nothing."""
    yield "Series", "Type", "Labels", "Meaning"
    stats = Stats(time.monotonic, servers=["foo.example:8001"])
    scraped = exposition(stats, ready=True, accept="text/plain", states={"foo.example:8001": "up"})
    assert scraped is not None
    for family in text_string_to_metric_families(scraped[1].decode()):
        if family.name.startswith("fooproxy_"):
            labels = sorted({f"``{label}``" for sample in family.samples for label in sample.labels})
            yield f"``{family.samples[0].name}``", family.type, ", ".join(labels), family.documentation


def warnings() -> Iterator[tuple[str, ...]]:
    """List the warnings of the health report."""
    yield "Warning", "Meaning"
    for cause in CAUSES:
        if cause.meaning:
            yield f"``{cause.word}``", cause.meaning


def urls() -> Iterator[tuple[str, ...]]:
    """List the routes of the web side, each with the first line of its docstring."""
    yield "URL", "What it answers"
    for endpoint in Web.app.endpoints:
        aliases = sorted(f"``{rule.rule}``" for rule in Web.app.url_map.iter_rules(endpoint))
        yield ", ".join(aliases), (getattr(Web, endpoint).__doc__ or "").partition("\n")[0]


def orders() -> Iterator[tuple[str, ...]]:
    """List the routes of the control side, each with its method and the first line of its docstring."""
    yield "Request", "What it does"
    for rule in Control.app.url_map.iter_rules():
        method = "POST" if "POST" in (rule.methods or ()) else "GET"
        path = re.sub(r"<(?:\w+:)?(\w+)>", lambda found: {"number": "ID"}.get(found[1], found[1].upper()), rule.rule)
        yield f"``{method} {path}``", (getattr(Control, rule.endpoint).__doc__ or "").partition("\n")[0]


TABLES: dict[str, Callable[[], Iterator[tuple[str, ...]]]] = {
    "options": options,
    "report": report,
    "reasons": reasons,
    "exposition": exposed,
    "urls": urls,
    "warnings": warnings,
    "orders": orders,
}

PLACES = {
    "README.rst": ("options", "report", "urls"),
    "docs/usage.rst": ("options", "urls", "warnings", "orders"),
    "docs/statistics.rst": ("report", "reasons", "exposition"),
}


def simple_table(headings: tuple[str, ...], *rows: tuple[str, ...]) -> str:
    """Format a table as reStructuredText: one row for each of `rows`, its last cell wrapped."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    margin = sum(width + 2 for width in widths[:-1])
    widths[-1] = min(widths[-1], WIDTH - margin)
    border = "  ".join("=" * width for width in widths)
    lines = [border, _line(widths, headings), border]
    for *cells, last in rows:
        if not last:
            raise SystemExit(f"{cells[0]} has no meaning: write a docstring or a meaning where it is declared")
        first, *rest = textwrap.wrap(last, widths[-1], break_long_words=False, break_on_hyphens=False)
        lines += [_line(widths, (*cells, first)), *(" " * margin + part for part in rest)]
    return "\n".join([*lines, border])


def _line(widths: list[int], cells: tuple[str, ...]) -> str:
    return "  ".join(f"{cell:{width}}" for width, cell in zip(widths, cells, strict=True)).rstrip()


def filled_in(document: str, text: str, table: str) -> str:
    """Return the `text` of `document` with `table` as the code has it now."""
    begin, end = f".. table {table}: written by docs/tables.py\n", f".. end of table {table}\n"
    before, begun, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not (begun and ended):
        raise SystemExit(f"{document}: the table {table!r} needs the lines {begin.strip()!r} and {end.strip()!r}")
    headings, *rows = TABLES[table]()
    return f"{before}{begin}\n{simple_table(headings, *rows)}\n\n{end}{after}"


def main() -> None:
    """Write the tables, or check them."""
    parser = argparse.ArgumentParser(description="Write the tables in the documents from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with status 1 if a table differs")
    only_check = parser.parse_args().check
    differing = []
    for document, tables in PLACES.items():
        path = ROOT / document
        text = path.read_text(encoding="utf-8")
        for table in tables:
            before, text = text, filled_in(document, text, table)
            if text != before:
                differing.append(f"{document}: the table {table!r}")
        if not only_check:
            path.write_text(text, encoding="utf-8")
    if only_check and differing:
        raise SystemExit(
            "\n".join(f"{which} differs from the code: run `python docs/tables.py`" for which in differing)
        )
    for which in differing:
        print(f"{which} was regenerated")


if __name__ == "__main__":
    main()
