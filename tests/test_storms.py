"""The real process in storms of connections: those that are open hardly notice.

The bounds are those of the promise, for a machine of its own: the kernel tells how long the processes were ready to run
and had no processor, and that is not held against the proxy.  What is judged is the median of several storms.
"""

from __future__ import annotations

import re
import resource
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median, quantiles

import pytest

from benchmarks.processes import raise_file_limit
from tests.helpers.anybed import certificate
from tests.helpers.fooserver import connect, read_lines, reset
from tests.helpers.processes import started
from tests.helpers.proxyprocess import TWISTD, fooproxy, settles

# Thousands of connections, on a machine that does other things too, take their time.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STORMS = 5
STORMS_OVER_TLS = 3
CROWD = 4_000
CROWD_OVER_TLS = 2_000
LONGEST = 0.1
"""Seconds that an open session may wait for a reply in the middle of such a storm."""

FLOOD_SECONDS = 3
FLOOD_WAIT = 0.05
"""Seconds within which 99 of 100 requests are answered in a flood of HTTP connections; it takes a tenth of that."""
DESCRIPTORS = 200

FLOOD = f"""
import socket, sys, time
end, clients = time.monotonic() + {FLOOD_SECONDS}, []
while time.monotonic() < end:
    client = socket.socket()
    client.setblocking(False)
    client.connect_ex(("127.0.0.1", int(sys.argv[1])))
    clients.append(client)
    if len(clients) > 500:
        clients.pop(0).close()
"""


# Without its garbage collections, which thousands of connections make as long as what is measured.
SERVER = "import gc; from fooproxy.driver.server import main; gc.disable(); main()"


@pytest.fixture
def files() -> Iterator[int]:
    """The limit of open files, as high as it may be, here and in what is started here."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield raise_file_limit()
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def foo_server(folder: Path) -> Iterator[tuple[int, int]]:
    """Run the test driver's server, and give its port and its process id."""
    command = [sys.executable, "-c", SERVER, "--listen", "127.0.0.1:0", "--close-after-fin"]
    with started(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stdout is not None
        match = re.search(r":(\d+)$", process.stdout.readline())
        assert match is not None
        yield int(match[1]), process.pid


def held_up(*pids: int) -> float:
    """Return how many seconds this thread and the main threads of `pids` have waited for a processor so far.

    Not every kernel tells; then it is 0.
    """
    files = [Path(f"/proc/{pid}/schedstat") for pid in pids] + [Path("/proc/thread-self/schedstat")]
    return sum(int(file.read_text().split()[1]) for file in files if file.exists()) / 1e9


def waits(foo: socket.socket, over: Callable[[], bool], *pids: int) -> list[float]:
    """Send one request after the other until the storm is `over`; return how long each reply took.

    Only one of the processes `pids` and this one has to run at a time, so what they waited for processors is left out.
    """
    found: list[float] = []
    while len(found) < 100 or len(found) % 100 or not over():
        without, began = held_up(*pids), time.monotonic()
        foo.sendall(b"REQ 1 a\n")
        assert read_lines(foo, 1).startswith(b"ACK 1 ")
        found.append(time.monotonic() - began - (held_up(*pids) - without))
    return found


def close_notify(client: ssl.SSLSocket) -> None:
    """Close by the rules of TLS, without waiting for an answer."""
    client.setblocking(False)
    with suppress(ssl.SSLError):
        client.unwrap()
    client.close()


def test_thousands_who_come_or_leave_at_the_same_instant_hold_nobody_up(tmp_path: Path, files: int) -> None:
    if files < 2 * CROWD + 500:
        pytest.skip(f"the limit of open files, {files}, is too low")
    coming, leaving = [], []
    with (
        foo_server(tmp_path) as (upstream, server),
        fooproxy(tmp_path, upstream=upstream) as proxy,
        connect(proxy.port) as foo,
        ExitStack() as stack,
    ):

        def all_there() -> bool:
            return proxy.stats("connections_active") == {"connections_active": CROWD + 1}

        def all_gone() -> bool:
            return proxy.stats("connections_active") == {"connections_active": 1}

        for _ in range(STORMS):
            proxy.signal(signal.SIGSTOP)
            crowd = []
            for _ in range(CROWD):
                crowd.append(stack.enter_context(socket.socket()))
                crowd[-1].setblocking(False)
                crowd[-1].connect_ex(("127.0.0.1", proxy.port))
            proxy.signal(signal.SIGCONT)
            coming.append(max(waits(foo, all_there, proxy.pid, server)))
            proxy.signal(signal.SIGSTOP)
            for client in crowd:
                reset(client)
            proxy.signal(signal.SIGCONT)
            leaving.append(max(waits(foo, all_gone, proxy.pid, server)))
    assert median(coming) < LONGEST
    assert median(leaving) < LONGEST


@pytest.mark.parametrize("end", [close_notify, reset])
def test_thousands_over_tls_who_leave_at_the_same_instant_hold_nobody_up(
    tmp_path: Path, files: int, end: Callable[[ssl.SSLSocket], None]
) -> None:
    if files < 2 * CROWD_OVER_TLS + 500:
        pytest.skip(f"the limit of open files, {files}, is too low")
    (tmp_path / "key.pem").write_bytes(certificate())
    listen = f"ssl:0:interface=127.0.0.1:privateKey={tmp_path}/key.pem"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        foo_server(tmp_path) as (upstream, server),
        fooproxy(tmp_path, "--listen", listen, upstream=upstream) as proxy,
        ExitStack() as stack,
    ):

        def client() -> ssl.SSLSocket:
            return stack.enter_context(context.wrap_socket(stack.enter_context(connect(proxy.port))))

        def all_gone() -> bool:
            return proxy.stats("connections_active") == {"connections_active": 1}

        def storm() -> float:
            crowd = [client() for _ in range(CROWD_OVER_TLS)]
            settles(lambda: proxy.stats("connections_active")["connections_active"], CROWD_OVER_TLS + 1)
            proxy.signal(signal.SIGSTOP)
            for leaving in crowd:
                end(leaving)
            proxy.signal(signal.SIGCONT)
            return max(waits(foo, all_gone, proxy.pid, server))

        foo = client()
        assert median(storm() for _ in range(STORMS_OVER_TLS)) < LONGEST


def test_a_flood_of_http_connections_holds_nobody_up_and_takes_few_descriptors(tmp_path: Path) -> None:
    command = ("sh", "-c", 'ulimit -n 1024 && exec "$@"', "sh", *TWISTD, "-n")
    with (
        foo_server(tmp_path) as (upstream, server),
        fooproxy(tmp_path, upstream=upstream, command=command) as proxy,
        connect(proxy.port) as foo,
        started([sys.executable, "-c", FLOOD, str(proxy.http_port)]) as flood,
    ):
        most = 0

        def over() -> bool:
            nonlocal most
            most = max(most, sum(1 for _ in Path(f"/proc/{proxy.pid}/fd").iterdir()))
            return flood.poll() is not None

        found = waits(foo, over, proxy.pid, server)
        assert quantiles(found, n=100)[-1] < FLOOD_WAIT
        assert most < DESCRIPTORS
        settles(lambda: proxy.stats("recovery_saves")["recovery_saves"]["failed"], 0)
