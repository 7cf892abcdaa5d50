"""Checks: test each server at regular intervals, without any client: whether it accepts connections, or also answers.

A ``tcp`` check connects, and passes if the connection stays open for a moment.  A ``foo`` check also sends a request,
accepts any reply as a sign of life, and closes in an orderly way; `fooproxy.parts` passes in the request and the test
for a reply, since nothing here knows messages.  After `fall` failures in a row, clients get other servers if there are
any, so checks never take the last server away.  After `rise` successes in a row, the server is used like the others
again.

Checks count only in their own statistics.  `fooproxy.upstreams.condition` holds the state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.protocol import Protocol, connectionDone

from fooproxy.net.deadlines import Deadlines, Limit
from fooproxy.net.failures import words
from fooproxy.text import one_line
from fooproxy.upstreams.probe import cause

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping
    from random import Random
    from typing import Protocol as Interface

    from twisted.internet.interfaces import IDelayedCall, IReactorTime
    from twisted.python.failure import Failure

    from fooproxy.upstreams.server import Server

    class Question(Interface):
        """A request, and the test of its reply."""

        request: bytes

        def hear(self, chunk: bytes) -> bool | None:
            """Return whether the data received is a reply; `None` as long as that is not known."""


KINDS = ("off", "tcp", "foo")
"""The kinds of checks, as ``--check`` names them."""

RESULTS = ("passed", "failed")

_AT_FIRST = 1.0
"""Seconds over which the first checks of all servers are spread, at most."""

_JITTER = 0.1
"""The fraction of the interval by which a check may be early or late, so that servers are not checked in step."""

_CLOSING = 2.0
"""Seconds that a peer over TLS has to close its side after ours; then the connection is aborted."""


@dataclass(frozen=True)
class Rules:
    """How servers are checked: every `interval` seconds, each check within `timeout` seconds."""

    interval: float = 5.0
    rise: int = 2
    fall: int = 3
    timeout: float = 5.0


class CheckFailed(Exception):
    """A server accepted the connection, but did not pass the check; the text says why."""


class Checks:
    """Checks servers by `rules`: sends the question from `ask`, or only connects; `tally` counts the results."""

    def __init__(
        self,
        rules: Rules,
        clock: IReactorTime,
        random: Random,
        tally: MutableMapping[str, int],
        ask: Callable[[], Question] | None = None,
    ) -> None:
        self.rules = rules
        self.clock = clock
        self.random = random
        self.tally = tally
        self.ask = ask
        self.deadlines: Deadlines[Any] = Deadlines(clock)
        self._checks: dict[Server, Check] = {}
        self._is_started = False

    def join(self, server: Server) -> None:
        """Check `server` from now on."""
        check = self._checks[server] = server.check = Check(server, self)
        if self.ask is not None:
            server.examine = check.examine
        if self._is_started:
            check.start(self._first() * self.random.random())

    def leave(self, server: Server) -> None:
        """Stop checking `server`."""
        check = self._checks.pop(server, None)
        if check is not None:
            check.stop()

    def start(self) -> None:
        """Start checking; the first checks are spread over up to `_AT_FIRST` seconds."""
        self._is_started = True
        step = self._first() / max(len(self._checks), 1)
        for number, check in enumerate(self._checks.values()):
            check.start(step * (number + self.random.random()))

    def stop(self) -> None:
        """Stop checking all servers."""
        self._is_started = False
        for check in self._checks.values():
            check.stop()

    def _first(self) -> float:
        return min(self.rules.interval, _AT_FIRST)


class Check:
    """The checks of one server, and their last results."""

    def __init__(self, server: Server, owner: Checks) -> None:
        self._server = server
        self._owner = owner
        self._timer: IDelayedCall | None = None
        self._running: Deferred[None] | None = None
        self._began = 0.0
        self._passed = False
        self._row = 0
        """How many results in a row were the same as the last one."""
        self._took: float | None = None
        self._ended = 0.0
        self._error: str | None = None
        """Why the last failed check failed."""

    def report(self) -> dict[str, Any]:
        """Return the last result, and the error of the last failed check."""
        is_known = self._took is not None
        return {
            "result": RESULTS[0 if self._passed else 1] if is_known else None,
            "seconds_ago": self._owner.clock.seconds() - self._ended if is_known else None,
            "took_seconds": self._took,
            "in_a_row": self._row,
            "last_error": self._error,
        }

    def start(self, after: float) -> None:
        """Make the first check in `after` seconds."""
        self._timer = self._owner.clock.callLater(after, self._go)

    def stop(self) -> None:
        """Stop checking, and close the connection of a check in progress."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        running, self._running = self._running, None
        if running is not None:
            running.cancel()

    def _go(self) -> None:
        self._timer = None
        self._began = self._owner.clock.seconds()
        timeout = self._owner.rules.timeout
        way = self._server.stays if self._owner.ask is None else self.examine
        running = self._running = Deferred.fromCoroutine(way(timeout))
        running.addCallbacks(lambda _: self._over(None), lambda failure: self._over(failure.value))

    def _over(self, reason: Any) -> None:
        """Record a result, and wait for the next check."""
        if self._running is None:
            # The checks were stopped.
            return
        self._running = None
        rules, clock = self._owner.rules, self._owner.clock
        self._ended = clock.seconds()
        self._took = self._ended - self._began
        passed = reason is None
        self._row = self._row + 1 if passed is self._passed else 1
        self._passed = passed
        result = RESULTS[0 if passed else 1]
        self._owner.tally[result] += 1
        self._server.checked(result)
        jitter = self._owner.random.uniform(1 - _JITTER, 1 + _JITTER)
        self._timer = clock.callLater(max(rules.interval * jitter - self._took, 0.0), self._go)
        if passed:
            self._server.succeeded()
            if self._row >= rules.rise:
                self._server.trust()
        else:
            self._error = one_line(words(cause(reason, rules.timeout)))
            if self._row >= rules.fall or self._server.doubted:
                self._server.doubt(self._error)

    async def examine(self, timeout: float) -> None:
        """Send one request to the server, and close; fail if there is no reply within `timeout` seconds."""
        owner = self._owner
        assert owner.ask is not None
        conversation = _Conversation(owner.ask(), owner.deadlines)
        began = owner.clock.seconds()
        limit: Any = Limit(owner.deadlines)
        try:
            await self._server.reach(lambda: conversation).addTimeout(timeout, limit)
        except DeferredTimeout:
            raise cause(CancelledError(), timeout) from None
        left = max(timeout - (owner.clock.seconds() - began), 0.0)
        try:
            await conversation.over.addTimeout(left, limit)
        except DeferredTimeout:
            raise CheckFailed(f"it has not answered a request within {timeout:g} s") from None
        finally:
            conversation.close()


class _Conversation(Protocol):
    """Asks a `question`; `over` fires when there is a reply."""

    transport: Any

    def __init__(self, question: Question, deadlines: Deadlines[Any]) -> None:
        self._question = question
        self._deadlines = deadlines
        self._is_done = False
        self.over: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        """Ask."""
        self.transport.write(self._question.request)

    def dataReceived(self, data: bytes) -> None:
        """Judge the data that the server sends."""
        if self.over.called:
            return
        verdict = self._question.hear(data)
        if verdict:
            self.over.callback(None)
        elif verdict is not None:
            self.over.errback(CheckFailed("its answer to a request is not a reply"))

    def close(self) -> None:
        """Close with a FIN, since the request was complete; nothing waits for `over` any more."""
        self._is_done = True
        self._deadlines.set(self, _CLOSING, self.transport.abortConnection)
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fail if there was no reply."""
        self._deadlines.clear(self)
        if not self.over.called and not self._is_done:
            self.over.errback(CheckFailed("it closes the connection and does not answer a request"))
