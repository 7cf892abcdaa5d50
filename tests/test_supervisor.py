"""What a supervisor such as systemd is told, on a datagram socket as it has it."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from fooproxy.supervisor import Supervisor
from tests.helpers.fooserver import PATIENCE, FooServer, exchange
from tests.helpers.processes import started
from tests.helpers.proxyprocess import TWISTD, eventually, fooproxy, options


class Systemd:
    """The socket at which systemd listens; `address` is how it names that in the environment."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0"))
        self._socket.settimeout(PATIENCE)

    def hears(self) -> str:
        """Return what comes next."""
        return self._socket.recv(1000).decode()

    def heard(self) -> list[str]:
        """Return all that has come."""
        self._socket.setblocking(False)
        said = []
        try:
            while True:
                said.append(self.hears())
        except BlockingIOError:
            return said
        finally:
            self._socket.settimeout(PATIENCE)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["a path", "an abstract name"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    name = str(tmp_path / "notify") if request.param == "a path" else f"@fooproxy-test-{secrets.token_hex(8)}"
    found = Systemd(name)
    yield found
    found.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_it_hears_when_the_proxy_is_ready_and_when_it_stops(systemd: Systemd, clock: Clock) -> None:
    supervisor = Supervisor({"NOTIFY_SOCKET": systemd.address}, clock)
    assert systemd.heard() == []
    supervisor.ready()
    assert systemd.heard() == ["READY=1"]
    clock.advance(100)
    assert systemd.heard() == []
    supervisor.stopping()
    assert systemd.heard() == ["STOPPING=1"]
    supervisor.stopped()


def test_its_watchdog_gets_two_pings_in_the_time_it_allows_until_the_end(systemd: Systemd, clock: Clock) -> None:
    supervisor = Supervisor({"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "3000000"}, clock)
    clock.advance(3)
    assert systemd.heard() == []
    supervisor.ready()
    assert systemd.heard() == ["READY=1", "WATCHDOG=1"]
    clock.pump([1.5, 1.5])
    assert systemd.heard() == ["WATCHDOG=1", "WATCHDOG=1"]
    supervisor.stopping()
    clock.advance(1.5)
    assert systemd.heard() == ["STOPPING=1", "WATCHDOG=1"]
    supervisor.stopped()
    clock.advance(3)
    assert systemd.heard() == []


@pytest.mark.parametrize("whose", ["ours", "another's"])
def test_a_watchdog_of_another_process_gets_none(systemd: Systemd, clock: Clock, whose: str) -> None:
    pid = os.getpid() if whose == "ours" else os.getppid()
    environment = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(pid)}
    supervisor = Supervisor(environment, clock)
    supervisor.ready()
    assert ("WATCHDOG=1" in systemd.heard()) == (whose == "ours")
    supervisor.stopped()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": "", "WATCHDOG_USEC": "3000000"},
        {"NOTIFY_SOCKET": "/nowhere/at/all", "WATCHDOG_USEC": "3000000"},
        {"NOTIFY_SOCKET": "vsock:2:1234", "WATCHDOG_USEC": "soon"},
    ],
)
def test_without_one_nothing_happens(clock: Clock, environment: dict[str, str]) -> None:
    supervisor = Supervisor(environment, clock)
    supervisor.ready()
    supervisor.stopping()
    assert not clock.getDelayedCalls()
    supervisor.stopped()


def test_one_that_has_gone_does_no_harm(systemd: Systemd, clock: Clock) -> None:
    supervisor = Supervisor({"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "3000000"}, clock)
    systemd.close()
    supervisor.ready()
    clock.advance(1.5)
    supervisor.stopping()
    supervisor.stopped()


@pytest.mark.slow
def test_the_real_process_says_that_it_is_ready_alive_and_stopping(systemd: Systemd, tmp_path: Path) -> None:
    told = ("env", f"NOTIFY_SOCKET={systemd.address}", "WATCHDOG_USEC=1000000")
    with fooproxy(tmp_path, command=(*told, *TWISTD, "-n")) as proxy:
        assert [systemd.hears() for _ in range(3)] == ["READY=1", *2 * ["WATCHDOG=1"]]
        proxy.signal(signal.SIGTERM)
        # Heard at once: the queue holds ten, and what does not fit in is lost.
        while systemd.hears() != "STOPPING=1":
            pass
        assert proxy.wait() == 0


@pytest.mark.slow
def test_a_proxy_without_http_serves_clients_and_tells_the_same(
    systemd: Systemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", systemd.address)
    log = tmp_path / "log"
    with FooServer() as server, log.open("wb") as output:
        command = [*TWISTD, "-n", "fooproxy", *options(tmp_path, server.port, "--http", "off")]
        with started(command, stdout=output, stderr=output, cwd=tmp_path) as process:
            assert systemd.hears() == "READY=1"
            (found,) = eventually(lambda: re.findall(r"listening for clients on \S*?(\d+)\n", log.read_text()))
            assert exchange(int(found), b"REQ 1 a\n") == b"ACK 1 a\n"
            assert len(listened_by(process.pid)) == 1
            process.terminate()
            assert process.wait(PATIENCE) == 0
    assert "HTTP" not in log.read_text()


def listened_by(pid: int) -> list[str]:
    """Return the TCP sockets on which a process listens."""
    links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return [row[1] for row in rows if row[3] == "0A" and row[9] in inodes]
