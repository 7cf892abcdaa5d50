"""Connecting to a single server: retries, the shared queue, the timeout, and the state known afterwards."""

from __future__ import annotations

import errno
import gc
from typing import Any

import pytest
from OpenSSL.SSL import Error as TLSError
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    DNSLookupError,
    TimeoutError,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from fooproxy.net.arrival import ArrivalEndpoint
from fooproxy.net.deadlines import Deadlines
from fooproxy.net.failures import HandshakeCancelled, HandshakeError, kind
from fooproxy.stats.reasons import CONNECT_FAILURES
from fooproxy.upstreams.probe import stays
from fooproxy.upstreams.server import Server
from fooproxy.upstreams.servers import Servers
from tests.upstreams.test_servers import Line

TIMEOUT = 5.0
STEADY = 2.0
"""Seconds without a failure after which an upstream to which connections succeed again is reachable."""


class Upstream(Server):
    """The only server of a set."""

    def __init__(self, endpoint: Any, name: str, clock: Clock, timeout: float) -> None:
        super().__init__(endpoint, name, clock)
        self.all = Servers([self], clock, timeout)

    def serve(self, factory: Factory) -> Deferred[Any]:
        """Connect as the set does."""
        return self.all.connect(factory)


class Endpoint:
    """Lets the test decide the outcome of each attempt."""

    def __init__(self) -> None:
        self.attempts: list[Deferred[Any]] = []
        self.factories: list[Factory] = []

    def connect(self, factory: Factory) -> Deferred[Any]:
        # Cancelling fails in the same way as with Twisted's TCP endpoints.
        attempt: Deferred[Any] = Deferred(lambda d: d.errback(ConnectingCancelledError(None)))
        self.attempts.append(attempt)
        self.factories.append(factory)
        return attempt


class Case:
    def __init__(self, timeout: float = TIMEOUT) -> None:
        self.clock = Clock()
        self.endpoint = Endpoint()
        self.upstream = Upstream(self.endpoint, "foo:8001", self.clock, timeout)
        self.results: list[Any] = []
        self.connecting = self.upstream.serve(Factory.forProtocol(Protocol))
        self.connecting.addBoth(self.results.append)

    def refuse(self) -> None:
        self.endpoint.attempts[-1].errback(ConnectionRefusedError())


def test_a_connection_is_handed_on() -> None:
    case = Case()
    case.endpoint.attempts[0].callback("protocol")
    assert case.results == ["protocol"]
    case.clock.advance(TIMEOUT)
    assert not case.clock.getDelayedCalls()


def test_a_connection_made_at_once_leaves_no_timer() -> None:
    class AtOnce:
        def connect(self, factory: Factory) -> Deferred[Any]:
            return succeed("protocol")

    clock = Clock()
    results: list[Any] = []
    Upstream(AtOnce(), "foo:8001", clock, TIMEOUT).serve(Factory()).addCallback(results.append)
    assert results == ["protocol"]
    assert not clock.getDelayedCalls()


def test_a_refused_attempt_is_repeated_after_a_pause_that_grows() -> None:
    case = Case()
    pauses = []
    for _ in range(5):
        case.refuse()
        seen, pause = len(case.endpoint.attempts), 0.0
        while len(case.endpoint.attempts) == seen:
            case.clock.advance(0.01)
            pause += 0.01
        pauses.append(pause)
    assert pauses[0] <= 0.06
    assert pauses[3] > pauses[0]
    assert max(pauses) <= 1.01


class Crowd:
    """`count` requests at once for a connection to an upstream that is down until `up` is set."""

    def __init__(self, count: int, timeout: float = TIMEOUT) -> None:
        self.clock = Clock()
        self.up = False
        self.tries: list[float] = []
        self.upstream = Upstream(self, "foo:8001", self.clock, timeout)
        self.results: list[Any] = []
        self.waiting = [self.join() for _ in range(count)]

    def join(self) -> Deferred[Any]:
        return self.upstream.serve(Factory.forProtocol(Protocol)).addBoth(self.results.append)

    def connect(self, factory: Factory) -> Deferred[Any]:
        self.tries.append(self.clock.seconds())
        return succeed(factory.buildProtocol(None)) if self.up else fail(ConnectionRefusedError())

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.01)):
            self.clock.advance(0.01)


def test_all_who_wait_share_one_series_of_attempts_and_are_let_in_one_after_the_other() -> None:
    crowd = Crowd(1000)
    crowd.pass_time(3)
    assert 5 <= len(crowd.tries) <= 12
    assert not crowd.results
    crowd.up, down = True, len(crowd.tries)
    crowd.pass_time(1.8)
    assert len(crowd.results) == 1000
    assert not any(isinstance(result, Failure) for result in crowd.results)
    moments = crowd.tries[down:]
    assert len(moments) == 1000
    # Spread over at least fifty moments.
    assert max(map(moments.count, moments)) <= 20
    crowd.pass_time(60)
    assert not crowd.clock.getDelayedCalls()


def test_who_comes_while_the_upstream_is_down_joins_those_who_wait() -> None:
    crowd = Crowd(1)
    crowd.pass_time(1)
    tried = len(crowd.tries)
    for _ in range(100):
        crowd.join()
    assert len(crowd.tries) == tried
    crowd.up = True
    crowd.pass_time(2)
    assert len(crowd.results) == 101


def test_after_a_success_a_new_failure_begins_with_short_pauses() -> None:
    crowd = Crowd(1)
    crowd.pass_time(4)
    crowd.up = True
    crowd.pass_time(STEADY + 1)
    assert crowd.upstream.state == "up"
    crowd.up, crowd.tries = False, []
    crowd.join()
    crowd.pass_time(0.2)
    assert len(crowd.tries) >= 3


def test_each_who_waits_fails_at_his_own_deadline_for_the_last_reason() -> None:
    crowd = Crowd(1)
    crowd.pass_time(2)
    crowd.join()
    crowd.pass_time(3.2)
    assert len(crowd.results) == 1
    crowd.pass_time(2)
    assert [result.check(ConnectionRefusedError) for result in crowd.results] == [ConnectionRefusedError] * 2


def test_letting_in_stops_when_the_upstream_goes_down_again_and_goes_on_later() -> None:
    crowd = Crowd(100)
    crowd.up = True
    while len(crowd.results) < 10:
        crowd.clock.advance(0.01)
    crowd.up, crowd.tries = False, []
    crowd.pass_time(1)
    assert len(crowd.tries) <= 10
    crowd.up = True
    crowd.pass_time(2)
    assert len(crowd.results) == 100
    assert not any(isinstance(result, Failure) for result in crowd.results)


def test_the_connection_made_for_all_goes_to_who_has_waited_longest_of_those_still_there() -> None:
    case = Case()
    case.refuse()
    case.clock.advance(0.05)
    (attempt,) = case.endpoint.attempts[1:]
    second = case.upstream.serve(Factory.forProtocol(Protocol))
    case.connecting.addErrback(lambda _: None).cancel()
    factory = case.endpoint.factories[1]
    attempt.callback(factory.buildProtocol(None))
    assert isinstance(second.result, Protocol)
    assert len(case.endpoint.attempts) == 2


def test_an_attempt_for_those_who_wait_that_hangs_is_made_anew() -> None:
    case = Case(timeout=60)
    case.refuse()
    case.clock.advance(0.05)
    case.clock.advance(5.1)
    case.clock.advance(1)
    assert len(case.endpoint.attempts) == 3
    assert case.upstream.error == "no answer within 5 s"
    assert not case.results


def test_a_success_elsewhere_ends_an_attempt_that_hangs_and_lets_in_those_who_wait() -> None:
    case = Case()
    other: list[Any] = []
    case.upstream.serve(Factory()).addBoth(other.append)
    case.endpoint.attempts[0].errback(ConnectionRefusedError())
    case.clock.advance(0.05)
    assert len(case.endpoint.attempts) == 3
    case.endpoint.attempts[1].callback("protocol")
    assert other == ["protocol"]
    case.clock.advance(0.01)
    case.endpoint.attempts[3].callback("another")
    assert case.results == ["another"]
    case.clock.advance(STEADY)
    assert case.upstream.state == "up"


def test_the_attempts_end_at_the_deadline_with_the_last_reason() -> None:
    case = Case()
    for _ in range(200):
        if not case.endpoint.attempts[-1].called:
            case.refuse()
        case.clock.advance(TIMEOUT / 100)
    assert case.results[0].check(ConnectionRefusedError)
    assert "refused" in str(case.results[0].value)
    attempts = len(case.endpoint.attempts)
    case.clock.advance(60)
    assert len(case.endpoint.attempts) == attempts


def test_each_connect_fails_for_its_own_reason_and_renews_the_news() -> None:
    case = Case()
    case.refuse()
    case.clock.advance(TIMEOUT)
    assert case.results[0].check(ConnectionRefusedError)
    case.clock.advance(11)
    assert case.upstream.unreachable(10) is None
    results: list[Any] = []
    case.upstream.serve(Factory()).addBoth(results.append)
    case.clock.advance(TIMEOUT)
    assert results[0].check(TimeoutError)
    assert case.upstream.unreachable(10) == "no answer within 5 s"


def test_a_probe_tells_whether_the_upstream_can_be_connected() -> None:
    case = Case()
    seen = len(case.endpoint.attempts)
    probing = Deferred.fromCoroutine(case.upstream.probe(1.0))
    assert len(case.endpoint.attempts) == seen + 1
    case.clock.advance(1.0)
    assert probing.called
    assert (case.upstream.state, case.upstream.error) == ("down", "no answer within 1 s")


def probed(how_it_ends: Any) -> Upstream:
    """Return an upstream after a probe whose connection was made, and then lost with an error or not at all."""
    case = Case()
    probing = Deferred.fromCoroutine(case.upstream.probe(1.0))
    protocol = case.endpoint.factories[-1].buildProtocol(None)
    assert protocol is not None
    transport = StringTransport()
    protocol.makeConnection(transport)
    case.endpoint.attempts[-1].callback(protocol)
    if how_it_ends is not None:
        protocol.connectionLost(Failure(how_it_ends))
    else:
        case.clock.pump([0.1] * 5)
        assert transport.disconnecting
        protocol.connectionLost(Failure(ConnectionDone()))
    assert probing.called
    return case.upstream


def test_a_probe_succeeds_if_the_connection_stays_open_for_a_moment() -> None:
    upstream = probed(None)
    assert (upstream.state, upstream.error) == ("up", None)


def test_a_probe_fails_if_the_connection_is_closed_as_soon_as_it_was_made() -> None:
    upstream = probed(ConnectionDone())
    assert upstream.reason == "upstream_unreachable"
    assert upstream.error == "it closes connections as soon as they are made"


def test_a_probe_fails_if_the_server_rejects_our_certificate_after_the_handshake() -> None:
    upstream = probed(TLSError([("SSL routines", "", "tlsv13 alert certificate required")]))
    expected = "TLS handshake failed: tlsv13 alert certificate required"
    assert (upstream.reason, upstream.error) == ("upstream_tls", expected)


def test_an_attempt_without_an_answer_is_replaced_and_told_of_long_before_a_long_timeout() -> None:
    case = Case(timeout=30.0)
    case.clock.pump([0.1] * 52)
    assert case.upstream.error == "no answer within 5 s"
    assert not case.results
    case.clock.advance(1)
    assert len(case.endpoint.attempts) == 2


def test_an_attempt_that_hangs_is_ended_at_the_deadline() -> None:
    case = Case()
    case.clock.advance(TIMEOUT)
    assert case.results[0].check(TimeoutError)
    assert case.upstream.unreachable(10) == "no answer within 5 s"
    case.clock.advance(60)
    assert len(case.endpoint.attempts) == 1


@pytest.mark.parametrize("refused", [False, True])
def test_cancelling_ends_the_attempts_and_blames_nobody(refused: bool) -> None:
    case = Case()
    if refused:
        case.refuse()
    blamed = case.upstream.error
    case.connecting.cancel()
    assert case.results[0].check(CancelledError, ConnectingCancelledError)
    case.clock.advance(60)
    assert len(case.endpoint.attempts) == 1
    assert case.upstream.error == blamed
    assert not case.clock.getDelayedCalls()


def test_one_sweep_serves_all_that_are_connecting() -> None:
    case = Case()
    case.clock.advance(1)
    later = [case.upstream.serve(Factory()) for _ in range(100)]
    for connecting in later:
        connecting.addErrback(case.results.append)
    assert len(case.clock.getDelayedCalls()) == 1
    case.clock.advance(TIMEOUT - 1)
    assert len(case.results) == 1
    case.clock.advance(1)
    assert len(case.results) == 101
    assert not case.clock.getDelayedCalls()


def test_the_upstream_is_unreachable_from_a_failure_until_it_has_been_good_for_a_while() -> None:
    case = Case()
    assert case.upstream.unreachable(10) is None
    case.refuse()
    assert "refused" in str(case.upstream.unreachable(10))
    case.clock.advance(0.05)
    case.endpoint.attempts[-1].callback(case.endpoint.factories[-1].buildProtocol(None))
    case.clock.advance(STEADY / 2)
    assert case.upstream.state == "down"
    case.clock.advance(STEADY / 2)
    assert (case.upstream.state, case.upstream.error, case.upstream.reason) == ("up", None, None)
    assert case.upstream.unreachable(10) is None


def test_a_failure_is_forgotten_when_nobody_tried_again() -> None:
    case = Case()
    case.refuse()
    case.connecting.cancel()
    case.connecting.addErrback(lambda failure: None)
    case.clock.advance(11)
    assert case.upstream.unreachable(10) is None


class Alternating(Crowd):
    """Every other attempt fails, as with a backlog that is full."""

    def connect(self, factory: Factory) -> Deferred[Any]:
        self.up = not self.up
        return super().connect(factory)


def test_an_upstream_that_fails_every_other_time_serves_all_and_has_one_episode() -> None:
    with capturedLogs() as events:
        crowd = Alternating(0)
        crowd.up = True
        states = set()
        for _ in range(80):
            crowd.join()
            crowd.pass_time(0.1)
            states.add(crowd.upstream.state)
        assert states == {"down"}
        crowd.pass_time(STEADY)
    assert len(crowd.results) == 80
    assert not any(isinstance(result, Failure) for result in crowd.results)
    assert [event["log_format"].split(" upstream")[0] for event in events] == ["cannot connect to", "connected to"]
    assert crowd.upstream.state == "up"


def test_an_upstream_that_fails_again_soon_is_doubted_for_longer_each_time() -> None:
    crowd = Crowd(0)
    doubts = []
    for _ in range(6):
        crowd.up = False
        crowd.join()
        crowd.up = True
        crowd.pass_time(0.1)
        doubt = 0.1
        while crowd.upstream.state == "down":
            crowd.pass_time(0.1)
            doubt += 0.1
        doubts.append(round(doubt))
    assert doubts == [2, 4, 8, 16, 30, 30]
    crowd.pass_time(61)
    crowd.up = False
    crowd.join()
    crowd.up = True
    crowd.pass_time(STEADY + 0.1)
    assert crowd.upstream.state == "up"


@pytest.mark.parametrize(
    ("error", "reason", "text"),
    [
        (ConnectionRefusedError(111, "refused"), "upstream_refused", "Connection was refused by other side"),
        (DNSLookupError("no address found for foo"), "upstream_unresolved", "no address found for foo"),
        (TimeoutError(), "connect_timeout", "timeout"),
        (HandshakeError("bad certificate"), "upstream_tls", "TLS handshake failed: bad certificate"),
        (ConnectError(errno.EAGAIN, "again"), "upstream_unreachable", "its queue of new connections is full"),
        (ConnectError(errno.EADDRNOTAVAIL, "none"), "upstream_unreachable", "no free local port or address"),
        (ConnectError(string=Failure(ConnectionLost("gone"))), "upstream_unreachable", "gone"),
        (OSError(24, "Too many open files"), "upstream_unreachable", "Too many open files"),
        (ValueError(), "upstream_unreachable", "ValueError"),
    ],
)
def test_a_failure_has_a_reason_and_words(error: Exception, reason: str, text: str) -> None:
    case = Case()
    case.endpoint.attempts[0].errback(error)
    assert case.upstream.reason == reason == CONNECT_FAILURES[kind(error)]
    assert text in str(case.upstream.error)
    assert "Traceback" not in str(case.upstream.error)
    case.connecting.cancel()


@pytest.mark.parametrize("knock", [False, True])
def test_a_handshake_that_is_not_answered_in_time_is_a_failure_of_tls(knock: bool) -> None:
    case = Case(timeout=60 if knock else TIMEOUT)
    if knock:
        case.refuse()
        case.clock.advance(0.05)
    case.endpoint.attempts[-1]._canceller = lambda attempt: attempt.errback(HandshakeCancelled(None))
    case.clock.advance(5)
    assert (case.upstream.reason, case.upstream.error) == ("upstream_tls", "TLS handshake failed: no answer within 5 s")
    if not knock:
        assert case.results[0].check(HandshakeError)
        assert not case.clock.getDelayedCalls()


def test_a_failed_handshake_is_retried_like_any_failed_attempt() -> None:
    case = Case()
    case.endpoint.attempts[0].errback(HandshakeError("the peer closed the connection"))
    case.clock.advance(0.05)
    case.endpoint.attempts[1].callback(case.endpoint.factories[1].buildProtocol(None))
    assert isinstance(case.results[0], Protocol)


def test_a_rejection_after_the_handshake_is_a_failure() -> None:
    clock = Clock()
    endpoint = ArrivalEndpoint(Endpoint())  # type: ignore[arg-type]
    upstream = Upstream(endpoint, "foo:8001", clock, TIMEOUT)
    endpoint.rejected(HandshakeError("certificate required"))
    assert (upstream.state, upstream.reason) == ("down", "upstream_tls")


def test_the_silence_begins_with_the_last_attempt_whether_it_failed_or_succeeded() -> None:
    case = Case()
    assert case.upstream.silence == float("inf")
    case.clock.advance(1)
    case.refuse()
    case.clock.advance(0.04)
    assert case.upstream.silence == pytest.approx(0.04)
    case.clock.advance(0.02)
    protocol = case.endpoint.factories[-1].buildProtocol(None)
    case.endpoint.attempts[-1].callback(protocol)
    case.clock.advance(3)
    assert case.upstream.silence == pytest.approx(3)


def test_an_upstream_for_which_nobody_waits_is_not_tried_again() -> None:
    case = Case()
    case.connecting.addErrback(lambda _: None)
    case.connecting.cancel()
    before = len(case.endpoint.attempts)
    case.upstream.failed(ConnectionRefusedError())
    case.clock.advance(30)
    assert len(case.endpoint.attempts) == before


def test_who_comes_after_others_have_given_up_does_not_hasten_the_attempts() -> None:
    case = Case()
    for _ in range(4):
        case.refuse()
        seen = len(case.endpoint.attempts)
        while len(case.endpoint.attempts) == seen:
            case.clock.advance(0.01)
    case.connecting.cancel()
    case.upstream.serve(Factory.forProtocol(Protocol)).addErrback(lambda _: None)
    case.refuse()
    seen = len(case.endpoint.attempts)
    case.clock.advance(0.2)
    assert len(case.endpoint.attempts) == seen


def test_a_probe_that_is_given_up_in_the_handshake_leaves_nothing_behind() -> None:
    class Shaking:
        def connect(self, factory: Factory) -> Deferred[Any]:
            protocol: Any = factory.buildProtocol(None)
            self.transport = Line(protocol)
            protocol.makeConnection(self.transport)
            return Deferred()

    clock, endpoint = Clock(), Shaking()
    failed: list[Any] = []
    where: Any = endpoint
    with capturedLogs() as events:
        Deferred.fromCoroutine(stays(where, 1.0, Deadlines(clock))).addErrback(failed.append)
        clock.advance(1.5)
        assert endpoint.transport.is_lost
        assert [str(failure.value) for failure in failed] == ["no answer within 1 s"]
        # What nobody handles is logged when it is collected.
        failed.clear()
        del endpoint, where
        gc.collect()
    assert not events
    assert not clock.getDelayedCalls()
