"""The rules of a session, one by one, on transports that do nothing by themselves."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost, TimeoutError
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import alsoProvides

from fooproxy.relay.bridge import BridgeFactory
from fooproxy.relay.pooled import PooledSession
from fooproxy.relay.session import Session
from fooproxy.relay.timeouts import Timeouts
from fooproxy.stats.counters import Stats
from fooproxy.stats.session import SessionStats


class Bottom(FileDescriptor):
    """What is below TLS: it notes its end, and may still have bytes to send."""

    options_set_for = Timeouts().send

    def __init__(self, told: list[str], handle: Any = None) -> None:
        super().__init__(Clock())  # type: ignore[arg-type]
        self.told = told
        self.handle = handle

    def getHandle(self) -> Any:
        return self.handle

    def fileno(self) -> int:
        return -1 if self.handle is None else int(self.handle.fileno())

    def connectionLost(self, reason: Failure) -> None:
        self.told.append("let go")


class Wire:
    """A transport that notes what it is told, and what is written to it."""

    disconnecting = False
    disconnected = False
    fails = False
    """Whether a write fails."""

    def __init__(self, over_tls: bool = False) -> None:
        self.reading = True
        self.written = b""
        self.told: list[str] = []
        self.producer: Any = None
        self.transport: Any = None
        if over_tls:
            self.transport = Bottom(self.told)
            alsoProvides(self, ISSLTransport)

    def write(self, data: bytes) -> None:
        if self.fails:
            self.producer.stopProducing()
        else:
            self.written += data

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True

    def loseWriteConnection(self) -> None:
        self.told.append("fin")

    def loseConnection(self) -> None:
        self.told.append("close")

    def abortConnection(self) -> None:
        self.told.append("abort")

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.7", 1)


class Place:
    """One session whose peers are the test."""

    def __init__(self, client: Wire, upstream: Wire, is_held: bool = False, kind: type[Session[Any]] = Session) -> None:
        self.clock = Clock()
        self.stats = Stats(self.clock.seconds)
        self.client_wire, self.upstream_wire = client, upstream
        self.connecting: Deferred[Any] = Deferred() if is_held else succeed(None)
        self.factory: Any = None
        self.bridge = BridgeFactory[SessionStats](
            *(self._connect, lambda: SessionStats(self.stats), self.clock, Timeouts(client_fin=5.0)), session=kind
        )
        self.client: Any = self.bridge.buildProtocol(None)
        self.session: Any = self.client.session
        self.observer: Any = self.session.observer
        self.upstream: Any = None
        self.is_held = is_held
        wire: Any = client
        self.client.makeConnection(wire)

    def _connect(self, factory: Any) -> Deferred[Any]:
        self.factory = factory
        if not self.is_held:
            self.connected()
        return self.connecting

    def connected(self) -> None:
        self.upstream = self.factory.buildProtocol(None)
        self.upstream.makeConnection(self.upstream_wire)

    def asks(self, data: bytes) -> None:
        self.observer.client.feed(data, round(self.clock.seconds() * 1e6) + 1)
        self.client.dataReceived(data)

    def answers(self, data: bytes) -> None:
        self.observer.upstream.feed(data, round(self.clock.seconds() * 1e6) + 2)
        self.upstream.dataReceived(data)

    def lost(self, leg: Any, why: Exception | None = None) -> None:
        leg.connectionLost(Failure(why or ConnectionDone()))

    def told(self) -> tuple[list[str], list[str]]:
        return self.client_wire.told, self.upstream_wire.told

    @property
    def reason(self) -> str | None:
        found: str | None = self.session.reason
        return found

    def ended(self) -> dict[str, int]:
        assert not self.bridge.sessions
        return {reason: count for reason, count in self.stats.connections_closed.items() if count}


@pytest.fixture
def place() -> Place:
    return Place(Wire(), Wire())


# Connecting


def held(client: Wire | None = None) -> Place:
    return Place(client or Wire(), Wire(), is_held=True)


def test_a_client_is_not_read_until_its_upstream_is_connected() -> None:
    place = held()
    assert not place.client_wire.reading
    assert place.session.state == "connecting"
    place.connected()
    assert place.client_wire.reading
    assert place.session.state == "open"
    # Nobody looks after the client any more.
    assert place.session not in place.bridge.deadlines


def test_what_arrives_early_is_forwarded_first_and_in_order() -> None:
    place = held()
    place.asks(b"REQ 1\n")
    place.asks(b"REQ 2\n")
    assert place.upstream_wire.written == b""
    place.connected()
    place.asks(b"REQ 3\n")
    assert place.upstream_wire.written == b"REQ 1\nREQ 2\nREQ 3\n"


def test_an_upstream_that_is_connected_too_late_is_reset() -> None:
    place = held()
    place.session.abort()
    place.connected()
    assert place.upstream_wire.told == ["abort"]
    assert place.client_wire.told == ["abort"]


def test_a_failed_attempt_to_connect_closes_the_client_for_that_reason() -> None:
    place = held()
    place.connecting.errback(Failure(ConnectionRefusedError()))
    assert place.client_wire.told == ["close"]
    place.lost(place.client)
    assert list(place.ended()) == [place.reason]
    assert str(place.reason).startswith("upstream_")


def test_a_client_that_left_while_its_upstream_was_connected_ends_when_that_fails() -> None:
    place = held()
    place.asks(b"REQ 1\n")
    place.lost(place.client)
    assert place.bridge.sessions
    place.connecting.errback(Failure(ConnectionRefusedError()))
    assert len(place.ended()) == 1


def test_a_client_that_has_left_with_a_request_still_gets_it_forwarded() -> None:
    place = held()
    place.asks(b"REQ 1\n")
    place.lost(place.client)
    place.connected()
    assert place.upstream_wire.written == b"REQ 1\n"
    place.lost(place.upstream)
    assert place.ended() == {"client_closed": 1}


def test_a_drain_ends_a_session_that_is_still_connecting() -> None:
    place = held()
    place.session.drain()
    assert place.client_wire.told == ["close"]
    place.lost(place.client)
    assert place.ended() == {"drained": 1}


def test_a_client_over_tls_is_connected_after_its_handshake_or_closed_after_ten_seconds() -> None:
    shaken, late = Place(Wire(over_tls=True), Wire()), Place(Wire(over_tls=True), Wire())
    assert shaken.factory is None
    shaken.client.handshakeCompleted()
    assert shaken.upstream_wire.producer is shaken.client
    for place in (shaken, late):
        place.clock.pump([1.0] * 12)
    assert (shaken.session.closing, late.session.closing) == (False, True)
    assert late.reason == "client_tls"
    late.client.handshakeCompleted()
    assert late.factory is None


# Backpressure


def test_each_leg_is_the_producer_of_the_other(place: Place) -> None:
    assert place.client_wire.producer is place.upstream
    assert place.upstream_wire.producer is place.client
    place.upstream_wire.producer.pauseProducing()
    assert not place.client_wire.reading
    assert place.session.paused == ["client"]
    place.upstream_wire.producer.resumeProducing()
    assert place.client_wire.reading
    assert (place.session.paused, place.session.pauses) == ([], 1)


def test_a_client_that_was_paused_while_it_was_held_stays_paused() -> None:
    place = held()
    place.asks(b"REQ 1\n")

    def write(data: bytes) -> None:
        place.client.pauseProducing()

    place.upstream_wire.write = write  # type: ignore[method-assign]
    place.connected()
    assert not place.client_wire.reading


# A client's FIN


def test_a_client_that_has_all_its_replies_is_closed_at_its_fin(place: Place) -> None:
    place.asks(b"REQ 1\n")
    place.answers(b"ACK 1\n")
    place.client.readConnectionLost()
    assert place.told() == (["close"], ["close"])


def test_a_fin_is_passed_on_and_the_last_reply_ends_the_session(place: Place) -> None:
    place.asks(b"REQ 1\nREQ 2\n")
    place.client.readConnectionLost()
    assert place.told() == ([], ["fin"])
    assert place.session.state == "half-closed"
    place.answers(b"ACK 1\n")
    assert not place.session.closing
    place.answers(b"ACK 2\n")
    assert place.told() == (["close"], ["fin", "close"])
    assert place.client_wire.written == b"ACK 1\nACK 2\n"


def test_each_reply_after_a_fin_renews_the_deadline(place: Place) -> None:
    place.asks(b"REQ 1\nREQ 2\nREQ 3\n")
    place.client.readConnectionLost()
    for reply in (b"ACK 1\n", b"ACK 2\n"):
        place.clock.pump([1.0] * 4)
        place.answers(reply)
    assert not place.session.closing
    place.clock.pump([1.0] * 6)
    assert place.session.closing
    assert place.reason == "half_close_timeout"


def test_an_upstream_that_is_paused_for_a_slow_client_is_not_silent(place: Place) -> None:
    place.asks(b"REQ 1\n")
    place.client.readConnectionLost()
    place.client_wire.producer.pauseProducing()
    place.clock.pump([1.0] * 20)
    assert not place.session.closing
    place.client_wire.producer.resumeProducing()
    place.clock.pump([1.0] * 6)
    assert place.session.closing


def test_a_client_over_tls_that_closes_ends_the_session_as_by_a_fin() -> None:
    place = Place(Wire(over_tls=True), Wire())
    place.client.handshakeCompleted()
    place.asks(b"REQ 1\n")
    place.lost(place.client)
    # Its last request was whole, so the upstream is closed in good order.
    assert place.upstream_wire.told == ["close"]
    place.lost(place.upstream)
    assert place.ended() == {"client_closed": 1}


# Links


class Link:
    """What has lent the upstream's connection."""

    is_used = True

    def __init__(self) -> None:
        self.told: list[str] = []

    def drop(self) -> None:
        self.told.append("drop")


@pytest.mark.parametrize("end", ["fin", "loss"])
def test_a_link_that_ends_after_it_got_a_request_is_not_replaced_since_that_may_have_been_done(end: str) -> None:
    place = Place(Wire(), Wire(), is_held=True, kind=PooledSession)
    assert place.factory is None
    place.asks(b"REQ 1\n")
    factory: Any = place.factory
    place.upstream = factory.buildProtocol(None)
    place.upstream.link = Link()
    place.upstream.makeConnection(place.upstream_wire)
    assert place.upstream_wire.written == b"REQ 1\n"
    if end == "fin":
        place.upstream.readConnectionLost()
    else:
        place.lost(place.upstream)
    assert (place.upstream.link.told, place.reason) == ([], "upstream_closed")
    assert place.client_wire.told == ["fin"]


# The upstream's end


def test_the_upstreams_fin_is_passed_on_and_the_client_has_ten_seconds_to_close(place: Place) -> None:
    place.upstream.readConnectionLost()
    assert place.told() == (["fin"], [])
    assert place.session.state == "half-closed"
    place.clock.pump([1.0] * 9)
    assert not place.session.closing
    place.clock.pump([1.0] * 2)
    assert place.told() == (["fin", "close"], ["close"])
    assert place.reason == "upstream_closed"


def test_a_client_over_tls_is_closed_at_the_upstreams_fin() -> None:
    place = Place(Wire(over_tls=True), Wire())
    place.client.handshakeCompleted()
    place.upstream.readConnectionLost()
    assert place.client_wire.told == ["close"]


def test_both_fins_end_the_session(place: Place) -> None:
    place.asks(b"REQ 1\n")
    place.client.readConnectionLost()
    place.upstream.readConnectionLost()
    assert place.told() == (["close"], ["fin", "close"])


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        (ConnectionLost(), "upstream_reset"),
        (ConnectionDone(), "upstream_closed"),
        (TimeoutError(), "send_timeout"),
    ],
)
def test_a_client_reads_on_for_a_while_when_its_upstream_is_lost(place: Place, why: Exception, reason: str) -> None:
    place.asks(b"REQ 1\n")
    place.client_wire.producer.pauseProducing()
    place.client.pauseProducing()
    place.lost(place.upstream, why)
    assert place.client_wire.told == ["fin"]
    # What it sends is read and dropped, lest a reset overtakes the replies.
    assert place.client_wire.reading
    assert place.client_wire.producer is None
    assert place.session.state == "closing"
    place.clock.pump([1.0] * 11)
    assert place.client_wire.told == ["fin", "close"]
    place.lost(place.client)
    assert place.ended() == {reason: 1}


def test_a_client_that_has_sent_its_fin_is_closed_when_its_upstream_is_lost(place: Place) -> None:
    place.asks(b"REQ 1\n")
    place.client.readConnectionLost()
    place.lost(place.upstream)
    assert place.client_wire.told == ["close"]


# Writes that fail


def test_a_client_is_read_to_its_end_if_its_upstream_takes_no_more(place: Place) -> None:
    place.asks(b"REQ 1\n")
    place.upstream_wire.producer.pauseProducing()
    place.upstream_wire.producer.stopProducing()
    assert place.reason == "upstream_reset"
    assert place.client_wire.reading
    place.asks(b"REQ 2\n")
    assert place.upstream_wire.written == b"REQ 1\n"
    # Replies that were sent before still arrive.
    place.answers(b"ACK 1\n")
    assert place.client_wire.written == b"ACK 1\n"
    place.clock.pump([1.0] * 11)
    assert place.session.closing


def test_a_session_is_closed_if_its_client_takes_no_more(place: Place) -> None:
    place.asks(b"REQ 1\n")
    place.client_wire.producer.stopProducing()
    assert place.reason == "client_reset"
    assert place.told() == (["close"], ["close"])


# Cut short


def test_an_upstream_with_half_a_request_is_reset_but_by_the_clients_own_fin(place: Place) -> None:
    place.asks(b"REQ 1\nREQ")
    place.lost(place.client, ConnectionLost())
    assert place.upstream_wire.told == ["abort"]
    other = Place(Wire(), Wire())
    other.asks(b"REQ 1\nREQ 2")
    other.client.readConnectionLost()
    assert other.upstream_wire.told == ["fin"]


# A drain


def test_a_drained_session_that_is_settled_closes_at_once(place: Place) -> None:
    place.asks(b"REQ 1\n")
    place.answers(b"ACK 1\n")
    place.session.drain()
    assert place.told() == (["close"], ["close"])
    assert place.reason == "drained"


def test_a_drained_client_is_not_read_after_its_last_whole_request(place: Place) -> None:
    place.asks(b"REQ 1")
    place.session.drain()
    assert place.session.state == "draining"
    assert place.client_wire.reading
    place.asks(b" abc\nREQ 2\nREQ 3")
    assert place.upstream_wire.written == b"REQ 1 abc\nREQ 2\n"
    assert not place.client_wire.reading
    # If somebody resumes it all the same, nothing more is forwarded.
    place.asks(b" x\n")
    assert place.upstream_wire.written == b"REQ 1 abc\nREQ 2\n"


def test_a_drained_client_that_may_have_sent_more_gets_its_replies_and_a_fin_and_a_second(place: Place) -> None:
    place.asks(b"REQ 1\n")
    place.session.drain()
    assert not place.client_wire.reading
    place.answers(b"ACK 1\n")
    assert place.told() == (["fin"], ["close"])
    assert place.client_wire.reading
    place.clock.pump([0.3] * 4)
    assert place.client_wire.told == ["fin", "close"]
    assert place.reason == "drained"


def test_an_abort_says_that_a_drain_was_not_finished(place: Place) -> None:
    place.asks(b"REQ 1\n")
    place.session.drain()
    place.session.abort()
    assert place.told() == (["abort"], ["abort"])
    for leg in (place.client, place.upstream):
        place.lost(leg)
    assert place.ended() == {"aborted": 1}


# The end


@pytest.mark.parametrize(
    ("do", "reason"),
    [
        (lambda session: session.expire(), "idle_timeout"),
        (lambda session: session.give_up_replies(), "reply_timeout"),
        (lambda session: session.unread(session.client), "send_timeout"),
    ],
)
def test_a_session_ends_for_the_reason_that_it_is_given(place: Place, do: Callable[[Any], None], reason: str) -> None:
    do(place.session)
    for leg in (place.client, place.upstream):
        place.lost(leg)
    assert place.ended() == {reason: 1}


def test_one_that_reads_nothing_is_aborted_whatever_else_was_the_reason(place: Place) -> None:
    place.upstream.readConnectionLost()
    place.session.unread(place.client)
    assert place.client_wire.told == ["fin", "abort"]
    assert place.reason == "send_timeout"


def test_a_session_ends_once_when_both_its_legs_are_lost_and_leaves_nothing(place: Place) -> None:
    told: list[bool] = []
    place.bridge.session_ended = lambda: told.append(True)  # type: ignore[method-assign]
    place.client.readConnectionLost()
    place.lost(place.client)
    assert place.bridge.sessions
    place.lost(place.upstream)
    assert place.ended() == {"client_closed": 1}
    assert told == [True]
    assert place.session not in place.bridge.deadlines
    assert not hasattr(place.client, "session")
    assert not hasattr(place.upstream, "session")


def test_a_leg_is_not_written_to_after_its_end(place: Place) -> None:
    place.lost(place.client, ConnectionLost())
    place.answers(b"ACK 1\n")
    assert place.client_wire.written == b""


def over_tls() -> Place:
    place = Place(Wire(over_tls=True), Wire())
    place.client.handshakeCompleted()
    return place


def test_a_client_over_tls_is_read_until_it_answers_the_close() -> None:
    place = over_tls()
    place.client.pauseProducing()
    place.session.close()
    assert place.client_wire.told == ["close"]
    assert place.client_wire.reading


@pytest.mark.parametrize(("drain", "seconds"), [(False, 10), (True, 1)])
def test_a_peer_over_tls_that_does_not_answer_the_close_is_let_go_after_a_while(drain: bool, seconds: int) -> None:
    place = over_tls()
    if drain:
        place.session.drain()
    else:
        place.session.close()
    place.clock.pump([0.1] * (10 * seconds - 1))
    assert place.client_wire.told == ["close"]
    place.clock.pump([0.1] * 5)
    assert place.client_wire.told == ["close", "let go"]


def test_a_peer_over_tls_that_has_not_got_everything_is_not_let_go_but_asked_again() -> None:
    place = over_tls()
    place.client_wire.transport.dataBuffer = b"ACK 1\n"
    place.session.close()
    place.clock.pump([1.0] * 25)
    assert place.client_wire.told == ["close"]
    place.client_wire.transport.dataBuffer = b""
    place.clock.pump([1.0] * 11)
    assert place.client_wire.told == ["close", "let go"]


def test_a_client_is_known_by_what_its_load_balancer_says_and_its_handshake_is_still_to_come() -> None:
    place = Place(Wire(over_tls=True), Wire())
    place.client_wire.getPeer = lambda: IPv4Address("TCP", "198.51.100.1", 2)  # type: ignore[method-assign]
    place.session.identified(place.client)
    assert place.observer.address == "198.51.100.1:2"
    assert place.factory is None
    place.client.handshakeCompleted()
    assert place.factory is not None


def test_a_drained_client_whose_last_request_cannot_be_written_is_read_to_its_end(place: Place) -> None:
    place.asks(b"REQ 1")
    place.session.drain()
    place.upstream_wire.fails = True
    place.asks(b"\n")
    assert place.client_wire.reading


def test_an_abort_lets_a_client_have_what_the_kernel_has_for_it_once_it_was_drained(place: Place) -> None:
    gone: list[str] = []
    place.client_wire.transport = Bottom(gone)
    place.asks(b"REQ 1\n")
    place.session.drain()
    place.answers(b"ACK 1\n")
    assert place.client_wire.told == ["fin"]
    place.session.abort()
    assert gone == ["let go"]
    assert (place.client_wire.told, place.reason) == (["fin"], "drained")


def test_an_abort_resets_a_drained_client_for_which_bytes_still_wait_here(place: Place) -> None:
    place.asks(b"REQ 1\n")
    place.session.drain()
    place.answers(b"ACK 1\n")
    place.client_wire.transport = Bottom([])
    place.client_wire.transport.dataBuffer = b"ACK 1\n"
    place.session.abort()
    assert (place.client_wire.told, place.reason) == (["fin", "abort"], "aborted")


def test_a_drained_client_is_closed_once_it_has_taken_all_its_replies(place: Place) -> None:
    near, far = socket.socketpair()
    with near, far:
        near.send(b"ACK 1\n")
        place.client_wire.transport = Bottom([], near)
        place.session.drain()
        place.clock.pump([0.05] * 30)
        assert place.client_wire.told == ["fin"]
        far.recv(100)
        place.clock.pump([0.05] * 4)
        assert place.client_wire.told == ["fin", "close"]


def departing(client: Wire) -> Place:
    """A session that is connecting, and whose client has sent a FIN."""
    near, far = socket.socketpair()
    far.close()
    client.transport = Bottom(client.told, near)
    place = held(client)
    if place.factory is None:
        place.client.handshakeCompleted()
    return place


@pytest.mark.parametrize(
    ("is_over_tls", "holds", "reason"),
    [(False, False, "client_closed"), (True, False, "client_reset"), (False, True, None)],
)
def test_a_client_that_leaves_while_it_waits_is_noticed_unless_it_has_said_something(
    is_over_tls: bool, holds: bool, reason: str | None
) -> None:
    place = departing(Wire(is_over_tls))
    with place.client_wire.transport.handle:
        if holds:
            place.asks(b"REQ 1\n")
        place.clock.pump([0.5] * 4)
        assert place.reason == reason
        assert place.session.closing == (reason is not None)


def test_a_client_that_has_left_by_the_time_that_connecting_fails_is_the_reason() -> None:
    place = departing(Wire())
    with place.client_wire.transport.handle:
        place.connecting.errback(Failure(ConnectionRefusedError()))
        assert place.reason == "client_closed"


def test_a_client_held_twice_loses_nothing() -> None:
    place = held()
    place.asks(b"REQ 1\n")
    place.client.hold()
    place.asks(b"REQ 2\n")
    place.connected()
    assert place.upstream_wire.written == b"REQ 1\nREQ 2\n"


def test_a_drain_does_not_wait_for_a_request_that_no_server_has() -> None:
    place = held()
    place.asks(b"REQ 1\n")
    place.session.drain()
    assert (place.client_wire.told, place.reason) == (["close"], "drained")


def test_a_drained_client_that_was_paused_is_not_read_again_between_two_requests(place: Place) -> None:
    place.asks(b"REQ 1\n")
    place.client.pauseProducing()
    place.session.drain()
    place.client.resumeProducing()
    assert not place.client_wire.reading


def test_what_an_upstream_is_read_after_its_end_goes_nowhere(place: Place) -> None:
    place.asks(b"REQ 1\n")
    place.lost(place.upstream, ConnectionLost())
    place.upstream.dataReceived(b"ACK 1\n")
    assert place.client_wire.written == b""
    assert place.session in place.bridge.deadlines
    place.lost(place.client)
    assert place.session not in place.bridge.deadlines


def test_an_upstream_that_was_paused_when_it_finished_is_silent(place: Place) -> None:
    place.client_wire.producer.pauseProducing()
    place.upstream.readConnectionLost()
    place.clock.pump([1.0] * 11)
    assert place.session.closing


def test_nobody_produces_for_a_leg_that_closes(place: Place) -> None:
    place.session.close()
    assert place.client_wire.producer is place.upstream_wire.producer is None


@pytest.mark.parametrize("is_over_tls", [False, True])
def test_the_clients_own_end_completes_its_last_line(is_over_tls: bool) -> None:
    place = over_tls() if is_over_tls else Place(Wire(), Wire())
    place.asks(b"REQ 1")
    if is_over_tls:
        place.lost(place.client)
    else:
        place.client.readConnectionLost()
        place.clock.pump([1.0] * 6)
    assert place.upstream_wire.told[-1] == "close"


def test_a_failure_of_tls_is_told_from_a_reset() -> None:
    place = over_tls()
    place.lost(place.client, SSL.Error([("SSL routines", "", "bad record mac")]))
    assert place.reason == "client_tls"


def test_the_end_of_an_upstream_that_is_gone_already_has_its_own_reason(place: Place) -> None:
    place.upstream_wire.transport = Bottom([])
    place.upstream_wire.transport.disconnected = 1
    place.upstream_wire.producer.stopProducing()
    assert place.reason is None


def test_a_client_with_a_fin_of_ours_gets_no_second_one(place: Place) -> None:
    place.upstream.readConnectionLost()
    place.lost(place.upstream)
    assert place.client_wire.told == ["fin"]


def test_a_session_that_closes_has_no_deadline_but_those_of_its_close() -> None:
    place = held()
    place.session.close()
    assert place.session not in place.bridge.deadlines
    assert place.connecting.called


def test_the_observer_is_told_of_pauses_and_of_legs_that_are_ignored(place: Place) -> None:
    told: list[Any] = []
    place.session.observer = Told(place.observer, told)
    place.client.pauseProducing()
    place.client.resumeProducing()
    # It was not paused, so this is no resume.
    place.client.resumeProducing()
    place.upstream.pauseProducing()
    place.session.close()
    assert told[:3] == [("paused", "client"), ("resumed", "client"), ("paused", "upstream")]
    assert set(told[3:]) == {("ignored", "client"), ("ignored", "upstream")}


class Told:
    """An observer that notes some calls."""

    def __init__(self, observer: Any, told: list[Any]) -> None:
        self._observer, self._told = observer, told

    def __getattr__(self, name: str) -> Any:
        if name in ("paused", "resumed", "ignored"):
            return lambda leg: self._told.append((name, leg))
        return getattr(self._observer, name)
