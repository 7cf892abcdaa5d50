"""The state survives, or is moved aside with a reason; it never causes a crash."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import formatEvent

from fooproxy.foo.latency import BUCKET_NAMES, LONGEST, Histogram, bounds, bucket
from fooproxy.foo.numbers import LARGEST
from fooproxy.recovery.saver import Saver, Unusable
from fooproxy.recovery.state import Recovery, SavedState
from fooproxy.stats.counters import Stats
from fooproxy.stats.history import LENGTH, Second
from fooproxy.stats.servers import SavedServer
from fooproxy.stats.session import SessionStats
from fooproxy.upstreams.forward import MOST_SERVERS
from tests.helpers.bed import publisher

FOREIGN: dict[str, Any] = {
    "index": 7,
    "time_stamp": 1505951090,
    "requests_10s": [10, 20, 30, 40, 50, 60, 70, 80, 0, 5],
    "responses_10s": [1, 2, 3, 4, 5, 6, 7, 8, 0, 9],
}


class Process:
    """One run of the proxy, as far as recovery is concerned."""

    def __init__(self, path: Path, wall: float, max_age: float = 10) -> None:
        self.wall = wall
        self.monotonic = 5.0
        self.stats = Stats(lambda: self.monotonic)
        self.saver = Saver(path)
        self.recovery = Recovery(self.stats, self.saver, lambda: self.wall, max_age)

    def pass_seconds(self, seconds: int) -> None:
        for _ in range(seconds * 20):
            self.wall += 0.05
            self.monotonic += 0.05
            self.stats.times.sample()

    def save(self) -> None:
        self.saver.write(self.recovery.state())
        self.saver.release()


def test_a_directory_in_the_place_of_the_file_aside_is_left_alone(path: Path) -> None:
    write(path, b"not a state")
    taken = [path.with_name("recovery.json.unusable"), path.with_name("recovery.json.unusable.2")]
    for directory in taken:
        directory.mkdir()
    process = Process(path, wall=1e9)
    process.recovery.load()
    process.save()
    assert path.with_name("recovery.json.unusable.3").read_bytes() == b"not a state"
    assert not any(list(directory.iterdir()) for directory in taken)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "recovery.json"


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


def test_what_was_saved_is_restored_with_the_windows_moved(path: Path) -> None:
    first = Process(path, wall=1e9)
    SessionStats(first.stats).client.feed(b"REQ 1\n" * 50, 0)
    first.pass_seconds(3)
    first.save()
    second = Process(path, wall=first.wall + 4)
    second.recovery.load()
    report = second.stats.report()
    assert report["msg_req"] == 50
    assert report["connections_total"] == 1
    assert report["connections_active"] == 0
    assert report["request_rate_10s"] == 5.0
    assert report["request_rate_1s"] == 0.0
    second.pass_seconds(4)
    assert second.stats.report()["request_rate_10s"] == 0.0


def test_the_file_has_the_keys_that_other_foo_proxies_write(path: Path) -> None:
    process = Process(path, wall=1e9 + 0.5)
    process.save()
    content = json.loads(path.read_text())
    assert content["index"] == 9
    assert content["time_stamp"] == 10**9
    assert content["requests_10s"] == content["responses_10s"] == [0] * 10


def test_a_file_written_by_another_foo_proxy_is_accepted(path: Path) -> None:
    write(path, json.dumps(FOREIGN).encode())
    process = Process(path, wall=1505951090 + 2)
    process.recovery.load()
    # 80 is the newest second, then 70 and so on backwards; 5 wraps round, and the two oldest (0 and 5) are dropped.
    assert process.stats.times.seconds()[0] == [10, 20, 30, 40, 50, 60, 70, 80, 0, 0]
    assert process.stats.report()["msg_req"] == 0


def test_an_old_state_is_kept_aside_and_everything_starts_from_zero(path: Path) -> None:
    first = Process(path, wall=1e9)
    SessionStats(first.stats).client.feed(b"REQ 1\n", 0)
    first.save()
    second = Process(path, wall=1e9 + 10.1)
    second.recovery.load()
    assert second.stats.report()["msg_req"] == 0
    assert not path.exists()
    assert json.loads(path.with_name("recovery.json.old").read_text())["counters"]["client_req"] == 1


@pytest.fixture
def log() -> Iterator[list[str]]:
    """All log lines."""
    lines: list[str] = []

    def observe(event: Any) -> None:
        lines.append(formatEvent(event))

    publisher.addObserver(observe)
    yield lines
    publisher.removeObserver(observe)


@pytest.mark.parametrize(
    ("age", "restored", "said"),
    [
        (10.0, 1, "saved 10.0 s ago"),
        (10.1, 0, "was saved 10.1 s ago, more than --recovery-max-age (10 s) allows; the file was moved to"),
        (-3.0, 1, "saved 3.0 s in the future (the clock was set back)"),
        (-10.0, 1, "saved 10.0 s in the future (the clock was set back)"),
        (
            -3600.0,
            0,
            "was saved 3600.0 s in the future (the clock was set back), more than --recovery-max-age (10 s) allows; ",
        ),
    ],
)
def test_a_state_is_restored_when_the_clocks_are_not_too_far_apart(
    path: Path, log: list[str], age: float, restored: int, said: str
) -> None:
    first = Process(path, wall=1e9)
    SessionStats(first.stats).client.feed(b"REQ 1\n", 0)
    first.pass_seconds(1)
    first.save()
    second = Process(path, wall=first.wall + age)
    second.recovery.load()
    report = second.stats.report()
    assert report["msg_req"] == restored
    # A state from the future counts as saved just now.
    assert report["request_rate_1s"] == (restored if age < 0 else 0)
    assert path.with_name("recovery.json.old").exists() == (not restored)
    (line,) = log
    assert said in line and ("restored the statistics from" in line) == bool(restored)


def test_steps_of_the_clock_while_running_change_no_rate_and_no_window(path: Path) -> None:
    process = Process(path, wall=1e9)
    session = SessionStats(process.stats)
    for step in (7200, -86400, 0):
        session.client.feed(b"REQ 1\n" * 30, 0)
        process.wall += step
        process.pass_seconds(1)
    assert process.stats.report()["request_rate_1s"] == pytest.approx(30)
    assert process.stats.report()["request_rate_10s"] == 9.0
    process.save()
    second = Process(path, wall=process.wall)
    second.recovery.load()
    assert second.stats.times.seconds()[0] == process.stats.times.seconds()[0] == [0] * 7 + [30] * 3


@pytest.mark.parametrize("name", ["time_stamp", "saved_at"])
def test_of_two_times_that_do_not_agree_the_older_counts(path: Path, name: str) -> None:
    write(path, json.dumps({**FOREIGN, "saved_at": FOREIGN["time_stamp"] + 0.5, name: 1505950000}).encode())
    process = Process(path, wall=1505951092)
    process.recovery.load()
    assert path.with_name("recovery.json.old").exists()


def test_no_file_is_no_trouble(path: Path) -> None:
    process = Process(path, wall=1e9)
    process.recovery.load()
    assert process.stats.report()["msg_total"] == 0


BROKEN: dict[str, bytes] = {
    "empty": b"",
    "truncated": json.dumps(FOREIGN).encode()[:40],
    "binary": bytes(range(256)),
    "no object": b"[1, 2]",
    "null": b"null",
    "a strange name": b'{"index": 1, "time_stamp": 1, "counters": {"a\\n\\u001b[31m": -1}}',
    "foreign": b'{"hello": "world"}',
    "too deep": b"[" * 100_000,
    "too large": b" " * (1 << 24) + b"{}",
    "index beyond": json.dumps({**FOREIGN, "index": 10}).encode(),
    "index true": json.dumps({**FOREIGN, "index": True}).encode(),
    "nine seconds": json.dumps({**FOREIGN, "requests_10s": [0] * 9}).encode(),
    "negative": json.dumps({**FOREIGN, "responses_10s": [0] * 9 + [-1]}).encode(),
    "a true time": json.dumps({**FOREIGN, "time_stamp": True}).encode(),
    "a time long gone": json.dumps({**FOREIGN, "saved_at": -1}).encode(),
    "a float for a count": json.dumps({**FOREIGN, "requests_10s": [0] * 9 + [1.0]}).encode(),
    "infinity": json.dumps({**FOREIGN, "saved_at": float("inf")}).encode(),
    "a text for a time": json.dumps({**FOREIGN, "time_stamp": "now"}).encode(),
    "no number": json.dumps({**FOREIGN, "time_stamp": float("nan")}).encode(),
    "counters a list": json.dumps({**FOREIGN, "counters": []}).encode(),
    "a huge counter": json.dumps({**FOREIGN, "counters": {"client_req": 10**30}}).encode(),
    "a latency that is none": json.dumps({**FOREIGN, "latency": 3}).encode(),
    "a bucket that there is not": json.dumps(
        {**FOREIGN, "latency": {"sum": 0, "longest": 0, "buckets": {"9999": 1}}}
    ).encode(),
    "more latencies than can be counted": json.dumps(
        {**FOREIGN, "latency": {"sum": LARGEST, "longest": 1, "buckets": {"0": LARGEST, "1": LARGEST}}}
    ).encode(),
    "a bucket below zero": json.dumps({**FOREIGN, "latency": {"sum": 0, "longest": 0, "buckets": {"9": -1}}}).encode(),
    "a latency without a sum": json.dumps({**FOREIGN, "latency": {"buckets": {}}}).encode(),
    "a sum of nothing": json.dumps({**FOREIGN, "latency": {"sum": 1, "longest": 0, "buckets": {}}}).encode(),
    "a sum that is too small": json.dumps(
        {**FOREIGN, "latency": {"sum": 8, "longest": 9, "buckets": {"9": 1}}}
    ).encode(),
    "a sum that is too large": json.dumps(
        {**FOREIGN, "latency": {"sum": 10, "longest": 9, "buckets": {"9": 1}}}
    ).encode(),
    "a sum beyond the longest": json.dumps(
        {**FOREIGN, "latency": {"sum": 98, "longest": 32, "buckets": {"32": 3}}}
    ).encode(),
    "a sum without the longest": json.dumps(
        {**FOREIGN, "latency": {"sum": 100, "longest": 35, "buckets": {"33": 2, "32": 1}}}
    ).encode(),
    "a longest that is not the longest": json.dumps(
        {**FOREIGN, "latency": {"sum": 9, "longest": 8, "buckets": {"9": 1}}}
    ).encode(),
    "an empty bucket": json.dumps(
        {**FOREIGN, "latency": {"sum": 9, "longest": 9, "buckets": {"9": 1, "3": 0}}}
    ).encode(),
    "a history that lacks a count": json.dumps({**FOREIGN, "history": "1,2,,,,5"}).encode(),
    "a history that is null": json.dumps({**FOREIGN, "history": None}).encode(),
    "a history that is none": json.dumps({**FOREIGN, "history": "1,2;3"}).encode(),
    "a history that is no text": json.dumps({**FOREIGN, "history": [1]}).encode(),
    "a long number": b'{"index": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_an_unusable_file_is_kept_aside_and_everything_starts_from_zero(path: Path, content: bytes) -> None:
    write(path, content)
    process = Process(path, wall=1505951090)
    process.recovery.load()
    assert process.stats.report()["msg_total"] == 0
    assert path.with_name("recovery.json.unusable").read_bytes() == content
    assert not path.exists()


def test_a_directory_in_its_place_is_refused_and_left_alone(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(OSError, match="not a regular file"):
        Process(path, wall=1e9).recovery.load()
    assert path.is_dir()


def test_a_strange_name_is_told_as_plain_text_and_cut_short(path: Path, log: list[str]) -> None:
    write(path, json.dumps({**FOREIGN, "counters": {"\x1b\ud800" + "x" * 100_000: None}}).encode())
    Process(path, wall=1505951090).recovery.load()
    (line,) = log
    assert line.isprintable() and len(line) < 1000


def busy() -> Process:
    """A process with statistics of every kind to save."""
    process = Process(Path("unused"), wall=1e9)
    stats = process.stats
    for reason in ("client_closed", "send_timeout"):
        session = SessionStats(stats)
        stats.history.record()
        session.client.feed(b"REQ 1\n" * 3 + b"nonsense\nACK 1\n", round(process.monotonic * 1e6))
        process.pass_seconds(1)
        session.upstream.feed(b"ACK 1\nNAK 2\nNAK 0 ERRDECODE\n" * 2, round(process.monotonic * 1e6))
        process.pass_seconds(1)
        stats.history.record()
        session.paused("client")
        session.ended(reason)
    SessionStats(stats).client.feed(b"REQ 1\n", round(process.monotonic * 1e6))
    stats.recovery_saves["failed"] += 1
    return process


OURS = ("counters", "saved_at", "latency", "servers", "history")
STATE = busy().recovery.state()


def seen(stats: Stats) -> dict[str, Any]:
    """Return everything visible that recovery may restore."""
    report = stats.report()
    # Sessions that were open when the state was saved ended with their process.
    ended = report["connections_closed"]
    ended["crashed"] += max(report["connections_total"] - sum(ended.values()), 0)
    # And so did the requests that were open.
    report["requests_unanswered"]["crashed"] += max(report["requests_in_flight"], 0)
    instants = ("uptime_seconds", "connections_active", "requests_in_flight", "latency_seconds_10s")
    return {
        # Rounded, because rates are differences of floats.
        "report": {
            name: round(value, 9) if isinstance(value, float) else value
            for name, value in report.items()
            if name not in instants
        },
        "seconds": stats.times.seconds(),
        "history": stats.history.state(),
        "latency": stats.latency_seconds.state(),
    }


def restored(content: object, wall: float = STATE["saved_at"]) -> Stats:
    """Return statistics after loading a file with `content` at the time `wall`, by default at once after the save."""
    stats = Stats(lambda: 5.0)
    Recovery(stats, Held(content), lambda: wall, 1e12).load()  # type: ignore[arg-type]
    return stats


class Held:
    """A saver without a file."""

    path = Path("held")

    def __init__(self, content: object) -> None:
        self.content = content

    def read(self) -> object:
        return self.content

    def put_aside(self, suffix: str) -> Path:
        return self.path.with_name(f"held.{suffix}")


NOTHING = seen(Stats(lambda: 5.0))


def test_what_comes_back_is_all_that_was_saved() -> None:
    assert seen(restored(json.loads(json.dumps(STATE)))) == seen(busy().stats) != NOTHING


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 200_000_000), st.integers(1, 100))))
def test_any_latencies_come_back(passed: list[tuple[bool, int, int]]) -> None:
    stats = Stats(lambda: 5.0)
    exchange = SessionStats(stats).exchange
    now = 0
    for is_request, microseconds, count in passed:
        now += microseconds
        (exchange.request if is_request else exchange.reply)(now, count)
    state = Recovery(stats, Held(None), lambda: 1e9, 10).state()  # type: ignore[arg-type]
    assert seen(restored(json.loads(json.dumps(state)), 1e9)) == seen(stats)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**30, 1 << 64, LARGEST + 1, LARGEST, 10**400])
    | st.floats()
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@st.composite
def mutations(draw: st.DrawFn) -> object:
    """Draw a state in which one to three values, at any depth, were replaced, removed, added to or cut short."""
    state: Any = json.loads(json.dumps(STATE))
    for _ in range(draw(st.integers(1, 3))):
        holder: Any = state
        key = draw(st.sampled_from(sorted(holder))) if holder else "index"
        while isinstance(holder.get(key) if isinstance(holder, dict) else holder[key], (dict, list)) and draw(
            st.booleans()
        ):
            inner = holder[key]
            keys = sorted(inner) if isinstance(inner, dict) else list(range(len(inner)))
            if not keys:
                break
            holder, key = inner, draw(st.sampled_from(keys))
        how = draw(st.sampled_from(["replace", "remove", "shift", "add", "cut"]))
        value = holder.get(key) if isinstance(holder, dict) else holder[key]
        if how == "remove":
            del holder[key]
        elif how == "shift" and isinstance(value, (int, float)):
            holder[key] = value + draw(st.integers(-5, 5))
        elif how == "cut" and isinstance(value, (str, list)):
            holder[key] = value[: draw(st.integers(0, len(value)))]
        elif how == "add" and isinstance(holder, dict):
            holder[draw(st.text(max_size=5))] = draw(JSON)
        else:
            holder[key] = draw(JSON)
        if not isinstance(state, dict) or not state:
            break
    return state


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from numbers(inner)
    elif isinstance(value, (int, float)):
        yield value


def is_whole_or_nothing(content: object, stats: Stats) -> None:
    """Check that `stats` contain everything from `content`, and are consistent, or nothing at all."""
    shown = stats.report()
    try:
        state = SavedState(content)
    except Unusable as error:
        assert str(error).encode()
        assert seen(stats) == NOTHING
        return
    counters = stats.counters()
    # Sessions that were open then count as crashed, so every session is accounted for.
    assert sum(shown["connections_closed"].values()) >= shown["connections_total"]
    open_ones = {"requests_in_flight", "requests_unanswered_crashed"}
    unanswered = sum(state.counters.get(name, 0) for name in open_ones)
    assert (counters["requests_in_flight"], counters["requests_unanswered_crashed"]) == (0, min(unanswered, LARGEST))
    known = state.counters.keys() & counters.keys() - {"closed_crashed"} - open_ones
    assert {name: counters[name] for name in known} == {name: state.counters[name] for name in known}
    assert stats.latency_seconds.state() == state.latencies.state()
    assert all(value >= 0 and math.isfinite(value) for value in numbers(shown))
    assert shown["msg_total"] == shown["msg_req"] + shown["msg_ack"] + shown["msg_nak"]
    latency = shown["latency_seconds"]
    quantiles = [latency[name] for name in ("p50", "p90", "p99", "p999", "max")]
    assert None in quantiles or quantiles == sorted(quantiles)
    assert not latency["count"] or latency["mean"] <= latency["max"]
    json.dumps(shown, allow_nan=False)
    # Counting goes on from whatever came back.
    session = SessionStats(stats)
    session.client.feed(b"REQ 1\n", 5_000_000)
    session.upstream.feed(b"ACK 1\n", 5_000_001)
    session.ended("client_closed")
    assert stats.msg_req == shown["msg_req"] + 1


@given(JSON | st.fixed_dictionaries(dict.fromkeys(FOREIGN, JSON), optional=dict.fromkeys(OURS, JSON)) | mutations())
def test_any_content_comes_back_as_a_whole_or_not_at_all(content: object) -> None:
    is_whole_or_nothing(content, restored(content))


TEXT = json.dumps(STATE).encode()
PIECES = st.sampled_from([b"", b"0", b"9" * 5000, b"-", b".5", b"1e400", b"NaN", b'"', b"{", b"[" * 2000, b",", b"\0"])


@given(st.lists(st.tuples(st.integers(0, len(TEXT)), st.integers(0, 20), PIECES | st.binary(max_size=3)), max_size=3))
def test_any_damage_to_a_file_is_found_or_does_no_harm(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, int, bytes]]
) -> None:
    text = TEXT
    for start, length, instead in damage:
        text = text[:start] + instead + text[start + length :]
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(text)
    saver = Saver(path)
    try:
        content = saver.read()
    except Unusable:
        content = None
    stats = Stats(lambda: 5.0)
    Recovery(stats, saver, lambda: STATE["saved_at"], 1e12).load()
    assert path.exists() != (seen(stats) == NOTHING)
    is_whole_or_nothing(content, stats)


def test_the_largest_state_there_can_be_is_read_again(path: Path) -> None:
    most = LARGEST
    process = Process(path, wall=1e9)
    # The largest values whose sums do not overflow.
    buckets = {int(name): most >> 36 for name in BUCKET_NAMES}
    total = sum((bounds(number)[1] - 1) * count for number, count in buckets.items())
    latencies = Histogram(buckets, total, LONGEST)
    process.stats.restore({**dict.fromkeys(process.stats.counters(), most), "closed_crashed": most >> 1}, latencies)
    process.stats.times.restore([most // 11] * 10, [most // 11] * 10, 0)
    process.stats.history.restore([Second(most, most, most, most, most, most)] * LENGTH, 0)
    process.save()
    assert path.stat().st_size < 200_000
    second = Process(path, wall=1e9)
    second.recovery.load()
    assert second.stats.history.state() == process.stats.history.state()
    assert second.stats.counters() == process.stats.counters()


def test_requests_that_were_open_at_a_crash_are_unanswered_once_over_any_number_of_restores(path: Path) -> None:
    first = Process(path, wall=1e9)
    session = SessionStats(first.stats)
    session.client.feed(b"REQ 1\n" * 5, 1)
    session.upstream.feed(b"ACK 1\n" * 2, 2)
    first.save()
    for _ in range(2):
        next_one = Process(path, wall=1e9)
        next_one.recovery.load()
        report = next_one.stats.report()
        assert {reason: count for reason, count in report["requests_unanswered"].items() if count} == {"crashed": 3}
        assert report["requests_in_flight"] == 0
        next_one.save()


def test_more_open_requests_than_there_can_be_are_no_reason_not_to_start(path: Path) -> None:
    process = Process(path, wall=1e9)
    counters = {"requests_in_flight": LARGEST, "requests_unanswered_crashed": LARGEST}
    process.stats.restore(counters, Histogram())
    assert process.stats.report()["requests_unanswered"]["crashed"] == LARGEST


def test_a_crash_is_counted_once_over_any_number_of_restores(path: Path) -> None:
    first = Process(path, wall=1e9)
    for _ in range(3):
        SessionStats(first.stats)
    SessionStats(first.stats).ended("client_closed")
    first.save()
    second = Process(path, wall=1e9)
    second.recovery.load()
    assert second.stats.report()["connections_closed"]["crashed"] == 3
    SessionStats(second.stats)
    second.save()
    third = Process(path, wall=1e9)
    third.recovery.load()
    report = third.stats.report()
    assert report["connections_closed"]["crashed"] == 4
    assert (report["connections_closed"]["client_closed"], report["connections_total"]) == (1, 5)
    third.save()
    fourth = Process(path, wall=1e9)
    fourth.recovery.load()
    assert fourth.stats.report()["connections_closed"]["crashed"] == 4


def several(path: Path, *names: str) -> Process:
    process = Process(path, 1e9)
    process.stats = Stats(lambda: process.monotonic, servers=names)
    process.recovery = Recovery(process.stats, process.saver, lambda: process.wall, 10)
    return process


def served(process: Process, number: int, replies: int) -> None:
    session = SessionStats(process.stats)
    session.served_by(SimpleNamespace(number=number))
    session.client.feed(b"REQ 1\n" * replies, 1_000_000)
    session.upstream.feed(b"ACK 1\n" * replies, 1_000_500)


def test_the_figures_of_each_server_come_back_under_its_name(path: Path) -> None:
    first = several(path, "a", "b")
    served(first, 0, 2)
    served(first, 1, 3)
    first.save()
    second = several(path, "b", "c")
    second.recovery.load()
    assert [server.requests for server in second.stats.servers] == [3, 0]
    assert (second.stats.msg_req, second.stats.latency_seconds.count) == (5, 5)


def test_the_state_of_as_many_servers_as_there_can_be_is_read_again(path: Path) -> None:
    count = (LARGEST >> 36) // MOST_SERVERS
    full = dict.fromkeys(map(int, BUCKET_NAMES), count)
    total = sum((bounds(number)[1] - 1) * count for number in full)
    replies = {"upstream_ack": count * len(full)}
    first = several(path, *(f"server-{number}.foo.example:8001" for number in range(MOST_SERVERS)))
    saved = dict.fromkeys(first.stats.saved_servers(), SavedServer(replies, Histogram(full, total, LONGEST)))
    everything = Histogram(dict.fromkeys(full, count * MOST_SERVERS), total * MOST_SERVERS, LONGEST)
    first.stats.restore({"upstream_ack": replies["upstream_ack"] * MOST_SERVERS}, everything, saved)
    first.save()
    assert path.stat().st_size < 200_000 + 8_000 * MOST_SERVERS
    second = several(path, *saved)
    second.recovery.load()
    assert second.stats.saved_servers() == first.stats.saved_servers()


LONG = bounds(bucket(500))[1] - 1
"""The longest latency that is in the same bucket as 500 microseconds."""

WRONG_SERVERS: dict[str, Any] = {
    "no object": [],
    "too many": {str(n): {"counters": {}, "latency": Histogram().state()} for n in range(10_001)},
    "a server that is no object": {"a": 7},
    "a server without latencies": {"a": {"counters": {}}},
    "more than the totals": {"a": {"counters": {"client_req": 4}, "latency": Histogram().state()}},
    "replies without latencies": {"a": {"counters": {"upstream_ack": 3}, "latency": Histogram().state()}},
    "other latencies than the totals": {
        "a": {"counters": {"upstream_ack": 1}, "latency": Histogram({bucket(150): 1}, 150, 150).state()}
    },
    "longer latencies than the totals": {
        "a": {"counters": {"upstream_ack": 3}, "latency": Histogram({bucket(500): 3}, 3 * LONG, LONG).state()}
    },
}


@pytest.mark.parametrize("servers", WRONG_SERVERS.values(), ids=WRONG_SERVERS)
def test_figures_of_servers_that_cannot_be_are_not_restored(path: Path, servers: Any) -> None:
    first = several(path, "a", "b")
    served(first, 0, 3)
    write(path, json.dumps({**first.recovery.state(), "servers": servers}).encode())
    second = several(path, "a", "b")
    second.recovery.load()
    assert second.stats.msg_req == 0
    assert list(path.parent.glob("*unusable*"))


def test_the_time_of_a_state_is_also_there_in_whole_seconds_that_have_passed(path: Path) -> None:
    state = Recovery(Stats(lambda: 0.0), Saver(path), lambda: 1e9 + 0.75, 10).state()
    assert (state["time_stamp"], state["saved_at"], state["index"]) == (10**9, 1e9 + 0.75, 9)


def test_the_windows_of_a_state_from_the_future_are_as_they_were(path: Path) -> None:
    first = Process(path, wall=1e9)
    session = SessionStats(first.stats)
    for _ in range(2):
        session.client.feed(b"REQ 1\n", 0)
        first.pass_seconds(1)
    first.save()
    second = Process(path, wall=first.wall - 3)
    second.recovery.load()
    assert second.stats.times.seconds()[0] == [0] * 8 + [1, 1]


def test_the_history_has_empty_seconds_for_the_time_since_the_save(path: Path) -> None:
    first = Process(path, wall=1e9)
    first.stats.history.restore([Second(7, 7, 0, 1, 1, 1)], 0)
    first.save()
    second = Process(path, wall=1e9 + 3)
    second.recovery.load()
    assert second.stats.history.report(0, 0.0)["requests"] == [7, 0, 0, 0]
