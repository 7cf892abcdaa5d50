"""``foo-client``: keeps connections to a Foo server or proxy busy and checks every reply.

`Client` is the run as such, for tests and for the demo; `main` adds options, a picture of the progress and a summary.
The first thing that goes wrong on any connection ends the run with one line that says what it was.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred, DeferredList, DeferredSemaphore, FirstError, gatherResults
from twisted.internet.protocol import Factory

from fooproxy.driver import command
from fooproxy.driver.conversation import ClientError, Conversation, Script
from fooproxy.driver.figures import counted, duration_text
from fooproxy.driver.progress import Progress
from fooproxy.driver.tally import Tally
from fooproxy.net.addresses import client_endpoint

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence
    from typing import NoReturn

    from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint

__all__ = ["Client", "ClientError", "Script", "main", "run_shown"]

# More at once overflow the usual backlog of 50, and the kernel then waits a second before it tries again.
_CONNECTING = 32


class Client:
    """Runs `script` on each of `connections` connections; its `requests` are shared out among them.

    `seed` makes the data sent reproducible.

    :raises ValueError: some of the connections would have no request.
    """

    def __init__(
        self,
        clock: IReactorTime,
        endpoint: IStreamClientEndpoint,
        script: Script,
        *,
        connections: int = 1,
        seed: int | None = None,
    ) -> None:
        if script.requests < connections:
            raise ValueError(f"too few requests for {counted(connections, 'connection')}: {script.requests}")
        self.tally = Tally()
        self._clock = clock
        self._endpoint = endpoint
        self._script = script
        self._connections = connections
        self._seed = seed
        self._connecting = DeferredSemaphore(_CONNECTING)

    async def run(self) -> Tally:
        """Say all there is to say; no connection is left open, however it ends.

        :raises ClientError: one of the connections did not go as it must.
        """
        conversations = [Deferred.fromCoroutine(self._converse(number + 1)) for number in range(self._connections)]
        try:
            await gatherResults(conversations, consumeErrors=True)
        except FirstError as first:
            first.subFailure.raiseException()
        finally:
            for conversation in conversations:
                conversation.cancel()
            await DeferredList(conversations)
        return self.tally

    async def _converse(self, number: int) -> None:
        conversation = await self._connect(number)
        try:
            await conversation.finished
        except CancelledError:
            conversation.abort()
            raise
        finally:
            await conversation.closed

    async def _connect(self, number: int) -> Conversation:
        each, more = divmod(self._script.requests, self._connections)
        script = self._script._replace(requests=each + (number <= more))
        random = Random() if self._seed is None else Random(f"{self._seed}/{number}")
        factory = Factory.forProtocol(partial(Conversation, self._clock, number, script, random, self.tally))
        factory.noisy = False
        await self._connecting.acquire()
        try:
            connected: Deferred[Any] = self._endpoint.connect(factory)
            conversation: Conversation = await connected.addTimeout(script.timeout, self._clock)
        except CancelledError:
            raise
        except Exception as error:
            raise ClientError(f"connection {number}: cannot connect: {_reason(error, script.timeout)}") from error
        finally:
            self._connecting.release()
        return conversation


def _reason(error: Exception, timeout: float) -> str:
    """Say shortly why a connection could not be made; Twisted's own texts tell some things twice."""
    number = getattr(error, "osError", None)
    if isinstance(number, int):
        return os.strerror(number)
    return str(error) or f"no answer within {duration_text(timeout)}"


async def run_shown(reactor: Any, client: Client, total: int) -> Tally:
    """Run `client`, showing on the terminal how far of `total` requests it is."""
    progress = Progress(reactor, client.tally, total)
    succeeded = False
    try:
        tally = await client.run()
        succeeded = True
    finally:
        progress.close(succeeded)
    return tally


async def converse(reactor: Any, options: Namespace) -> int:
    """Run the client that `options` describe and sum up what it saw."""
    endpoint = command.endpoint("--connect", client_endpoint, reactor, options.connect)
    total = options.requests or max(10, options.connections)
    script = Script(total, options.pipeline, options.size, options.fragment, options.pause, options.timeout)
    client = Client(reactor, endpoint, script, connections=options.connections, seed=options.seed)
    try:
        tally = await run_shown(reactor, client, total)
    except ClientError as error:
        raise command.Stop(f"{options.connect}: {error}") from error
    sys.stdout.write(f"{tally.summary()}\n")
    return 0


def _parser() -> command.Parser:
    parser = command.Parser(prog="foo-client", description="A Foo client that checks every reply.")
    add, whole = parser.add_argument, command.whole
    add("--connect", default="localhost:8002", metavar="ADDRESS", help="what to talk to (default: %(default)s)")
    add("--requests", type=whole(1), metavar="N", help="requests in all (default: 10, or one per connection)")
    add("--connections", default=1, type=whole(1), metavar="N", help="connections at once (default: 1)")
    add("--pipeline", default=1, type=whole(1), metavar="N", help="requests in flight per connection (default: 1)")
    add("--size", default=16, type=whole(0), metavar="BYTES", help="bytes of data in a request (default: 16)")
    add("--fragment", action="store_true", help="send each request in up to three packets")
    add("--pause", default=0.0, type=command.duration, help="time from a reply to the next request (default: 0)")
    add("--timeout", default=10.0, type=command.timeout, help="longest wait for a reply (default: 10s)")
    add("--seed", type=whole(0), help="makes the data that is sent reproducible")
    return parser


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run ``foo-client``."""
    parser = _parser()
    options = parser.parse_args(argv)
    command.check_shares(parser, options)
    command.run("foo-client", lambda reactor: converse(reactor, options))


if __name__ == "__main__":
    main()
