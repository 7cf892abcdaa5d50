"""The real process relays: every byte as it came, every message counted, nothing left behind."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fooserver import (
    FooServer,
    connect,
    counted,
    exchange,
    read_exactly,
    read_lines,
    read_to_end,
    replies_to,
    reset,
)
from tests.helpers.proxyprocess import TWIST, TWISTD, Proxy, eventually, fooproxy, freeze, settles

pytestmark = pytest.mark.slow

LITTLE = 30
"""MB that a proxy may grow by, whatever passes through it."""


@contextmanager
def sending(client: socket.socket, stream: bytes) -> Iterator[None]:
    """Send beside what the test does."""
    sender = threading.Thread(target=client.sendall, args=(stream,))
    sender.start()
    yield
    sender.join()


class Relay:
    """A proxy, its server, and what the proxy held open when nobody was connected."""

    def __init__(self, proxy: Proxy, server: FooServer) -> None:
        self.proxy = proxy
        self.server = server
        self.port = proxy.port
        exchange(proxy.port)
        self.idle = settled_files(proxy)

    def counts_exactly(self) -> None:
        """Compare the report with a plain reading of all that the server received and sent."""
        expected = counted(self.server.received, self.server.sent)
        assert self.proxy.stats(*expected) == expected

    def leaves_nothing(self) -> None:
        settles(lambda: self.proxy.stats("connections_active"), {"connections_active": 0})
        eventually(lambda: self.proxy.files() <= self.idle)


def settled_files(proxy: Proxy) -> set[str]:
    """Give what the proxy holds open once the session before and the request for its report are gone."""
    settles(lambda: proxy.stats("connections_active"), {"connections_active": 0})
    names = proxy.files()

    def unchanged() -> bool:
        nonlocal names
        before, names = names, proxy.files()
        return before == names and not any("recovery.json.new" in name for name in names)

    for _ in range(5):
        eventually(unchanged)
    return names


@contextmanager
def relaying(folder: Path, **how: Any) -> Iterator[Relay]:
    with FooServer(**how) as server, fooproxy(folder, upstream=server.port) as proxy:
        relay = Relay(proxy, server)
        yield relay
        relay.leaves_nothing()


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    with relaying(tmp_path_factory.mktemp("lasting")) as relay:
        yield relay


@pytest.fixture
def shared(lasting: Relay) -> Iterator[Relay]:
    """A proxy that other tests have used and will use; what it counts and what its server knows goes on."""
    yield lasting
    lasting.leaves_nothing()


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    """A proxy that is checked, after the test, to hold nothing open that it did not hold before."""
    with relaying(tmp_path) as relay:
        yield relay


def requests(count: int, first: int = 1) -> list[bytes]:
    return [b"REQ %d data-%d\n" % (seq, seq) for seq in range(first, first + count)]


def test_requests_one_after_the_other_are_answered_one_by_one(shared: Relay) -> None:
    with connect(shared.port) as client:
        for request in requests(200):
            client.sendall(request)
            assert read_lines(client, 1) == replies_to(request)
    shared.counts_exactly()


def test_a_thousand_pipelined_requests_are_answered_in_order(shared: Relay) -> None:
    stream = b"".join(requests(1000))
    with connect(shared.port) as client:
        client.sendall(stream)
        assert read_lines(client, 1000) == replies_to(stream)
    shared.counts_exactly()


def test_every_byte_may_be_a_packet_of_its_own(tmp_path: Path) -> None:
    with relaying(tmp_path, bytewise=True) as relay:
        stream = b"".join(requests(50))
        assert exchange(relay.port, *(bytes([byte]) for byte in stream)) == replies_to(stream)
        relay.counts_exactly()


def test_a_message_may_come_in_three_packets(shared: Relay) -> None:
    with connect(shared.port) as client:
        for seq in range(1, 101):
            for piece in (b"REQ %d" % seq, b" data", b"\n"):
                client.sendall(piece)
            assert read_lines(client, 1) == b"ACK %d data\n" % seq
    shared.counts_exactly()


def test_a_hundred_connections_at_once_do_not_mix(shared: Relay) -> None:
    streams = [b"".join(requests(50, first=1000 * number)) for number in range(100)]
    with ThreadPoolExecutor(len(streams)) as pool:
        answers = list(pool.map(lambda stream: exchange(shared.port, stream), streams))
    assert answers == [replies_to(stream) for stream in streams]
    assert set(streams) <= set(shared.server.received)
    shared.counts_exactly()


def test_a_line_of_60_mb_costs_no_memory(relay: Relay) -> None:
    line = b"REQ 1 " + 1_000_000 * b"sixty-four bytes of data that a server may send back, no spaces.".replace(
        b" ", b"-"
    )
    due = b"ACK" + line[3:] + b"\nACK 2 after\n"
    before = relay.proxy.memory("VmRSS")
    # No FIN before the replies: there is a deadline for those that come after it.
    with connect(relay.port) as client:
        client.sendall(line)
        client.sendall(b"\nREQ 2 after\n")
        assert read_exactly(client, len(due)) == due
    assert relay.proxy.memory("VmHWM") - before < LITTLE
    relay.counts_exactly()


def test_a_server_that_reads_late_costs_no_memory(relay: Relay) -> None:
    stream = (b"REQ 1 " + 1000 * b"x" + b"\n") * 60_000
    before = relay.proxy.memory("VmRSS")
    relay.server.reading.clear()
    with connect(relay.port) as client, sending(client, stream):
        stalled(relay.proxy, "bytes_from_clients")
        relay.server.reading.set()
        assert read_exactly(client, len(stream)) == replies_to(stream)
    assert relay.proxy.memory("VmHWM") - before < LITTLE
    relay.counts_exactly()


def test_a_client_that_reads_late_costs_no_memory(relay: Relay) -> None:
    stream = (b"REQ 1 " + 1000 * b"x" + b"\n") * 60_000
    before = relay.proxy.memory("VmRSS")
    with connect(relay.port) as client, sending(client, stream):
        stalled(relay.proxy, "bytes_from_upstream")
        assert read_exactly(client, len(stream)) == replies_to(stream)
    assert relay.proxy.memory("VmHWM") - before < LITTLE
    relay.counts_exactly()


def test_empty_lines_pass_and_count_as_invalid(shared: Relay) -> None:
    stream = b"\n\nREQ 1 a\n\r\n\nREQ 2 b\n\n"
    assert exchange(shared.port, stream) == replies_to(stream)
    assert shared.server.received[-1] == stream
    shared.counts_exactly()


def test_noise_passes_unchanged(shared: Relay) -> None:
    noise = random.Random(1)
    stream = b"".join(noise.randbytes(noise.randrange(200)) + noise.choice(requests(9)) for _ in range(2000))
    assert exchange(shared.port, stream) == replies_to(stream)
    assert shared.server.received[-1] == stream
    shared.counts_exactly()


def test_misdirected_messages_count_by_type_too(shared: Relay) -> None:
    assert exchange(shared.port, b"ACK 1\nNAK 2 x\nREQ 3\n") == 2 * b"NAK 0 ERRDECODE\n" + b"ACK 3 \n"
    shared.counts_exactly()


def test_clients_that_reset_their_connections_harm_nobody(tmp_path: Path) -> None:
    with relaying(tmp_path, holding=True) as relay:
        stream = b"REQ 1 a\nREQ 2 b\nREQ 3 unfinis"
        clients = [connect(relay.port) for _ in range(50)]
        for client in clients:
            client.sendall(stream)
        settles(lambda: relay.server.received[1:], [stream] * 50)
        for client in clients:
            reset(client)
        relay.leaves_nothing()
        relay.counts_exactly()
        relay.server.forget()
        relay.server.holding = False
        assert exchange(relay.port, b"REQ 1 after\n") == b"ACK 1 after\n"


def test_a_client_that_resets_in_the_middle_of_a_flood_leaves_nothing(relay: Relay) -> None:
    stream = b"".join(requests(20_000))
    for _ in range(20):
        client = connect(relay.port)
        client.sendall(stream)
        reset(client)
    relay.leaves_nothing()
    assert exchange(relay.port, b"REQ 1 after\n") == b"ACK 1 after\n"


def test_a_server_that_resets_ends_the_session_of_that_client_alone(shared: Relay) -> None:
    with connect(shared.port) as other, connect(shared.port) as client:
        other.sendall(b"REQ 1 other\n")
        assert read_lines(other, 1) == b"ACK 1 other\n"
        client.sendall(b"REQ 1 a\n")
        assert read_lines(client, 1) == b"ACK 1 a\n"
        client.sendall(b"REQ 2 " + shared.server.resets_at)
        assert client.recv(1) == b""
        other.sendall(b"REQ 2 other\n")
        assert read_lines(other, 1) == b"ACK 2 other\n"


def test_a_server_that_closes_has_all_it_sent_delivered(tmp_path: Path) -> None:
    with relaying(tmp_path, holding=True) as relay, connect(relay.port) as client:
        stream = b"".join(requests(20_000))
        client.sendall(stream)
        settles(lambda: relay.server.received[-1], stream)
        relay.server.release()
        relay.server.sessions[-1].peer.shutdown(socket.SHUT_RDWR)
        assert read_to_end(client) == replies_to(stream)


def test_a_client_that_shuts_down_its_sending_side_gets_all_replies(tmp_path: Path) -> None:
    with relaying(tmp_path, holding=True) as relay, connect(relay.port) as client:
        stream = b"".join(requests(100)) + b"REQ 101 without-newline"
        client.sendall(stream)
        client.shutdown(socket.SHUT_WR)
        settles(lambda: relay.server.received[-1], stream)
        relay.server.release()
        assert read_to_end(client) == replies_to(stream)


def test_two_thousand_half_closed_sessions_leave_nothing_though_the_server_never_closes(relay: Relay) -> None:
    stream = b"".join(requests(3))
    for _ in range(50):
        clients = [connect(relay.port) for _ in range(40)]
        for client in clients:
            client.sendall(stream)
            client.shutdown(socket.SHUT_WR)
        for client in clients:
            with client:
                assert read_to_end(client) == replies_to(stream)
        relay.leaves_nothing()
        relay.server.forget()
    assert relay.proxy.stats("connections_total", "msg_req", "msg_ack") == {
        "connections_total": 2001,
        "msg_req": 6000,
        "msg_ack": 6000,
    }


def test_a_hundred_sessions_at_once_are_active(shared: Relay) -> None:
    clients = [connect(shared.port) for _ in range(100)]
    settles(lambda: shared.proxy.stats("connections_active"), {"connections_active": 100})
    for client in clients:
        client.close()


def test_it_runs_in_a_root_directory_that_is_empty(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root, to change the root directory")
    (root := tmp_path / "root").mkdir()
    command = (*TWISTD, "-n", "--pidfile=", "--chroot", str(root))
    path = ("--recovery-path", "/recovery.json")
    with FooServer() as server, fooproxy(tmp_path, *path, upstream=server.port, command=command) as proxy:
        assert exchange(proxy.port, b"REQ 1 a\n") == b"ACK 1 a\n"
        assert [proxy.get(url)[0] for url in ("/live", "/metrics", "/ready", "/nothing")] == [200, 200, 200, 404]
        with connect(proxy.http_port) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert b"<html" in read_to_end(client)
        with connect(proxy.http_port) as client:
            client.sendall(b"GET /metrics HTTP/1.0\r\nAccept: text/plain\r\n\r\n")
            assert b"\nprocess_start_time_seconds " in read_to_end(client)
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
    assert {file.name for file in root.iterdir()} == {"recovery.json", "recovery.json.lock"}


def test_it_runs_under_twist_as_well(tmp_path: Path) -> None:
    with (
        FooServer() as server,
        fooproxy(tmp_path, upstream=server.port, command=TWIST) as proxy,
    ):
        assert exchange(proxy.port, b"REQ 1 a\n") == b"ACK 1 a\n"


class Pacer(threading.Thread):
    """Sends four requests every 10 ms until it is stopped; replies are read and dropped."""

    RATE = 400

    def __init__(self, port: int) -> None:
        super().__init__()
        self.sent_at: list[float] = []
        """When each of them was sent."""
        self.enough = threading.Event()
        self._client = connect(port)

    @property
    def sent(self) -> int:
        return len(self.sent_at)

    def sent_between(self, begin: float, end: float) -> int:
        return sum(begin <= moment <= end for moment in self.sent_at)

    def run(self) -> None:
        reader = threading.Thread(target=read_to_end, args=(self._client,))
        reader.start()
        began = time.monotonic()
        while not self.enough.wait(began + self.sent / self.RATE - time.monotonic()):
            self.sent_at += [time.monotonic()] * 4
            self._client.sendall(b"".join(requests(4)))
        self._client.shutdown(socket.SHUT_WR)
        reader.join()
        self._client.close()


def test_rates_are_true_also_after_the_process_was_stopped_and_fall_to_zero(relay: Relay) -> None:
    def rates() -> list[float]:
        names = ("request_rate_1s", "response_rate_1s", "request_rate_10s", "response_rate_10s")
        return [float(rate) for rate in relay.proxy.stats(*names).values()]

    def compared() -> tuple[int, list[float], int]:
        """Return the least and the most that was sent in the last second, whenever it was, and the rates between."""
        asked_at = time.monotonic()
        found = rates()[:2]
        answered_at = time.monotonic()
        least, most = pacer.sent_between(answered_at - 1, asked_at), pacer.sent_between(asked_at - 1, answered_at)
        return least, found, most

    def are_true() -> bool:
        least, found, most = compared()
        return all(least * 0.95 <= rate <= most * 1.05 for rate in found)

    pacer = Pacer(relay.port)
    pacer.start()
    eventually(lambda: pacer.sent > 1.2 * Pacer.RATE)
    eventually(are_true)
    freeze(relay.proxy.pid)
    offered = pacer.sent + 2 * Pacer.RATE
    eventually(lambda: pacer.sent > offered)
    relay.proxy.signal(signal.SIGCONT)
    eventually(lambda: relay.proxy.stats("msg_ack")["msg_ack"] >= offered)
    # Requests alone: the replies to those that piled up do come in a burst after the stop.
    least, (resumed, _), most = compared()
    pacer.enough.set()
    pacer.join()
    over_ten_seconds = rates()[2:]

    # All that piled up would be more than twice as much.
    assert least / 2 < resumed < most * 1.5
    assert over_ten_seconds == pytest.approx([pacer.sent / 10] * 2, rel=0.05)
    settles(rates, [0.0] * 4)

    # Nobody samples the counters any more; what comes then is all the same told to have come then.
    eventually(lambda: wakes_in_half_a_second(relay.proxy) < 5)
    exchange(relay.port, b"".join(requests(100)))
    assert rates()[2:] == [10.0, 10.0]
    settles(lambda: rates()[:2], [0.0, 0.0])


def test_what_came_just_before_the_process_was_stopped_is_over_when_it_goes_on(relay: Relay) -> None:
    exchange(relay.port, b"".join(requests(1000)))
    freeze(relay.proxy.pid)
    time.sleep(1.5)
    relay.proxy.signal(signal.SIGCONT)
    rates = relay.proxy.stats("request_rate_1s", "response_rate_1s")
    assert rates == {"request_rate_1s": 0.0, "response_rate_1s": 0.0}


def wakes_in_half_a_second(proxy: Proxy) -> int:
    before = wakes(proxy)
    time.sleep(0.5)
    return wakes(proxy) - before


def wakes(proxy: Proxy) -> int:
    """Tell how often the proxy has gone to sleep."""
    status = Path(f"/proc/{proxy.pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def stalled(proxy: Proxy, name: str) -> None:
    """Wait until a count has not moved over twenty looks, which is when everything between is full."""
    seen: list[int] = []

    def unmoved() -> bool:
        seen.append(proxy.stats(name)[name])
        return len(seen) > 20 and seen[-1] == seen[-20] > 0

    eventually(unmoved)
