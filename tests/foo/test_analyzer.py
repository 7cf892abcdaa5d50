"""The analyzer counts what the grammar says, however the bytes are cut."""

from __future__ import annotations

import itertools
import re
from collections import deque

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fooproxy.foo.analyzer import Analyzer, Counts
from fooproxy.foo.grammar import canonical
from fooproxy.foo.latency import Histogram, Latency
from tests.helpers.twins import counting, each_twin

# A second implementation of the grammar: one regex per line, without any state between lines.
REFERENCE = re.compile(rb"(REQ|ACK|NAK)[ \t]+[-+]?\d+(?:[ \t]+[^\n]*)?", re.DOTALL)


def reference(stream: bytes) -> dict[str, int]:
    counts = {"bytes": len(stream), "req": 0, "ack": 0, "nak": 0, "invalid": 0}
    for line in stream.split(b"\n")[:-1]:
        match = REFERENCE.fullmatch(line) or REFERENCE.fullmatch(line.removesuffix(b"\r"))
        counts[match[1].decode().lower() if match else "invalid"] += 1
    return counts


def as_dict(counts: Counts | Analyzer) -> dict[str, int]:
    return {name: getattr(counts, name) for name in Counts.names}


def fed(chunks: list[bytes], requests: bool = True) -> Analyzer:
    analyzer = counting().Analyzer(counting().Analysis(Latency(), requests), counting().Exchange(Latency()))
    for chunk in chunks:
        analyzer.feed(chunk, 0)
    return analyzer


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    """Cut `stream` at `places` (taken modulo its length); repeated places give empty chunks."""
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


WELL_FORMED = st.builds(
    lambda type_, gap, seq, data, end: type_ + gap + seq + data + end,
    st.sampled_from([b"REQ", b"ACK", b"NAK"]),
    st.sampled_from([b" ", b"\t", b"  ", b" \t "]),
    st.sampled_from([b"1", b"+7", b"-3", b"0", b"00012", b"9" * 40]),
    st.sampled_from([b"", b" ", b" x", b"\tdata with spaces ", b" REQ 5", b" \r", b" \xff\x00"]),
    st.sampled_from([b"\n", b"\r\n"]),
)
# Fragments close to the grammar's edges: noise made of them is almost valid.
NEARLY = st.sampled_from(
    b"REQ|ACK|NAK|R|RE|Q|A|N| |\t|+|-|1|23|\r|\n|x|\xe9|\x00|\x0b|\x0c|\x85|req 1\n|REQ 1x\n| REQ 1\n|\n\n".split(b"|")
)
# Lines so long that only their heads are examined, and heads too long for that.
LONG = st.builds(
    lambda head, data: head + b"x" * data + b"\n",
    st.sampled_from(
        [b"", b"no ", b"NAK 1", b"REQ 1 ", b"REQ 5\r", b"ACK 12345678901234567890 ", b"NAK 123456789012345678901 "]
    )
    | st.builds(
        lambda type_, digits: type_ + digits,
        st.sampled_from([b"REQ ", b"ACK      "]),
        st.sampled_from([b"7" * 19, b"7" * 20, b"7" * 21, b"7" * 27, b"7" * 300, b" " * 300 + b"1 "]),
    ),
    st.integers(0, 3).map([0, 20, 300, 3000].__getitem__),
)
STREAMS = st.lists(WELL_FORMED | NEARLY | LONG | st.binary(max_size=8), max_size=30).map(b"".join)


# Streams of only requests or only replies, with at most one exception.
USUAL = st.builds(
    lambda words, seq, odd, data: b"".join(b"%s %d%s\n" % (word, seq, data) for word in words) + odd,
    st.lists(st.just(b"REQ"), max_size=9) | st.lists(st.sampled_from([b"ACK", b"NAK"]), max_size=9),
    st.integers(0, 10**21),
    st.sampled_from([b"", b"REQ 1\n", b"ACK 1\n", b"NAK 0 ERRDECODE\n", b"REQ\n", b"ACK \n", b"NAK", b"\n"]),
    st.sampled_from([b"", b" ", b" x", b" " + b"y" * 300]),
)


@given(STREAMS | USUAL, st.lists(st.integers(0, 2**16), max_size=12), st.booleans())
@example(b"REQ 1\r\r\n", [7], True)
@example(b"REQ 1\nREQ\n", [], True)
@example(b"REQ 1 " + b"x" * 300 + b"\n" * 5000, [], True)
@example(b"REQ 1 " + b"x" * 300 + b"\nREQ 2\n" * 100, [], True)
def test_any_bytes_cut_anywhere_count_as_the_reference_counts_them(
    stream: bytes, places: list[int], requests: bool
) -> None:
    for _ in each_twin():
        assert as_dict(fed(cut(stream, places), requests).counts) == reference(stream)


@given(STREAMS, st.booleans())
def test_byte_by_byte_counts_the_same_as_in_one_piece(stream: bytes, requests: bool) -> None:
    for _ in each_twin():
        bytewise, whole = fed([bytes([byte]) for byte in stream], requests), fed([stream], requests)
        assert as_dict(bytewise.counts) == reference(stream) == as_dict(whole.counts)


@given(st.lists(NEARLY, max_size=12).map(b"".join), st.lists(NEARLY, max_size=6).map(b"".join))
def test_a_canonical_head_stands_for_every_head_it_replaces(head: bytes, rest: bytes) -> None:
    head = head.replace(b"\n", b"")
    whole, short = reference(head + rest + b"\n"), reference(canonical(head) + rest + b"\n")
    assert {**whole, "bytes": 0} == {**short, "bytes": 0}
    assert len(canonical(head)) <= 7


@pytest.mark.usefixtures("twin")
@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"REQ 1\n", "req"),
        (b"ACK 1\n", "ack"),
        (b"NAK 0 ERRDECODE\n", "nak"),
        (b"REQ\t \t1\t\n", "req"),
        (b"REQ -1 x\n", "req"),
        (b"REQ +1 x\r\n", "req"),
        (b"REQ 1\r\n", "req"),
        (b"REQ 1 data with spaces \xff\n", "req"),
        (b"\n", "invalid"),
        (b"\r\n", "invalid"),
        (b"REQ\n", "invalid"),
        (b"REQ \n", "invalid"),
        (b"REQ 1\r\r\n", "invalid"),
        (b"REQ 1x\n", "invalid"),
        (b"REQ +-1\n", "invalid"),
        (b"REQ \xd9\xa1\n", "invalid"),
        (b"REQ1 x\n", "invalid"),
        (b"req 1\n", "invalid"),
        (b" REQ 1\n", "invalid"),
        (b"SYN 1\n", "invalid"),
    ],
)
def test_one_line_counts_as_the_grammar_says(line: bytes, kind: str) -> None:
    assert as_dict(fed([line]).counts) == {
        **dict.fromkeys(("req", "ack", "nak", "invalid"), 0),
        "bytes": len(line),
        kind: 1,
    }


@pytest.mark.usefixtures("twin")
def test_a_line_counts_only_when_its_newline_has_been_seen() -> None:
    analyzer = fed([b"REQ 1 some da"])
    assert analyzer.counts.lines == 0
    assert analyzer.mid_line
    analyzer.feed(b"ta\n", 0)
    assert analyzer.counts.req == 1
    assert not analyzer.mid_line


@given(
    st.lists(st.tuples(st.integers(0, 3), STREAMS | USUAL, st.lists(st.integers(0, 2**16), max_size=4)), max_size=20),
    st.booleans(),
)
def test_sessions_that_are_counted_together_count_as_each_alone_and_add_up(
    pieces: list[tuple[int, bytes, list[int]]], requests: bool
) -> None:
    for _ in each_twin():
        analysis = counting().Analysis(Latency(), requests)
        analyzers = [counting().Analyzer(analysis, counting().Exchange(Latency())) for _ in range(4)]
        streams = [b""] * 4
        for number, stream, places in pieces:
            streams[number] += stream
            for chunk in cut(stream, places):
                analyzers[number].feed(chunk, 0)
        analysis.catch_up()
        due = [reference(stream) for stream in streams]
        assert [as_dict(analyzer) for analyzer in analyzers] == due
        assert as_dict(analysis.total) == {name: sum(counts[name] for counts in due) for name in due[0]}


@pytest.mark.usefixtures("twin")
@pytest.mark.parametrize("byte", [b"x", b" ", b"0", b"\r", b"R"])
@pytest.mark.parametrize("start", [b"", b"REQ", b"REQ ", b"REQ 1", b"REQ 1 ", b"nonsense"])
def test_an_endless_line_is_held_in_seven_bytes(start: bytes, byte: bytes) -> None:
    analyzer = fed([start, *[byte * 65536] * 20])
    analyzer.analysis.catch_up()
    assert len(analyzer.head) <= 7


class Model:
    """A model of one session, request by request: arrival times of the open ones, latencies of the answered ones."""

    def __init__(self) -> None:
        self.open: deque[int] = deque()
        self.latencies: list[int] = []
        self.unmatched = 0

    def reply(self, time: int) -> None:
        if self.open and self.open[0] < time:
            self.latencies.append(time - self.open.popleft())
        else:
            self.unmatched += 1


# The session, the type, the number of lines, the cuts, and the time since the previous event.
PASSING = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from([b"REQ", b"REQ", b"ACK", b"NAK"]),
        st.integers(1, 3) | st.just(1),
        st.lists(st.integers(0, 99), max_size=1),
        st.sampled_from([0, 0, 1, 500, 10**6, 10**9]),
    ),
    max_size=60,
)


@given(PASSING)
@example([(0, b"REQ", 1, [], 1), (0, b"NAK", 1, [], 10**9)])
@example([(0, b"REQ", 1, [], 1), (1, b"REQ", 1, [], 0), (0, b"ACK", 1, [], 1), (1, b"ACK", 1, [], 0)])
def test_requests_and_replies_are_matched_as_one_by_one(passing: list[tuple[int, bytes, int, list[int], int]]) -> None:
    for _ in each_twin():
        latency = Latency()
        clients = counting().Analysis(latency, requests=True)
        upstreams = counting().Analysis(latency, requests=False, before=clients)
        exchanges = [counting().Exchange(latency) for _ in range(3)]
        legs = [
            (counting().Analyzer(clients, exchange), counting().Analyzer(upstreams, exchange)) for exchange in exchanges
        ]
        models = [Model() for _ in range(3)]
        now = 0
        for who, word, lines, places, later in passing:
            now += later
            asks = word == b"REQ"
            for chunk in cut((word + b" 1 a\n") * lines, places):
                legs[who][not asks].feed(chunk, now)
                for _ in range(chunk.count(b"\n")):
                    if asks:
                        models[who].open.append(now)
                    else:
                        models[who].reply(now)
        upstreams.catch_up()
        assert [exchange.in_flight for exchange in exchanges] == [len(model.open) for model in models]
        assert latency.unmatched == sum(model.unmatched for model in models)
        assert latency.asked == sum(len(model.open) + len(model.latencies) for model in models)
        due = [histogram_of(model.latencies) for model in models]
        assert [exchange.buckets or {} for exchange in exchanges] == [histogram.buckets for histogram in due]
        together = histogram_of([span for model in models for span in model.latencies])
        assert latency.answered.state() == together.state()


def histogram_of(latencies: list[int]) -> Histogram:
    total = Latency()
    for span in latencies:
        total.add(span, 1)
    return total.answered


@pytest.mark.usefixtures("twin")
def test_what_is_taken_back_was_never_there() -> None:
    latency = Latency()
    analysis = counting().Analysis(latency, requests=True)
    analyzer = counting().Analyzer(analysis, counting().Exchange(latency))
    analyzer.feed(b"REQ 1\nREQ 2 not any mo", 1)
    assert analyzer.mid_line
    analyzer.take_back(len(b"REQ 2 not any mo"))
    assert not analyzer.mid_line
    assert (analyzer.bytes, analyzer.req, analysis.total.bytes) == (6, 1, 6)


@pytest.mark.usefixtures("twin")
@pytest.mark.parametrize(("rest", "req", "invalid"), [(b"5\n", 0, 1), (b"\n", 1, 0)], ids=["in a number", "at the end"])
def test_a_cr_is_tolerated_only_right_before_the_newline_wherever_the_line_is_cut(
    rest: bytes, req: int, invalid: int
) -> None:
    latency = Latency()
    analyzer = counting().Analyzer(counting().Analysis(latency, requests=True), counting().Exchange(latency))
    analyzer.feed(b"REQ 1\r", 1)
    assert analyzer.mid_line
    analyzer.feed(rest, 2)
    assert (analyzer.counts.req, analyzer.counts.invalid) == (req, invalid)


@pytest.mark.usefixtures("twin")
@pytest.mark.parametrize(("stream", "requests"), [(b"REQ 1\n", 1), (b"REQ 1\nREQ 2", 2)], ids=["whole", "unfinished"])
def test_only_an_unfinished_last_line_is_one_more_request_when_nothing_follows(stream: bytes, requests: int) -> None:
    latency = Latency()
    analysis = counting().Analysis(latency, requests=True)
    exchange = counting().Exchange(latency)
    analyzer = counting().Analyzer(analysis, exchange)
    analyzer.feed(stream, 1)
    analyzer.finish(2)
    assert (exchange.in_flight, latency.asked, analyzer.mid_line) == (requests, requests, False)
