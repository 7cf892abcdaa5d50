"""The commands of fooctl and the routes of the control side: each is there for one of the other."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from threading import Thread

import pytest
from werkzeug.exceptions import HTTPException

from fooproxy.driver.fooctl import make_parser
from fooproxy.driver.orders import Refusal
from fooproxy.web.control import Control

(COMMANDS,) = (
    action.choices
    for action in make_parser()._actions
    if isinstance(action, argparse._SubParsersAction) and isinstance(action.choices, dict)
)
LINES = [
    [name, *("1" for part in command._actions if not part.option_strings and part.nargs in kinds)]
    for name, command in COMMANDS.items()
    for kinds in ((None,), (None, "?"))
    if "?" not in kinds or any(part.nargs == "?" for part in command._actions)
]
"""Each command, without and with the argument that it may have."""

REFUSAL = b'HTTP/1.0 400 Bad Request\r\nContent-Type: application/json\r\n\r\n{"error": "asked in vain"}'


def asked(line: list[str], folder: Path) -> tuple[str, str]:
    """Run a command; return the method and the path of its request, which is refused."""
    heads: list[bytes] = []

    def refuse() -> None:
        client, _ = listener.accept()
        with client:
            heads.append(client.recv(1000))
            client.sendall(REFUSAL)

    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(f"{folder}/control")
        listener.listen()
        server = Thread(target=refuse, daemon=True)
        server.start()
        options = make_parser().parse_args(line)
        with pytest.raises(Refusal, match="asked in vain"):
            options.do(f"{folder}/control", options)
        server.join(10)
    method, url, _ = heads[0].decode().split(" ", 2)
    return method, url.partition("?")[0]


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[str, str, str]]]:
    """What each command asks for: the command, the method and the path."""
    folders = (tmp_path_factory.mktemp("control") for _ in LINES)
    yield [(" ".join(line), *asked(line, folder)) for line, folder in zip(LINES, folders, strict=False)]


def endpoint(method: str, path: str) -> str | None:
    """Return which route answers a request."""
    try:
        name, _ = Control.app.url_map.bind("fooproxy").match(path, method)
    except HTTPException:
        return None
    return str(name)


def test_a_command_asks_for_what_the_control_side_has(requests: list[tuple[str, str, str]]) -> None:
    lost = [(command, f"{method} {path}") for command, method, path in requests if endpoint(method, path) is None]
    assert not lost, f"write the routes for these in fooproxy/web/control.py, as a command and its request: {lost}"


def test_there_is_a_command_for_each_route_of_the_control_side(requests: list[tuple[str, str, str]]) -> None:
    unused = set(Control.app.endpoints) - {endpoint(method, path) for _, method, path in requests}
    assert not unused, f"write the commands for these in make_parser in fooproxy/driver/fooctl.py: {sorted(unused)}"
