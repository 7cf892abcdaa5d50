"""The command line: reads the options' values, checks whether they can be combined, and runs commands such as --help.

This module builds nothing; `parts` and `service` read the values.  A usage error names the option and the value, and
says what would be right.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from getopt import GetoptError
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any, NoReturn

from twisted.python import usage

from fooproxy import __version__, checking, values
from fooproxy.configuration import ConfigurationFile
from fooproxy.core import IMPLEMENTATION
from fooproxy.early import let_go
from fooproxy.environment import left_over, misspelt
from fooproxy.helptext import formatted
from fooproxy.net.addresses import expects_proxy_header, host_port, takes_passed_socket
from fooproxy.net.overlap import claim, overlap
from fooproxy.net.private import passed_sockets
from fooproxy.options import GROUPS, OPTIONS
from fooproxy.probing import check_health
from fooproxy.process import printing
from fooproxy.text import one_line
from fooproxy.upstreams.forward import MOST_SERVERS, twice

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fooproxy.environment import Note
    from fooproxy.net.overlap import Claim
    from fooproxy.options import Option

_THIS_MACHINE = {"", "0.0.0.0", "127.0.0.1", "localhost"}

ABOUT = """\
Relays the Foo protocol between clients and a server, counts messages, and reports statistics: as JSON on standard
output on SIGUSR2, and over HTTP."""

NOTES = """\
An ADDRESS is a port (8001), host:port, [IPv6 address]:port, or one of Twisted's endpoint descriptions, such as
unix:/run/foo.sock, tls:foo.example:8001, systemd:domain=INET:index=0 or haproxy:tcp:8002.

A SERVER is an ADDRESS, with optional settings after commas: foo.example:8001,weight=3,name=first.
dns:foo.example:8001 is a server at each address of the host, srv:_foo._tcp.example one at each target of the service.

An option not given on the command line is read from the environment (FOOPROXY_CONNECT_TIMEOUT for --connect-timeout),
and then from the file that --config names (connect-timeout = 2.5)."""

COMMANDS = (
    ("--check-config", "Check the options, say what would run and where each value comes from, and exit."),
    ("--check-health", "Ask the proxy that runs with these options whether it is alive, and exit with status 0 or 1."),
    ("-h, --help", "Print this help and exit."),
    ("--version", "Print fooproxy's version and exit."),
)
"""The commands that the command line may contain, and what each does instead of running the proxy."""

_ON_COMMAND_LINE = ("config", "check-config", "check-health", "help", "version")
"""The names that are valid on the command line only, not in a configuration file."""


@dataclass(frozen=True)
class Source:
    """Where the value of an option comes from."""

    kind: str
    """One of "command line", "environment", "file" and "default"."""

    place: str
    """The place where an operator can change the value: ``--listen``, ``FOOPROXY_LISTEN``, ``FILE:LINE: listen``."""


class Options(usage.Options):
    """The options' values, by name: the command line decides, then `environment`, the file, and the default.

    Until the command line has been parsed, they are the texts of the defaults.
    """

    synopsis = "[options]"

    optParameters = [[each.name, each.short, each.shown_default, each.help] for each in OPTIONS if not each.is_flag]
    optFlags = [[each.name, each.short, each.help] for each in OPTIONS if each.is_flag]

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        super().__init__()
        self._environment = environment
        # The parser stores here what it finds, by long names.
        self.opts = _Given()  # type: ignore[assignment]
        self._file: ConfigurationFile | None = None
        self._texts: dict[str, list[str]] = {}
        self._sources: dict[str, Source] = {}
        self._instead: Callable[[], NoReturn] | None = None
        self.notes: list[Note] = []
        """Notes on variables and passed sockets that are not used but look as if they were meant for the proxy."""

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse; under twistd or twist a usage error ends the process with one line, not with the whole help."""
        try:
            with printing():
                super().parseOptions(options)
        except usage.UsageError as error:
            # The message of getopt says what is wrong, but not what would be right.
            hint = " (see --help)" if isinstance(error.__context__, GetoptError) else ""
            message = one_line(f"{error}{hint}")
            if getattr(self, "parent", None) is None:
                raise usage.UsageError(message) from error
            print(f"fooproxy: {message}", file=sys.stderr)
            raise SystemExit(2) from None

    def parseArgs(self, *arguments: str) -> None:
        """Refuse arguments: a forgotten dash must not go unnoticed."""
        if arguments:
            raise usage.UsageError(f"unexpected argument {arguments[0]!r}; expected only options (see --help)")

    def postOptions(self) -> None:
        """Convert the texts to values, and check whether the values can be combined."""
        self._read_file()
        for option in OPTIONS:
            self[option.name] = self._value(option)
        if self._instead != self._report_health:
            # The running proxy may have other values of options that do not matter for its health.
            self._check_combinations()
        self.notes += misspelt(self._environment, [option.variable for option in OPTIONS])
        self.notes += left_over(passed_sockets(), sum(map(takes_passed_socket, [*self["listen"], self["http"]])))
        if self._instead is not None:
            self._instead()

    def _check_combinations(self) -> None:
        if len(self["forward"]) > MOST_SERVERS:
            raise usage.UsageError(
                f"{self._source('forward')}: {len(self['forward'])} servers are given; expected at most {MOST_SERVERS}"
            )
        if same := twice(self["forward"]):
            raise usage.UsageError(
                f"{self._source('forward')}: two servers are called {same.name!r}; expected each once, or names to "
                f"tell them apart, such as {same.address},name=other"
            )
        self._check_overlaps()
        for index, text in enumerate(self["listen"]):
            place, listen = self._place("listen", index), host_port(text)
            for number, server in enumerate(self["forward"]):
                forward = host_port(server.address)
                if listen and forward and listen.port == forward.port and {listen.host, forward.host} <= _THIS_MACHINE:
                    raise usage.UsageError(
                        f"{self._place('forward', number)}: {server.address!r} is where the proxy itself listens; "
                        "expected the Foo server's address"
                    )
            if self["allow"] and expects_proxy_header(text):
                raise usage.UsageError(
                    f"{self._source('allow')}: cannot be combined with {place} {text}, where the client's address "
                    "arrives too late to refuse it; expected an address without haproxy:, or a rule such as "
                    "'tcp-request connection reject' in the load balancer"
                )

    def _check_overlaps(self) -> None:
        """Refuse two addresses if the proxy cannot listen on both."""
        taken: list[tuple[Claim, str, str]] = []
        for name, default in ("listen", "0.0.0.0"), ("http", "127.0.0.1"), ("control", ""):
            for index, text in enumerate(self._texts[name]):
                if text == values.OFF:
                    continue
                wanted, place = claim(text, default), self._place(name, index)
                for had, by, where in taken:
                    if overlap(wanted, had):
                        both = f"cannot listen on {text!r} beside {by!r} ({where})"
                        why = f"{text!r} is given twice" if by == text else both
                        raise usage.UsageError(f"{place}: {why}; expected another address")
                taken.append((wanted, text, place))

    # Twisted takes only the long form.
    opt_h = usage.Options.opt_help

    def getUsage(self, width: int | None = None) -> str:
        """Return the help, as wide as the terminal unless `width` says otherwise."""
        entries: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
        for option in OPTIONS:
            entries[option.group].append((option.forms, f"{option.help} [default: {option.shown_default}]"))
        entries["general"] += COMMANDS
        return formatted(ABOUT, entries, NOTES, width or get_terminal_size().columns)

    def opt_check_config(self) -> None:
        """Only check the options."""
        self._do_instead(self._report_check)

    def opt_check_health(self) -> None:
        """Only ask whether the proxy is alive."""
        self._do_instead(self._report_health)

    def _do_instead(self, command: Callable[[], NoReturn]) -> None:
        """Run `command` instead of the proxy; the first signal ends it, as it ends any command."""
        if self._instead not in (None, command):
            raise usage.UsageError("--check-config: cannot be combined with --check-health; expected only one of them")
        self._instead = command
        # Before reading files and asking name services, which may hang.
        for number in let_go(signal.SIG_DFL):
            signal.raise_signal(number)

    def opt_version(self) -> None:
        """Print fooproxy's version and exit."""
        print(f"fooproxy {__version__} ({IMPLEMENTATION})")
        raise SystemExit(0)

    def in_force(self) -> dict[str, Any]:
        """Return the options as a JSON object: the `file` that was read, and for each option its value and source."""
        return {
            "file": self._file and self._file.path,
            "options": {
                option.name: {
                    "value": self._shown(option),
                    "source": self._sources[option.name].kind,
                    "place": one_line(self._sources[option.name].place),
                }
                for option in OPTIONS
            },
        }

    def _shown(self, option: Option) -> Any:
        """Return a value as JSON: numbers and flags as such, everything else as the operator wrote it."""
        texts = [one_line(text) for text in self._texts[option.name]]
        if option.repeats:
            return texts
        value = self[option.name]
        return value if isinstance(value, (bool, int, float)) else texts[0] if texts else None

    def _read_file(self) -> None:
        (config,) = (option for option in OPTIONS if option.name == "config")
        path = self._value(config)
        if path is not None:
            try:
                others = {option.name: option for option in OPTIONS if option is not config}
                self._file = ConfigurationFile(path, others, _ON_COMMAND_LINE)
            except ValueError as error:
                in_file = str(error).startswith(f"{one_line(path)}:")
                raise usage.UsageError(str(error) if in_file else f"{self._source('config')}: {error}") from error

    def _report_check(self) -> NoReturn:
        """Print what would run, and end the process."""
        rows = []
        for option in OPTIONS:
            texts, source = self._texts[option.name], self._sources[option.name]
            if not texts:
                rows.append(checking.Row(option.name, [option.absence], [source.kind], [""], checking.nothing))
                continue
            places = [self._place(option.name, index) for index in range(len(texts))]
            sources = [source.kind] * len(texts) if source.kind in ("default", "command line") else places
            rows.append(checking.Row(option.name, texts, sources, places, option.look))
        title = f"fooproxy {__version__} ({IMPLEMENTATION}) would run with these options:\n"
        raise SystemExit(0 if checking.check(title, rows, list(map(str, self.notes))) else 2)

    def _report_health(self) -> NoReturn:
        """Ask the proxy that runs with these options, and end the process."""
        (address,) = self._texts["http"]
        raise SystemExit(0 if check_health(address, self._source("http")) else 1)

    def _value(self, option: Option) -> Any:
        texts, source = self._found(option)
        self._texts[option.name], self._sources[option.name] = texts, source
        found = []
        for index, text in enumerate(texts):
            try:
                found.append(option.check(text))
            except ValueError as error:
                is_list = option.repeats and source.kind == "environment" and "," in text
                hint = "; separate several values by spaces, not commas" if is_list else ""
                if source.kind == "environment" and text[:1] in ("'", '"') and text[-1:] == text[:1]:
                    hint = "; leave out the quotes, which belong to shells"
                raise usage.UsageError(f"{self._place(option.name, index)}: {error}{hint}") from error
        return found if option.repeats else found[0] if found else None

    def _found(self, option: Option) -> tuple[list[str], Source]:
        """Return the texts that an option has, and where they come from."""
        given = self.opts.get(option.name, [])
        if len(given) > 1 and not option.repeats:
            which = "" if option.is_flag else f" ({', '.join(map(repr, given))})"
            raise usage.UsageError(f"--{option.name}: given {len(given)} times{which}; expected only once")
        if given:
            return given, Source("command line", f"--{option.name}")
        # An empty variable counts as not set, because a container cannot unset a variable of its image.
        in_environment = self._split(option, self._environment.get(option.variable, ""))
        if in_environment:
            return in_environment, Source("environment", option.variable)
        if self._file is not None and option.name in self._file.texts:
            return self._file.texts[option.name], Source("file", self._file.place(option.name))
        return self._split(option, option.default), Source("default", f"--{option.name}")

    def _place(self, name: str, index: int) -> str:
        """Name the place of an option's value number `index`."""
        source = self._sources[name]
        return self._file.place(name, index) if self._file and source.kind == "file" else source.place

    @staticmethod
    def _split(option: Option, text: str) -> list[str]:
        return text.split() if option.repeats else [text] if text else []

    def _source(self, name: str) -> str:
        """Name the place that an operator has to change for another value."""
        return self._sources[name].place


class _Given(dict[str, Any]):
    """The texts that the command line gives for each option, in order: a second one does not replace the first."""

    def __setitem__(self, name: str, text: object) -> None:
        self.setdefault(name, []).append(str(text))
