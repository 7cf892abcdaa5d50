"""The compiled and the pure twin count the same, down to each bucket, whatever happens in whatever order."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fooproxy.core
from fooproxy.core import IMPLEMENTATION, core
from fooproxy.foo.analyzer import Counts
from fooproxy.foo.counting import COMPILED
from fooproxy.foo.grammar import TYPES, automaton, canonical
from fooproxy.foo.latency import BUCKETS, FIRST, LONGEST, Latency
from fooproxy.foo.numbers import zeros
from tests.foo.test_analyzer import NEARLY, WELL_FORMED
from tests.fuzz.targets import twins
from tests.helpers.processes import completed, environment
from tests.helpers.twins import MUST_BE_BUILT, One

needs_core = pytest.mark.skipif(core is None and not MUST_BE_BUILT, reason="fooproxy._core was not built")

HAPPENS = st.builds(
    lambda first, rest: bytes((first,)) + rest.replace(b"\xff", b""),
    st.integers(0, 254),
    st.lists(WELL_FORMED | NEARLY, max_size=4).map(b"".join)
    | st.sampled_from([b"p", b"r", b"i", b"f", b"s", b"e", b"w", b"u", b"m", b"q", b"v"]),
)


@needs_core
@given(st.lists(HAPPENS, max_size=40).map(b"\xff".join) | st.binary(max_size=300))
def test_whatever_happens_both_twins_have_the_same_figures(data: bytes) -> None:
    assert COMPILED is not None
    twins(data)


@needs_core
def test_both_twins_count_at_the_same_places() -> None:
    why = "count it in fooproxy/foo/counting.c too, let INTERFACE grow in core.py and _core.c, and install it again"
    assert Counts.names == core.COUNTS, why
    assert (*Latency.names[:FIRST], BUCKETS) == core.LATENCY, why


@needs_core
def test_the_compiled_twin_is_used_unless_the_environment_says_otherwise() -> None:
    assert ("pure" if os.environ.get("FOOPROXY_PURE") else "compiled") == IMPLEMENTATION


@pytest.mark.parametrize(
    ("file", "reason"),
    [(b"", "cannot be loaded: .*file too short"), (None, "was not built$")],
    ids=["broken", "missing"],
)
def test_without_the_compiled_twin_the_reason_says_why(file: bytes | None, reason: str, tmp_path: Path) -> None:
    if file is not None:
        tmp_path.joinpath(f"_core{EXTENSION_SUFFIXES[0]}").write_bytes(file)
    # In its own folder, next to nothing.
    shutil.copy(fooproxy.core.__file__, tmp_path / "core.py")
    program = (
        f"import fooproxy; fooproxy.__path__[:] = [{str(tmp_path)!r}]; from fooproxy.core import REASON; print(REASON)"
    )
    end = completed([sys.executable, "-c", program], env=environment())
    assert re.search(reason, end.stdout.strip()), end


@given(st.lists(WELL_FORMED | NEARLY | st.binary(max_size=3), max_size=12).map(b"".join))
def test_the_automaton_is_the_grammar(text: bytes) -> None:
    table, state, line = automaton(), 0, b""
    for byte in text + b"\n":
        if byte == ord("\n"):
            types = TYPES.findall(line) if b"\n" not in line else []
            assert Counts.names[table.kinds[state]] == (types[0].decode().lower() if types else "invalid")
            line = b""
        else:
            line += bytes((byte,))
        state = table.transitions[state << 8 | byte]
        assert table.heads[state] == canonical(line)
        assert (state == 0) == (byte == ord("\n"))


@needs_core
@pytest.mark.parametrize(
    ("numbers", "start", "error"),
    [
        (zeros(10), 8, ValueError),
        (zeros(10), -1, ValueError),
        (bytes(80), 0, BufferError),
        (bytearray(80), 0, TypeError),
        ([0] * 10, 0, TypeError),
    ],
    ids=["past the end", "before the start", "read only", "bytes", "no buffer"],
)
def test_what_is_no_block_of_numbers_is_refused(numbers: object, start: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        core.Row(numbers, start, 3)


@needs_core
def test_a_block_that_is_too_short_is_refused() -> None:
    assert COMPILED is not None
    short: Any = Counts()
    few: Any = SimpleNamespace(row=core.Row(zeros(9), 0, 4))
    for wrong in (
        lambda: COMPILED.Exchange(short),
        lambda: COMPILED.Analysis(short, True),
        lambda: COMPILED.Analysis(Latency(), True, None, few),
    ):
        with pytest.raises(TypeError, match="numbers or more"):
            wrong()


@pytest.mark.parametrize(
    ("asked", "replied", "longest"),
    [(1, 1 << 62, 0), (-(1 << 63), (1 << 63) - 1, 0), (1, 1 << 50, 1 << 60)],
    ids=["far apart", "as far apart as can be", "beside a longest one from elsewhere"],
)
@needs_core
def test_whatever_the_times_are_there_is_a_bucket_for_the_latency(asked: int, replied: int, longest: int) -> None:
    assert COMPILED is not None
    latency = Latency()
    latency.longest = longest
    exchange = COMPILED.Exchange(latency)
    exchange.request(asked, 1)
    exchange.reply(replied, 1)
    assert (exchange.buckets, latency.answered.buckets) == ({BUCKETS - 1: 1}, {BUCKETS - 1: 1})
    assert (latency.sum, latency.longest) == (LONGEST, max(longest, LONGEST))


@needs_core
def test_no_other_library_of_the_process_can_take_the_place_of_what_the_core_calls() -> None:
    library = ctypes.CDLL(core.__file__)
    assert hasattr(library, "PyInit__core")
    for name in ("count", "add_counting", "Pump_Type", "Analyzer_Type"):
        assert not hasattr(library, name)


@needs_core
def test_the_array_is_not_resized_while_the_compiled_twin_counts_in_it() -> None:
    numbers = zeros(len(Latency.names))
    latency = Latency(numbers)
    assert latency.row is latency.row
    with pytest.raises(BufferError):
        numbers.append(0)


@needs_core
def test_buckets_whose_numbers_could_change_them_meanwhile_are_refused() -> None:
    assert COMPILED is not None
    buckets: dict[Any, Any] = {}
    for number, count in ((One(buckets.clear), 2), (1, One(buckets.clear))):
        buckets.clear()
        buckets[number] = count
        with pytest.raises(TypeError, match="integers"):
            COMPILED.Exchange(Latency()).restore([], 0, 0, 0, 0, buckets)
        assert buckets


@needs_core
def test_open_requests_that_could_change_the_others_meanwhile_are_refused() -> None:
    assert COMPILED is not None
    opened: list[Any] = []

    def entry() -> Iterator[int]:
        opened.clear()
        yield from (5, 2)

    opened += [entry(), [6, 1]]
    with pytest.raises(TypeError, match="list of a time and a count"):
        COMPILED.Exchange(Latency()).restore(opened, 0, 0, 0, 0, {})


@needs_core
def test_an_automaton_that_could_change_meanwhile_is_refused() -> None:
    changing: Any = list(automaton())
    with pytest.raises(TypeError, match="tuple"):
        core.Analysis(Latency(), True, Counts(), [], changing)


@needs_core
def test_an_analyzer_does_not_move_to_an_analysis_in_whose_automaton_its_place_means_something_else() -> None:
    assert COMPILED is not None
    analyzer: Any = COMPILED.Analyzer(COMPILED.Analysis(Latency(), True), COMPILED.Exchange(Latency()))
    analyzer.feed(b"REQ 1", 1)
    lines = bytes(byte != ord("\n") for byte in range(256)) * 2
    other: Any = (lines, b"\4\4", (b"", b"!"), 1)
    with pytest.raises(TypeError, match="same automaton"):
        analyzer.move(core.Analysis(Latency(), True, Counts(), [], other))
    assert analyzer.head == b"REQ 0"


@needs_core
def test_nothing_of_a_compiled_object_can_be_deleted() -> None:
    assert COMPILED is not None
    latency = Latency()
    analysis = COMPILED.Analysis(latency, True)
    exchange = COMPILED.Exchange(latency)
    for each in (analysis, exchange, COMPILED.Analyzer(analysis, exchange)):
        kind: Any = type(each).__mro__[1]
        for name in vars(kind).keys() - {"__doc__", "__new__"}:
            with pytest.raises((AttributeError, TypeError, ValueError)):
                delattr(each, name)


NOBODYS = 1 << 11
"""A file descriptor that nothing here has open."""


@needs_core
def test_what_moves_to_other_counts_keeps_nothing_of_those_it_has_left() -> None:
    assert COMPILED is not None
    here, there = Latency(), Latency()
    analyses = [COMPILED.Analysis(latency, True) for latency in (here, there)]
    exchange = COMPILED.Exchange(here)
    analyzer = COMPILED.Analyzer(analyses[0], exchange)
    left: list[Any] = [here.row, there.row, *analyses]
    before = [sys.getrefcount(each) for each in left]
    for _ in range(10):
        exchange.move(there)
        analyzer.move(analyses[1])
        exchange.move(here)
        analyzer.move(analyses[0])
    assert [sys.getrefcount(each) for each in left] == before


@needs_core
def test_the_compiled_twin_keeps_nothing_alive_that_nobody_uses() -> None:
    assert COMPILED is not None
    latency = Latency()
    clients = COMPILED.Analysis(latency, True)
    upstreams = COMPILED.Analysis(latency, False, clients)
    loss = RuntimeError("a loss")

    def session() -> None:
        """Go through all that happens to a session, the odd and the wrong included."""
        exchange = COMPILED.Exchange(latency)
        client: Any = COMPILED.Analyzer(clients, exchange)
        upstream = COMPILED.Analyzer(upstreams, exchange)
        upstreams.watch(exchange)
        for time in range(20):
            client.feed(b"REQ 1\nREQ 2 x", time)
            upstream.feed(b"ACK 1\n", time + 1)
        # Numbers that are not among the small ones, which are never freed.
        client.feed(b"\n" + b"REQ 1\n" * 2000 + b"REQ 2 x", 20)
        upstream.feed(b"ACK 1\n" * 1000, 1 << 22)
        exchange.restore(*exchange.state())
        client.restore(*client.state())
        client.finish(30)
        for wrong in (lambda: client.feed("text", 1), lambda: client.feed(b"", None), lambda: core.Exchange(None)):
            with pytest.raises((TypeError, AttributeError)):
                wrong()
        with pytest.raises(ValueError, match="bucket"):
            exchange.restore([], 0, 0, 0, 0, {400: 1})
        upstreams.settled.clear()
        pump: Any = core.Pump(lambda: 40, lambda problem, fd: loss, loss)
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            # As a transport knows its pump: together they are a cycle.
            sink = SimpleNamespace(pump=pump)
            pump.start(near.fileno(), sink, client)
            pump.start(near.fileno(), sink, upstream)
            far.send(b"ACK 1\n")
            others, stuck = pump.relay([(near.fileno(), 1), (NOBODYS, 1)], 50)
            assert (others, stuck) == ([(NOBODYS, 1, None)], [(sink, b"ACK 1\n", None)])
            with pytest.raises(TypeError):
                pump.relay([None], 60)
        pump.start(NOBODYS, sink, upstream)
        assert pump.relay([(NOBODYS, 1)], 70) == ([(NOBODYS, 1, loss)], [])

    watched = (latency, latency.row, clients, upstreams, loss, upstreams.settled)
    session()
    gc.collect()
    before = [sys.getrefcount(thing) for thing in watched]
    blocks = sys.getallocatedblocks()
    for _ in range(1000):
        session()
    gc.collect()
    assert [sys.getrefcount(thing) for thing in watched] == before
    # Less than one for each session; the interpreter keeps a few for later use.
    assert sys.getallocatedblocks() - blocks < 900
