"""What the environment has and the proxy does not use is noted if somebody seems to have meant it."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet import endpoints
from twisted.python.systemd import ListenFDs

from fooproxy.commandline import Options
from fooproxy.environment import left_over, misspelt
from fooproxy.options import OPTIONS
from tests.test_checking import checked

VARIABLES = [option.variable for option in OPTIONS]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("FOOPROXY_LISTN", "FOOPROXY_LISTEN"),
        ("FOOPROXY_FORWARDS", "FOOPROXY_FORWARD"),
        ("FOOPROXY_IDLETIMEOUT", "FOOPROXY_IDLE_TIMEOUT"),
        ("fooproxy_listen", "FOOPROXY_LISTEN"),
        ("FOOPROXY-LOG-FORMAT", "FOOPROXY_LOG_FORMAT"),
    ],
)
def test_a_variable_that_is_almost_an_option_is_noted(name: str, meant: str) -> None:
    (note,) = misspelt({name: "x", "PATH": "/bin"}, VARIABLES)
    assert str(note) == f"the environment variable {name} is not used; did you mean {meant}?"


@pytest.mark.parametrize(
    "name",
    [
        *VARIABLES,
        "FOOPROXY_PURE",
        "FOOPROXY_EXTENSION",
        "FOOPROXY_PORT",
        "FOOPROXY_PORT_8002_TCP_ADDR",
        "FOOPROXY_SERVICE_HOST",
        "FOOPROXY_HTTP_PORT",
        "FOOPROXY_CONTROL_SERVICE_PORT_HTTP",
        "FOOPROXY_IMAGE",
        "FOO_LISTEN",
    ],
)
def test_what_others_have_reasons_to_set_is_not(name: str) -> None:
    assert not list(misspelt({name: "tcp://192.0.2.1:8002"}, VARIABLES))


def test_an_empty_variable_counts_as_not_set() -> None:
    assert not list(misspelt({"FOOPROXY_LISTN": ""}, VARIABLES))


def test_a_check_prints_the_note_and_passes(capsys: Any) -> None:
    status, _, err = checked(capsys, FOOPROXY_LISTN="8003")
    assert (status, err) == (
        0,
        "fooproxy: the environment variable FOOPROXY_LISTN is not used; did you mean FOOPROXY_LISTEN?\n",
    )


@pytest.mark.parametrize(
    ("listen", "used"), [("systemd:domain=INET:index=0", 1), ("haproxy:systemd:domain=INET:index=1", 1), ("8003", 0)]
)
def test_sockets_that_were_passed_and_are_not_used_are_noted(listen: str, used: int, monkeypatch: Any) -> None:
    # Twisted has looked at the environment when it was imported.
    passed = ListenFDs([3, 4], ("foo", "bar"))
    monkeypatch.setattr(endpoints._SystemdParser, "_sddaemon", passed)
    options = Options({})
    options.parseOptions(["--listen", listen])
    (note,) = options.notes
    assert str(note).startswith(f"{used} of 2 sockets that were passed to this process (LISTEN_FDS) are used; ")


def test_nothing_is_noted_if_all_sockets_that_were_passed_are_used() -> None:
    assert not list(left_over(2, 2))
