"""One run: a fresh server, a fresh proxy, one shape of load, and what it cost.

This module does not know which peers there are, nor how often each runs.
"""

from __future__ import annotations

import json
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.measure import Usage, is_listening, usage
from benchmarks.peers import CHECKOUT, Stage
from benchmarks.processes import Cores, Failed, end_of, free_port, read_line, running, wait_for
from benchmarks.shapes import LATENCIES

if TYPE_CHECKING:
    import re

    from benchmarks.native import Programs
    from benchmarks.peers import Peer
    from benchmarks.shapes import Shape

Figures = dict[str, float]

# The server answers every n-th seq with NAK, so that both kinds of replies are checked and counted.
NAK_EVERY = 16
WARM_UP = 2_000
# Descriptors that a proxy needs in addition to two per session.
SPARE_FILES = 500


class Extent(NamedTuple):
    """How long a run is: `seconds` of load, at most `connects` connections, or `sessions` idle for `idle_seconds`."""

    seconds: float
    connects: int
    sessions: int
    idle_seconds: float


class _Proxy(NamedTuple):
    """The target of the load: a port, the proxy's process (`None`: the server itself), the port of its counts."""

    port: int
    pid: int | None = None
    http: int | None = None

    def usage(self) -> Usage:
        return Usage(time.monotonic(), 0.0, 0) if self.pid is None else usage(self.pid)


@dataclass(frozen=True)
class Runner:
    """Makes runs, with their temporary files in `directory`."""

    programs: Programs
    directory: Path
    cores: Cores
    files: int
    extent: Extent

    def run(self, shape: Shape, peer: Peer) -> Figures:
        """Put `peer` under the load `shape`; return figures by their names in `shapes.FIGURES`.

        :raises Failed: something did not start, was lost, answered wrongly or counted wrongly.
        """
        with tempfile.TemporaryDirectory(dir=self.directory) as name, ExitStack() as stack:
            place = Path(name)
            proxy = self._start(stack, place, peer)
            try:
                return self._load(shape, proxy, place / "load.log")
            except (Failed, OSError) as error:
                raise Failed(f"{error}{end_of(place / 'proxy.log')}") from error

    def sessions(self, shape: Shape) -> int:
        """Return how many connections `shape` opens, given the limit of files and the extent of the runs."""
        if shape.mode != "idle":
            return shape.connections
        return min(shape.connections, self.extent.sessions, (self.files - SPARE_FILES) // 2)

    def _start(self, stack: ExitStack, place: Path, peer: Peer) -> _Proxy:
        """Start the server and `peer` in front of it, and wait until both listen."""
        log = place / "server.log"
        server: list[str | Path] = [self.programs.server, "--nak", str(NAK_EVERY)]
        upstream = int(read_line(stack.enter_context(running(server, self.cores.load, log, piped=True)), log))
        if peer.command is None:
            return _Proxy(upstream)
        stage = Stage(place, upstream, free_port(), self.files)
        log = place / "proxy.log"
        # So that twistd finds the plugin of an uninstalled checkout.
        environment = {"PYTHONPATH": str(CHECKOUT)}
        process = stack.enter_context(running(peer.command(stage), self.cores.proxy, log, environment=environment))
        if peer.says_ports is None:
            wait_for(lambda: is_listening(stage.listen) or None, process, log)
            return _Proxy(stage.listen, process.pid)
        clients, http = wait_for(partial(_ports_in, log, peer.says_ports), process, log)
        return _Proxy(clients, process.pid, http)

    def _load(self, shape: Shape, proxy: _Proxy, log: Path) -> Figures:
        fresh = proxy.usage()
        with running(self._load_command(shape, proxy.port), self.cores.load, log, piped=True) as load:
            read_line(load, log)
            if shape.mode == "idle":
                # Work that is left after so many connects does not count as idle.
                time.sleep(self.extent.idle_seconds / 10)
            ready = proxy.usage()
            if shape.mode == "idle":
                time.sleep(self.extent.idle_seconds)
            held = proxy.usage()
            assert load.stdin is not None
            load.stdin.close()
            told: Figures = json.loads(read_line(load, log))
            done = proxy.usage()
        if proxy.http is not None:
            check_counts(proxy.http, told)
        if shape.mode == "idle":
            return {
                "rss_kib": (ready.rss - fresh.rss) / told["connections"],
                "idle_cpu": 100 * (held.cpu - ready.cpu) / (held.at - ready.at),
            }
        figures = {name: told[name] for name in (*LATENCIES, "max_us")}
        figures["rate"] = told["measured"] / told["seconds"]
        if proxy.pid is not None:
            figures["cpu_us"] = (done.cpu - held.cpu) / told["measured"] * 1e6
            figures["busy"] = (done.cpu - held.cpu) / told["seconds"] * 100
        return figures

    def _load_command(self, shape: Shape, port: int) -> list[str | Path]:
        connections = self.sessions(shape)
        options = {
            "port": port,
            "mode": shape.mode,
            "connections": connections,
            "inflight": shape.inflight,
            "size": shape.size,
            "nak": NAK_EVERY,
            "milliseconds": round(1000 * self.extent.seconds),
            "requests": self.extent.connects if shape.mode == "connect" else 0,
            "warmup": max(1, WARM_UP // connections),
            "timeout": 120 + round(self.extent.seconds + self.extent.idle_seconds),
        }
        return [self.programs.load, *(f"--{name}={value}" for name, value in options.items())]


def _ports_in(log: Path, says_ports: re.Pattern[str]) -> tuple[int, int] | None:
    found = says_ports.search(log.read_text(errors="replace"))
    return (int(found["clients"]), int(found["http"])) if found else None


def check_counts(port: int, told: Figures) -> None:
    """Compare what the proxy behind `port` counted with the counts of the load generator."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats", timeout=10) as response:
        stats: Figures = json.load(response)
    due = {
        "msg_total": 2 * told["requests"],
        "msg_req": told["requests"],
        "msg_ack": told["acks"],
        "msg_nak": told["naks"],
        "msg_invalid": 0,
        "msg_misdirected": 0,
    }
    wrong = [f"{key} {stats.get(key)} is not {count}" for key, count in due.items() if stats.get(key) != count]
    if wrong:
        raise Failed(f"it counted wrongly: {', '.join(wrong)}")
