"""``python -m benchmarks.soak --minutes N``: a real proxy under churn and faults, watched from outside, and a verdict.

The load is `benchmarks.churn`: clients that come and go, pipeline, stall, reset and half-close, and a server that fails
too.  Meanwhile the soak polls every statistic, requests reports by signal, and watches the proxy's memory, files and
the delay of its event loop.  At the end, no session may be left, and the counts must be exact.

Progress goes to standard error, the summary to standard output.  The exit status is 1 if a criterion was not met.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.behaviours import TIMEOUT, Client
from benchmarks.measure import usage
from benchmarks.peers import CHECKOUT
from benchmarks.processes import Failed, divide_cores, end_of, raise_file_limit, read_line, running, wait_for
from benchmarks.tally import Tally
from benchmarks.verdicts import Verdict, judge_counts, judge_delays, judge_memory, spread

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

SETTLE_TIMEOUT = 45.0
"""Seconds after the load within which all sessions must end; half-closed ones have 10."""

PROBES = 0.1
POLLS = 1.0
SIGNALS = 5.0
"""Seconds between two probes, two polls and two signals."""

PATHS = ("/stats", "/metrics", "/connections", "/clients", "/live", "/history", "/ready")

_PORTS = re.compile(r"clients on 127\.0\.0\.1:(?P<clients>\d+)(?s:.*)HTTP on http://127\.0\.0\.1:(?P<http>\d+)/")


class Watch:
    """The proxy as seen from outside, and the observations so far."""

    def __init__(self, process: subprocess.Popen[str], port: int, http: int) -> None:
        self.process = process
        self.tally = Tally()
        self.rss: list[int] = []
        self.fds: list[int] = []
        self.health: list[float] = []
        self.relayed: list[float] = []
        self.reports = self.polls = 0
        self.bad: list[str] = []
        self._port = port
        self._http = http
        self._probe: Client | None = None
        self.first_files = self.last_files = self.files

    @property
    def files(self) -> int:
        """How many files the proxy holds open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))  # noqa: PTH208

    def get(self, path: str) -> Any:
        """Get a JSON resource."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._http}{path}", timeout=TIMEOUT) as answer:
            return json.load(answer)

    def probe(self) -> None:
        """Time an answer to ``/health``, and a small request through the proxy."""
        began = time.monotonic()
        self.get("/health")
        self.health.append(time.monotonic() - began)
        if self._probe is None:
            self._probe = Client(self._port, self.tally)
        began = time.monotonic()
        self._probe.ask(b"REQ 1 probe")
        self.relayed.append(time.monotonic() - began)

    def poll(self) -> None:
        """Get everything that is served, and sample the process."""
        for path in PATHS:
            self.get(path)
        request = urllib.request.Request(f"http://127.0.0.1:{self._http}/metrics", headers={"Accept": "text/plain"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            if b"foo" not in answer.read():
                self.bad.append("the exposition is empty")
        self.polls += 1
        self.rss.append(usage(self.process.pid).rss)
        self.fds.append(self.files)

    def ask_for_report(self) -> None:
        """Send the signal that makes the proxy print a report."""
        self.process.send_signal(signal.SIGUSR2)
        self.reports += 1

    def leave(self) -> None:
        """End the session of the probes."""
        if self._probe is not None:
            self._probe.socket.close()
            self._probe = None

    @property
    def settled(self) -> bool:
        """Whether all sessions are gone, and all files opened for them."""
        active = self.get("/stats")["connections_active"]
        # Only the initial number is certain: a request or a save in progress opens a file too.
        self.last_files = self.files
        return not active and self.last_files <= self.first_files


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak for as long as `arguments` ask for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0, metavar="N", help="how long (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    options = parser.parse_args(arguments)
    if not 0 < options.minutes < 10_000:
        parser.error("expected --minutes above 0")
    # A SIGTERM stops the child processes too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    raise_file_limit()
    try:
        with tempfile.TemporaryDirectory(prefix="foo-soak-") as name:
            verdicts, figures = _soak(Path(name), 60 * options.minutes)
    except KeyboardInterrupt:
        _tell("soak: interrupted")
        return 130
    except (Failed, OSError) as error:
        _tell(f"soak: {error}")
        return 1
    for verdict in verdicts:
        print(f"{'pass' if verdict.met else 'FAIL'}  {verdict.name}: {verdict.figures}")
    if options.json:
        content = {"verdicts": [verdict._asdict() for verdict in verdicts], **figures}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0 if all(verdict.met for verdict in verdicts) else 1


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _soak(place: Path, seconds: float) -> tuple[list[Verdict], dict[str, Any]]:
    """Run the soak in the folder `place`; return the verdicts, and the figures behind them."""
    cores = divide_cores()
    log = place / "proxy.log"
    churn = [sys.executable, "-m", "benchmarks.churn"]
    environment = {"PYTHONPATH": str(CHECKOUT)}
    with ExitStack() as stack:

        def start(name: str, command: list[str], piped: bool = True) -> subprocess.Popen[str]:
            on = cores.load if piped else cores.proxy
            context = running(command, on, place / f"{name}.log", environment=environment, piped=piped)
            return stack.enter_context(context)

        server = start("server", [*churn, "server"])
        upstream = read_line(server, place / "server.log")
        run = "from twisted.scripts.twistd import run; run()"
        twistd = [sys.executable, "-c", run, "-n", f"--pidfile={place / 'pid'}", "fooproxy"]
        addresses = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--forward", f"127.0.0.1:{upstream}"]
        proxy = start("proxy", [*twistd, *addresses, "--recovery-path", str(place / "recovery.json")], piped=False)
        ports = wait_for(lambda: _PORTS.search(log.read_text()), proxy, log)
        watch = Watch(proxy, int(ports["clients"]), int(ports["http"]))
        clients = start("clients", [*churn, "clients", "--port", ports["clients"]])
        read_line(clients, place / "clients.log")
        _watch(watch, seconds)
        watch.leave()
        asked = _finish(clients, place / "clients.log")
        gone = _settles(watch)
        report = watch.get("/stats")
        answered = _finish(server, place / "server.log")
        proxy.terminate()
        status = proxy.wait(TIMEOUT)
    # The probes are clients too.
    asked["counts"] = dict(Counter(asked["counts"]) + watch.tally.counts)
    text = log.read_text(errors="replace")
    printed = sum(line.startswith('{"msg_total"') for line in text.splitlines())
    verdicts = [
        *judge_counts(report, asked["counts"], answered["counts"]),
        Verdict("replies", not asked["errors"], f"{asked['errors'] or 'all as they should be'}"),
        judge_memory(watch.rss),
        *judge_delays(watch.health, watch.relayed),
        Verdict("web", not watch.bad, f"{watch.polls} polls of {len(PATHS) + 1} resources: {watch.bad or 'all good'}"),
        Verdict("sessions gone", gone, f"{report['connections_active']} left, of {report['connections_total']}"),
        Verdict("files", gone, f"{watch.first_files} before, {watch.last_files} after"),
        Verdict("reports", printed == watch.reports, f"{printed} printed at {watch.reports} signals"),
        Verdict("log", "Traceback" not in text, end_of(log).strip() if "Traceback" in text else "no traceback"),
        Verdict("exit", status == 0, f"status {status}"),
    ]
    figures = {"report": report, "asked": asked, "answered": answered, "rss_kib": watch.rss, "files": watch.fds}
    return verdicts, {**figures, "health": spread(watch.health), "relayed": spread(watch.relayed)}


def _watch(watch: Watch, seconds: float) -> None:
    """Probe, poll and signal for the given time, and print the progress now and then."""
    began = time.monotonic()
    every = max(seconds / 30, POLLS)
    due = {watch.probe: PROBES, watch.poll: POLLS, watch.ask_for_report: SIGNALS, lambda: _progress(watch): every}
    at = dict.fromkeys(due, began)
    while time.monotonic() < began + seconds:
        now = time.monotonic()
        for act, pause in due.items():
            if at[act] <= now:
                at[act] = now + pause
                act()
        time.sleep(max(0.0, min(at.values()) - time.monotonic()))


def _progress(watch: Watch) -> None:
    report = watch.get("/stats")
    _tell(
        f"{report['uptime_seconds']:7.1f} s  {report['connections_total']} sessions, "
        f"{report['connections_active']} open, {report['msg_total']} messages, {usage(watch.process.pid).rss} KiB, "
        f"{watch.files} files, /health {1000 * watch.health[-1]:.1f} ms"
    )


def _finish(process: subprocess.Popen[str], log: Path) -> Any:
    """End one side of the load, and return its tally."""
    assert process.stdin is not None
    process.stdin.close()
    return json.loads(read_line(process, log))


def _settles(watch: Watch) -> bool:
    """Wait until nothing is left of the load; return whether that happened in time."""
    give_up = time.monotonic() + SETTLE_TIMEOUT
    while not (settled := watch.settled) and time.monotonic() < give_up:
        time.sleep(0.1)
    return settled


if __name__ == "__main__":
    sys.exit(main())
