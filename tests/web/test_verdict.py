"""The verdict: the right word for each trouble, with the reason; and alerts that say the same."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from fooproxy.parts import Parts
from fooproxy.stats.counters import Stats
from fooproxy.web.verdict import CAUSES, Cause, Situation, judge
from tests.helpers.processes import ROOT

RULES = (ROOT / "contrib" / "prometheus" / "fooproxy.rules.yml").read_text()


def situation(*words: str, **changed: Any) -> Situation:
    """A proxy that is well, but for the reasons and warnings in `words`, and for what is `changed`."""
    reasons = [word for word in words if word in NOT_READY]
    warnings = [word for word in words if word not in NOT_READY]
    report = {**Stats(lambda: 5.0).report(), "connections_active": 3, "connections_limit": 5}
    upstream = {"address": "127.0.0.1:8001", "state": "up", "reason": None, "error": None}
    rows = [{"name": "one", "state": "up", "stuck": 0, "reason": None}]
    recovery = {"path": "recovery.json", "failing": False}
    health = {"ready": not reasons, "reasons": reasons, "warnings": warnings}
    return Situation(report, health, upstream, rows, recovery)._replace(**changed)


NOT_READY = [cause.word for cause in CAUSES if cause.state in ("not-ready", "draining")]

SERVERS = [
    {"name": "one", "state": "up", "stuck": 1, "reason": None},
    {"name": "two", "state": "down", "stuck": 0, "reason": "upstream_refused"},
]


def alert(name: str) -> str:
    """The text of an alert in the rules, with its expression and its annotations, on one line."""
    alerts = {part.split("\n", 1)[0]: " ".join(part.split()) for part in RULES.split("- alert: ")[1:]}
    assert name in alerts, f"write the alert {name} in contrib/prometheus/fooproxy.rules.yml"
    return alerts[name]


WARNINGS = re.findall(r'^ +"(\w+)": lambda: ', inspect.getsource(Parts._warnings), re.MULTILINE)
"""All that the health report can warn of; making the parts would take a reactor."""

UNWARNED = {"upstream_connect_failed"}
"""Causes that `judge` finds by itself."""


@pytest.mark.parametrize("word", WARNINGS)
def test_a_warning_is_a_cause_and_has_a_meaning(word: str) -> None:
    meanings = {cause.word: cause.meaning for cause in CAUSES}
    assert word in meanings, f"say what {word} means in CAUSES in fooproxy/web/verdict.py"
    assert meanings[word].endswith("."), f"give {word} a meaning in CAUSES, for docs/usage.rst"


def test_each_cause_that_degrades_is_a_warning() -> None:
    unknown = {cause.word for cause in CAUSES if cause.state == "degraded"} - UNWARNED - {*WARNINGS}
    assert not unknown, f"give {sorted(unknown)} a condition in _warnings in fooproxy/parts.py"


def test_a_proxy_that_is_well_is_ok() -> None:
    verdict = judge(situation())
    assert verdict["state"] == "ok"
    assert "the upstream 127.0.0.1:8001 is reachable" in verdict["why"]
    assert verdict["also"] == []


def test_a_server_that_nobody_has_needed_yet_is_not_said_to_be_reachable() -> None:
    unused = {"address": "127.0.0.1:8001", "state": "unknown", "reason": None, "error": None}
    assert "has not been needed yet" in judge(situation(upstream=unused))["why"]


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.word)
def test_a_cause_has_its_word_and_its_reason(cause: Cause) -> None:
    verdict = judge(situation(cause.word))
    assert verdict["state"] == cause.state
    assert cause.words in verdict["why"]


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.word)
def test_a_cause_has_an_alert_with_the_same_words_and_threshold(cause: Cause) -> None:
    text = alert(cause.alert)
    assert cause.expression in text, f"{cause.alert} must have the expression of {cause.word} in CAUSES"
    assert cause.words in text, f"{cause.alert} must have the words of {cause.word} in CAUSES"


def test_the_gravest_of_what_is_wrong_with_the_server_hides_the_rest() -> None:
    verdict = judge(situation("upstream_stuck", "only_naks", "slow_replies"))
    assert "no reply for 10 seconds" in verdict["why"]
    assert verdict["also"] == []


def test_other_troubles_are_named_beside_the_first() -> None:
    verdict = judge(situation("upstream_stuck", "clients_waiting", "recovery_failing"))
    assert "no reply" in verdict["why"]
    assert [cause.split(":")[0][:30] for cause in verdict["also"]] == [
        "The proxy makes new clients wa",
        "Traffic passes, but the proxy ",
    ]


def test_of_several_servers_the_one_in_trouble_is_named() -> None:
    assert "from one." in judge(situation("upstream_stuck", upstreams=SERVERS))["why"]
    assert (
        "some of its Foo servers: two (upstream refused)."
        in judge(situation("upstream_down", upstreams=SERVERS))["why"]
    )
    assert "any of the 2 upstreams" in judge(situation("upstream_unreachable", upstreams=SERVERS))["why"]
    assert ", a server rejects" in judge(situation("only_naks", upstreams=SERVERS))["why"]


def test_a_single_server_in_trouble_is_called_by_its_address() -> None:
    stuck = [{"name": "one", "state": "up", "stuck": 1, "reason": None}]
    assert "from the upstream 127.0.0.1:8001." in judge(situation("upstream_stuck", upstreams=stuck))["why"]
    assert ", the upstream 127.0.0.1:8001 rejects" in judge(situation("only_naks"))["why"]


def test_of_several_servers_all_are_meant_if_none_is_in_trouble_any_more() -> None:
    well = [{**row, "stuck": 0} for row in SERVERS]
    assert "from any of the 2 upstreams." in judge(situation("upstream_stuck", upstreams=well))["why"]


def test_clients_whom_an_operator_keeps_from_all_servers_are_not_said_to_be_served() -> None:
    assert judge(situation("upstream_held"))["why"].startswith("Clients are being served, but")
    held = {"address": "127.0.0.1:8001", "state": "paused", "reason": None, "error": None}
    assert judge(situation("upstream_held", upstream=held))["why"].startswith("New clients wait")


def test_the_last_error_is_named_with_its_reason() -> None:
    down = {"address": "127.0.0.1:8001", "state": "down", "reason": "upstream_refused", "error": "Connection refused"}
    why = judge(situation("upstream_unreachable", upstream=down))["why"]
    assert why.endswith("the upstream 127.0.0.1:8001: Connection refused (upstream refused)")
    assert judge(situation(upstream=down))["state"] == "degraded"


def test_the_limit_is_told_from_a_lack_of_file_descriptors() -> None:
    full = {**situation().report, "connections_active": 5}
    assert "all 5 sessions are taken" in judge(situation("clients_waiting", report=full))["why"]
    assert "file descriptors have run out" in judge(situation("clients_waiting"))["why"]


def test_a_single_session_is_counted_in_the_singular() -> None:
    assert "3 sessions are still open" in judge(situation("draining"))["why"]
    one = {**situation().report, "connections_active": 1}
    assert "1 session is still open" in judge(situation("draining", report=one))["why"]


def test_a_recovery_file_that_cannot_be_saved_counts_without_a_warning() -> None:
    assert judge(situation(recovery={"path": "here.json", "failing": True}))["state"] == "degraded"


@pytest.mark.parametrize(("ready", "state"), [(True, "degraded"), (False, "not-ready")])
def test_a_word_that_is_not_known_here_is_still_said(ready: bool, state: str) -> None:
    health = {"ready": ready, "reasons": [] if ready else ["on_fire"], "warnings": ["on_fire"] if ready else []}
    assert judge(situation(health=health)) == {"state": state, "why": "The proxy reports: on fire.", "also": []}


def test_of_several_servers_one_that_is_reachable_is_enough() -> None:
    assert "at least one of the 2 upstreams is reachable" in judge(situation(upstreams=SERVERS))["why"]
