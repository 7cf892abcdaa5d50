"""``fooctl``: shows the state of a running proxy, and gives it orders, over its control socket.

The exit status is 0 if the order was carried out, 1 if it was refused or failed, 2 if the command line is wrong.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from fooproxy.driver import command, listing
from fooproxy.driver.figures import counted
from fooproxy.driver.orders import Refusal, Unreachable, ask
from fooproxy.net.addresses import unix_path

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Mapping, Sequence

    Action = Callable[[str, Namespace], tuple[Any, str, int]]

_VARIABLE = "FOOPROXY_CONTROL"

_NOTES = f"""\
The proxy must run with --control, and {_VARIABLE} or --control names the same socket.
Only the proxy's user and root may use it, and each change is a line in the proxy's log.

exit status: 0 done, 1 refused or failed, 2 wrong command line"""


def _list(what: str, show: Callable[[Any], str]) -> Action:
    """Return the action that shows one of the lists."""

    def do(path: str, options: Namespace) -> tuple[Any, str, int]:
        wanted = [f"{name}={value}" for name in ("sort", "limit") if (value := getattr(options, name, None))]
        answer = ask(path, "GET", what, query="&".join(wanted))
        return answer, show(answer), 0

    return do


def _pause(path: str, options: Namespace) -> tuple[Any, str, int]:
    words = _place(options)
    answer = ask(path, "POST", *words, "pause", wait=_wait(options))
    open_ones = answer["requests_in_flight"]
    if options.wait and not answer["idle"]:
        what = f"still {counted(open_ones, 'request')} in flight" if open_ones else "still half a request, or a connect"
        resumed = any(row["state"] != "paused" for row in answer["upstreams"])
        return answer, f"{_states(answer)}; {'not idle' if resumed else f'{what} after {options.timeout} s'}", 1
    ending = "nothing is in flight" if answer["idle"] else f"{counted(open_ones, 'request')} in flight"
    if sessions := answer["connections_active"]:
        ending += f", {counted(sessions, 'session')} open"
    return answer, f"{_states(answer)}; {ending}", 0


def _resume(path: str, options: Namespace) -> tuple[Any, str, int]:
    answer = ask(path, "POST", *_place(options), "resume")
    return answer, _states(answer), 0


def _drain(path: str, options: Namespace) -> tuple[Any, str, int]:
    answer = ask(path, "POST", *_place(options), "drain", wait=_wait(options))
    left = answer["connections_active"]
    return answer, f"{_states(answer)}; {counted(left, 'session')} left", int(bool(options.wait and left))


def _ready(path: str, options: Namespace) -> tuple[Any, str, int]:
    answer = ask(path, "POST", *_place(options), "ready")
    return answer, _states(answer), 0


def _close(path: str, options: Namespace) -> tuple[Any, str, int]:
    answer = ask(path, "POST", "connections", str(options.id), "close", wait=_wait(options))
    if answer["closed"]:
        return answer, f"session {options.id} is closed", 0
    within = f"closes within {answer['closes_within_seconds']:g} s, when its requests are answered"
    return answer, f"session {options.id} {within}", int(options.wait)


def _stop(path: str, options: Namespace) -> tuple[Any, str, int]:
    answer = ask(path, "POST", "drain")
    return answer, f"the proxy stops; {counted(answer['connections_active'], 'session')} left", 0


def _place(options: Namespace) -> tuple[str, ...]:
    return ("upstreams", options.name) if options.name else ()


def _wait(options: Namespace) -> int:
    return options.timeout if options.wait else 0


def _states(answer: Mapping[str, Any]) -> str:
    return ", ".join(f"{row['name']} is {row['state']}" for row in answer["upstreams"])


def make_parser() -> command.Parser:
    """Return the parser of the options."""
    parser = command.Parser(
        prog="fooctl",
        description="Show what a running fooproxy does, and give it orders.",
        epilog=_NOTES,
        formatter_class=command.KeepsLines,
    )
    parser.add_argument(
        *("--control",),
        default=os.environ.get(_VARIABLE, ""),
        metavar="ADDRESS",
        help=f"the proxy's control socket, unix:PATH as in its option --control (default: ${_VARIABLE})",
    )
    parser.add_argument("--json", action="store_true", help="print the proxy's answer as JSON")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=command.Parser)

    lists = {
        "upstreams": ("show the Foo servers", listing.upstreams),
        "connections": ("show the open sessions", listing.connections),
        "clients": ("show totals by client address", listing.clients),
    }
    for what, (meaning, show) in lists.items():
        one = _add(commands, what, meaning, _list(what, show))
        if what == "connections":
            one.add_argument("--sort", metavar="COLUMN", help="sort by this key of the JSON (default: age_seconds)")
        if what != "upstreams":
            one.add_argument("--limit", type=command.whole(1), metavar="N", help="rows to show (default: 100)")
    one = _add(commands, "pause", "keep new clients waiting; requests in progress are answered", _pause)
    one.add_argument("name", nargs="?", metavar="NAME", help="only this server; new clients go to others, if any")
    _add_wait(one, "wait until nothing is in flight, so that the servers can be restarted")
    one = _add(commands, "resume", "let clients in again", _resume)
    one.add_argument("name", nargs="?", metavar="NAME", help="only this server")
    one = _add(commands, "drain", "send no new clients to a server; its sessions continue", _drain)
    one.add_argument("name", metavar="NAME", help="the server")
    _add_wait(one, "wait until it has no sessions")
    one = _add(commands, "ready", "send clients to a server again", _ready)
    one.add_argument("name", metavar="NAME", help="the server")
    one = _add(commands, "close", "close a session, once its requests are answered", _close)
    one.add_argument("id", type=command.whole(1), metavar="ID", help="its ID, see fooctl connections")
    _add_wait(one, "wait until it is closed")
    _add(commands, "stop", "drain the proxy and stop it, as SIGTERM does", _stop)
    return parser


def _add(commands: Any, name: str, meaning: str, do: Action) -> command.Parser:
    """Add a command, which takes the general options too."""
    one: command.Parser = commands.add_parser(name, help=meaning, description=f"{meaning[0].upper()}{meaning[1:]}.")
    one.set_defaults(do=do)
    one.add_argument("--control", default=command.UNSET, metavar="ADDRESS", help="the control socket")
    one.add_argument("--json", action="store_true", default=command.UNSET, help="print the proxy's answer as JSON")
    return one


def _add_wait(one: command.Parser, meaning: str) -> None:
    one.add_argument("--wait", action="store_true", help=meaning)
    one.add_argument(
        "--timeout", type=_seconds, default=60, metavar="SECONDS", help="longest wait, up to 3600 (default: 60)"
    )


def _seconds(text: str) -> int:
    seconds = command.whole(1)(text)
    return min(seconds, 3600)


def _socket(parser: command.Parser, text: str) -> str:
    """Return the path of the control socket."""
    if not text:
        parser.error(f"no proxy is named; expected --control or {_VARIABLE}, such as unix:/run/fooproxy/control.sock")
    try:
        path = unix_path(text, listens=True)
    except ValueError as error:
        parser.error(f"argument --control: {error}")
    if path is None:
        parser.error(f"argument --control: {text!r} is not unix: and a path, such as unix:/run/fooproxy/control.sock")
    return path


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run ``fooctl``."""
    parser = make_parser()
    options = parser.parse_args(argv)
    command.replace_unprintable()
    path = _socket(parser, options.control)
    try:
        answer, text, status = options.do(path, options)
    except (Unreachable, Refusal) as why:
        parser.exit(1, f"fooctl: {why}\n")
    except KeyboardInterrupt:
        raise SystemExit(command.INTERRUPTED) from None
    try:
        print(json.dumps(answer) if options.json else text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(status)


if __name__ == "__main__":
    main()
