"""What an operator may write for an address."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from twisted.internet import endpoints, reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock

from fooproxy.net.addresses import HostPort, client_endpoint, host_port, server_endpoint
from fooproxy.net.arrival import ArrivalEndpoint
from fooproxy.net.failures import words
from fooproxy.net.poller import Poller
from tests.helpers.anybed import certificate


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8001", HostPort("", 8001)),
        (":8001", HostPort("", 8001)),
        ("localhost:8001", HostPort("localhost", 8001)),
        ("192.0.2.7:8001", HostPort("192.0.2.7", 8001)),
        ("[::1]:8001", HostPort("::1", 8001)),
        ("tcp:8001", None),
        ("unix:/run/foo.sock", None),
        ("nonsense", None),
    ],
)
def test_short_forms_are_told_from_descriptions(text: str, expected: HostPort | None) -> None:
    assert host_port(text) == expected


@pytest.mark.parametrize(
    ("text", "interface", "listens_on"),
    [
        ("8001", "", ("", 8001)),
        ("8001", "127.0.0.1", ("127.0.0.1", 8001)),
        ("[::1]:8001", "127.0.0.1", ("::1", 8001)),
        ("tcp:8001:interface=192.0.2.7", "127.0.0.1", ("192.0.2.7", 8001)),
    ],
)
def test_a_server_listens_where_it_was_told(text: str, interface: str, listens_on: tuple[str, int]) -> None:
    reactor: Any = MemoryReactorClock()
    server_endpoint(reactor, text, interface).listen(Factory())
    ((port, _, _, host),) = reactor.tcpServers
    assert (host, port) == listens_on


# Twisted causes this pyOpenSSL warning, not our code.
@pytest.mark.filterwarnings("ignore:X509.get_issuer:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")
@pytest.mark.parametrize(
    ("text", "backlog"),
    [
        ("8001", 4096),
        ("tcp:8001", 4096),
        ("haproxy:tcp:8001", 4096),
        ("tcp6:8001:interface=\\:\\:1", 4096),
        ("ssl:8001:privateKey=key.pem", 4096),
        ("haproxy:ssl:8001:privateKey=key.pem", 4096),
        ("tls:certificates:8001", 4096),
        ("tcp:8001:backlog=7", 7),
        ("tcp:8001:127.0.0.1:7", 7),
        ("tcp6:8001:7", 7),
        ("tls:certificates:8001:7", 7),
    ],
)
def test_many_clients_may_wait_to_be_accepted_unless_the_address_says_how_many(
    text: str, backlog: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("certificates").mkdir()
    for name in "key.pem", "certificates/localhost.pem":
        Path(name).write_bytes(certificate())
    reactor: Any = MemoryReactorClock()
    server_endpoint(reactor, text).listen(Factory())
    servers = [server[2] for server in reactor.tcpServers] + [server[3] for server in reactor.sslServers]
    assert servers == [backlog]


@pytest.mark.parametrize(
    ("text", "connects_to"),
    [(":8001", ("127.0.0.1", 8001)), ("192.0.2.7:8001", ("192.0.2.7", 8001)), ("[::1]:8001", ("::1", 8001))],
)
def test_a_client_connects_where_it_was_told(text: str, connects_to: tuple[str, int]) -> None:
    reactor: Any = MemoryReactorClock()
    client_endpoint(reactor, text).connect(Factory())
    assert reactor.tcpClients[0][:2] == connects_to


@pytest.mark.parametrize(
    ("text", "kind"),
    [("foo.example:8001", endpoints.HostnameEndpoint), ("unix:/run/foo.sock", endpoints.UNIXClientEndpoint)],
)
def test_names_and_descriptions_become_twisteds_endpoints(text: str, kind: type) -> None:
    endpoint = client_endpoint(MemoryReactorClock(), text)
    assert isinstance(endpoint, ArrivalEndpoint)
    assert isinstance(endpoint.endpoint, kind)


WRONG = ["", "foo", "-1", "70000", "host:", "host:70000", "[zz]:1", "::1:8001", "a:b:c", "http://foo:8001"]


@pytest.mark.parametrize("text", WRONG)
@pytest.mark.parametrize("endpoint", [server_endpoint, client_endpoint])
def test_anything_else_is_refused_with_the_value_and_what_would_be_right(endpoint: Any, text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a port|expected a port up to") as refusal:
        endpoint(MemoryReactorClock(), text)
    assert repr(text) in str(refusal.value)


@pytest.mark.parametrize("endpoint", [server_endpoint, client_endpoint])
def test_a_unix_socket_without_a_path_is_refused(endpoint: Any) -> None:
    with pytest.raises(ValueError, match=r"'unix:' has an empty path; expected .* such as unix:/run/foo\.sock"):
        endpoint(MemoryReactorClock(), "unix:")


@pytest.mark.parametrize("text", ["unix::mode=660", "unix:address=", "haproxy:unix:"])
def test_an_empty_path_is_found_wherever_a_server_may_have_one(text: str) -> None:
    with pytest.raises(ValueError, match="has an empty path"):
        server_endpoint(MemoryReactorClock(), text)


@pytest.mark.parametrize("endpoint", [server_endpoint, client_endpoint])
def test_a_unix_socket_with_a_path_that_the_kernel_does_not_take_is_refused(endpoint: Any) -> None:
    endpoint(MemoryReactorClock(), "unix:/" + "a" * 106)
    # Bytes count, not characters.
    with pytest.raises(ValueError, match="a path of 108 bytes; expected a path of 107 bytes at most"):
        endpoint(MemoryReactorClock(), "unix:/" + "a" * 105 + "\u00e9")


@pytest.mark.parametrize(
    "text", ["haproxy:8002", "haproxy::8002", "haproxy:foo", "haproxy:haproxy:tcp:8002", "haproxy:tls:8002"]
)
def test_what_is_no_description_after_haproxy_is_refused_as_a_whole(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected .* such as haproxy:tcp:8002") as refusal:
        server_endpoint(MemoryReactorClock(), text)
    assert repr(text) in str(refusal.value)


def test_nothing_can_connect_to_port_0() -> None:
    with pytest.raises(ValueError, match="port 0"):
        client_endpoint(MemoryReactorClock(), "0")


def test_a_socket_that_systemd_did_not_pass_is_missed_by_name() -> None:
    with pytest.raises(ValueError, match="not passed to this process"):
        server_endpoint(MemoryReactorClock(), "systemd:domain=INET:index=7")


@pytest.mark.parametrize("text", ["tls:8002", "tls:8002:interface=127.0.0.1", "tls:path=8002"])
def test_a_port_where_tls_wants_a_directory_of_certificates_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected ssl:8002:privateKey=key\.pem:certKey=cert\.pem") as refusal:
        server_endpoint(MemoryReactorClock(), text)
    assert repr(text) in str(refusal.value)


# Twisted and pyOpenSSL cause these, not our code.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("text", ["ssl:8002", "haproxy:ssl:8002"])
def test_parameters_that_openssl_would_refuse_with_the_first_client_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "key.pem").write_bytes(certificate())
    usable = f"{text}:privateKey={tmp_path}/key.pem"
    assert server_endpoint(MemoryReactorClock(), usable)
    with pytest.raises(ValueError, match=r"cannot be used for TLS \(.+\); expected keys, certificates and"):
        server_endpoint(MemoryReactorClock(), f"{usable}:dhParameters={tmp_path}/missing")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_key_that_openssl_takes_for_too_small_is_refused_on_either_side(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(certificate(key=rsa.generate_private_key(65537, 1024)))
    files = f"privateKey={tmp_path}/key.pem:certKey={tmp_path}/key.pem"
    try:
        server_endpoint(MemoryReactorClock(), f"ssl:8002:{files}")
    except ValueError as refusal:
        assert "key too small" in str(refusal)
    else:
        pytest.skip("this OpenSSL takes small keys")
    with pytest.raises(ValueError, match="key too small"):
        client_endpoint(MemoryReactorClock(), f"ssl:localhost:8001:{files}")


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_directory_without_certificates_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=f"'{tmp_path}/{name}', which is not a directory of certificates"):
        server_endpoint(MemoryReactorClock(), f"tls:{tmp_path}/{name}:8002")


# Twisted causes these, not our code.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_directory_of_certificates_is_listened_with(tmp_path: Path) -> None:
    folder = tmp_path / "with:colon"
    folder.mkdir()
    (folder / "foo.pem").write_bytes(certificate())
    reactor: Any = MemoryReactorClock()
    server_endpoint(reactor, f"tls:{tmp_path}/with\\:colon:8002").listen(Factory())
    assert reactor.tcpServers[0][0] == 8002


def test_a_zone_is_the_scope_of_the_address_that_is_connected() -> None:
    with closing(socket.create_server(("::1", 0), family=socket.AF_INET6)) as server:
        port = server.getsockname()[1]
        endpoint: Any = client_endpoint(reactor, f"[::1%lo]:{port}", Poller(reactor))
        transport: Any = endpoint.connect(Factory.forProtocol(Protocol)).result.transport
        assert transport.getPeer().scopeID == socket.if_nametoindex("lo")
        transport.abortConnection()


def test_a_zone_that_is_no_interface_is_a_failure_in_words() -> None:
    failed: Any = client_endpoint(reactor, "[fe80::77%nowhere]:9001", Poller(reactor)).connect(Factory())
    assert "no network interface is called nowhere" in words(failed.result.value)
    failed.addErrback(lambda _: None)
