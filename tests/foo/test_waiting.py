"""The pure analyzer counts in batches: what waits, and how much of it."""

from __future__ import annotations

from fooproxy.foo.analyzer import Analysis, Analyzer
from fooproxy.foo.latency import Exchange, Latency


def test_chunks_wait_until_there_are_enough_of_them_or_somebody_asks() -> None:
    analysis = Analysis(Latency(), requests=True)
    analyzer = Analyzer(analysis, Exchange(Latency()))
    analyzer.feed(b"REQ 1\n", 0)
    analyzer.feed(b"", 0)
    analysis.digest()
    assert analysis.total.req == 0
    assert analyzer.counts.req == analysis.total.req == 1
    for _ in range(32):
        analyzer.feed(b"REQ 2\n", 0)
    analysis.digest()
    assert analysis.total.req == 33
    for _ in range(10_000):
        analyzer.feed(b"REQ 3\n", 0)
        assert len(analysis.waiting) <= Analyzer.many
    assert analysis.total.req > 9900
    assert analyzer.counts.req == 10_033


def test_a_large_chunk_is_counted_at_once() -> None:
    analysis = Analysis(Latency(), requests=True)
    analyzer = Analyzer(analysis, Exchange(Latency()))
    for chunk in (b"REQ 1\n", b"REQ 2\n", b"REQ 3 " + b"x" * 100_000 + b"\n"):
        analyzer.feed(chunk, 0)
    assert analysis.total.req == 3
    assert not analysis.waiting
