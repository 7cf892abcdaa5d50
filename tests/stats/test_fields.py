"""A statistic is declared once, and then appears in the report, the exposition and the recovery file."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

import fooproxy
from fooproxy import parts
from fooproxy.foo.latency import Latency
from fooproxy.foo.numbers import zeros
from fooproxy.recovery.saver import Saver
from fooproxy.recovery.state import Recovery
from fooproxy.stats.counters import Stats
from fooproxy.stats.fields import Counter, Counters, Declared, Field, computed
from fooproxy.web.exposition import exposition
from tests.helpers.sources import other_tests

TESTS = other_tests(__file__)

GIVEN = {"clock", "on_end"}
"""What is called, but handed in."""

HOOKS = [name for name, value in vars(Stats(lambda: 5.0)).items() if callable(value) and name not in GIVEN]
"""What the statistics call for what others know; by default it says that there is nothing."""

COUNTED = [field for field in Stats.fields if isinstance(field, Counter | Counters)]

SHOWN_OTHERWISE = {
    "msg_req": "messages_total, by type",
    "msg_ack": "messages_total, by type",
    "msg_nak": "messages_total, by type",
    "bytes_from_clients": "received_bytes_total, by leg",
    "bytes_from_upstream": "received_bytes_total, by leg",
    "request_rate_1s": "rate(messages_total)",
    "request_rate_10s": "rate(messages_total)",
    "response_rate_1s": "rate(messages_total)",
    "response_rate_10s": "rate(messages_total)",
    "latency_seconds_10s": "rate(request_duration_seconds_bucket)",
    "uptime_seconds": "process_start_time_seconds",
    "version": "build_info, by label",
    "implementation": "build_info, by label",
}
"""Fields without a series in the exposition, and the expression that Prometheus users need instead."""

WAITS = [f"link_wait_{cell}" for cell in Latency.names]
"""Cells of waits, none of which outlives the process."""

TIMES = {"replied", "seen", *(f"link_wait_{cell}" for cell in Latency.names[: Latency.names.index("sum")])}
TIMES |= {"link_wait_replied", "link_wait_seen"}
"""Cells that are times, by which others are judged, or that waits do not use."""

BEGINS_AT_ZERO = {"asked", "given_up", *WAITS} - TIMES
"""Cells that are not saved, because no request outlives the process."""


CELLS = [(field, number) for field in Stats.fields for number, cell in enumerate(field.cells) if cell not in TIMES]


def name(field: Field, number: int) -> str:
    return f"{field.name}.{field.cells[number]}".rstrip(".")


def shown(numbers: Any) -> tuple[dict[str, Any], bytes]:
    stats = Stats(lambda: 5.0, numbers=numbers)
    text = exposition(stats, True, "text/plain")
    assert text is not None
    own = b"\n".join(line for line in text[1].splitlines() if line.startswith(b"fooproxy_"))
    return stats.report(), own


def test_every_number_is_shown_in_the_report_or_the_exposition() -> None:
    numbers = zeros(Stats.size)
    for place in range(Stats.size):
        numbers[place] = 3
    before, hidden = shown(numbers), []
    for field, number in CELLS:
        numbers[field.place + number] += 1
        if shown(numbers) == before:
            hidden.append(name(field, number))
        numbers[field.place + number] -= 1
    assert not hidden, "counted, but no statistic shows it"


def test_every_statistic_has_a_series_or_another_one_to_take_instead() -> None:
    without = {field.name for field in Stats.reported if field.series is None}
    assert without == set(SHOWN_OTHERWISE), "give the statistic a series, or say here which other one shows it"


def test_every_number_comes_back_after_a_crash(tmp_path: Path) -> None:
    before, after = Stats(lambda: 5.0), Stats(lambda: 5.0)
    for place in range(Stats.size):
        before.numbers[place] = place + 1
    latency = before.latency
    for number in range(len(latency.names)):
        latency.numbers[latency.start + number] = 0
    latency.add(63, 2)
    latency.add(1 << 20, 5)
    latency.ask(9)
    latency.given_up = 2
    latency.unmatched = 7
    # Every session is accounted for, so none counts as crashed.
    before.connections_total = sum(before.connections_closed.values())
    saver = Saver(tmp_path / "recovery.json")
    saver.write(Recovery(before, saver, lambda: 1e9, 10).state())
    Recovery(after, saver, lambda: 1e9, 10).load()
    places = {field.cells[number] or field.name: field.place + number for field, number in CELLS}
    lost = {cell for cell, place in places.items() if after.numbers[place] != before.numbers[place]}
    assert lost == BEGINS_AT_ZERO, "save it, or say here why not"


def test_no_two_numbers_have_one_name_in_the_recovery_file() -> None:
    names = [saved for field in Stats.fields for saved in field.saved if saved is not None]
    assert sorted(Stats.lasting()) == sorted(names)


def test_the_names_in_the_recovery_file_are_those_of_earlier_versions() -> None:
    known = {"client_req", "upstream_bytes", "connections_total", "closed_drained", "paused_client", "saves_failed"}
    known |= {"accepts_paused_limit", "responses_unmatched"}
    assert known <= Stats.lasting().keys()


@pytest.mark.parametrize("field", COUNTED, ids=lambda field: field.name)
def test_every_counter_is_counted_somewhere(field: Field) -> None:
    uses = re.compile(rf"stats\.{field.name}\b(?: \+=|\[)|\bself\.{field.name}\b(?: \+=|\[)|stats\.{field.name},")
    sources = [path.read_text() for path in Path(fooproxy.__file__).parent.rglob("*.py")]
    assert any(uses.search(source) for source in sources), (
        f"{field.name} is declared, but nothing counts it: write stats.{field.name} += 1 where it happens"
    )


@pytest.mark.parametrize("field", Stats.reported, ids=lambda field: field.name)
def test_every_statistic_is_named_by_a_test_of_its_value(field: Field) -> None:
    assert re.search(rf"\b{field.name}\b", TESTS), f"write a test in which {field.name} has a value other than 0"


@pytest.mark.parametrize("hook", HOOKS)
def test_what_the_statistics_ask_of_others_is_answered_by_one_of_the_parts(hook: str) -> None:
    assert f"self.stats.{hook} = " in inspect.getsource(parts), f"set stats.{hook} in fooproxy/parts.py"


@pytest.mark.parametrize("field", Stats.reported, ids=lambda field: field.name)
def test_every_statistic_says_what_it_is(field: Field) -> None:
    assert field.kind in {"counter", "gauge", "histogram", "info"}
    assert field.meaning.endswith(".")
    assert field.unit or field.kind == "info"
    assert bool(field.label) == bool(field.labels)


class Things(Declared):
    """Statistics other than those of the proxy."""

    seen = Counter("things", "Things seen.")
    lost = Counters("things", "Things lost, by place.", "place", ("here", "there"), series="gone", saved="gone")
    passing = Counter("things", "Things that nobody keeps.", saved=None)

    @computed("counter", "things", label="place", labels=("here", "there"), summed=True, in_report=True)
    def known(self) -> dict[str, int]:
        """Things that are not lost."""
        return {place: self.seen - lost for place, lost in self.lost.items()}


def test_a_counter_is_declared_once_and_counted_in_one_line() -> None:
    things = Things()
    things.seen += 5
    things.lost["there"] += 2
    assert list(things.numbers) == [5, 0, 2, 0]
    assert things.report() == {"seen": 5, "lost": {"here": 0, "there": 2}, "passing": 0, "known": 8}
    assert things.counters() == {"seen": 5, "gone_here": 0, "gone_there": 2}
    assert [field.series for field in Things.fields] == ["seen", "gone", "passing", "known"]


def test_the_array_is_the_one_that_is_handed_in() -> None:
    numbers = zeros(Things.size)
    things = Things(numbers)
    things.seen = 7
    numbers[Things.lost.place + 1] = 9
    assert (numbers[Things.seen.place], things.lost["there"]) == (7, 9)
    assert json.loads(json.dumps(things.report()))["lost"] == {"here": 0, "there": 9}


def test_a_number_by_label_is_a_mapping_of_fixed_size() -> None:
    lost = Things().lost
    assert (len(lost), list(lost), "nowhere" in lost) == (2, ["here", "there"], False)
    with pytest.raises(KeyError, match="nowhere"):
        lost["nowhere"] += 1
    with pytest.raises(TypeError):
        del lost["here"]
