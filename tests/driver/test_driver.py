"""The test driver: its parser, its server, its client, and the commands as people run them."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, ParamSpec

import pytest
import pytest_twisted  # type: ignore[import-untyped, unused-ignore]
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.protocols.basic import LineOnlyReceiver

from fooproxy.driver import answering, client, demo, server
from fooproxy.driver.answering import FooServer, FooServerFactory
from fooproxy.driver.children import STDERR, STDOUT, Child, ChildError, running
from fooproxy.driver.client import Client, ClientError, Script
from fooproxy.driver.command import duration
from fooproxy.driver.conversation import Conversation
from fooproxy.driver.messages import Request, RequestReader, digest
from fooproxy.driver.tally import Latencies, Tally
from tests.helpers.fooserver import PATIENCE
from tests.helpers.processes import GRACE, completed

P = ParamSpec("P")

# Twisted's annotation is the module, not the object that is in its place.
reactor: Any = installed_reactor

# pytest-twisted is not annotated.
in_reactor: Callable[[Callable[P, Any]], Callable[P, None]] = pytest_twisted.ensureDeferred


def ack(seq: int, data: bytes = b"") -> bytes:
    return b"ACK %d %s" % (seq, digest(data))


@asynccontextmanager
async def listening(factory: Factory) -> AsyncIterator[int]:
    """Listen on a free port, and close everything that was accepted there at the end."""
    accepted: list[Any] = []
    build = factory.buildProtocol

    def remember(addr: Any) -> Any:
        accepted.append(build(addr))
        return accepted[-1]

    factory.buildProtocol = remember  # type: ignore[method-assign]
    port: Any = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
    try:
        yield port.getHost().port
    finally:
        await port.stopListening()
        for protocol in accepted:
            protocol.transport.abortConnection()
        while any(protocol.transport.connected for protocol in accepted):
            await deferLater(reactor, 0)


class Talker(LineOnlyReceiver):
    """A bare client; `lines(n)` waits for the first n lines."""

    delimiter = b"\n"
    transport: Any

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.closed: Deferred[None] = Deferred()
        self._waiting: tuple[int, Deferred[list[bytes]]] | None = None

    def lines(self, count: int) -> Deferred[list[bytes]]:
        waiting: Deferred[list[bytes]] = Deferred()
        self._waiting = (count, waiting)
        return waiting.addTimeout(PATIENCE, reactor)

    def say(self, data: bytes) -> None:
        self.transport.write(data)

    def fin(self) -> None:
        self.transport.loseWriteConnection()

    def lineReceived(self, line: bytes) -> None:
        self.heard.append(line)
        if self._waiting and len(self.heard) == self._waiting[0]:
            self._waiting[1].callback(self.heard)

    def connectionLost(self, reason: object = None) -> None:
        self.closed.callback(None)


@asynccontextmanager
async def talking(port: int) -> AsyncIterator[Talker]:
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    talker: Any = await endpoint.connect(Factory.forProtocol(Talker))
    try:
        yield talker
    finally:
        talker.transport.abortConnection()
        await talker.closed


def connected(protocol: Protocol) -> StringTransport:
    transport = StringTransport()
    protocol.makeConnection(transport)
    return transport


def to_port(port: int, script: Script, connections: int = 1) -> Client:
    return Client(reactor, TCP4ClientEndpoint(reactor, "127.0.0.1", port), script, connections=connections, seed=1)


class Liar(LineOnlyReceiver):
    """A server that calls `lie` with each request's seq and data and sends the result; `None` closes."""

    delimiter = b"\n"
    transport: Any

    def __init__(self, lie: Callable[[int, bytes], bytes | None]) -> None:
        self.lie = lie

    def lineReceived(self, line: bytes) -> None:
        _, seq, data = line.split(b" ")
        answer = self.lie(int(seq), data)
        if answer is None:
            self.transport.loseConnection()
        else:
            self.transport.write(answer)


def lying(lie: Callable[[int, bytes], bytes | None]) -> Factory:
    return Factory.forProtocol(partial(Liar, lie))


async def command(module: str, *arguments: str) -> tuple[str, str, int]:
    """Run a command as a process; return its standard output, standard error and exit status."""
    argv = [sys.executable, "-m", f"fooproxy.driver.{module}", *arguments]
    done = await deferToThread(completed, argv, grace=GRACE)
    return done.stdout, done.stderr, done.returncode


def process(module: str, *arguments: str) -> AbstractAsyncContextManager[Child]:
    """Run a command as a process until the context ends."""
    return running(reactor, f"the {module}", f"from fooproxy.driver.{module} import main; main()", arguments)


# --- reading requests


def read(*chunks: bytes) -> list[Request | None]:
    reader = RequestReader()
    return [request for chunk in chunks for request in reader.feed(chunk)] + reader.end()


@pytest.mark.parametrize(
    ("line", "seq", "data"),
    [
        (b"REQ 1 abc\n", b"1", b"abc"),
        (b"REQ 1\n", b"1", b""),
        (b"REQ 1 \n", b"1", b""),
        (b"REQ \t 1 \t abc \n", b"1", b"abc "),
        (b"REQ 1 two words\n", b"1", b"two words"),
        (b"REQ 1 abc\r\n", b"1", b"abc"),
        (b"REQ 1 abc\r\r\n", b"1", b"abc\r"),
        (b"REQ 1\r\n", b"1", b""),
        (b"REQ -5 abc\n", b"-5", b"abc"),
        (b"REQ 1 \xff\xfe\n", b"1", b"\xff\xfe"),
        (b"REQ 1 abc", b"1", b"abc"),
    ],
)
def test_a_request_is_read(line: bytes, seq: bytes, data: bytes) -> None:
    assert read(line) == [Request(seq, digest(data))]


@pytest.mark.parametrize(
    "line", [b"\n", b"REQ\n", b"REQ x\n", b"REQ1\n", b"REQ 1x\n", b"req 1\n", b" REQ 1\n", b"ACK 1\n", b"hello\n"]
)
def test_a_line_that_is_not_a_request_cannot_be_decoded(line: bytes) -> None:
    assert read(line) == [None]


PARTS = st.sampled_from([b"REQ", b" ", b"\t", b"1", b"-", b"\r", b"\n", b"x", b"x" * 5000, b" " * 5000, b"REQ 2 "])


@example(parts=[b"REQ", b" " * 5000, b"1", b"\n"], cuts=[4500])
@given(st.lists(PARTS, max_size=12), st.lists(st.integers(0, 30000), max_size=6))
def test_requests_are_the_same_however_the_stream_is_cut(parts: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(parts)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    assert read(*(stream[start:stop] for start, stop in pairwise(edges))) == read(stream)


def test_a_long_line_has_the_digest_of_all_its_data() -> None:
    data = b"\r" * 5000 + b"x y" * 100_000
    chunks = [data[start : start + 1000] for start in range(0, len(data), 1000)]
    assert read(b"REQ 7 ", *chunks, b"\r\n") == [Request(b"7", digest(data))]


# --- the server


@contextmanager
def serving(**behaviour: Any) -> Iterator[tuple[Clock, FooServer, StringTransport]]:
    clock = Clock()
    protocol = FooServerFactory(clock, **behaviour).buildProtocol(None)
    transport = connected(protocol)
    yield clock, protocol, transport
    protocol.connectionLost()
    assert not clock.getDelayedCalls()


def test_the_delay_counts_from_each_requests_arrival() -> None:
    with serving(delay=1.0) as (clock, protocol, transport):
        protocol.dataReceived(b"REQ 1\n")
        clock.advance(0.75)
        protocol.dataReceived(b"REQ 2\nREQ 3\n")
        assert transport.value() == b""
        clock.advance(0.25)
        assert transport.value() == ack(1) + b"\n"
        clock.advance(0.75)
        assert transport.value() == b"".join(ack(seq) + b"\n" for seq in (1, 2, 3))


def test_the_server_stops_reading_while_its_replies_are_not_read() -> None:
    with serving() as (_, protocol, transport):
        protocol.pauseProducing()
        assert transport.producerState == "paused"
        protocol.resumeProducing()
        assert transport.producerState == "producing"


def test_the_server_stops_reading_while_too_many_replies_wait_for_their_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "_WAITING_LIMIT", 100)
    with serving(delay=1.0) as (clock, protocol, transport):
        protocol.dataReceived(b"REQ 1\n" * 10)
        assert transport.producerState == "paused"
        clock.advance(1.0)
        assert transport.producerState == "producing"


def test_after_fin_the_server_does_not_resume_reading() -> None:
    with serving() as (_, protocol, transport):
        protocol.pauseProducing()
        protocol.readConnectionLost()
        protocol.resumeProducing()
        assert transport.producerState == "paused"


def test_the_server_keeps_its_side_open_after_fin() -> None:
    with serving() as (_, protocol, transport):
        protocol.dataReceived(b"REQ 1\n")
        protocol.readConnectionLost()
        assert not transport.disconnecting


def test_close_after_fin_waits_for_delayed_replies() -> None:
    with serving(delay=1.0, close_after_fin=True) as (clock, protocol, transport):
        protocol.dataReceived(b"REQ 1\n")
        protocol.readConnectionLost()
        assert not transport.disconnecting
        clock.advance(1.0)
        assert transport.disconnecting
        # With a producer still registered a real transport would not close.
        assert transport.producer is None
        assert transport.value() == ack(1) + b"\n"


def test_a_seed_makes_the_choice_of_ack_and_nak_reproducible() -> None:
    def kinds(seed: int) -> list[bytes]:
        with serving(nak_rate=0.5, seed=seed) as (_, protocol, transport):
            protocol.dataReceived(b"REQ 1\n" * 64)
            return [line[:3] for line in transport.value().splitlines()]

    assert kinds(1) == kinds(1) != kinds(2)
    assert set(kinds(1)) == {b"ACK", b"NAK"}


@in_reactor
async def test_the_server_answers_pipelined_requests_in_order_with_a_delay() -> None:
    async with listening(FooServerFactory(reactor, delay=0.005)) as port, talking(port) as talker:
        for seq in range(1, 101):
            talker.say(b"REQ %d data%d\n" % (seq, seq))
        assert await talker.lines(100) == [ack(seq, b"data%d" % seq) for seq in range(1, 101)]


@in_reactor
async def test_the_server_answers_a_last_request_that_fin_ends_and_stays() -> None:
    async with listening(FooServerFactory(reactor)) as port, talking(port) as talker:
        talker.say(b"REQ 1 abc\nREQ 2 def")
        talker.fin()
        assert await talker.lines(2) == [ack(1, b"abc"), ack(2, b"def")]
        assert not talker.closed.called


@in_reactor
async def test_the_server_closes_after_fin_with_close_after_fin() -> None:
    async with listening(FooServerFactory(reactor, close_after_fin=True)) as port, talking(port) as talker:
        talker.say(b"REQ 1 abc")
        talker.fin()
        await talker.closed
        assert talker.heard == [ack(1, b"abc")]


@in_reactor
async def test_disconnect_ends_every_connection() -> None:
    factory = FooServerFactory(reactor)
    async with listening(factory) as port, talking(port) as talker:
        talker.say(b"REQ 1\n")
        await talker.lines(1)
        await factory.disconnect()
        await talker.closed


@in_reactor
async def test_the_server_goes_on_after_a_line_it_cannot_decode() -> None:
    async with listening(FooServerFactory(reactor)) as port, talking(port) as talker:
        talker.say(b"hello\nREQ 1 abc\n")
        assert await talker.lines(2) == [b"NAK 0 ERRDECODE", ack(1, b"abc")]


# --- the client


def start(script: Script) -> tuple[Clock, Conversation, StringTransport]:
    clock = Clock()
    conversation = Conversation(clock, 1, script, Random(1), Tally())
    return clock, conversation, connected(conversation)


def test_fragments_are_sent_one_by_one() -> None:
    _, conversation, transport = start(Script(1, fragment=True, size=4))
    sent = []
    while transport.producer is not None:
        transport.clear()
        conversation.resumeProducing()
        sent.append(transport.value())
    assert [len(piece) for piece in sent[:3]] == [len("REQ 1"), len(" data"), 1]
    assert sent[0] == b"REQ 1"
    assert sent[2:] == [b"\n", b""]


def test_a_pause_is_waited_before_the_next_request() -> None:
    clock, conversation, transport = start(Script(2, pause=1.0, size=0))
    conversation.dataReceived(ack(1) + b"\n")
    assert transport.value() == b"REQ 1\n"
    clock.advance(1.0)
    assert transport.value() == b"REQ 1\nREQ 2\n"


def test_a_reply_without_an_end_is_an_error() -> None:
    _, conversation, _ = start(Script(1))
    problems: list[Any] = []
    conversation.finished.addErrback(problems.append)
    conversation.dataReceived(b"A" * 100_000)
    assert "no newline after 100000 bytes" in str(problems[0].value)


def test_a_connection_lost_before_its_only_reply_is_reported_in_the_singular() -> None:
    _, conversation, _ = start(Script(1))
    problems: list[Any] = []
    conversation.finished.addErrback(problems.append)
    conversation.readConnectionLost()
    assert str(problems[0].value).endswith("after 0 of 1 reply")


@in_reactor
async def test_the_client_counts_every_right_reply() -> None:
    async with listening(FooServerFactory(reactor, nak_rate=0.5, seed=1)) as port:
        tally = await to_port(port, Script(200)).run()
    assert tally.sent == tally.answered == 200
    assert tally.acks and tally.naks


@pytest.mark.parametrize("fragment", [False, True])
@in_reactor
async def test_a_hundred_pipelining_connections_share_out_the_requests(fragment: bool) -> None:
    async with listening(FooServerFactory(reactor)) as port:
        tally = await to_port(port, Script(1050, pipeline=4, fragment=fragment), connections=100).run()
    assert tally.acks == 1050


@in_reactor
async def test_a_request_of_many_megabytes_is_answered() -> None:
    async with listening(FooServerFactory(reactor)) as port:
        tally = await to_port(port, Script(2, size=8_000_000)).run()
    assert tally.acks == 2


@in_reactor
async def test_the_client_sends_fin_and_closes_without_waiting_for_the_servers() -> None:
    fin: Deferred[None] = Deferred()

    class Watched(FooServerFactory):
        def buildProtocol(self, addr: object) -> FooServer:
            protocol = super().buildProtocol(None)
            protocol.readConnectionLost = partial(fin.callback, None)  # type: ignore[method-assign]
            return protocol

    async with listening(Watched(reactor)) as port:
        await to_port(port, Script(1)).run()
        await fin


@in_reactor
async def test_a_silent_server_is_a_timeout() -> None:
    async with listening(Factory.forProtocol(Protocol)) as port:
        with pytest.raises(ClientError, match=r"^connection 1: no reply to REQ 1 within 50 ms$"):
            await to_port(port, Script(1, timeout=0.05)).run()


@in_reactor
async def test_a_cancelled_run_leaves_no_connection_behind() -> None:
    silent = [Talker() for _ in range(3)]
    spare = iter(silent)
    all_there: Deferred[None] = Deferred()

    def accept() -> Talker:
        talker = next(spare)
        if talker is silent[-1]:
            all_there.callback(None)
        return talker

    async with listening(Factory.forProtocol(accept)) as port:
        run = Deferred.fromCoroutine(to_port(port, Script(3), connections=3).run())
        ended: list[object] = []
        run.addErrback(ended.append)
        await all_there
        run.cancel()
        for talker in silent:
            await talker.closed
        await run
    assert len(ended) == 1


def test_percentiles_are_right_to_one_percent() -> None:
    latencies = Latencies()
    for milliseconds in range(1, 1001):
        latencies.add(milliseconds / 1000)
    assert latencies.percentile(50) == pytest.approx(0.5, rel=0.01)
    assert latencies.percentile(99) == pytest.approx(0.99, rel=0.01)


def test_without_a_reply_the_summary_holds_zeros() -> None:
    assert Tally().summary() == "0 requests, 0 ACK, 0 NAK in 0 s: 0 requests/s, latency p50 0 s, p99 0 s"


# --- foo-client, the command


@pytest.mark.slow
@in_reactor
async def test_a_small_run_shows_dots_and_ok_and_a_summary() -> None:
    async with listening(FooServerFactory(reactor)) as port:
        out, err, status = await command("client", "--connect", f"localhost:{port}", "--requests", "20", "--fragment")
    assert (err, status) == ("", 0)
    picture, summary = out.splitlines()
    assert picture == "." * 20 + " OK!"
    assert re.fullmatch(
        r"20 requests, 20 ACK, 0 NAK in [\d.]+ m?s: [\d.]+ requests/s, latency p50 [\d.]+ [mµ]s, p99 [\d.]+ [mµ]s",
        summary,
    )


@pytest.mark.slow
@in_reactor
async def test_a_terminal_without_the_letter_micro_does_not_fail_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    async with listening(FooServerFactory(reactor)) as port:
        _, err, status = await command("client", "--connect", f"localhost:{port}")
    assert (err, status) == ("", 0)


@in_reactor
async def test_a_long_run_shows_a_bar_with_rate_and_latency() -> None:
    async with listening(FooServerFactory(reactor)) as port:
        out, err, status = await command("client", "--connect", f":{port}", "--requests", "2000", "--pipeline", "50")
    assert status == 0
    assert re.search(r"100%.* 2000/2000 .*requests/s, latency p50 [\d.]+ [mµ]s, p99 [\d.]+ [mµ]s", err)
    assert out.startswith("2000 requests, 2000 ACK")


LIES: dict[str, Callable[[int, bytes], bytes | None]] = {
    "wrong reply to REQ 1 (wrong digest)": lambda seq, data: ack(seq, data + b"x") + b"\n",
    "wrong reply to REQ 1 (wrong seq)": lambda seq, data: ack(seq + 10, data) + b"\n",
    "wrong reply to REQ 1 (wrong order)": lambda seq, data: b"" if seq == 1 else ack(seq, data) + b"\n",
    "wrong reply to REQ 1 (malformed)": lambda seq, data: ack(seq, data).lower() + b"\n",
    "wrong reply to REQ 1 (server could not decode it)": lambda seq, data: b"NAK 0 ERRDECODE\n",
    "wrong reply to REQ 2": lambda seq, data: 2 * (ack(seq, data) + b"\n"),
    "got b'ACK 1 ": lambda seq, data: b"" if seq == 1 else 9 * (ack(1, data) + b"\n"),
    "closed by the server after 2 of 3 replies": lambda seq, data: None if seq == 3 else ack(seq, data) + b"\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("complaint", LIES)
@in_reactor
async def test_a_wrong_reply_is_reported_in_one_line(complaint: str) -> None:
    async with listening(lying(LIES[complaint])) as port:
        _, err, status = await command("client", "--connect", f"127.0.0.1:{port}", "--requests", "3", "--pipeline", "2")
    assert status == 1
    assert err.startswith(f"foo-client: 127.0.0.1:{port}: connection 1: ")
    assert complaint in err
    assert err.count("\n") == 1


@in_reactor
async def test_a_reply_too_many_is_an_error() -> None:
    async with listening(lying(lambda seq, data: 2 * (ack(seq, data) + b"\n"))) as port:
        with pytest.raises(ClientError, match="which answers no request"):
            await to_port(port, Script(2)).run()


@pytest.mark.slow
@in_reactor
async def test_a_refused_connection_is_reported_in_one_line() -> None:
    # While it is bound, nobody else gets it.
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        out, err, status = await command("client", "--connect", f"127.0.0.1:{port}")
    assert (out, status) == ("", 1)
    assert err == f"foo-client: 127.0.0.1:{port}: connection 1: cannot connect: Connection refused\n"


@pytest.mark.slow
@in_reactor
async def test_an_interrupted_client_says_nothing_and_exits_130() -> None:
    accepted: Deferred[None] = Deferred()

    def accept() -> Talker:
        accepted.callback(None)
        return Talker()

    async with listening(Factory.forProtocol(accept)) as port, process("client", "--connect", f":{port}") as child:
        noise = child.expect(STDERR, ".")
        await accepted
        child.transport.signalProcess("INT")
        await child.ended
        with pytest.raises(ChildError, match="exit code 130"):
            await noise
    assert child.status == 130


# --- foo-server, the command


@asynccontextmanager
async def server_process(*arguments: str) -> AsyncIterator[tuple[Child, int]]:
    async with process("server", "--listen", "127.0.0.1:0", *arguments) as child:
        line = await child.expect(STDOUT, r"^listening on 127\.0\.0\.1:([0-9]+)$")
        yield child, int(line[1])


@pytest.mark.slow
@pytest.mark.parametrize("signals", [["TERM"], ["INT"], ["INT", "TERM"]])
@in_reactor
async def test_signals_end_the_server_quietly_with_status_0(signals: list[str]) -> None:
    async with server_process() as (child, port), talking(port) as talker:
        talker.say(b"REQ 1\n")
        await talker.lines(1)
        noise = child.expect(STDERR, ".")
        for name in signals:
            child.transport.signalProcess(name)
        await child.ended
        with pytest.raises(ChildError):
            await noise
    assert child.status == 0


@pytest.mark.slow
@in_reactor
async def test_a_server_on_a_unix_socket_names_its_path(tmp_path: Path) -> None:
    async with process("server", "--listen", f"unix:{tmp_path}/foo.sock") as child:
        await child.expect(STDOUT, rf"^listening on {re.escape(str(tmp_path))}/foo\.sock$")


@pytest.mark.slow
@in_reactor
async def test_a_child_is_out_of_reach_of_the_terminals_ctrl_c() -> None:
    async with server_process() as (child, _):
        assert os.getpgid(child.transport.pid) == child.transport.pid


@pytest.mark.slow
@in_reactor
async def test_stopping_a_child_goes_on_when_it_is_cancelled() -> None:
    async with server_process() as (child, _):
        stopping = Deferred.fromCoroutine(child.stop())
        stopping.cancel()
        await stopping
        assert child.ended.called


@asynccontextmanager
async def limited_server(soft: int, hard: int) -> AsyncIterator[tuple[Child, int]]:
    """Run foo-server with these limits of open files."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))"
    code = f"{limit}; from fooproxy.driver.server import main; main()"
    async with running(reactor, "the server", code, ["--listen", "127.0.0.1:0"]) as child:
        line = await child.expect(STDOUT, r"^listening on 127\.0\.0\.1:([0-9]+)$")
        yield child, int(line[1])


@pytest.mark.slow
@in_reactor
async def test_a_server_without_descriptors_says_so_once_and_lets_new_clients_wait() -> None:
    async with limited_server(32, 32) as (child, port), AsyncExitStack() as opened:
        said = child.expect(STDERR, r"^foo-server: cannot accept more clients: .*limit 32, .*--close-after-fin")
        talkers = [await opened.enter_async_context(talking(port)) for _ in range(40)]
        first, last = talkers[0], talkers[-1]
        await said
        noise = child.expect(STDERR, ".")
        last.say(b"REQ 1\n")
        first.say(b"REQ 1\n")
        assert await first.lines(1) == [ack(1)]
        assert not last.heard and not last.closed.called
        for talker in talkers[:20]:
            talker.transport.abortConnection()
        assert await last.lines(1) == [ack(1)]
        await child.stop()
        with pytest.raises(ChildError):
            await noise


@in_reactor
async def test_the_server_raises_its_soft_limit_of_open_files() -> None:
    async with limited_server(32, 64) as (_, port), AsyncExitStack() as opened:
        talkers = [await opened.enter_async_context(talking(port)) for _ in range(40)]
        talkers[-1].say(b"REQ 1\n")
        assert await talkers[-1].lines(1) == [ack(1)]


@in_reactor
async def test_the_server_command_obeys_its_options() -> None:
    arguments = ["--nak-rate", "1", "--delay", "1ms", "--seed", "1", "--close-after-fin"]
    async with server_process(*arguments) as (_, port), talking(port) as talker:
        talker.say(b"REQ 1 abc\r\nREQ 2")
        talker.fin()
        await talker.closed
    assert talker.heard == [b"NAK 1 " + digest(b"abc"), b"NAK 2 " + digest(b"")]


@pytest.mark.slow
@in_reactor
async def test_a_port_in_use_is_reported_in_one_line() -> None:
    async with listening(FooServerFactory(reactor)) as port:
        out, err, status = await command("server", "--listen", f"127.0.0.1:{port}")
    assert (out, status) == ("", 1)
    assert err == f"foo-server: cannot listen on 127.0.0.1:{port}: Address already in use\n"


# --- options of all three


@pytest.mark.parametrize(
    ("main", "arguments", "complaint"),
    [
        (server.main, ["--nak-rate", "2"], "argument --nak-rate: '2' is not a share; expected a number from 0 to 1"),
        (server.main, ["--nak-rate", "nan"], "argument --nak-rate: 'nan' is not a share"),
        (server.main, ["--delay", "5m"], "argument --delay: '5m' is not a duration; expected 5ms, 0.5s or 2"),
        (server.main, ["--delay", "-1"], "argument --delay: "),
        (server.main, ["--seed", "x"], "argument --seed: 'x' is not valid; expected a whole number"),
        (server.main, ["--frobnicate"], "unrecognized arguments: --frobnicate"),
        (client.main, ["--requests", "0"], "argument --requests: '0' is not valid; expected a whole number, 1"),
        (client.main, ["--timeout", "0"], "argument --timeout: '0' is too short; expected more than zero"),
        (client.main, ["--requests", "2", "--connections", "3"], "argument --requests: 2 is too few for 3 connections"),
        (client.main, ["a\n\x1b[31mb"], r"unrecognized arguments: a\n\x1b[31mb"),
        (demo.main, ["--pipeline", "many"], "argument --pipeline: 'many' is not valid"),
    ],
)
def test_a_wrong_option_is_reported_in_one_line(
    main: Callable[[list[str]], None], arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert complaint in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("main", [server.main, client.main, demo.main])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_h_is_short_for_help(
    main: Callable[[list[str]], None], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([option])
    assert not ended.value.code
    assert capsys.readouterr().out.startswith("usage: foo-")


@pytest.mark.slow
@pytest.mark.parametrize(("module", "option"), [("server", "--listen"), ("client", "--connect")])
@in_reactor
async def test_a_wrong_address_is_reported_in_one_line(module: str, option: str) -> None:
    _, err, status = await command(module, option, "nonsense")
    assert status == 2
    assert err.startswith(f"foo-{module}: argument {option}: 'nonsense' is not an address; expected ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("text", "seconds"), [("5ms", 0.005), ("0.5s", 0.5), ("2", 2.0), ("0", 0.0), (".5", 0.5)])
def test_durations_are_read(text: str, seconds: float) -> None:
    assert duration(text) == seconds


# --- foo-demo


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.slow
@in_reactor
async def test_the_demo_shows_that_the_proxy_counts_correctly() -> None:
    out, err, status = await command("demo", "--requests", "2000", "--connections", "4")
    assert status == 0, err
    assert "the proxy's counts, printed on SIGUSR2 and served at /stats, match the client's: OK!" in out
    assert re.search(r"^  messages +msg_total +4040 +4040$", out, re.MULTILINE)
    assert re.search(r"^  requests +msg_req +2020 +2020$", out, re.MULTILINE)
    assert "{" not in out
    started = re.search(r"\(process ([0-9]+)\)", out)
    assert started is not None and gone(int(started[1]))


@pytest.mark.slow
@in_reactor
async def test_the_demo_names_no_page_that_is_gone_when_it_ends() -> None:
    out, err, status = await command("demo", "--requests", "200")
    assert status == 0, err
    assert "http://" not in out


@pytest.mark.slow
@in_reactor
async def test_the_demo_takes_no_options_of_another_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOOPROXY_ALLOW", "10.0.0.1")
    _, err, status = await command("demo", "--requests", "20")
    assert status == 0, err


@pytest.mark.slow
@in_reactor
async def test_a_kept_demo_names_its_page() -> None:
    async with process("demo", "--keep", "--requests", "200") as child:
        page = child.expect(STDOUT, r"^page: http://127\.0\.0\.1:[0-9]+/$")
        kept = child.expect(STDOUT, "until Ctrl-C")
        await page
        await kept


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@in_reactor
async def test_a_kept_demo_runs_until_a_signal_and_stops_everything(number: int) -> None:
    async with process("demo", "--keep", "--requests", "200") as child:
        started = child.expect(STDOUT, r"\(process ([0-9]+)\)")
        kept = child.expect(STDOUT, "until Ctrl-C")
        pid = int((await started)[1])
        await kept
        report = child.expect(STDOUT, r'^\{.*"msg_total"')
        os.kill(pid, signal.SIGUSR2)
        await report
        noise = child.expect(STDERR, "^foo-demo")
        child.transport.signalProcess(number)
        await child.ended
        with pytest.raises(ChildError):
            await noise
    assert child.status == 0
    assert gone(pid)


@pytest.mark.slow
@in_reactor
async def test_a_proxy_that_does_not_start_is_reported_in_one_line() -> None:
    _, err, status = await command("demo", "--listen", "nonsense")
    assert status == 1
    assert err.startswith("foo-demo: the proxy ended: ")
    assert err.count("\n") == 1
