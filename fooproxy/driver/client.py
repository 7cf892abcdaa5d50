"""``foo-client``: sends requests to a Foo server or proxy over one or more connections and checks every reply.

`Client` is the run itself, for tests and the demo; `main` adds options, a progress display and a summary.
The first failure on any connection ends the run with one line that describes it.
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

# More simultaneous connects overflow a backlog of 50, a common default, and the kernel then waits 1 s to retry.
_CONNECTING = 32


class Client:
    """Runs `script` on `connections` connections, which share its `requests` evenly.

    `seed` makes the data reproducible.

    :raises ValueError: there are more connections than requests.
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
        """Send all requests and check all replies.  No connection stays open, however the run ends.

        :raises ClientError: a connection failed, or a reply was wrong.
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
    """Return a short reason why a connection failed; Twisted's own texts repeat themselves."""
    number = getattr(error, "osError", None)
    if isinstance(number, int):
        return os.strerror(number)
    return str(error) or f"no answer within {duration_text(timeout)}"


async def run_shown(reactor: Any, client: Client, total: int) -> Tally:
    """Run `client` and show its progress towards `total` requests on the terminal."""
    progress = Progress(reactor, client.tally, total)
    succeeded = False
    try:
        tally = await client.run()
        succeeded = True
    finally:
        progress.close(succeeded)
    return tally


async def converse(reactor: Any, options: Namespace) -> int:
    """Run the client as `options` specify and print a summary."""
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


def make_parser() -> command.Parser:
    """Return the parser of the options."""
    parser = command.Parser(prog="foo-client", description="Run a Foo client that checks every reply.")
    add, whole = parser.add_argument, command.whole
    add(
        "--connect",
        default="localhost:8002",
        metavar="ADDRESS",
        help="server or proxy to connect to (default: %(default)s)",
    )
    add(
        "--requests",
        type=whole(1),
        metavar="N",
        help="total requests (default: 10, or one per connection if that is more)",
    )
    add("--connections", default=1, type=whole(1), metavar="N", help="simultaneous connections (default: 1)")
    add("--pipeline", default=1, type=whole(1), metavar="N", help="requests in flight per connection (default: 1)")
    add("--size", default=16, type=whole(0), metavar="BYTES", help="bytes of data per request (default: 16)")
    add("--fragment", action="store_true", help="send each request in up to three packets")
    add(
        "--pause",
        default=0.0,
        type=command.duration,
        metavar="TIME",
        help="wait this long between a reply and the next request: 5ms, 0.5s, 2 (seconds) (default: 0)",
    )
    add("--timeout", default=10.0, type=command.timeout, metavar="TIME", help="longest wait for a reply (default: 10s)")
    add("--seed", type=whole(0), metavar="N", help="make the data reproducible")
    return parser


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run ``foo-client``."""
    parser = make_parser()
    options = parser.parse_args(argv)
    command.check_shares(parser, options)
    command.run("foo-client", lambda reactor: converse(reactor, options))


if __name__ == "__main__":
    main()
