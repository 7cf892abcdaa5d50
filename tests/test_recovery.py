"""The state survives, or is kept aside with a reason; never a crash."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fooproxy.recovery import Recovery, SavedState
from fooproxy.saver import Saver, Unusable
from fooproxy.stats import SessionStats, Stats

FOREIGN: dict[str, Any] = {
    "index": 7,
    "time_stamp": 1505951090,
    "requests_10s": [10, 20, 30, 40, 50, 60, 70, 80, 0, 5],
    "responses_10s": [1, 2, 3, 4, 5, 6, 7, 8, 0, 9],
}


class Process:
    """One life of the proxy, as far as recovery is concerned."""

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
    # 80 is the newest second, then 70 and so on backwards; 5 wraps round, and the two oldest (0 and 5) fell out.
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


@pytest.mark.parametrize(("age", "restored"), [(10.0, 1), (-3.0, 1), (-3600.0, 0)])
def test_the_age_that_counts_is_the_distance_of_the_clocks(path: Path, age: float, restored: int) -> None:
    first = Process(path, wall=1e9)
    SessionStats(first.stats).client.feed(b"REQ 1\n", 0)
    first.save()
    second = Process(path, wall=1e9 + age)
    second.recovery.load()
    assert second.stats.report()["msg_req"] == restored


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
    "too large": b" " * (1 << 20) + b"{}",
    "index beyond": json.dumps({**FOREIGN, "index": 10}).encode(),
    "index true": json.dumps({**FOREIGN, "index": True}).encode(),
    "nine seconds": json.dumps({**FOREIGN, "requests_10s": [0] * 9}).encode(),
    "negative": json.dumps({**FOREIGN, "responses_10s": [0] * 9 + [-1]}).encode(),
    "a text for a time": json.dumps({**FOREIGN, "time_stamp": "now"}).encode(),
    "no number": json.dumps({**FOREIGN, "time_stamp": float("nan")}).encode(),
    "counters a list": json.dumps({**FOREIGN, "counters": []}).encode(),
    "a huge counter": json.dumps({**FOREIGN, "counters": {"client_req": 10**30}}).encode(),
    "a latency that is none": json.dumps({**FOREIGN, "latency": 3}).encode(),
    "a bucket that there is not": json.dumps(
        {**FOREIGN, "latency": {"sum": 0, "longest": 0, "buckets": {"9999": 1}}}
    ).encode(),
    "a bucket below zero": json.dumps({**FOREIGN, "latency": {"sum": 0, "longest": 0, "buckets": {"9": -1}}}).encode(),
    "a latency without a sum": json.dumps({**FOREIGN, "latency": {"buckets": {}}}).encode(),
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
    with pytest.raises(OSError, match="not a file"):
        Process(path, wall=1e9).recovery.load()
    assert path.is_dir()


def test_a_file_that_cannot_be_read_is_unusable() -> None:
    # A regular file that even root cannot read from its beginning.
    with pytest.raises(Unusable, match="cannot be read"):
        Saver(Path("/proc/self/mem")).read()


@pytest.mark.parametrize("trap", ["a link", "a pipe"])
def test_what_stands_where_the_new_state_is_written_is_not_followed(path: Path, trap: str) -> None:
    path.parent.mkdir()
    victim, new = path.with_name("victim"), path.with_name("recovery.json.new")
    victim.write_text("precious")
    if trap == "a link":
        new.symlink_to(victim)
    else:
        os.mkfifo(new)
    Saver(path).write({"state": 1})
    assert victim.read_text() == "precious"
    assert Saver(path).read() == {"state": 1}


def test_a_failed_write_leaves_the_old_state_whole(path: Path) -> None:
    saver = Saver(path)
    saver.write({"state": 1})
    path.with_name("recovery.json.new").mkdir()
    with pytest.raises(IsADirectoryError):
        saver.write({"state": 2})
    assert saver.read() == {"state": 1}


OURS = ("counters", "saved_at", "latency", "history")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@given(JSON | st.fixed_dictionaries(dict.fromkeys(FOREIGN, JSON), optional=dict.fromkeys(OURS, JSON)))
def test_any_content_is_a_state_or_is_refused(content: object) -> None:
    try:
        state = SavedState(content)
    except Unusable:
        return
    stats = Stats(lambda: 0.0)
    stats.restore(state.counters)
    stats.times.restore(state.requests, state.responses, 0)
