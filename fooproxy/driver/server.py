"""``foo-server``: the command.

It takes its options, listens, and says when file descriptors run out; `fooproxy.driver.answering` serves the clients.
"""

from __future__ import annotations

import resource
import sys
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.error import CannotListenError

from fooproxy.driver import command
from fooproxy.driver.answering import FooServerFactory
from fooproxy.driver.figures import counted
from fooproxy.net.accepting import Acceptor
from fooproxy.net.addresses import server_endpoint
from fooproxy.net.peers import shown
from fooproxy.net.turnstile import Turnstile

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence
    from typing import NoReturn

    from twisted.internet.interfaces import IReactorTime


async def serve(reactor: Any, options: Namespace) -> int:
    """Listen as `options` specify until a signal arrives."""
    endpoint = command.endpoint("--listen", server_endpoint, reactor, options.listen)
    factory = FooServerFactory(
        reactor,
        nak_rate=options.nak_rate,
        delay=options.delay,
        seed=options.seed,
        close_after_fin=options.close_after_fin,
    )
    try:
        port = await endpoint.listen(factory)
    except (CannotListenError, OSError) as error:
        cause = getattr(error, "socketError", error)
        reason = getattr(cause, "strerror", None) or cause
        raise command.Stop(f"cannot listen on {options.listen}: {reason}") from error
    if hasattr(port, "socket"):
        Turnstile(port, reactor)
        _Acceptor(port, reactor, factory, options.close_after_fin)
    sys.stdout.write(f"listening on {shown(port.getHost())}\n")
    sys.stdout.flush()
    try:
        await Deferred()
    except CancelledError:
        await maybeDeferred(port.stopListening)
        await factory.disconnect()
    return 0


class _Acceptor(Acceptor):
    """Lets clients wait while there are no file descriptors, and says so."""

    def __init__(self, port: Any, clock: IReactorTime, factory: FooServerFactory, close_after_fin: bool) -> None:
        super().__init__(port, clock)
        self._factory = factory
        self._close_after_fin = close_after_fin

    def paused(self, cause: str, why: str, is_news: bool) -> None:
        """Print a line when the descriptors have run out."""
        if not is_news:
            return
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        advice = "raise the limit (ulimit -Hn)"
        if not self._close_after_fin:
            advice += " or start with --close-after-fin; without it, connections stay open after the client's FIN"
        sys.stderr.write(
            f"foo-server: cannot accept more clients: {why} (file descriptor limit {limit}, "
            f"{counted(self._factory.connections, 'connection')} open); new clients wait until descriptors are free; "
            f"{advice}\n"
        )


def make_parser() -> command.Parser:
    """Return the parser of the options."""
    parser = command.Parser(prog="foo-server", description="Run a Foo server that answers each request in order.")
    add = parser.add_argument
    add("--listen", default=":8001", metavar="ADDRESS", help="where to listen (default: %(default)s)")
    add(
        "--nak-rate",
        default=0.0,
        type=command.share,
        metavar="SHARE",
        help="share of requests answered with NAK, 0 to 1 (default: 0)",
    )
    add(
        "--delay",
        default=0.0,
        type=command.duration,
        metavar="TIME",
        help="delay each reply by this much: 5ms, 0.5s, 2 (seconds) (default: 0)",
    )
    add("--seed", type=command.whole(0), metavar="N", help="make the choice of ACK or NAK reproducible")
    add("--close-after-fin", action="store_true", help="close a connection after the client's FIN; real servers do not")
    return parser


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run ``foo-server``."""
    options = make_parser().parse_args(argv)
    command.run("foo-server", lambda reactor: serve(reactor, options))


if __name__ == "__main__":
    main()
