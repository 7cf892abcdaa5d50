"""The parts, made without a reactor: what an option says reaches the part that it is for."""

from __future__ import annotations

from typing import Any

from twisted.internet.testing import MemoryReactorClock

from fooproxy.commandline import Options
from fooproxy.parts import Parts


def made(*arguments: str) -> Any:
    """Return the parts as a command line asks for them; private ones are looked at, as nothing runs."""
    options = Options({})
    options.parseOptions(arguments)
    return Parts(options, MemoryReactorClock(), lambda session, reason: None)


def test_links_are_kept_as_long_as_the_options_say() -> None:
    (server,) = made("--pool=session", "--pool-max-age=77", "--pool-idle-timeout=88").upstreams.servers
    assert server.links._limits == (77.0, 88.0)


def test_servers_are_checked_as_the_options_say() -> None:
    rules = made("--check=tcp", "--check-interval=7", "--check-rise=4", "--check-fall=6")._checks.rules
    assert (rules.interval, rules.rise, rules.fall) == (7.0, 4, 6)
