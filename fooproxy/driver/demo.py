"""``foo-demo``: runs a server, the real proxy and a client, and compares the client's counts with the proxy's.

The proxy runs under twistd, as an operator would run it.  The demo relies only on the proxy's public interface: the
command line, the log lines that state its addresses, the report that SIGUSR2 prints, and ``/stats``.  The demo fails
if the proxy's counts differ from the client's.
"""

from __future__ import annotations

import json
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import treq
from twisted.internet.defer import CancelledError, FirstError, gatherResults

from fooproxy.driver import command
from fooproxy.driver.children import STDERR, STDOUT, Child, ChildError, running
from fooproxy.driver.client import Client, ClientError, Script, run_shown
from fooproxy.driver.comparison import check_counts, table
from fooproxy.driver.figures import counted
from fooproxy.net.addresses import client_endpoint

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence
    from typing import NoReturn

    from fooproxy.driver.tally import Tally

# The twistd script is not always next to the interpreter, and "-m twisted" runs twist, a different program.
_TWISTD = "from twisted.scripts.twistd import run; run()"
_SERVER = "from fooproxy.driver.server import main; main()"

# About 20 requests/s over both connections: enough to keep the page moving.
_TRICKLE = Script(sys.maxsize, pause=0.1)


class _Proxy(NamedTuple):
    child: Child
    address: str
    url: str


async def demonstrate(reactor: Any, options: Namespace) -> int:
    """Run the demo and stop everything that it started, however it ends."""
    async with AsyncExitStack() as started:
        try:
            server = await _start_server(reactor, started, options)
            proxy = await _start_proxy(reactor, started, options, server)
            _say(f"server on {server}, proxy on {proxy.address} (process {proxy.child.transport.pid})")
            tallies = await _run_clients(reactor, options, proxy)
            await _compare(reactor, proxy, tallies)
            if options.keep:
                await _keep(reactor, proxy)
        except (ChildError, ClientError) as error:
            raise command.Stop(str(error)) from error
    return 0


async def _start_server(reactor: Any, started: AsyncExitStack, options: Namespace) -> str:
    arguments = ["--listen", "127.0.0.1:0", "--nak-rate", str(options.nak_rate)]
    child = await started.enter_async_context(running(reactor, "the server", _SERVER, arguments))
    return (await child.expect(STDOUT, r"listening on (\S+)"))[1]


async def _start_proxy(reactor: Any, started: AsyncExitStack, options: Namespace, server: str) -> _Proxy:
    directory = started.enter_context(TemporaryDirectory(prefix="foo-demo-"))
    arguments = ["-n", "--pidfile=", "fooproxy", "--listen", options.listen, "--forward", server]
    arguments += ["--http", options.http, "--recovery-path", str(Path(directory) / "recovery.json")]
    child = await started.enter_async_context(running(reactor, "the proxy", _TWISTD, arguments))
    lines = [child.expect(STDERR, text) for text in (r"listening for clients on (\S+)", r"serving HTTP on (\S+)")]
    try:
        address, url = await gatherResults(lines, consumeErrors=True)
    except FirstError as first:
        first.subFailure.raiseException()
    return _Proxy(child, address[1], url[1])


async def _run_clients(reactor: Any, options: Namespace, proxy: _Proxy) -> list[Tally]:
    endpoint = client_endpoint(reactor, proxy.address)
    _say("\nsmall run, each request in three packets:")
    small = Client(reactor, endpoint, Script(20, fragment=True))
    tallies = [await run_shown(reactor, small, 20)]
    _say(tallies[-1].summary())
    connections, requests = counted(options.connections, "connection"), counted(options.pipeline, "request")
    _say(f"\n{connections}, {requests} in flight on each:")
    script = Script(options.requests, pipeline=options.pipeline)
    busy = Client(reactor, endpoint, script, connections=options.connections)
    tallies.append(await run_shown(reactor, busy, options.requests))
    _say(tallies[-1].summary())
    return tallies


async def _compare(reactor: Any, proxy: _Proxy, tallies: Sequence[Tally]) -> None:
    """Show the client's figures beside the proxy's, and check the counts of the report and of ``/stats``.

    :raises Stop: they differ.
    """
    # By number: Twisted knows only a few signals by name, and SIGUSR2 is not one of them.
    proxy.child.transport.signalProcess(signal.SIGUSR2)
    report = json.loads((await proxy.child.expect(STDOUT, r"^\{.*\}$"))[0])
    _say(f"\nboth runs together, as the client and the proxy saw them:\n{table(report, tallies)}")
    stats = await _fetch(reactor, f"{proxy.url}stats")
    check_counts(report, tallies, "the report that SIGUSR2 prints")
    check_counts(stats, tallies, "/stats")
    _say("\nthe proxy's counts, printed on SIGUSR2 and served at /stats, match the client's: OK!")


async def _fetch(reactor: Any, url: str) -> Any:
    try:
        response = await treq.get(url, reactor=reactor, persistent=False, timeout=10)
        return await response.json()
    except CancelledError:
        raise
    except Exception as error:
        raise command.Stop(f"cannot fetch {url}: {error or type(error).__name__}") from error


async def _keep(reactor: Any, proxy: _Proxy) -> None:
    """Keep everything running, with light traffic, until a signal arrives."""
    proxy.child.forward = True
    _say(f"\npage: {proxy.url}")
    _say(f"light traffic continues until Ctrl-C; kill -USR2 {proxy.child.transport.pid} prints a report")
    trickle = Client(reactor, client_endpoint(reactor, proxy.address), _TRICKLE, connections=2)
    try:
        await trickle.run()
    except CancelledError:
        _say("\nstopping")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def make_parser() -> command.Parser:
    """Return the parser of the options."""
    parser = command.Parser(
        prog="foo-demo", description="Run a Foo server, the proxy and a client, and compare their counts."
    )
    add, whole = parser.add_argument, command.whole
    add("--keep", action="store_true", help="keep everything running, with light traffic, until Ctrl-C")
    add("--requests", default=20000, type=whole(1), metavar="N", help="total requests (default: %(default)s)")
    add("--connections", default=10, type=whole(1), metavar="N", help="simultaneous connections (default: %(default)s)")
    add(
        "--pipeline",
        default=50,
        type=whole(1),
        metavar="N",
        help="requests in flight per connection (default: %(default)s)",
    )
    add(
        "--nak-rate",
        default=0.2,
        type=command.share,
        metavar="SHARE",
        help="share of requests answered with NAK, 0 to 1 (default: %(default)s)",
    )
    add("--listen", default="127.0.0.1:0", metavar="ADDRESS", help="where the proxy listens (default: a free port)")
    add("--http", default="127.0.0.1:0", metavar="ADDRESS", help="where the proxy serves HTTP (default: a free port)")
    return parser


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run ``foo-demo``."""
    parser = make_parser()
    options = parser.parse_args(argv)
    command.check_shares(parser, options)
    command.run("foo-demo", lambda reactor: demonstrate(reactor, options))


if __name__ == "__main__":
    main()
