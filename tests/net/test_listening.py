"""Listening without Twisted's log lines; tests/test_start.py has what becomes of locks."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.protocol import Factory
from twisted.logger import Logger, globalLogPublisher, textFileLogObserver
from twisted.python import log as legacy

from fooproxy.net.addresses import server_endpoint
from fooproxy.net.listening import listen_now
from tests.helpers.bed import reactor

publisher: Any = globalLogPublisher


class Quiet(Factory):
    noisy = False


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What a log file would have."""
    file = io.StringIO()
    observer = textFileLogObserver(file)
    publisher.addObserver(observer)
    yield file
    publisher.removeObserver(observer)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "tcp:0:interface=127.0.0.1", "haproxy:tcp:0", "unix:{}/foo.sock"])
@pytest_twisted.ensureDeferred
async def test_a_port_is_opened_and_closed_without_a_line(tmp_path: Path, log: io.StringIO, address: str) -> None:
    port: Any = listen_now(server_endpoint(reactor, address.format(tmp_path)), Quiet())
    await port.stopListening()
    assert log.getvalue() == ""


@pytest_twisted.ensureDeferred
async def test_what_others_log_meanwhile_is_written(log: io.StringIO) -> None:
    class Logging(Quiet):
        def doStart(self) -> None:
            Logger().info("a line of ours")

    port: Any = listen_now(server_endpoint(reactor, "127.0.0.1:0"), Logging())
    await port.stopListening()
    assert "a line of ours" in log.getvalue()


@pytest_twisted.ensureDeferred
async def test_an_error_that_twisted_logs_meanwhile_is_written(log: io.StringIO) -> None:
    class Failing(Quiet):
        def doStart(self) -> None:
            legacy.err(RuntimeError("at the start"), "a reason")

        def doStop(self) -> None:
            legacy.err(RuntimeError("at the end"))

    port: Any = listen_now(server_endpoint(reactor, "127.0.0.1:0"), Failing())
    await port.stopListening()
    assert "a reason" in log.getvalue() and "at the start" in log.getvalue() and "at the end" in log.getvalue()
    assert "Port" not in log.getvalue()
