"""The compiled and the pure twin count the same, down to each bucket, whatever happens in whatever order."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fooproxy.core import IMPLEMENTATION, core
from fooproxy.foo.analyzer import Counts
from fooproxy.foo.counting import COMPILED
from fooproxy.foo.grammar import TYPES, automaton, canonical
from fooproxy.foo.latency import Latency
from fooproxy.foo.numbers import zeros
from tests.foo.test_analyzer import NEARLY, WELL_FORMED
from tests.fuzz.targets import twins
from tests.helpers.twins import MUST_BE_BUILT

needs_core = pytest.mark.skipif(core is None and not MUST_BE_BUILT, reason="fooproxy._core was not built")

HAPPENS = st.builds(
    lambda first, rest: bytes((first,)) + rest.replace(b"\xff", b""),
    st.integers(0, 254),
    st.lists(WELL_FORMED | NEARLY, max_size=4).map(b"".join) | st.sampled_from([b"p", b"r", b"i", b"f", b"s", b"e"]),
)


@needs_core
@given(st.lists(HAPPENS, max_size=40).map(b"\xff".join) | st.binary(max_size=300))
def test_whatever_happens_both_twins_have_the_same_figures(data: bytes) -> None:
    assert COMPILED is not None
    twins(data)


@needs_core
def test_the_compiled_twin_is_used_unless_the_environment_says_otherwise() -> None:
    assert ("pure" if os.environ.get("FOOPROXY_PURE") else "compiled") == IMPLEMENTATION


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
def test_the_array_is_not_resized_while_the_compiled_twin_counts_in_it() -> None:
    numbers = zeros(len(Latency.names))
    latency = Latency(numbers)
    assert latency.row is latency.row
    with pytest.raises(BufferError):
        numbers.append(0)
