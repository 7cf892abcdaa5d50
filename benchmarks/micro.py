"""``python -m benchmarks.micro``: time per message of the analyzers, by the size of messages and how they are cut.

Both twins are measured, if the compiled one was built.

pyperf measures (calibration, worker processes, statistics), and this command takes its options.  No sockets are used.
"""

from __future__ import annotations

import importlib
import sys
from time import perf_counter
from typing import TYPE_CHECKING

from fooproxy.foo.counting import COMPILED, PURE
from fooproxy.foo.latency import Latency

if TYPE_CHECKING:
    from collections.abc import Callable

    from fooproxy.foo.counting import Twin

# Bytes of a whole message: type, seq, data and newline.
SIZES = (8, 32, 1000, 100_000)
# All chunks of one pass together hold about this many bytes, and at least so many messages.
PASS_BYTES = 256 << 10
PASS_MESSAGES = 64
READ_SIZE = 256 << 10


def message(size: int) -> bytes:
    """Make a request of `size` bytes."""
    return b"REQ 1 ".ljust(size - 1, b"x") + b"\n"


def cut(stream: bytes, size: int) -> list[bytes]:
    """Cut `stream` into chunks of `size` bytes; the last may be shorter."""
    return [stream[at : at + size] for at in range(0, len(stream), size)]


def cases() -> dict[str, tuple[int, list[bytes]]]:
    """List for each case, by name, how many messages its chunks hold, and the chunks."""
    found = {}
    for size in SIZES:
        count = max(PASS_MESSAGES, PASS_BYTES // size)
        stream = message(size) * count
        cuts = {"1 per chunk": size, "16 per chunk": 16 * size, "chunks of 64 KiB": READ_SIZE}
        for name, chunk_size in cuts.items():
            found[f"{size} B, {name}"] = (count, cut(stream, chunk_size))
    return found


def feeding(twin: Twin, chunks: list[bytes], messages: int) -> Callable[[int], float]:
    """Return the function that pyperf times: it makes passes over `chunks`, and returns the seconds taken."""

    def run(passes: int) -> float:
        analysis = twin.Analysis(Latency(), requests=True)
        feed, catch_up = twin.Analyzer(analysis, twin.Exchange(Latency())).feed, analysis.catch_up
        start = perf_counter()
        for _ in range(passes):
            # Analyze as between two samples of the time table, and then as at the second one.
            for chunk in chunks:
                feed(chunk, 0)
            catch_up()
        took = perf_counter() - start
        total = analysis.total
        if (total.req, total.invalid) != (passes * messages, 0):
            raise AssertionError(f"{total.req} of {passes * messages} messages were counted")
        return took

    return run


def main() -> int:
    """Run all cases; return the exit status."""
    try:
        # It has no annotations, and only this command needs it.
        pyperf = importlib.import_module("pyperf")
    except ImportError:
        print("benchmarks.micro needs pyperf: pip install pyperf", file=sys.stderr)
        return 1
    runner = pyperf.Runner(program_args=("-m", "benchmarks.micro"))
    for kind, twin in {"compiled": COMPILED, "pure": PURE}.items():
        for name, (messages, chunks) in cases().items():
            if twin is not None:
                runner.bench_time_func(f"{kind}, {name}", feeding(twin, chunks, messages), inner_loops=messages)
    return 0


if __name__ == "__main__":
    sys.exit(main())
