"""A test bed whose clients connect over any kind of transport that a listener may have: TCP, unix, TLS, PROXY."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
import pytest_twisted
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet.endpoints import SSL4ClientEndpoint, TCP4ClientEndpoint, UNIXClientEndpoint
from twisted.internet.ssl import CertificateOptions

from fooproxy.net.addresses import server_endpoint
from fooproxy.net.sockets import is_writing, unacknowledged
from fooproxy.relay.interceptor import InterceptorFactory
from fooproxy.relay.timeouts import Timeouts
from tests.helpers.bed import TIMEOUTS, Bed, Peer, reactor, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from twisted.internet.interfaces import IListeningPort

KINDS = ["ours", "twisted's", "unix", "ssl", "haproxy"]


def only(*kinds: str) -> Any:
    """Run a test of `bed` with these kinds of transport alone."""
    return pytest.mark.parametrize("bed", kinds, indirect=True)


class AnyBed(Bed):
    """A bed whose clients connect over `transports`, one of `KINDS` or ``haproxy, ssl``.

    Its socket and certificate are in `folder`.
    """

    def __init__(self, transports: str, folder: Path, timeouts: Timeouts = TIMEOUTS) -> None:
        # As in the proxy, all connections have our own transports.
        super().__init__("twisted's" if transports == "twisted's" else "ours", timeouts)
        self.kind = transports
        self.header = b"PROXY TCP4 192.0.2.7 192.0.2.1 5555 8002\r\n"
        """The bytes that a load balancer sends first."""
        self._folder = folder

    async def listen_relay(self) -> IListeningPort:
        descriptions = {
            "unix": f"unix:{self._folder}/relay.sock",
            "ssl": f"ssl:0:interface=127.0.0.1:privateKey={self._folder}/relay.pem",
            "haproxy": "haproxy:tcp:0:interface=127.0.0.1",
            "haproxy, ssl": f"haproxy:ssl:0:interface=127.0.0.1:privateKey={self._folder}/relay.pem",
        }
        if self.kind not in descriptions:
            return await super().listen_relay()
        if "ssl" in self.kind:
            (self._folder / "relay.pem").write_bytes(certificate())
        factory = InterceptorFactory(self.bridge, lambda leg: leg.session.observer.client, self.tick)
        port: IListeningPort = await server_endpoint(reactor, descriptions[self.kind], poller=self.poller).listen(
            factory
        )
        return port

    async def client(self) -> Peer:
        address: Any = self.ports[1].getHost()
        if self.kind == "unix":
            endpoint: Any = UNIXClientEndpoint(reactor, address.name)
        elif self.kind == "ssl":
            endpoint = SSL4ClientEndpoint(reactor, "127.0.0.1", address.port, CertificateOptions())
        else:
            endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", address.port)
        peer: Peer = await endpoint.connect(self.clients)
        if "haproxy" in self.kind:
            peer.transport.write(self.header)
        if self.kind == "haproxy, ssl":
            peer.transport.startTLS(CertificateOptions())
        return peer

    async def pair(self) -> tuple[Peer, Peer]:
        peers = await super().pair()
        if self.kind == "ssl":
            # Complete the TLS handshake before the test lets any time pass.
            theirs: Any = peers[0].transport
            ours = self.session().client.transport
            await until(lambda: theirs._handshakeDone and not (is_writing(ours) or unacknowledged(ours)))
        return peers


def any_bed(*kinds: Any, timeouts: Timeouts = TIMEOUTS) -> Any:
    """Return the fixture `bed` of a module: a relay whose clients connect over each of these kinds of transport."""

    @pytest_twisted.async_yield_fixture(params=kinds)
    async def bed(twin: str, request: Any, tmp_path: Path) -> AsyncIterator[AnyBed]:
        bed = AnyBed(request.param, tmp_path, timeouts)
        await bed.start()
        yield bed
        await bed.stop()

    return bed


def certificate(host: str = "localhost", key: Any = None) -> bytes:
    """Return a key, new unless it is given, and a self-signed certificate for `host`, in PEM."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.now(timezone.utc)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    no_password = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    pem = serialization.Encoding.PEM
    written: bytes = key.private_bytes(pem, form, no_password) + signed.public_bytes(pem)
    return written
