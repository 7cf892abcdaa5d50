"""Private names of Twisted are in one module, and are there."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import twisted
from twisted.internet.abstract import FileDescriptor
from twisted.internet.testing import StringTransport
from twisted.python.reflect import namedAny

import fooproxy
from fooproxy.net.private import USED, Use, drop_unsent, unsent, unsent_cleartext

TOP = Path(fooproxy.__file__).parent
PRIVATE = "fooproxy.net.private"
SOURCES = [*sorted(TOP.rglob("*.py")), TOP.parent / "twisted/plugins/fooproxy_plugin.py"]
MODULES = {
    ".".join(path.relative_to(TOP.parent).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES
}
OTHERS = [name for name in MODULES if name != PRIVATE]

DOCUMENTED = frozenset({"_asdict", "_exit", "_fields", "_make", "_replace"})
"""Public names of named tuples, and `os._exit`, in spite of their underscore."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("_") and name not in DOCUMENTED


@cache
def names_of(kind: Any) -> frozenset[str]:
    """List the private names that the source of a class gives to it or to its instances, or of a module to itself."""
    try:
        return frozenset(own_names(ast.parse(textwrap.dedent(inspect.getsource(kind)))))
    except (OSError, TypeError):
        # It is compiled, or was made without a class statement.
        return frozenset(filter(is_private, vars(kind)))


def own_names(tree: ast.AST) -> Iterator[str]:
    """List the private names that some source defines: functions, classes, variables, and attributes of ``self``."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                pass
            case ast.Name(id=name, ctx=ast.Store()):
                pass
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                pass
            case _:
                continue
        if is_private(name):
            yield name


def missing(use: Use) -> str | None:
    """Say in a sentence that Twisted has not what is used; `None` if it has."""
    try:
        owner = namedAny(use.owner)
        if any(use.name in names_of(kind) for kind in getattr(owner, "__mro__", [owner])):
            return None
    except AttributeError:
        pass
    short = ".".join(use.owner.split(".")[-2:])
    return (
        f"Twisted {twisted.__version__} no longer has {short}.{use.name}, "
        f"which net/private.py uses for {use.purpose}; no public name did, since {use.why}"
    )


@pytest.mark.parametrize("use", USED, ids=lambda use: use.name)
def test_twisted_still_has_every_private_name_that_is_used(use: Use) -> None:
    problem = missing(use)
    assert problem is None, problem


@pytest.mark.parametrize("owner", ["twisted.internet.tcp.Connection", "twisted.internet.tcp.Gone"])
def test_a_name_that_twisted_drops_is_told_with_its_purpose(owner: str) -> None:
    told = missing(Use(owner, "_gone", "a purpose", "a reason"))
    assert told is not None
    assert f"Twisted {twisted.__version__} no longer has {owner.removeprefix('twisted.internet.')}._gone" in told
    assert "net/private.py uses for a purpose" in told


def test_every_private_name_that_the_module_uses_is_listed() -> None:
    tree = ast.parse(MODULES[PRIVATE].read_text())
    assert {use.name for use in USED} == {name for name, _ in foreign_names(tree)} | set(overridden(tree))


def overridden(tree: ast.AST) -> Iterator[str]:
    """List the private methods of the classes in some source that are based on others."""
    for kind in ast.walk(tree):
        if isinstance(kind, ast.ClassDef) and kind.bases:
            yield from (part.name for part in kind.body if isinstance(part, ast.FunctionDef) and is_private(part.name))


def foreign_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """List the private names in some source that it does not define itself, with their lines."""
    own = set(own_names(tree))
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) if is_private(name) and name not in own:
                yield name, node.lineno
            case ast.Call(func=ast.Name(id="getattr" | "hasattr" | "setattr" | "delattr"), args=[_, *_]):
                match node.args[1]:
                    case ast.Constant(value=str(name)) if is_private(name) and name not in own:
                        yield name, node.lineno
            case ast.Import() | ast.ImportFrom():
                modules = [f"{getattr(node, 'module', '')}.{alias.name}".lstrip(".") for alias in node.names]
                for name in (name for module in modules for name in module.split(".")):
                    if is_private(name) and not all(module.startswith("fooproxy.") for module in modules):
                        yield name, node.lineno


WRONG = [
    "import twisted.internet._resolver",
    "from twisted.internet._resolver import GAIResolver",
    "from twisted.internet.tcp import _getsockname",
    "transport._tempDataLen",
    "transport._tempDataLen = 0",
    "getattr(transport, '_appSendBuffer', None)",
    "class Ours(Theirs):\n    def look(self):\n        return self._parser",
]


@pytest.mark.parametrize("source", WRONG)
def test_a_private_name_of_others_is_found(source: str) -> None:
    assert list(foreign_names(ast.parse(source)))


RIGHT = [
    "from __future__ import annotations",
    "from fooproxy import __version__",
    "from fooproxy import _core",
    "import fooproxy._core",
    "class Ours:\n    def __init__(self, other):\n        self._size = other._size",
    "verdict._asdict()",
    "type(verdict).__name__",
]


@pytest.mark.parametrize("source", RIGHT)
def test_a_private_name_of_our_own_may_be_used(source: str) -> None:
    assert not list(foreign_names(ast.parse(source)))


@pytest.mark.parametrize("name", OTHERS)
def test_no_other_module_uses_a_private_name_of_others(name: str) -> None:
    found = [f"{MODULES[name]}:{line} {what}" for what, line in foreign_names(ast.parse(MODULES[name].read_text()))]
    assert not found, f"use a public name, or say in net/private.py why none does: {found}"


def clashes(kind: type) -> set[str]:
    """List the private names of a class of ours that its foreign base classes have too."""
    foreign = [base for base in inspect.getmro(kind) if not base.__module__.startswith("fooproxy")]
    return {name for base in foreign for name in names_of(kind) & names_of(base)}


@pytest.mark.parametrize("name", OTHERS)
def test_no_class_overrides_a_private_name_of_others(name: str) -> None:
    module = importlib.import_module(name)
    classes = [kind for kind in vars(module).values() if inspect.isclass(kind) and kind.__module__ == name]
    found = {kind.__qualname__: clashes(kind) for kind in classes if clashes(kind)}
    assert not found, f"these names are a base class's: {found}"


def test_a_class_that_overrides_a_private_name_of_others_is_found() -> None:
    kind = type("Ours", (FileDescriptor,), {"_writeDisconnected": True})
    kind.__module__ = "fooproxy.ours"
    assert clashes(kind) == {"_writeDisconnected"}


class Pipe(FileDescriptor):
    """Takes up to `room` bytes at each write."""

    connected = 1

    def __init__(self, room: int) -> None:
        nobody: Any = object()
        super().__init__(nobody)
        self.room = room

    def startWriting(self) -> None:
        pass

    stopWriting = startWriting

    def writeSomeData(self, data: bytes) -> int:
        return min(self.room, len(data))


def test_what_is_unsent_is_counted_wherever_twisted_keeps_it() -> None:
    pipe = Pipe(room=3)
    assert unsent(pipe) == 0
    pipe.write(b"12345")
    assert unsent(pipe) == 5
    pipe.doWrite()
    assert unsent(pipe) == 2
    pipe.write(b"678")
    assert unsent(pipe) == 5


def test_nothing_is_unsent_after_it_was_dropped() -> None:
    pipe = Pipe(room=1)
    pipe.write(b"12")
    pipe.doWrite()
    pipe.write(b"345")
    drop_unsent(pipe)
    assert unsent(pipe) == 0
    pipe.write(b"6")
    assert unsent(pipe) == 1


def test_a_transport_without_a_layer_of_tls_has_no_cleartext() -> None:
    assert unsent_cleartext(StringTransport()) == 0
