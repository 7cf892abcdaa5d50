"""Reads the CPU time and memory of a process and its children from /proc; knows nothing about proxies.

CPU time is the scheduler's own count (schedstat, in nanoseconds) of each living thread, if the kernel keeps one; the
classic clock ticks are too coarse for short runs.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
LISTEN = "0A"


class Usage(NamedTuple):
    """A process tree at one instant: `at` is monotonic, `cpu` all its CPU time (both s), `rss` its memory (KiB)."""

    at: float
    cpu: float
    rss: int


def usage(pid: int) -> Usage:
    """Return the usage of `pid` and all its descendants."""
    pids = _tree(pid)
    return Usage(time.monotonic(), sum(map(_cpu, pids)), sum(map(_rss, pids)))


def is_listening(port: int) -> bool:
    """Return whether something listens on TCP `port` over IPv4, without connecting to it."""
    with (PROC / "net/tcp").open() as sockets:
        next(sockets)
        for line in sockets:
            _, local, _, state, *_ = line.split()
            if state != LISTEN:
                # The kernel lists listeners first; tens of thousands of lines may follow.
                return False
            if local.endswith(f":{port:04X}"):
                return True
    return False


def _tree(pid: int) -> list[int]:
    pids = [pid]
    for children in (PROC / str(pid) / "task").glob("*/children"):
        for child in children.read_text().split():
            pids += _tree(int(child))
    return pids


def _cpu(pid: int) -> float:
    counts = [*(PROC / str(pid) / "task").glob("*/schedstat")]
    if counts:
        return sum(int(count.read_text().split()[0]) for count in counts) / 1e9
    # The program's name is in parentheses and may contain spaces.
    fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss(pid: int) -> int:
    # VmRSS may lag by some pages for each core; the roll-up is exact.
    rollup = PROC / str(pid) / "smaps_rollup"
    source, key = (rollup, "Rss:") if rollup.exists() else (PROC / str(pid) / "status", "VmRSS:")
    return next(int(line.split()[1]) for line in source.read_text().splitlines() if line.startswith(key))
