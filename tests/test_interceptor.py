"""The interceptor shows everything to the analysis and changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher

from fooproxy.interceptor import Interceptor, InterceptorFactory

from .bed import Peer, Peers


def build(shown: list[bytes]) -> tuple[Interceptor, Peer]:
    peers = Peers()
    interceptor = InterceptorFactory(peers, lambda peer: shown.append).buildProtocol(None)
    return interceptor, peers.built[0]


def test_every_chunk_is_shown_and_passed_on_unchanged() -> None:
    shown: list[bytes] = []
    interceptor, peer = build(shown)
    for chunk in (b"REQ", b" 1\n", b"\x00\xff"):
        interceptor.dataReceived(chunk)
    assert shown == [b"REQ", b" 1\n", b"\x00\xff"]
    assert peer.received == b"REQ 1\n\x00\xff"


def ignore(chunk: bytes) -> None:
    """Analyze nothing."""


def test_the_protocol_writes_to_the_transport_itself() -> None:
    wrapped = Protocol()
    transport = StringTransport()
    Interceptor(wrapped, ignore).makeConnection(transport)
    assert wrapped.transport is transport


def test_every_end_is_passed_on() -> None:
    interceptor, peer = build([])
    assert IHalfCloseableProtocol.providedBy(interceptor)
    interceptor.readConnectionLost()
    interceptor.writeConnectionLost()
    assert peer.fin
    assert not peer.lost
    interceptor.connectionLost()
    assert peer.lost


def test_an_analysis_that_fails_does_not_fail_the_traffic() -> None:
    def fail(chunk: bytes) -> None:
        raise RuntimeError("a defect")

    peer = Peer()
    said: Any = []
    globalLogPublisher.addObserver(said.append)
    try:
        Interceptor(peer, fail).dataReceived(b"REQ 1\n")
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

    getattr(InterceptorFactory(Watched(), lambda protocol: ignore), name)()
    assert calls == [name]
