"""The compiled twins: foo/counting.c and net/pump.c."""

from collections.abc import Callable
from typing import Any

from fooproxy.foo.grammar import Automaton

INTERFACE: int
"""What version of this file the module was built for."""
COUNTS: tuple[str, ...]
"""The order of the counts of a leg."""
LATENCY: tuple[str | int, ...]
"""The order of the numbers about latency, and the number of buckets that follow them."""

class Row:
    def __init__(self, numbers: Any, start: int, size: int) -> None: ...

class Exchange:
    open: int
    asked: int
    last: int
    late: int
    unmatched: int
    cut: int
    special: int
    unpaired: int
    settled: bool
    in_flight: int
    last_request: int
    requests: int
    replies: int
    buckets: dict[int, int]
    later: list[list[int]] | None

    def __init__(self, total: Any) -> None: ...
    def request(self, time: int, count: int, /) -> None: ...
    def reply(self, time: int, count: int, /) -> None: ...
    def cut_short(self, time: int, /) -> None: ...
    def move(self, total: Any, /) -> None: ...
    def resumed(self) -> None: ...
    def restore(
        self, opened: list[list[int]], last: int, late: int, unmatched: int, cut: int, buckets: dict[int, int], /
    ) -> None: ...
    def end(self) -> None: ...

class Analysis:
    requests: bool
    total: Any
    settled: list[Any]

    def __new__(cls, latency: Any, requests: bool, total: Any, settled: list[Any], automaton: Automaton) -> Any: ...

class Analyzer:
    analysis: Any
    exchange: Any
    bytes: int
    req: int
    ack: int
    nak: int
    invalid: int
    outlet: int
    room: int
    is_muted: bool
    head: Any

    def __init__(self, analysis: Any, exchange: Any) -> None: ...
    def feed(self, chunk: Any, time: int, /) -> None: ...
    def move(self, analysis: Any, /) -> None: ...
    def take_back(self, size: int, /) -> None: ...
    def restore(self, size: int, req: int, ack: int, nak: int, invalid: int, head: Any, is_muted: bool, /) -> None: ...

class Pump:
    def __init__(
        self, clock: Callable[[], int] | None, loss: Callable[[Any, int], Exception], done: Exception
    ) -> None: ...
    def start(self, source: int, sink: Any, tap: Any, /) -> None: ...
    def stop(self, source: int, /) -> None: ...
    def relay(self, events: list[tuple[int, int]], now: int, /) -> Any: ...
    def go_on(self, epoll: int, most: int, patience: int, last: int, end: int, silence: int, /) -> Any: ...
    def batch(self) -> list[tuple[int, int]]: ...
