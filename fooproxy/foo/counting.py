"""The twins that count: the pure one of `analyzer` and `latency`, and the compiled one, of counting.c.

Both have the same classes with the same interface, and count the same.  The compiled one counts each chunk at once, so
it never has anything to catch up with.  `fooproxy.stats` uses `CHOSEN`; the tests use both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

from fooproxy.core import IS_USED, core
from fooproxy.foo import analyzer, latency
from fooproxy.foo.grammar import automaton

if TYPE_CHECKING:
    from fooproxy.foo.analyzer import Analysis, Analyzer, Counts
    from fooproxy.foo.latency import Exchange, Latency


class Twin(NamedTuple):
    """One implementation of the classes that count."""

    Analysis: type[Analysis]
    Analyzer: type[Analyzer]
    Exchange: type[Exchange]


PURE = Twin(analyzer.Analysis, analyzer.Analyzer, latency.Exchange)
COMPILED: Twin | None = None

_WATCHED, _PAIRED = 1, 2
"""The bits for work to do for an exchange after each chunk, as in counting.h."""

if core is not None:  # pragma: no branch (without it the compiled twin is not tested either)

    class _Analysis(core.Analysis):
        __slots__ = ()

        defers = False

        def __new__(
            cls, latency: Latency, requests: bool, before: Analysis | None = None, total: Counts | None = None
        ) -> Any:
            settled: list[Any] = [] if before is None else before.settled
            return super().__new__(cls, latency, requests, total or analyzer.Counts(), settled, automaton())

        def watch(self, exchange: _Exchange, is_watched: bool = True) -> None:
            """Add `exchange` to `settled` whenever it has become settled, until a call with `is_watched` false."""
            exchange.special = exchange.special & ~_WATCHED | (_WATCHED if is_watched else 0)

        def pair(self, exchange: _Exchange) -> None:
            """Compare the seqs of the replies of `exchange` with those of its requests from now on."""
            exchange.special |= _PAIRED

        def digest(self) -> None:
            """Do nothing: everything is counted already."""

        catch_up = digest

    class _Analyzer(core.Analyzer, analyzer.Derived):
        __slots__ = ()

    class _Exchange(core.Exchange, latency.Waiting):
        __slots__ = ()

    COMPILED = Twin(*cast("tuple[Any, Any, Any]", (_Analysis, _Analyzer, _Exchange)))

CHOSEN = COMPILED if IS_USED and COMPILED is not None else PURE
