"""A connection counts as made when it can be used: after its TLS handshake, and not if it has met itself."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectError, ConnectionRefusedError
from twisted.internet.interfaces import ISSLTransport

from fooproxy.net.addresses import client_endpoint
from fooproxy.net.arrival import ArrivalEndpoint
from fooproxy.net.failures import HandshakeCancelled, HandshakeError, kind, words
from fooproxy.net.poller import Poller
from tests.helpers.anybed import certificate
from tests.helpers.bed import Peers, reactor, until
from tests.helpers.fooserver import PATIENCE, free_port

ensure = pytest_twisted.ensureDeferred

# Twisted causes this pyOpenSSL warning, not our code.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


class Server:
    """Accepts in a thread of its own, greets each client, and echoes what it sends if it is over TLS."""

    def __init__(self, context: ssl.SSLContext | None = None, greeting: bytes = b"hello") -> None:
        self._context = context
        self._greeting = greeting
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.ends = 0
        """How many connections have ended."""
        self.heard = 0
        """How many bytes have come."""
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            peer.settimeout(PATIENCE)
            with suppress(OSError):
                if self._context is not None:
                    peer = self._context.wrap_socket(peer, server_side=True)
                peer.sendall(self._greeting)
                while data := peer.recv(1 << 16):
                    self.heard += len(data)
                    if self._context is not None:
                        peer.sendall(data)
            peer.close()
            self.ends += 1

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        self._listener.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a server's key and certificate, and one of certificates to trust."""
    for name, host in (("server", "localhost"), ("other", "elsewhere.example")):
        (tmp_path / f"{name}.pem").write_bytes(certificate(host))
        (tmp_path / f"trust-{name}").mkdir()
        (tmp_path / f"trust-{name}" / "ca.pem").write_bytes((tmp_path / f"{name}.pem").read_bytes())
    return tmp_path


def context(folder: Path, name: str = "server") -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(folder / f"{name}.pem")
    return made


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    made: list[Server] = []
    yield made
    for server in made:
        server.close()


def described(port: int, folder: Path, form: str = "tls", trust: str = "trust-server") -> Any:
    """Return an endpoint that connects over TLS, by either of Twisted's descriptions."""
    if form == "tls":
        text = f"tls:localhost:{port}:trustRoots={folder}/{trust}:endpoint=tcp\\:127.0.0.1\\:{port}"
    else:
        text = f"ssl:127.0.0.1:{port}:hostname=localhost:caCertsDir={folder}/{trust}"
    return client_endpoint(reactor, text)


FORMS = pytest.mark.parametrize("form", ["tls", "ssl"])


@ensure
@FORMS
async def test_a_connection_over_tls_is_made_after_its_handshake(
    form: str, folder: Path, servers: list[Server]
) -> None:
    servers.append(Server(context(folder)))
    peer: Any = await described(servers[0].port, folder, form).connect(Peers())
    assert ISSLTransport.providedBy(peer.transport)
    assert peer.transport.getPeerCertificate() is not None
    peer.transport.write(b" and more")
    await until(lambda: peer.received == b"hello and more")
    peer.transport.abortConnection()
    await until(lambda: peer.lost)


@ensure
@FORMS
async def test_a_server_that_never_shakes_hands_is_not_connected(
    form: str, folder: Path, servers: list[Server]
) -> None:
    servers.append(Server(greeting=b""))
    peers = Peers()
    connecting = described(servers[0].port, folder, form).connect(peers)
    failures: list[Any] = []
    connecting.addErrback(failures.append)
    await until(lambda: servers[0].heard)
    assert not connecting.called and not peers.built
    connecting.cancel()
    assert failures[0].check(HandshakeCancelled)
    await until(lambda: servers[0].ends)


@ensure
@FORMS
@pytest.mark.parametrize(
    ("name", "trust", "expected"),
    [
        ("server", "trust-other", "certificate verify failed (is its issuer in trustRoots, and is it still valid?)"),
        ("other", "trust-other", "its certificate is for another host name"),
    ],
)
async def test_a_certificate_that_is_not_accepted_is_named_as_the_reason(
    form: str, folder: Path, servers: list[Server], name: str, trust: str, expected: str
) -> None:
    servers.append(Server(context(folder, name)))
    peers = Peers()
    with pytest.raises(HandshakeError) as failed:
        await described(servers[0].port, folder, form, trust).connect(peers)
    assert str(failed.value) == f"TLS handshake failed: {expected}"
    assert kind(failed.value) == "tls"
    assert not peers.built


@ensure
@FORMS
async def test_a_server_without_tls_is_told_from_one_that_is_down(
    form: str, folder: Path, servers: list[Server]
) -> None:
    servers.append(Server(greeting=b"NAK 0 ERRDECODE\n"))
    with pytest.raises(HandshakeError, match=r"\(does it speak TLS\?\)"):
        await described(servers[0].port, folder, form).connect(Peers())


@ensure
@FORMS
async def test_a_server_that_closes_instead_of_shaking_hands_is_told_apart_too(form: str, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connecting = described(listener.getsockname()[1], folder, form).connect(Peers())
        reactor.callInThread(lambda: listener.accept()[0].close())
        with pytest.raises(HandshakeError, match="the peer closed the connection"):
            await connecting


@ensure
async def test_a_server_that_rejects_our_certificate_after_the_handshake_is_reported(
    folder: Path, servers: list[Server]
) -> None:
    demanding = context(folder)
    demanding.verify_mode = ssl.CERT_REQUIRED
    demanding.load_verify_locations(folder / "trust-other" / "ca.pem")
    servers.append(Server(demanding))
    endpoint = described(servers[0].port, folder)
    rejections: list[Exception] = []
    endpoint.rejected = rejections.append
    peer: Any = await endpoint.connect(Peers())
    await until(lambda: peer.lost)
    (rejection,) = rejections
    assert "certificate required" in str(rejection)


@pytest.fixture
def closed_port() -> int:
    return free_port()


def is_free(address: tuple[str, int]) -> bool:
    with socket.socket() as server, suppress(OSError):
        server.bind(address)
        return True
    return False


@ensure
async def test_a_connection_of_twisteds_that_meets_itself_is_refused(closed_port: int) -> None:
    here = ("127.0.0.1", closed_port)
    peers = Peers()
    with pytest.raises(ConnectionRefusedError):
        await ArrivalEndpoint(TCP4ClientEndpoint(reactor, *here, bindAddress=here)).connect(peers)
    assert not peers.built
    # The server can bind its port, without waiting for the kernel to forget the connection.
    await until(lambda: is_free(here))


@ensure
async def test_a_connection_of_ours_that_meets_itself_is_refused(
    closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ("127.0.0.1", closed_port)

    class Bound(socket.socket):
        """Has the very port that it connects to."""

        def connect_ex(self, address: Any) -> int:
            with suppress(OSError):
                self.bind(here)
            return super().connect_ex(address)

    endpoint = client_endpoint(reactor, f"127.0.0.1:{closed_port}", Poller(reactor))
    peers = Peers()
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", Bound)
        connecting = endpoint.connect(peers)
    with pytest.raises(ConnectionRefusedError):
        await connecting
    assert not peers.built
    await until(lambda: is_free(here))


@ensure
async def test_a_unix_socket_with_a_full_queue_says_so(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as first:
        server.bind(str(tmp_path / "foo.sock"))
        server.listen(0)
        first.connect(str(tmp_path / "foo.sock"))
        with pytest.raises(ConnectError) as failed:
            await client_endpoint(reactor, f"unix:{tmp_path}/foo.sock").connect(Peers())
    assert words(failed.value) == "its queue of new connections is full"
    assert kind(failed.value) == "unreachable"
