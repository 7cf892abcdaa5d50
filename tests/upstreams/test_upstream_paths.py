"""The real process, and ways to an upstream that are longer than a port: TLS, names, zones, unix sockets."""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.anybed import certificate
from tests.helpers.fooserver import PATIENCE, FooServer, connect, exchange, read_lines
from tests.helpers.processes import completed, started
from tests.helpers.proxyprocess import TWISTD, Proxy, eventually, fooproxy, settles

pytestmark = pytest.mark.slow


def closed(proxy: Proxy) -> dict[str, int]:
    """Return the number of ended sessions by reason."""
    reasons: dict[str, int] = proxy.stats("connections_closed")["connections_closed"]
    return {reason: count for reason, count in reasons.items() if count}


def ready(proxy: Proxy) -> tuple[int, list[str]]:
    status, report = proxy.get("/ready")
    return status, report["reasons"]


def turned_away(proxy: Proxy) -> bool:
    """Connect, send nothing, and return whether the proxy closes the connection."""
    with connect(proxy.port) as client:
        return client.recv(1) == b""


@contextmanager
def silent() -> Iterator[int]:
    """Listen on a port, accept, and never say anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def tls_server(pem: Path, backend: int, trusted: Path | None = None) -> Iterator[int]:
    """Listen with TLS in front of the server on the port `backend`; clients need a certificate if any are `trusted`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    if trusted is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(trusted)

    def serve(peer: socket.socket) -> None:
        with suppress(OSError), context.wrap_socket(peer, server_side=True) as client, connect(backend) as server:
            while data := client.recv(1 << 16):
                server.sendall(data)
                client.sendall(read_lines(server, data.count(b"\n")))

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)


class Certificates:
    """Those of a server and of a client, and folders with those that are trusted."""

    def __init__(self, folder: Path) -> None:
        self.server, self.client, self.other = (folder / f"{name}.pem" for name in ("server", "client", "other"))
        for path in (self.server, self.client, self.other):
            path.write_bytes(certificate("localhost"))
        self.trust, self.distrust = folder / "trust", folder / "distrust"
        for folder, pem in ((self.trust, self.server), (self.distrust, self.other)):
            folder.mkdir()
            shutil.copy(pem, folder)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


def over_tls(port: int, trust: Path, more: str = "") -> tuple[str, str]:
    return ("--forward", f"tls:localhost:{port}:trustRoots={trust}{more}")


def test_a_server_over_tls_serves_its_clients(tmp_path: Path, certificates: Certificates) -> None:
    with ExitStack() as stack, FooServer() as foo, tls_server(certificates.server, foo.port) as port:
        proxied = stack.enter_context(fooproxy(tmp_path, *over_tls(port, certificates.trust)))
        client = stack.enter_context(connect(proxied.port))
        for seq in range(3):
            client.sendall(b"REQ %d a\n" % seq)
            assert read_lines(client, 1) == b"ACK %d a\n" % seq
        assert ready(proxied) == (200, [])


def test_a_server_that_never_shakes_hands_is_given_up_at_the_connect_timeout(
    tmp_path: Path, certificates: Certificates
) -> None:
    with (
        silent() as port,
        fooproxy(tmp_path, *over_tls(port, certificates.trust), "--connect-timeout", "0.5") as proxy,
    ):
        assert turned_away(proxy)
        settles(lambda: closed(proxy), {"upstream_tls": 1})
        assert ready(proxy) == (503, ["upstream_unreachable", "upstream_tls"])
        proxy.says("TLS handshake failed: no answer within 0.5 s")
        assert proxy.stats("upstream_connect_failures") == {"upstream_connect_failures": 1}


def test_a_certificate_that_is_not_trusted_is_the_reason_everywhere(tmp_path: Path, certificates: Certificates) -> None:
    with (
        FooServer() as foo,
        tls_server(certificates.server, foo.port) as port,
        fooproxy(tmp_path, *over_tls(port, certificates.distrust), "--connect-timeout", "0.5") as proxy,
    ):
        settles(lambda: ready(proxy), (503, ["upstream_unreachable", "upstream_tls"]))
        assert turned_away(proxy)
        settles(lambda: closed(proxy), {"upstream_tls": 1})
        upstream = proxy.get("/live")[1]["upstream"]
        assert (upstream["state"], upstream["reason"]) == ("down", "upstream_tls")
        assert "certificate verify failed" in upstream["error"]
        proxy.says("TLS handshake failed: certificate verify failed", times=1)


def test_a_server_that_speaks_no_tls_is_found_out(tmp_path: Path, certificates: Certificates) -> None:
    with (
        FooServer() as foo,
        fooproxy(tmp_path, *over_tls(foo.port, certificates.trust), "--connect-timeout", "1") as proxy,
    ):
        assert turned_away(proxy)
        settles(lambda: closed(proxy), {"upstream_tls": 1})
        settles(lambda: ready(proxy)[0], 503)


def test_a_client_is_served_if_the_handshake_succeeds_in_time(tmp_path: Path, certificates: Certificates) -> None:
    with FooServer() as foo, ExitStack() as stack, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        more = (*over_tls(port, certificates.trust), "--connect-timeout", "30")
        proxy = stack.enter_context(fooproxy(tmp_path, *more))
        client = stack.enter_context(connect(proxy.port))
        client.sendall(b"REQ 1 a\n")
        # For now a server that resets each connection.
        listener.listen()
        for _ in range(3):
            listener.accept()[0].close()
        backend = stack.enter_context(tls_server(certificates.server, foo.port))

        def splice() -> None:
            with suppress(OSError):
                while True:
                    peer, _ = listener.accept()
                    there = socket.create_connection(("127.0.0.1", backend))
                    for one, other in ((peer, there), (there, peer)):
                        threading.Thread(target=copy, args=(one, other), daemon=True).start()

        threading.Thread(target=splice, daemon=True).start()
        assert read_lines(client, 1) == b"ACK 1 a\n"
        assert closed(proxy) == {}
        listener.shutdown(socket.SHUT_RDWR)


def copy(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError), one:
        while data := one.recv(1 << 16):
            other.sendall(data)


def test_a_server_that_wants_a_certificate_gets_one_or_is_the_reason(
    tmp_path: Path, certificates: Certificates
) -> None:
    with (
        ExitStack() as stack,
        FooServer() as foo,
        tls_server(certificates.server, foo.port, certificates.client) as port,
    ):
        shown = f":certificate={certificates.client}:privateKey={certificates.client}"
        (tmp_path / "with").mkdir()
        with fooproxy(tmp_path / "with", *over_tls(port, certificates.trust, shown)) as proxy:
            client = stack.enter_context(connect(proxy.port))
            client.sendall(b"REQ 1 a\n")
            assert read_lines(client, 1) == b"ACK 1 a\n"
        (tmp_path / "without").mkdir()
        with fooproxy(tmp_path / "without", *over_tls(port, certificates.trust)) as proxy:
            with connect(proxy.port) as client:
                client.sendall(b"REQ 1 a\n")
                assert client.recv(1) == b""
            settles(lambda: closed(proxy), {"upstream_tls": 1})
            proxy.says("certificate required")
            settles(lambda: ready(proxy), (503, ["upstream_unreachable", "upstream_tls"]))


def naming(*addresses: str) -> tuple[str, ...]:
    """Return a command that runs twistd where each name has these addresses."""
    program = (
        f"import socket\ntrue = socket.getaddrinfo\n"
        f"def look_up(host, port, *rest): return [true(a, port, *rest)[0] for a in {list(addresses)!r}]\n"
        "socket.getaddrinfo = look_up\n"
    )
    return (sys.executable, "-c", f"{program}from twisted.scripts.twistd import run; run()", "-n")


@contextmanager
def dead(port: int, addresses: list[str]) -> Iterator[None]:
    """Make the port of these addresses not answer, by filling their backlogs."""
    with ExitStack() as stack:
        for address in addresses:
            server = stack.enter_context(socket.socket())
            server.bind((address, port))
            server.listen(0)
            while True:
                peer = stack.enter_context(socket.socket())
                peer.settimeout(0.2)
                try:
                    peer.connect((address, port))
                except TimeoutError:
                    break
        yield


def test_a_dead_address_before_a_good_one_does_not_keep_the_proxy_from_being_ready(tmp_path: Path) -> None:
    with (
        FooServer() as foo,
        dead(foo.port, ["127.0.0.2"]),
        fooproxy(tmp_path, "--forward", f"foo.example:{foo.port}", command=naming("127.0.0.2", "127.0.0.1")) as proxy,
    ):
        assert ready(proxy) == (200, [])
        assert proxy.get("/live")[1]["upstream"]["state"] == "up"


def test_five_dead_addresses_before_a_good_one_delay_the_first_client_only(tmp_path: Path) -> None:
    addresses = [f"127.0.0.{number}" for number in range(2, 7)]
    with (
        FooServer() as foo,
        dead(foo.port, addresses),
        fooproxy(tmp_path, "--forward", f"foo.example:{foo.port}", command=naming(*addresses, "127.0.0.1")) as proxy,
    ):
        for _ in range(3):
            assert exchange(proxy.port, b"REQ 1 a\n") == b"ACK 1 a\n"
        assert closed(proxy) == {"client_closed": 3}


needs_root = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and ip")


@needs_root
@pytest.mark.parametrize("named", [False, True])
def test_a_link_local_address_is_connected_over_the_interface_of_its_zone(tmp_path: Path, named: bool) -> None:
    """In a network of its own, whose loopback interface has a link-local address; a server and the proxy are in it."""
    program = (
        "import socket, threading\n"
        "scope = socket.if_nametoindex('lo')\n"
        "server = socket.socket(socket.AF_INET6)\n"
        "server.bind(('fe80::77', 0, 0, scope)); server.listen()\n"
        "print(server.getsockname()[1], flush=True)\n"
        "while True: peer, _ = server.accept(); peer.sendall(b'ACK ' + peer.recv(99)[4:])"
    )
    client = (
        "import socket, sys\n"
        "with socket.create_connection(('127.0.0.1', int(sys.argv[1])), 20) as peer:\n"
        "    peer.sendall(b'REQ 1 a\\n'); print(peer.recv(99))"
    )
    prepare = 'ip link set lo up && ip addr add fe80::77/64 dev lo nodad && exec "$@"'
    inside = ("unshare", "-n", "sh", "-c", prepare, "sh")
    with started([*inside, sys.executable, "-c", program], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        enter = ("nsenter", f"--net=/proc/{server.pid}/ns/net")
        command = naming("fe80::77%lo") if named else (*TWISTD, "-n")
        text = f"foo.example:{port}" if named else f"[fe80::77%lo]:{port}"
        proxy = InNetwork(tmp_path, enter, command, text)
        with proxy.started() as relay_port:
            answer = completed([*enter, sys.executable, "-c", client, str(relay_port)])
            assert answer.stdout == "b'ACK 1 a\\n'\n"


class InNetwork:
    """A proxy in another network namespace, which its HTTP port cannot be asked from."""

    def __init__(self, folder: Path, enter: tuple[str, ...], command: tuple[str, ...], forward: str) -> None:
        self._folder = folder
        options = ["--listen", "127.0.0.1:0", "--http", f"unix:{folder}/http", "--forward", forward]
        options += ["--recovery-path", str(folder / "recovery.json")]
        self._command = [*enter, *command, "fooproxy", *options]

    @contextmanager
    def started(self) -> Iterator[int]:
        """Run it; the result is the port it listens on."""
        log = self._folder / "log"
        with log.open("wb") as err, started(self._command, stdout=err, stderr=err, cwd=self._folder):
            found: Any = eventually(
                lambda: re.search(r"listening for clients on 127\.0\.0\.1:(\d+)\n", log.read_text())
            )
            yield int(found[1])


def test_a_unix_socket_whose_queue_is_full_most_of_the_time_makes_one_episode(tmp_path: Path) -> None:
    path = tmp_path / "foo.sock"
    with socket.socket(socket.AF_UNIX) as server, ExitStack() as stack:
        server.bind(str(path))
        server.listen(0)
        proxy = stack.enter_context(fooproxy(tmp_path, "--forward", f"unix:{path}", "--connect-timeout", "60"))
        filler = stack.enter_context(socket.socket(socket.AF_UNIX))
        filler.connect(str(path))
        clients = [stack.enter_context(connect(proxy.port)) for _ in range(30)]
        settles(lambda: ready(proxy)[0], 503)
        states = set()
        for _ in range(len(clients) + 1):
            peer, _ = server.accept()
            stack.enter_context(peer)
            states.add(ready(proxy)[0])
        assert states == {503}
        settles(lambda: ready(proxy)[0], 200)
        proxy.says("connected to upstream", times=1)
        (line,) = proxy.says("cannot connect to upstream", times=1)
        assert line.endswith(f" unix:{path}: its queue of new connections is full")
        assert closed(proxy) == {}
