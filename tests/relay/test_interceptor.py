"""The interceptor shows every chunk to the analyzer and changes nothing."""

from __future__ import annotations

from time import monotonic_ns
from typing import Any

import pytest
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher

from fooproxy.relay.interceptor import Interceptor, InterceptorFactory
from tests.helpers.bed import Peer, Peers


class Recorder:
    """A tap that records each chunk it is shown, with its time."""

    outlet = -1
    room = 0

    def __init__(self) -> None:
        self.waiting: list[tuple[Recorder, bytes, int]] = []
        self.shown: list[tuple[bytes, int]] = []

    def feed(self, chunk: bytes, time: int) -> None:
        self.waiting.append((self, chunk, time))
        self.catch_up()

    def catch_up(self) -> None:
        self.shown += [(chunk, time) for _, chunk, time in self.waiting]
        self.waiting.clear()


class Broken(Recorder):
    """A tap that raises."""

    def catch_up(self) -> None:
        raise RuntimeError("a defect")


def build(tap: Recorder) -> tuple[Interceptor, Peer]:
    peers = Peers()
    interceptor = InterceptorFactory(peers, lambda peer: tap, lambda: 7).buildProtocol(None)
    return interceptor, peers.built[0]


def test_every_chunk_is_shown_and_passed_on_unchanged() -> None:
    tap = Recorder()
    interceptor, peer = build(tap)
    for chunk in (b"REQ", b" 1\n", b"\x00\xff"):
        interceptor.dataReceived(chunk)
    assert tap.shown == [(b"REQ", 7), (b" 1\n", 7), (b"\x00\xff", 7)]
    assert peer.received == b"REQ 1\n\x00\xff"


def test_the_protocol_writes_to_the_transport_itself() -> None:
    wrapped = Protocol()
    transport = StringTransport()
    Interceptor(wrapped, Recorder(), monotonic_ns).makeConnection(transport)
    assert wrapped.transport is transport


def test_every_end_is_passed_on() -> None:
    interceptor, peer = build(Recorder())
    assert IHalfCloseableProtocol.providedBy(interceptor)
    interceptor.readConnectionLost()
    interceptor.writeConnectionLost()
    assert peer.fin
    assert not peer.lost
    interceptor.connectionLost()
    assert peer.lost


def test_an_analysis_that_fails_does_not_fail_the_traffic() -> None:
    peer = Peer()
    interceptor = Interceptor(peer, Broken(), monotonic_ns)
    said: Any = []
    globalLogPublisher.addObserver(said.append)
    try:
        interceptor.dataReceived(b"REQ 1\n")
    finally:
        globalLogPublisher.removeObserver(said.append)
    assert peer.received == b"REQ 1\n"
    assert len(said) == 1


@pytest.mark.parametrize("name", ["doStart", "doStop"])
def test_the_wrapped_factory_is_started_and_stopped(name: str) -> None:
    calls: list[str] = []

    class Watched(Factory):
        def doStart(self) -> None:
            calls.append("doStart")

        def doStop(self) -> None:
            calls.append("doStop")

    getattr(InterceptorFactory(Watched(), lambda protocol: Recorder(), monotonic_ns), name)()
    assert calls == [name]
