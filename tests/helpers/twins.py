"""The twins under test: the compiled and the pure implementation of relaying and counting.

A fixture that uses `twin` runs its tests with both; objects built with `counting` and `pump` then use that twin.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from fooproxy.foo import counting as of_counting
from fooproxy.net import pump as of_pump

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fooproxy.foo.counting import Twin

MUST_BE_BUILT = os.environ.get("FOOPROXY_EXTENSION") == "require"

_chosen = "compiled"


@pytest.fixture(scope="module", params=["compiled", "pure"])
def twin(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run with either twin."""
    global _chosen
    if request.param == "compiled" and of_counting.COMPILED is None:
        (pytest.fail if MUST_BE_BUILT else pytest.skip)("fooproxy._core was not built: is there a C compiler?")
    _chosen = request.param
    yield request.param
    _chosen = "compiled"


class One:
    """The number 1, which calls `do` whenever it is converted."""

    def __init__(self, do: Callable[[], object]) -> None:
        self.do = do

    def __index__(self) -> int:
        self.do()
        return 1


def each_twin() -> Iterator[None]:
    """Choose each twin that there is in turn: for tests with `given`, which cannot be parametrized too."""
    global _chosen
    for _chosen in ("pure", "compiled") if of_counting.COMPILED else ("pure",):
        yield
    _chosen = "compiled"


def counting() -> Twin:
    """Return the classes that count."""
    compiled = of_counting.COMPILED
    return of_counting.PURE if _chosen == "pure" or compiled is None else compiled


def pump() -> Any:
    """Return what makes a pump."""
    return of_pump.Pump if counting() is of_counting.PURE else of_pump.compiled


def are_told_apart(params: dict[str, Any]) -> bool:
    """Return whether a test with these parameters depends on the twin: the pump relays over our own transports only."""
    return not {"twisted's", "ssl", "haproxy, ssl"} & {value for value in params.values() if isinstance(value, str)}
