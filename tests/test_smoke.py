"""The shortest look at the real process, so that the fast tests have one: it starts, relays, reports and stops."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from tests.helpers.fooserver import FooServer, exchange
from tests.helpers.proxyprocess import eventually, fooproxy, run


def test_it_starts_and_relays_and_reports_and_stops(tmp_path: Path) -> None:
    with FooServer() as server, fooproxy(tmp_path, upstream=server.port) as proxy:
        assert exchange(proxy.port, b"REQ 1 a\nREQ 2 b c\n") == b"ACK 1 a\nNAK 2 b c\n"
        proxy.signal(signal.SIGUSR2)
        eventually(lambda: proxy.printed.endswith("\n"))
        due = {"msg_total": 4, "msg_req": 2, "msg_ack": 1, "msg_nak": 1}
        assert {name: json.loads(proxy.printed)[name] for name in due} == proxy.stats(*due) == due
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
    assert json.loads((tmp_path / "recovery.json").read_text())["counters"]["client_req"] == 2


def test_a_wrong_option_is_refused_with_one_line_and_status_2(tmp_path: Path) -> None:
    end = run(tmp_path, "-n", "fooproxy", "--listen", "nonsense")
    assert end.returncode == 2
    (line,) = end.stderr.splitlines()
    assert line.startswith("fooproxy: ") and "--listen" in line
