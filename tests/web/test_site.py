"""The limits of the HTTP server, in memory: clients that are too slow, too large or too many."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.resource import Resource

from fooproxy.web.site import ANSWER_TIMEOUT, LARGEST_BODY, MOST_CONNECTIONS, REQUEST_TIMEOUT, QuietSite

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Greeting(Resource):
    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        return b"hello"


class Client:
    """A connection to the site, seen from the client."""

    def __init__(self, site: QuietSite) -> None:
        self.transport = StringTransport()
        self._channel: Any = site.buildProtocol(None)
        self._channel.makeConnection(self.transport)

    def say(self, data: bytes) -> None:
        self._channel.dataReceived(data)

    def leave(self) -> None:
        self._channel.connectionLost(Failure(ConnectionDone()))

    @property
    def heard(self) -> bytes:
        return bytes(self.transport.value())

    @property
    def aborted(self) -> bool:
        return self.transport.disconnecting and self.transport.disconnected


class Turns(Clock):
    """A clock that can run single turns like a reactor: calls scheduled during a turn wait for the next one."""

    def turn(self) -> None:
        for call in [call for call in self.calls if call.getTime() <= self.seconds()]:
            self.calls.remove(call)
            call.called = True
            call.func(*call.args, **call.kw)


class World:
    def __init__(self) -> None:
        self.clock = Turns()
        self.site = QuietSite(Greeting(), self.clock)

    def client(self) -> Client:
        return Client(self.site)


@pytest.fixture
def world() -> World:
    return World()


def test_a_request_that_dribbles_in_is_cut_however_busy_it_keeps_itself(world: World) -> None:
    client = world.client()
    client.say(b"GET / HTTP/1.1\r\nX: ")
    for _ in range(int(REQUEST_TIMEOUT) - 1):
        world.clock.advance(1)
        client.say(b"y")
        assert not client.aborted
    world.clock.advance(1.1)
    assert client.aborted


def test_a_client_that_says_nothing_is_cut_too(world: World) -> None:
    client = world.client()
    world.clock.advance(REQUEST_TIMEOUT)
    assert client.aborted


def test_an_answer_that_is_not_taken_is_cut(world: World) -> None:
    client = world.client()
    world.clock.advance(REQUEST_TIMEOUT - 1)
    client.say(REQUEST)
    world.clock.advance(ANSWER_TIMEOUT - 1)
    assert client.heard.endswith(b"hello")
    assert not client.aborted
    world.clock.advance(1.1)
    assert client.aborted


def test_one_connection_too_many_closes_the_oldest(world: World) -> None:
    oldest, second, *_ = [world.client() for _ in range(MOST_CONNECTIONS)]
    assert not oldest.aborted
    newest = world.client()
    assert (oldest.aborted, second.aborted, newest.aborted) == (True, False, False)
    oldest.leave()
    newest.leave()
    world.client()
    assert not second.aborted


def test_requests_are_answered_one_in_a_turn(world: World) -> None:
    clients = [world.client() for _ in range(5)]
    for client in clients:
        client.say(REQUEST)
    for done in range(5):
        assert [bool(client.heard) for client in clients] == [number < done for number in range(5)]
        world.clock.turn()
    assert all(client.heard.startswith(b"HTTP/1.1 200") for client in clients)


def test_a_client_that_leaves_before_its_turn_costs_the_others_nothing(world: World) -> None:
    gone, client = world.client(), world.client()
    gone.say(REQUEST)
    client.say(REQUEST)
    gone.leave()
    world.clock.advance(0)
    world.clock.advance(0)
    assert client.heard.endswith(b"hello")


def test_nothing_is_left_of_a_connection_that_is_over(world: World) -> None:
    client = world.client()
    client.say(REQUEST)
    world.clock.advance(0)
    client.leave()
    world.clock.advance(ANSWER_TIMEOUT + REQUEST_TIMEOUT)
    assert not client.aborted
    assert not world.clock.getDelayedCalls()


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 101 + b"\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"y" * 17_000 + b"\r\n\r\n",
        b"GET /" + b"y" * 17_000 + b" HTTP/1.1\r\n\r\n",
    ],
    ids=["many headers", "a long header", "a long path"],
)
def test_a_head_that_is_too_large_is_refused(world: World, head: bytes) -> None:
    client = world.client()
    client.say(head)
    world.clock.advance(0)
    assert client.heard.startswith(b"HTTP/1.1 400") or not client.heard
    assert client.transport.disconnecting


def test_a_body_that_is_announced_too_large_is_refused_before_it_comes(world: World) -> None:
    client = world.client()
    client.say(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (LARGEST_BODY + 1))
    assert client.heard.startswith(b"HTTP/1.1 413 ")
    assert client.transport.disconnecting


def test_a_body_of_unknown_size_is_refused_once_and_not_decoded(world: World) -> None:
    client = world.client()
    client.say(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n")
    client.say(b"1\r\nx\r\n0\r\n\r\n")
    world.clock.advance(0)
    assert client.heard.count(b"HTTP/1.1") == 1
    assert client.heard.startswith(b"HTTP/1.1 411 ")
    assert client.transport.disconnecting
