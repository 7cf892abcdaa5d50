"""The trail: a client is recognized as ourselves by both ends of its connection, or by its process."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from fooproxy.net import trail as module
from fooproxy.net.sockets import peer_process
from fooproxy.net.trail import Trail

HERE, SERVER, CLIENT = ("192.0.2.1", 8002), ("192.0.2.9", 8002), ("192.0.2.1", 40_000)


class Socket:
    """A TCP socket with these addresses."""

    family = socket.AF_INET

    def __init__(self, name: Any, peer: Any = None) -> None:
        self._name, self._peer = name, peer

    def getsockname(self) -> Any:
        return self._name

    def getpeername(self) -> Any:
        if self._peer is None:
            raise OSError("not connected")
        return self._peer


@pytest.fixture
def trail() -> Trail:
    trail = Trail()
    trail.listens(Socket(("0.0.0.0", 8002)))
    return trail


def test_the_other_end_of_a_connection_of_ours_is_recognized_once(trail: Trail) -> None:
    trail.note(Socket(CLIENT, HERE))
    assert trail.was_made_here(Socket(HERE), CLIENT)
    # The next one with these addresses is somebody else's.
    assert not trail.was_made_here(Socket(HERE), CLIENT)


def test_what_is_about_to_be_connected_is_recognized_by_where_it_shall_lead(trail: Trail) -> None:
    trail.note(Socket(CLIENT), HERE)
    assert trail.was_made_here(Socket(HERE), CLIENT)


def test_what_is_connected_is_recognized_by_where_it_leads_and_not_by_what_was_meant(trail: Trail) -> None:
    trail.note(Socket(CLIENT, HERE), ("0.0.0.0", 8002))
    assert trail.was_made_here(Socket(HERE), CLIENT)


def test_a_socket_for_both_families_shows_other_addresses_of_the_same_connection(trail: Trail) -> None:
    trail.note(Socket(CLIENT, HERE))
    assert trail.was_made_here(Socket(("::ffff:192.0.2.1", 8002, 0, 0)), ("::ffff:192.0.2.1", 40_000, 0, 0))


def test_a_client_with_the_local_port_of_a_connection_to_another_server_is_not_taken_for_ours(trail: Trail) -> None:
    trail.note(Socket(CLIENT, SERVER))
    assert not trail.was_made_here(Socket(HERE), CLIENT)


def test_connections_to_ports_on_which_we_do_not_listen_are_not_noted(trail: Trail) -> None:
    assert trail.leads_here(("127.0.0.1", 8002)) and not trail.leads_here(("127.0.0.1", 8001))
    trail.note(Socket(CLIENT, ("192.0.2.1", 8001)))
    assert not trail.was_made_here(Socket(("192.0.2.1", 8001)), CLIENT)


def test_a_connection_that_is_over_is_no_failure(trail: Trail) -> None:
    trail.note(Socket(CLIENT))
    trail.note(Socket(CLIENT, HERE))
    assert not trail.was_made_here(Socket(HERE), ("192.0.2.1", 40_001))


def test_only_so_many_are_remembered(trail: Trail) -> None:
    for port in range(module._MOST + 1):
        trail.note(Socket(("192.0.2.1", port), HERE))
    assert not trail.was_made_here(Socket(HERE), ("192.0.2.1", 0))
    assert trail.was_made_here(Socket(HERE), ("192.0.2.1", 1))


@pytest.mark.parametrize("spelling", ["folder/../relay", "link/relay", "relay.link"])
def test_a_unix_socket_is_the_same_by_whatever_path(trail: Trail, tmp_path: Path, spelling: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "relay.link").symlink_to("relay")
    target = str(tmp_path / spelling)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as ours:
        listener.bind(str(tmp_path / "relay"))
        listener.listen()
        trail.listens(listener)
        assert trail.leads_here(target) and not trail.leads_here(str(tmp_path / "other"))
        ours.connect(target)
        accepted, address = listener.accept()
        with accepted:
            trail.note(ours, target)
            assert trail.was_made_here(accepted, address)


def test_on_a_unix_socket_our_own_process_is_recognized_if_it_connects_there(tmp_path: Path) -> None:
    trail = Trail()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as ours:
        listener.bind(str(tmp_path / "relay"))
        listener.listen()
        trail.listens(listener)
        ours.connect(str(tmp_path / "relay"))
        accepted, address = listener.accept()
        with accepted:
            assert not trail.was_made_here(accepted, address)
            trail.note(ours)
            assert trail.was_made_here(accepted, address)
            assert peer_process(accepted) == (os.getpid(), os.getuid())
