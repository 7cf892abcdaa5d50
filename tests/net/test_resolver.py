"""A name is looked up when it must be, and never in the way of a connection that needs no look-up."""

from __future__ import annotations

import socket
from contextlib import closing
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError, DNSLookupError
from twisted.internet.interfaces import IHostnameResolver, IHostResolution, IReactorPluggableNameResolver
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from zope.interface import alsoProvides
from zope.interface.verify import verifyObject

from fooproxy.net.addresses import client_endpoint
from fooproxy.net.named import FRESH, NamedEndpoint, interleaved
from fooproxy.net.poller import Poller
from fooproxy.net.resolver import Resolver


class Names(Clock):
    """A reactor as far as names go: answers with `addresses`, at once or when told to."""

    def __init__(self, *addresses: str) -> None:
        super().__init__()
        self.addresses: list[Any] = list(addresses)
        self.questions = 0
        self.nameResolver = self

    def resolveHostName(self, receiver: Any, name: str, *_: Any) -> None:
        self.questions += 1
        receiver.resolutionBegan(None)
        for address in self.addresses:
            receiver.addressResolved(IPv4Address("TCP", address, 0) if isinstance(address, str) else address)
        receiver.resolutionComplete()


class World:
    """Addresses that take connections (`up`), hang, or refuse; several that hang are separated by blanks."""

    def __init__(self, *addresses: str, up: str = "", hanging: str = "") -> None:
        self.names = Names(*addresses)
        self.up, self.hanging = up, hanging
        self.tried: list[str] = []
        self.cancelled: list[str] = []
        self.attempts: dict[str, Deferred[Any]] = {}
        self.endpoint = NamedEndpoint(self.names, "foo.example", self.to_address)

    def to_address(self, address: str) -> Any:
        world = self

        class Endpoint:
            def connect(self, factory: Any) -> Deferred[Any]:
                world.tried.append(address)
                if address in world.hanging.split():
                    world.attempts[address] = Deferred(lambda _: world.cancelled.append(address))
                    return world.attempts[address]
                return succeed(address) if address == world.up else fail(ConnectionRefusedError())

        return Endpoint()

    def connect(self) -> Any:
        results: list[Any] = []
        self.endpoint.connect(Factory()).addBoth(results.append)
        return results[0] if results else None


def test_the_first_address_that_takes_the_connection_is_kept() -> None:
    world = World("192.0.2.1", "192.0.2.2", up="192.0.2.2")
    assert [world.connect(), world.connect()] == ["192.0.2.2", "192.0.2.2"]
    assert world.tried == ["192.0.2.1", "192.0.2.2", "192.0.2.2"]
    assert world.names.questions == 1


def test_while_an_address_hangs_the_next_is_tried_and_the_one_that_works_is_tried_first_from_then_on() -> None:
    world = World("192.0.2.1", "192.0.2.2", up="192.0.2.2", hanging="192.0.2.1")
    assert world.connect() is None
    world.names.advance(0.25)
    assert world.tried == ["192.0.2.1", "192.0.2.2"]
    assert world.cancelled == ["192.0.2.1"]
    assert world.connect() == "192.0.2.2"
    assert world.tried[2:] == ["192.0.2.2"]
    assert not world.names.getDelayedCalls()


def test_an_address_that_answers_late_is_taken_if_it_is_the_first_to_answer() -> None:
    world = World("192.0.2.1", "192.0.2.2", hanging="192.0.2.1 192.0.2.2")
    results: list[Any] = []
    world.endpoint.connect(Factory()).addBoth(results.append)
    world.names.advance(0.3)
    world.attempts["192.0.2.1"].callback("late")
    assert results == ["late"]
    assert world.cancelled == ["192.0.2.2"]


@pytest.mark.parametrize("budget", [0.4, 1.0])
def test_a_connection_given_up_too_early_brings_the_next_one_closer_to_an_address_that_works(budget: float) -> None:
    dead = [f"192.0.2.{number}" for number in range(1, 7)]
    world = World(*dead, "192.0.2.99", up="192.0.2.99", hanging=" ".join(dead))
    for _ in range(1 + round(6 // (budget // 0.25))):
        results: list[Any] = []
        connecting = world.endpoint.connect(Factory()).addBoth(results.append)
        for _ in range(round(budget / 0.05)):
            world.names.advance(0.05)
        if results:
            break
        connecting.cancel()
    assert results == ["192.0.2.99"]
    world.tried.clear()
    assert world.connect() == "192.0.2.99"
    assert world.tried == ["192.0.2.99"]


def test_an_address_that_stops_working_gives_way_to_the_others_without_a_look_up() -> None:
    world = World("192.0.2.1", "192.0.2.2", up="192.0.2.1")
    world.connect()
    world.up = "192.0.2.2"
    assert world.connect() == "192.0.2.2"
    assert world.tried == ["192.0.2.1", "192.0.2.1", "192.0.2.2"]


def test_an_empty_answer_does_not_take_the_addresses_that_are_known() -> None:
    world = World("192.0.2.1", up="192.0.2.1")
    world.connect()
    world.names.addresses = []
    world.names.advance(FRESH + 1)
    assert [world.connect(), world.connect()] == ["192.0.2.1"] * 2


def test_the_families_take_turns() -> None:
    addresses = ["2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.1", "192.0.2.2"]
    assert interleaved(addresses) == ["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2", "2001:db8::3"]
    assert interleaved(addresses[3:]) == addresses[3:]
    assert interleaved(addresses[::-1])[:2] == ["192.0.2.2", "2001:db8::3"]


def test_an_address_of_a_name_keeps_its_scope() -> None:
    world = World(up="fe80::77%2")
    world.names.addresses = [IPv6Address("TCP", "fe80::77", 0, 0, 2)]
    assert world.connect() == "fe80::77%2"


def test_a_failed_connection_has_the_name_looked_up_again() -> None:
    world = World("192.0.2.1", up="192.0.2.1")
    world.connect()
    world.names.addresses, world.up = ["192.0.2.9"], "192.0.2.9"
    assert world.connect().check(ConnectionRefusedError)
    assert world.connect() == "192.0.2.9"


def test_an_old_answer_is_used_while_the_name_is_looked_up_in_the_background() -> None:
    world = World("192.0.2.1", up="192.0.2.1")
    world.connect()
    world.names.addresses = ["192.0.2.9"]
    world.names.advance(FRESH + 1)
    world.endpoint.connect(Factory())
    assert world.tried == ["192.0.2.1", "192.0.2.1"]
    world.up = "192.0.2.9"
    assert world.connect() == "192.0.2.9"


def test_an_answer_that_has_not_changed_is_kept() -> None:
    world = World("192.0.2.1", up="192.0.2.1")
    world.connect()
    world.names.advance(FRESH + 1)
    assert [world.connect(), world.connect()] == ["192.0.2.1"] * 2
    assert world.names.questions == 2


@pytest.mark.parametrize(("addresses", "error"), [([], DNSLookupError), (["192.0.2.1"], ConnectionRefusedError)])
def test_no_address_to_connect_to_is_an_error(addresses: list[str], error: type[Exception]) -> None:
    assert World(*addresses).connect().check(error)


def test_all_who_ask_at_one_time_wait_for_one_answer() -> None:
    world = World("192.0.2.1", up="192.0.2.1")
    receivers: list[Any] = []
    world.names.resolveHostName = lambda receiver, *_: receivers.append(receiver)  # type: ignore[method-assign]
    first, second, third = (world.endpoint.connect(Factory()) for _ in range(3))
    first.addErrback(lambda _: None)
    first.cancel()
    (receiver,) = receivers
    receiver.addressResolved(IPv4Address("TCP", "192.0.2.1", 0))
    receiver.resolutionComplete()
    assert (second.result, third.result) == ("192.0.2.1", "192.0.2.1")


def test_a_cancelled_connection_says_nothing_against_the_address() -> None:
    world = World("192.0.2.1", up="192.0.2.1")
    world.connect()
    world.hanging = "192.0.2.1"
    connecting = world.endpoint.connect(Factory())
    connecting.addErrback(lambda _: None)
    connecting.cancel()
    world.hanging = ""
    assert world.connect() == "192.0.2.1"
    assert world.names.questions == 1


def test_an_address_that_hangs_is_given_up_when_it_is_not_waited_for_any_more() -> None:
    world = World("192.0.2.1", up="192.0.2.1")
    world.connect()
    world.names.addresses, world.up, world.hanging = ["192.0.2.9"], "192.0.2.9", "192.0.2.1"
    connecting = world.endpoint.connect(Factory())
    connecting.addErrback(lambda _: None)
    world.names.advance(1)
    connecting.cancel()
    assert world.connect() == "192.0.2.9"


def test_the_only_address_may_take_as_long_as_the_caller_waits() -> None:
    world = World("192.0.2.1", hanging="192.0.2.1")
    assert world.connect() is None
    assert not world.names.getDelayedCalls()


def test_the_addresses_of_a_server_over_tls_are_remembered_too() -> None:
    names = Names("127.0.0.1")
    # Twisted's endpoint, which this one replaces, wants to know.
    alsoProvides(names, IReactorPluggableNameResolver)
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        endpoint = client_endpoint(names, f"tls:foo.example:{port}", Poller(reactor))
        for _ in range(3):
            connecting = endpoint.connect(Factory())
            connecting.addErrback(lambda _: None)
            server.accept()[0].close()
            connecting.cancel()
    assert names.questions == 1


def test_a_server_that_comes_back_before_the_name_service_does_is_connected() -> None:
    world = World("192.0.2.1", up="192.0.2.1")
    world.connect()
    world.names.addresses, world.up = [], ""
    assert world.connect().check(ConnectionRefusedError)
    assert world.connect().check(ConnectionRefusedError)
    world.up = "192.0.2.1"
    assert world.connect() == "192.0.2.1"


def test_a_name_service_that_hangs_is_waited_for_a_second_if_addresses_are_known() -> None:
    world = World("192.0.2.1", up="192.0.2.1")
    world.connect()
    world.up = ""
    receivers: list[Any] = []
    world.names.resolveHostName = lambda receiver, *_: receivers.append(receiver)  # type: ignore[method-assign]
    world.connect()
    world.up = "192.0.2.1"
    first, second = world.endpoint.connect(Factory()), world.endpoint.connect(Factory())
    second.addErrback(lambda _: None)
    second.cancel()
    world.names.advance(0.9)
    assert not first.called
    world.names.advance(0.2)
    assert first.result == "192.0.2.1"
    (receiver,) = receivers
    receiver.addressResolved(IPv4Address("TCP", "192.0.2.9", 0))
    receiver.resolutionComplete()
    world.up = "192.0.2.9"
    assert world.connect() == "192.0.2.9"
    assert not world.names.getDelayedCalls()


def test_who_gives_up_during_a_look_up_is_not_remembered() -> None:
    world = World()
    world.names.resolveHostName = lambda *_: None  # type: ignore[method-assign]
    for _ in range(100):
        connecting = world.endpoint.connect(Factory())
        connecting.addErrback(lambda _: None)
        connecting.cancel()
    assert not world.endpoint._waiting


class Threads:
    """Stands for the reactor and for its threads: `found` is the result of every look-up, or what it raises."""

    def __init__(self, found: Any = ()) -> None:
        self.found = found
        self.questions: list[tuple[Any, ...]] = []

    def callInThreadWithCallback(self, onResult: Any, look_up: Any, *question: Any) -> None:
        assert look_up is socket.getaddrinfo
        self.questions.append(question)
        failed = isinstance(self.found, Exception)
        onResult(not failed, self.found)

    def callFromThread(self, do: Any, *arguments: Any) -> None:
        do(*arguments)


class Exhausted(Threads):
    def callInThreadWithCallback(self, onResult: Any, look_up: Any, *question: Any) -> None:
        raise RuntimeError("can't start new thread")


class Receiver:
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def resolutionBegan(self, resolution: Any) -> None:
        assert verifyObject(IHostResolution, resolution)
        self.heard.append(resolution.name)

    def addressResolved(self, address: Any) -> None:
        self.heard.append(address)

    def resolutionComplete(self) -> None:
        self.heard.append("complete")


def resolved(threads: Threads, *wanted: Any) -> list[Any]:
    receiver: Any = Receiver()
    resolver = Resolver(threads, threads)  # type: ignore[arg-type]
    assert verifyObject(IHostnameResolver, resolver)
    resolver.resolveHostName(receiver, "foo.example", 8001, *wanted)
    return receiver.heard  # type: ignore[no-any-return]


FOUND = [
    (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::7", 8001, 0, 0)),
    (socket.AF_UNIX, socket.SOCK_STREAM, 0, "", "/run/foo.sock"),
    (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 8001)),
]


def test_the_addresses_of_a_name_come_in_the_order_of_the_name_service() -> None:
    expected = [IPv6Address("TCP", "2001:db8::7", 8001), IPv4Address("TCP", "192.0.2.7", 8001)]
    assert resolved(Threads(FOUND)) == ["foo.example", *expected, "complete"]


@pytest.mark.parametrize(
    ("wanted", "question"),
    [
        ((), (socket.AF_UNSPEC, socket.SOCK_STREAM)),
        (([IPv4Address, IPv6Address],), (socket.AF_UNSPEC, socket.SOCK_STREAM)),
        (([IPv4Address],), (socket.AF_INET, socket.SOCK_STREAM)),
        (([IPv6Address], "UDP"), (socket.AF_INET6, socket.SOCK_DGRAM)),
    ],
)
def test_a_look_up_asks_for_the_kinds_of_address_that_are_wanted(wanted: Any, question: Any) -> None:
    threads = Threads()
    resolved(threads, *wanted)
    assert threads.questions == [("foo.example", 8001, *question)]


@pytest.mark.parametrize("error", [socket.gaierror(-2, "no such name"), OSError(24, "EMFILE"), UnicodeError("label")])
def test_a_look_up_that_fails_in_any_way_is_answered_without_addresses(error: Exception) -> None:
    assert resolved(Threads(error)) == ["foo.example", "complete"]


def test_a_look_up_for_which_no_thread_can_start_is_answered_without_addresses() -> None:
    assert resolved(Exhausted()) == ["foo.example", "complete"]
