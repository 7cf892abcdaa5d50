"""The bridge compared with a simple model: whatever peers, clock and operator do in any order, the promises hold.

The model knows what each peer sent and which requests it received.  A session without failures or delays must deliver
everything and end by itself.  No session may ever invent, reorder or repeat a byte.  Each must pause a peer that floods
it, resume a peer that was paused, and end within a bounded time after one side has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.protocol import ClientFactory

from fooproxy.net.private import unsent
from fooproxy.relay.bridge import BridgeFactory
from tests.helpers.wires import BUFFER, Reactor, Wire

MOST_SESSIONS = 2

EVER = 600.0
"""Seconds after which every deadline that was running has passed."""

HARMLESS = 0.5
"""Seconds shorter than any deadline."""


def some(fits: Callable[[Talk], Any], **draws: Any) -> Callable[[Any], Any]:
    """Turn a method into a rule that gets an open session that `fits`; the rule is skipped if there is none."""

    def decorate(step: Any) -> Any:
        def do(self: Bridge, which: int, **drawn: Any) -> None:
            talks = [talk for talk in self.open if fits(talk)]
            step(self, talks[which % len(talks)], **drawn)

        do.__name__ = step.__name__
        return precondition(lambda self: any(map(fits, self.open)))(
            rule(which=st.integers(0, MOST_SESSIONS - 1), **draws)(do)
        )

    return decorate


class Talk:
    """A session as its peers see it, and its observer, which tracks unanswered requests in the order of reading."""

    def __init__(self, connecting: Deferred[Any]) -> None:
        self.connecting = connecting
        self.factory: ClientFactory | None = None
        self.client = Wire()
        self.upstream = Wire()
        self.session: Any = None
        self.connected = False
        self.ends: list[str] = []
        self.excused = False
        """Whether there was a failure, a delay or a stop, so that bytes may be lost."""
        self.upstream_failed = False
        """Whether the upstream reset its connection; what the proxy had read by then must still be delivered."""
        self.unasked = False
        """Whether the upstream sent more than replies, which a session does not wait for when its client leaves.

        The upstream leg may then be closed with data unread, and the resulting reset may discard data that the upstream
        has not read either.
        """
        self.replied = 0
        self._noted = [0, 0]
        self._in_flight = 0
        self._finished = False
        """Whether the client's last line is complete, though it may have no newline."""

    # The observer

    def note(self) -> None:
        """Count the lines read since the last call, as if those of the client had been read first."""
        lines = [wire.sent[: wire.taken].count(b"\n") for wire in (self.client, self.upstream)]
        asked, answered = (now - before for now, before in zip(lines, self._noted, strict=True))
        self._in_flight = max(self._in_flight + asked - answered, 0)
        self._noted = lines

    def _mid_line(self, wire: Wire) -> bool:
        return wire.taken > 0 and wire.sent[wire.taken - 1] != ord("\n")

    @property
    def settled(self) -> bool:
        self.note()
        half_asked = self._mid_line(self.client) and not self._finished
        return not (self._in_flight or half_asked or self._mid_line(self.upstream))

    @property
    def between_requests(self) -> bool:
        return self._finished or not self._mid_line(self.client)

    def accepted(self, address: str) -> None:
        assert address == "192.0.2.1:1024"

    def finished(self) -> None:
        self.note()
        self._finished = True
        self._in_flight += self._mid_line(self.client)

    def stop_after(self, chunk: bytes) -> int:
        self.note()
        whole = chunk.rfind(b"\n") + 1
        # The rest will not arrive.
        self._finished = self._finished or whole > 0
        return whole

    def paused(self, leg: str) -> None:
        assert leg in ("client", "upstream")

    def resumed(self, leg: str) -> None:
        assert leg in ("client", "upstream")

    def ignored(self, leg: str) -> None:
        assert leg in ("client", "upstream")

    def ended(self, reason: str) -> None:
        self.ends.append(reason)

    # The upstream

    @property
    def owed(self) -> bytes:
        """The replies that are due for the requests the upstream has read."""
        read = self.upstream.arrived[: self.upstream.seen]
        requests = read.count(b"\n") + (self.upstream.fin_came and not read.endswith(b"\n") and bool(read))
        return b"".join(b"ACK %d\n" % (n + 1) for n in range(requests))[self.replied :]

    def reply(self, most: int) -> None:
        part = self.owed[:most]
        self.replied += len(part)
        self.upstream.peer_sends(part)


class Bridge(RuleBasedStateMachine):
    """Everything that can happen to sessions, one step per event."""

    def __init__(self) -> None:
        super().__init__()
        self.reactor = Reactor()
        self.open: list[Talk] = []
        self.drained: Deferred[None] | None = None
        """Fires when all sessions have ended after a stop; `None` unless the proxy is being stopped."""
        self.bridge = BridgeFactory(self._connect, self._observe, self.reactor.clock)

    def _observe(self) -> Any:
        self.open.append(Talk(Deferred()))
        return self.open[-1]

    def _connect(self, factory: ClientFactory) -> Deferred[Any]:
        self.open[-1].factory = factory
        return self.open[-1].connecting

    # Clients and upstreams

    @precondition(lambda self: len(self.open) < MOST_SESSIONS and self.drained is None)
    @rule(at_once=st.booleans())
    def client_connects(self, at_once: bool) -> None:
        leg = self.bridge.buildProtocol(None)
        talk = self.open[-1]
        talk.session = leg.session
        self.reactor.connect(talk.client, leg)
        if at_once:
            self._accept(talk)

    @some(lambda talk: not talk.connecting.called)
    def upstream_accepts(self, talk: Talk) -> None:
        self._accept(talk)

    @some(lambda talk: not talk.connecting.called)
    def upstream_refuses(self, talk: Talk) -> None:
        talk.excused = True
        talk.connecting.errback(ConnectionRefusedError())

    @some(
        lambda talk: talk.client.peer_may_send,
        data=st.sampled_from([b"REQ 1\n", b"REQ 2\n" * 9, b"REQ 1 ha", b"lf\n", b"x" * 300, b"\n"]),
    )
    def client_sends(self, talk: Talk, data: bytes) -> None:
        talk.client.peer_sends(data)

    @some(lambda talk: talk.upstream.peer_may_send and talk.owed, most=st.sampled_from([1, 5, 1000]))
    def upstream_replies(self, talk: Talk, most: int) -> None:
        talk.reply(most)

    @some(
        lambda talk: talk.connected and talk.upstream.peer_may_send,
        data=st.sampled_from([b"NAK 0 unasked\n", b"ACK 1 " + b"y" * 300, b"\n"]),
    )
    def upstream_says_more(self, talk: Talk, data: bytes) -> None:
        talk.unasked = True
        talk.upstream.peer_sends(data)

    @some(lambda talk: talk.client.unread, most=st.sampled_from([1, 20, 10_000]))
    def client_reads(self, talk: Talk, most: int) -> None:
        talk.client.peer_reads(most)

    @some(lambda talk: talk.upstream.unread, most=st.sampled_from([1, 20, 10_000]))
    def upstream_reads(self, talk: Talk, most: int) -> None:
        talk.upstream.peer_reads(most)

    @some(lambda talk: talk.client.peer_may_send)
    def client_sends_fin(self, talk: Talk) -> None:
        talk.client.fin_sent = True

    @some(lambda talk: talk.connected and talk.upstream.peer_may_send)
    def upstream_sends_fin(self, talk: Talk) -> None:
        talk.upstream.fin_sent = True

    @some(lambda talk: not talk.client.reset_sent)
    def client_resets(self, talk: Talk) -> None:
        talk.excused = talk.client.reset_sent = True

    @some(lambda talk: talk.connected and talk.client.peer_may_send)
    def client_resets_in_mid_line(self, talk: Talk) -> None:
        talk.client.peer_sends(b"REQ 7 transfer 100")
        talk.excused = talk.client.reset_sent = True

    @some(lambda talk: talk.connected and not talk.upstream.reset_sent)
    def upstream_resets(self, talk: Talk) -> None:
        talk.upstream_failed = talk.upstream.reset_sent = True

    @some(lambda talk: talk.connected and not talk.excused)
    def upstream_falls_silent(self, talk: Talk) -> None:
        talk.excused = True

    # The proxy, its clock and its operator

    @precondition(lambda self: self.open)
    @rule()
    def turn(self) -> None:
        self.reactor.turn()

    @precondition(lambda self: self.open)
    @rule()
    def settle(self) -> None:
        self.reactor.settle()
        for talk in self.open:
            self._goes_on(talk)

    @precondition(lambda self: self.open)
    @rule(seconds=st.sampled_from([0.1, 2.0, 11.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        if seconds > HARMLESS:
            for talk in self.open:
                # In an idle session, nobody can be late.
                quiet = not (talk.client.fin_sent or talk.upstream.fin_sent or self._is_stuck(talk))
                talk.excused = talk.excused or talk.upstream_failed or not (quiet and talk.connected)
        self.reactor.clock.advance(seconds)

    @precondition(lambda self: self.open and self.drained is None)
    @rule()
    def drain(self) -> None:
        for talk in self.open:
            talk.excused = True
        self.drained = self.bridge.drain()

    @precondition(lambda self: self.drained is not None and self.open)
    @rule()
    def abort(self) -> None:
        self.bridge.abort()

    # How sessions end

    @some(lambda talk: not (talk.excused or talk.upstream_failed))
    def all_goes_well(self, talk: Talk) -> None:
        self._ends_well(talk)

    @some(lambda talk: talk.upstream_failed and not talk.excused)
    def the_client_gets_what_came_before_its_upstream_failed(self, talk: Talk) -> None:
        # The proxy only notices the reset when it reads from the upstream or writes to it.
        if talk.client.peer_may_send:
            talk.client.peer_sends(b"REQ 3\n")
        self._talk_on(talk)
        talk.client.fin_sent = True
        self._talk_on(talk)
        assert talk.client.arrived == talk.upstream.said[: talk.upstream.taken]
        assert talk.client.peer_sees_end
        assert not talk.client.reset_came
        assert len(talk.ends) == 1
        self._forget(talk)

    @precondition(lambda self: any(talk.excused for talk in self.open))
    @rule()
    def all_has_gone_wrong(self) -> None:
        self._ends_badly()

    def teardown(self) -> None:
        for talk in list(self.open):
            if talk.upstream_failed:
                talk.excused = True
            elif not talk.excused:
                self._ends_well(talk)
        self._ends_badly()
        assert not self.open
        assert not self.bridge.sessions
        assert not self.reactor.clock.getDelayedCalls()
        assert not self.reactor.readers
        assert not self.reactor.writers

    def _accept(self, talk: Talk) -> None:
        assert talk.factory is not None
        assert not talk.client.taken, "the client was read too early"
        talk.connected = True
        protocol: Any = talk.factory.buildProtocol(None)
        self.reactor.connect(talk.upstream, protocol)
        talk.connecting.callback(protocol)

    def _ends_well(self, talk: Talk) -> None:
        """Let both peers read to the end, and the client leave once it has all replies; check that all arrived."""
        if not talk.connecting.called:
            self._accept(talk)
        self._talk_on(talk)
        talk.client.fin_sent = True
        self._talk_on(talk)
        if not talk.unasked:
            assert talk.upstream.arrived == talk.client.said
            assert talk.client.arrived == talk.upstream.said
            assert talk.upstream.fin_sent or not talk.owed
            assert talk.ends in (["client_closed"], ["upstream_closed"] if talk.upstream.fin_sent else [])
            assert talk.client.peer_sees_end
            assert not talk.client.reset_came
            self._forget(talk)
        else:
            talk.excused = True

    def _talk_on(self, talk: Talk, reply: bool = True) -> None:
        """Let both peers read, and the upstream reply, until nothing moves any more."""
        moved = None
        while moved != (moved := [w.progress for w in (talk.client, talk.upstream)]):
            self.reactor.settle()
            talk.client.peer_reads(1 << 20)
            talk.upstream.peer_reads(1 << 20)
            if reply and talk.upstream.peer_may_send:
                talk.reply(1 << 20)
            self.reactor.settle()

    def _ends_badly(self) -> None:
        """End all sessions in which something went wrong: their clients leave, and their upstreams stay silent."""
        bad = [talk for talk in self.open if talk.excused]
        for talk in bad:
            if not talk.connecting.called:
                talk.connecting.errback(ConnectionRefusedError())
            talk.client.fin_sent = True
        if self.drained is not None:
            # As the service does at --drain-timeout; the FIN of a client that is not read is not noticed.
            self.bridge.abort()
        for _ in range(10):
            for talk in bad:
                self._talk_on(talk, reply=False)
            self.time_passes(EVER / 10)
        for talk in bad:
            assert len(talk.ends) == 1
            self._forget(talk)
        # The stop is over, so new clients may connect again.
        if not self.open:
            self.drained = None

    def _forget(self, talk: Talk) -> None:
        self.a_session_ends_once_and_is_forgotten()
        self.open.remove(talk)

    # What must always hold

    @invariant()
    def nothing_is_invented_reordered_or_repeated(self) -> None:
        for talk in self.open:
            for source, sink in ((talk.client, talk.upstream), (talk.upstream, talk.client)):
                assert source.sent[: source.taken].startswith(sink.arrived)

    @invariant()
    def only_a_clients_own_fin_ends_a_line_that_has_no_newline(self) -> None:
        for talk in self.open:
            upstream = talk.upstream
            if upstream.fin_came and not (upstream.reset_came or upstream.reset_sent):
                assert talk.client.fin_taken or not upstream.arrived or upstream.arrived.endswith(b"\n")

    @invariant()
    def who_floods_a_peer_that_does_not_read_is_not_read(self) -> None:
        for talk in self.open:
            for leg, other in self._legs(talk):
                if self._held(other) > BUFFER and talk.session.state != "closing":
                    assert leg.transport not in self.reactor.readers
                assert self._held(other) <= 2 * BUFFER

    @invariant()
    def a_session_ends_once_and_is_forgotten(self) -> None:
        for talk in self.open:
            assert len(talk.ends) <= 1
            assert (talk.session in self.bridge.sessions) == (not talk.ends)
            if talk.ends:
                assert talk.session not in self.bridge.deadlines
                assert talk.connecting.called
                assert talk.client.closed
                assert talk.upstream.closed or not talk.connected
        if self.drained is not None:
            assert self.drained.called == (not self.bridge.sessions)

    def _goes_on(self, talk: Talk) -> None:
        """Check, after settling, that no leg is paused if the other leg can be written to."""
        if self.drained is not None or not talk.connected or talk.session.state == "closing" or talk.session.ending:
            return
        for leg, other in self._legs(talk):
            if not self._held(other):
                assert leg.transport in self.reactor.readers

    def _is_stuck(self, talk: Talk) -> bool:
        legs = [leg for pair in self._legs(talk) for leg in pair]
        wires = (talk.client, talk.upstream)
        return any(map(self._held, legs)) or any(w.taken < len(w.sent) or w.seen < len(w.arrived) for w in wires)

    def _legs(self, talk: Talk) -> list[tuple[Any, Any]]:
        """Return both pairs of a leg that is read and the leg that its data is written to."""
        session = talk.session
        if session.upstream is None or session.client.lost or session.upstream.lost:
            return []
        return [(session.client, session.upstream), (session.upstream, session.client)]

    def _held(self, leg: Any) -> int:
        return unsent(leg.transport)


TestBridge = Bridge.TestCase
TestBridge.settings = settings(
    max_examples=settings().max_examples * 5 // 2,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
