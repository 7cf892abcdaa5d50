"""``python -m benchmarks``: fooproxy and every peer that is found, in turn, under the same loads.

Progress goes to standard error, tables to standard output.  The exit status is 1 if a run failed, for example because
of a wrong reply, or because fooproxy's counts differ from the load generator's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.chart import chart
from benchmarks.native import CannotCompile, compile_programs
from benchmarks.peers import find_peers
from benchmarks.processes import Failed, divide_cores, raise_file_limit
from benchmarks.report import Results, table
from benchmarks.runs import Extent, Runner
from benchmarks.shapes import FIGURES, SHAPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.peers import Peer
    from benchmarks.shapes import Shape

# More connections in one run would use up the ports between the proxy and the server, and measure that.
CONNECTS = 10_000
SESSIONS = 10_000
IDLE_SECONDS = 20.0
QUICK = Extent(seconds=0.2, connects=200, sessions=200, idle_seconds=0.3)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks that `arguments` ask for; return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    shapes = _named(parser, "--shapes", options.shapes, SHAPES)
    found = find_peers(options.python, options.reactor, options.mitmdump)
    peers = _named(parser, "--peers", options.peers, found)
    rounds = 1 if options.quick else options.rounds
    extent = QUICK if options.quick else Extent(options.seconds, CONNECTS, SESSIONS, IDLE_SECONDS)
    # A SIGTERM stops the child processes too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    cores = divide_cores()
    os.sched_setaffinity(0, cores.load)
    try:
        with tempfile.TemporaryDirectory(prefix="foo-benchmarks-") as name:
            programs = compile_programs(Path(name))
            runner = Runner(programs, Path(name), cores, raise_file_limit(), extent)
            results = _run_all(runner, shapes, peers, rounds)
    except CannotCompile as error:
        _tell(f"benchmarks: {error}")
        return 1
    except KeyboardInterrupt:
        _tell("benchmarks: interrupted")
        return 130
    _write(results, shapes, runner, options)
    return 1 if results.failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n\n")[0])
    add = parser.add_argument
    add("--peers", metavar="A,B", help="only these (default: all that are found)")
    add("--shapes", metavar="X,Y", help=f"only these of {', '.join(shape.name for shape in SHAPES)}")
    add("--rounds", type=_at_least_one, default=5, metavar="N", help="rounds for each peer (%(default)s)")
    add("--seconds", type=float, default=2.0, metavar="S", help="seconds of load in each run (%(default)s)")
    add("--quick", action="store_true", help="one short round of everything, to see whether it works")
    add("--json", type=Path, metavar="FILE", help="write all figures to this file")
    add("--svg", type=Path, metavar="FILE", help="draw the costs relative to HAProxy's into this file")
    add("--python", default=sys.executable, metavar="PATH", help="interpreter for fooproxy and portforward")
    add("--reactor", action="append", default=[], metavar="NAME", help="also run fooproxy with this reactor")
    add("--mitmdump", default="mitmdump", metavar="PATH", help="mitmproxy's program (%(default)s)")
    return parser


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("expected at least 1")
    return value


def _named(parser: argparse.ArgumentParser, option: str, names: str | None, known: Sequence[Any]) -> list[Any]:
    """Pick those of `known` that `names` lists, in their order."""
    wanted = names.split(",") if names else [one.name for one in known]
    unknown = set(wanted) - {one.name for one in known}
    if unknown:
        parser.error(f"{option}: no {', '.join(unknown)}; there are {', '.join(one.name for one in known)}")
    return [one for one in known if one.name in wanted]


def _run_all(runner: Runner, shapes: Sequence[Shape], peers: Sequence[Peer], rounds: int) -> Results:
    """Run all `peers` in turn, in each round of each shape; a failed run does not affect the others."""
    results = Results()
    for peer in peers:
        if peer.missing:
            _tell(f"{peer.name}: skipped, {peer.missing}")
            results.skipped[peer.name] = peer.missing
    for shape in shapes:
        if runner.sessions(shape) < shape.connections:
            _tell(f"{shape.name}: {runner.sessions(shape):,} sessions instead of {shape.connections:,}")
        for number, peer in product(range(rounds), peers):
            # Idle sessions without a proxy say nothing about one.
            if not peer.missing and (peer.command or shape.mode != "idle"):
                _tell(f"{shape.name}, round {number + 1} of {rounds}, {peer.name}: ", end="")
                _tell(_run_one(results, runner, shape, peer, number))
    return results


def _run_one(results: Results, runner: Runner, shape: Shape, peer: Peer, number: int) -> str:
    """Make one run, keep its figures, and return a summary of them."""
    try:
        figures = runner.run(shape, peer)
    except Failed as failure:
        results.failures.append(f"{shape.name}, {peer.name}: {failure}")
        return f"FAILED: {failure}"
    kept = results.add(shape, peer.name, number, figures)
    shown = (name for name in shape.figures if name in kept)
    return ", ".join(f"{FIGURES[name].heading} {kept[name]:,.{FIGURES[name].digits}f}" for name in shown)


def _settings(runner: Runner) -> dict[str, Any]:
    """Return the settings that are needed to repeat the runs."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cores": {"proxy": sorted(runner.cores.proxy), "load": sorted(runner.cores.load)},
        "files": runner.files,
        **runner.extent._asdict(),
    }


def _write(results: Results, shapes: Sequence[Shape], runner: Runner, options: argparse.Namespace) -> None:
    summaries = [(shape, results.summary(shape)) for shape in shapes]
    for shape, summary in summaries:
        print(table(shape, summary))
    for failure in results.failures:
        _tell(f"FAILED: {failure}")
    if options.json:
        told = {
            "settings": _settings(runner),
            "shapes": {
                shape.name: {"title": shape.title, "connections": runner.sessions(shape), "peers": summary}
                for shape, summary in summaries
            },
            "skipped": results.skipped,
            "failures": results.failures,
        }
        options.json.write_text(json.dumps(told, indent=2) + "\n")
    if options.svg:
        drawing = chart(summaries)
        if drawing:
            options.svg.write_text(drawing)
        else:
            _tell("no chart: nothing was compared with HAProxy")


def _tell(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
