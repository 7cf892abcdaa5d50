"""The files of the page: every declared statistic is on the page."""

from __future__ import annotations

import re

import pytest

from fooproxy.stats.counters import Stats
from fooproxy.stats.fields import Field
from fooproxy.stats.reasons import CLEAN, FAILURES
from fooproxy.web.page import files

INDEX = files()["index.html"].decode()
SCRIPTS = "".join(content.decode() for name, content in files().items() if name.endswith(".js"))
COUNTERS = [field for field in Stats.reported if field.kind == "counter"]

SHOWN_OTHERWISE = {
    "upstream_stuck": "the word at the top says it",
    "upstream_failing": "the word at the top says it",
    "lookups_failing": "the word at the top says it",
    "version": "/version",
    "implementation": "/version",
}
"""What is not on the page by itself, and what shows it instead."""


@pytest.mark.parametrize("field", Stats.reported, ids=lambda field: field.name)
def test_every_statistic_is_on_the_page(field: Field) -> None:
    # The name of one can begin with that of another.
    shown = re.search(rf"report\.{field.name}\b", INDEX + SCRIPTS)
    assert shown or field.name in SHOWN_OTHERWISE, (
        f"nothing shows {field.name}: give it a row in fooproxy/web/static/index.html, or say here what shows it"
    )


def test_the_page_shows_nothing_that_the_report_does_not_have() -> None:
    report = Stats(lambda: 5.0).report()
    paths = re.findall(r'data-show="report\.([\w.]+)"', INDEX)
    assert len(paths) > len(COUNTERS)
    for path in paths:
        value = report
        for name in path.split("."):
            assert name in value, path
            value = value[name]


def test_the_meaning_of_a_counter_is_its_tooltip() -> None:
    field = next(field for field in COUNTERS if field.name == "msg_misdirected")
    assert f'<div class="listed" title="{field.meaning}"><dt>{field.title}</dt>' in INDEX


def test_a_gauge_has_a_row_unless_the_page_shows_it_anyway() -> None:
    assert [title for title, path in rows().items() if path.startswith("links.")] == [
        *("Links: idle", "Links: in use", "Links: draining"),
    ]
    assert INDEX.count('"report.requests_in_flight"') == 1


def rows() -> dict[str, str]:
    """What the generated rows show, by their titles."""
    return dict(re.findall(r"<dt>([^<]+)</dt><dd data-show=\"report\.([\w.]+)\"", INDEX))


def test_the_titles_of_counters_are_words() -> None:
    assert not [title for title in rows() if "_" in title]
    assert rows()["Pauses in accepting: descriptors"] == "accepts_paused.descriptors"


def test_a_counter_of_many_values_has_one_row_with_their_sum() -> None:
    assert 'data-show="report.requests_unanswered" data-as="sum"' in INDEX
    assert not [path for path in rows().values() if path.startswith("requests_unanswered.")]


def test_the_reasons_for_which_sessions_end_are_told_apart() -> None:
    planned, failed = INDEX[INDEX.index('id="closed"') :].split("<h3>Failed</h3>")
    failed = failed.partition("</section>")[0]
    assert set(re.findall(r'data-reason="(\w+)"', planned)) == CLEAN
    assert tuple(re.findall(r'data-reason="(\w+)"', failed)) == FAILURES
