"""How Sphinx builds the documentation.

The pages hold comments such as ``.. [options]`` where a table belongs, and the tables are made here from the code
itself, so that they cannot differ from it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sphinx.application import Sphinx

# The checkout need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fooproxy import __version__
from fooproxy.options import Options
from fooproxy.stats.counters import Stats
from fooproxy.stats.reasons import CLOSED
from fooproxy.web.exposition import exposition

project = "fooproxy"
author = "the fooproxy developers"
copyright = author
version = release = __version__
exclude_patterns = ["_build"]
nitpicky = True
# They would turn --listen into something that cannot be typed.
smartquotes = False
html_theme = "alabaster"
html_theme_options = {"description": "A proxy for the Foo protocol", "page_width": "70rem"}
html_show_copyright = False


def options() -> str:
    """Make the table of the command line's options."""
    parameters: Any = Options.optParameters
    flags: Any = Options.optFlags
    rows = [(f"``--{name}``", f"``{default}``", meaning) for name, _, default, meaning in parameters]
    rows += [(f"``--{name}``", "off", meaning) for name, _, meaning in flags]
    return _table("Option", "Default", "Meaning", rows=rows)


def statistics() -> str:
    """Make the table of the report's fields."""
    rows = ((f"``{field.name}``", field.kind, field.unit, field.meaning) for field in Stats.reported)
    return _table("Name", "Kind", "Unit", "Meaning", rows=rows)


def families() -> str:
    """Make the table of the exposition's own series, from a scrape of a proxy that has done nothing."""
    scraped = exposition(Stats(time.monotonic), ready=True, accept="text/plain")
    assert scraped is not None
    rows = []
    for family in text_string_to_metric_families(scraped[1].decode()):
        if family.name.startswith("fooproxy_"):
            labels = sorted({label for sample in family.samples for label in sample.labels})
            shown = ", ".join(f"``{label}``" for label in labels)
            rows.append((f"``{family.samples[0].name}``", family.type, shown, family.documentation))
    return _table("Series", "Type", "Labels", "Meaning", rows=rows)


def reasons() -> str:
    """Make the table of the reasons for which sessions end."""
    return _table("Reason", "Meaning", rows=((f"``{reason}``", f"{meaning}.") for reason, meaning in CLOSED.items()))


TABLES: dict[str, Callable[[], str]] = {
    "options": options,
    "statistics": statistics,
    "families": families,
    "reasons": reasons,
}


def _table(*headings: str, rows: Iterable[tuple[str, ...]]) -> str:
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in (headings, *rows):
        lines += [f"   {' ' if column else '*'} - {cell}" for column, cell in enumerate(row)]
    return "\n".join(lines)


def fill_in(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the tables where a page wants them."""
    for name, table in TABLES.items():
        place = f".. [{name}]\n"
        if place in source[0]:
            source[0] = source[0].replace(place, table() + "\n")


def setup(app: Sphinx) -> None:
    """Connect the hook."""
    app.connect("source-read", fill_in)
