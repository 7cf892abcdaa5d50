"""The options: each is declared once, in `OPTIONS`; the command line, the checks and the tables derive from these.

A new option is one more declaration here, and its use in `parts` or `service`.  `fooproxy.commandline` reads the
values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fooproxy import checking, values
from fooproxy.upstreams.forward import read_forward

if TYPE_CHECKING:
    from collections.abc import Callable

GROUPS = ("relay", "upstreams", "pool", "limits", "statistics", "HTTP", "control", "log", "general")
"""The parts of the help, in their order; one without an option is left out."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """The declaration of one option."""

    name: str
    """The long form, without its dashes."""

    group: str
    """The part of the help that lists the option, one of `GROUPS`."""

    short: str | None = None
    """The letter of the short form."""

    unit: str = ""
    """The kind of a value (ADDRESS) or its unit (SECONDS); empty for a flag, which takes no value."""

    default: str
    """The default, as an operator would write it; if it is empty, the value is `None` or an empty list."""

    absence: str = ""
    """What the tables show if there is no default, such as ``all``."""

    check: Callable[[str], Any]
    """Converts a text to a value; raises `ValueError`, which quotes the text and says what would be right."""

    look: Callable[[str], str] = checking.nothing
    """For ``--check-config``: returns what a text means on this machine, or raises `ValueError`."""

    choices: tuple[str, ...] = ()
    """The valid values, if only these words are valid."""

    repeats: bool = False
    """Whether the option may be given several times; its value is then a list."""

    meaning: str
    """One sentence, which ends with a full stop."""

    @property
    def is_flag(self) -> bool:
        """Whether the option takes no value on the command line."""
        return not self.unit

    @property
    def form(self) -> str:
        """The option as written on the command line: ``--listen ADDRESS``."""
        return f"--{self.name} {self.unit}".rstrip()

    @property
    def forms(self) -> str:
        """The option as written on the command line, with its short form: ``-l, --listen ADDRESS``."""
        return f"-{self.short}, {self.form}" if self.short else self.form

    @property
    def variable(self) -> str:
        """The environment variable that sets the option if the command line does not."""
        return f"FOOPROXY_{self.name.upper().replace('-', '_')}"

    @property
    def shown_default(self) -> str:
        """The default as shown in the help and the tables."""
        return self.default or self.absence

    @property
    def help(self) -> str:
        """The meaning, and whether the option may be repeated."""
        return f"{self.meaning} May be repeated." if self.repeats else self.meaning


OPTIONS = (
    Option(
        name="listen",
        group="relay",
        short="l",
        unit="ADDRESS",
        default=":8002",
        check=values.listening,
        look=checking.listening,
        repeats=True,
        meaning="ADDRESS to listen on for clients.",
    ),
    Option(
        name="forward",
        group="upstreams",
        short="f",
        unit="SERVER",
        default=":8001",
        check=values.upstream,
        look=lambda text: "" if read_forward(text).source else checking.connecting(read_forward(text).address),
        repeats=True,
        meaning="Forward to this Foo server: its ADDRESS (127.0.0.1 if it names no host), and after commas max=N for "
        "the most connections to it, name=TEXT, and, if there are several, weight=N for its share, and backup to use "
        "it only if no other can be reached.",
    ),
    Option(
        name="balance",
        group="upstreams",
        unit="HOW",
        default="least",
        check=values.balance,
        choices=tuple(values.BALANCES),
        meaning="How to choose among several servers: the less loaded one of two (least), one after the other "
        "(round-robin), or the same one for the same client address (hash).",
    ),
    Option(
        name="upstream-max-connections",
        group="upstreams",
        unit="CONNECTIONS",
        default="0",
        check=values.connections,
        meaning="Maximum number of connections to each server (0: any number); beyond that, clients wait in a queue.",
    ),
    Option(
        name="queue-timeout",
        group="upstreams",
        unit="SECONDS",
        default="10",
        check=values.positive_seconds,
        meaning="Close a client that has waited in the queue for this many seconds.",
    ),
    Option(
        name="name-server",
        group="upstreams",
        unit="HOST",
        default="",
        absence="/etc/resolv.conf",
        check=values.name_server,
        repeats=True,
        meaning="IP address of a name server, with :port if it is not 53, to ask for servers given as dns: or srv:.",
    ),
    Option(
        name="check",
        group="upstreams",
        unit="KIND",
        default="off",
        check=values.check,
        choices=tuple(values.CHECKS),
        meaning="Check each server regularly: whether it accepts connections (tcp), or whether it also answers a REQ "
        "with an ACK or a NAK (foo).",
    ),
    Option(
        name="check-interval",
        group="upstreams",
        unit="SECONDS",
        default="5",
        check=values.positive_seconds,
        meaning="Seconds from one check of a server to the next, and the time limit of each check.",
    ),
    Option(
        name="check-rise",
        group="upstreams",
        unit="CHECKS",
        default="2",
        check=values.checks,
        meaning="Checks in a row that must pass before a server whose checks have failed is used like others again.",
    ),
    Option(
        name="check-fall",
        group="upstreams",
        unit="CHECKS",
        default="3",
        check=values.checks,
        meaning="Checks in a row that must fail before clients get other servers, if there are any.",
    ),
    Option(
        name="http",
        group="HTTP",
        unit="ADDRESS",
        default="127.0.0.1:8088",
        check=values.listening_if_at_all,
        look=checking.listening_locally,
        meaning="ADDRESS to serve the statistics page and API on (127.0.0.1 if it names no host), or off.",
    ),
    Option(
        name="http-host",
        group="HTTP",
        unit="NAME",
        default="",
        absence="none",
        check=values.host,
        repeats=True,
        meaning="Serve HTTP under this host name too, besides addresses and localhost, and under no other.",
    ),
    Option(
        name="control",
        group="control",
        unit="SOCKET",
        default="",
        absence="none",
        check=values.control,
        look=checking.listening,
        meaning="Take orders from fooctl on this socket (unix:PATH), which only the proxy's user and root may use.",
    ),
    Option(
        name="max-connections",
        group="limits",
        unit="SESSIONS",
        default="auto",
        check=values.sessions,
        meaning="Maximum number of concurrent sessions (auto: as many as the open-file limit allows).",
    ),
    Option(
        name="recovery-path",
        group="statistics",
        unit="FILE",
        default=".data/recovery.json",
        check=values.path,
        look=checking.recovery,
        meaning="File that preserves the statistics across restarts.",
    ),
    Option(
        name="recovery-max-age",
        group="statistics",
        unit="SECONDS",
        default="10",
        check=values.seconds,
        meaning="Start from zero if the saved statistics are older than this many seconds.",
    ),
    Option(
        name="slow-replies",
        group="statistics",
        unit="SECONDS",
        default="1",
        check=values.seconds,
        meaning="Warn if 1 % of the replies of the last 10 seconds took longer than this many seconds (0: never).",
    ),
    Option(
        name="connect-timeout",
        group="upstreams",
        unit="SECONDS",
        default="5",
        check=values.positive_seconds,
        meaning="Close a client if the Foo server cannot be reached within this many seconds.",
    ),
    Option(
        name="pool",
        group="upstreams",
        unit="MODE",
        default="off",
        check=values.pool,
        choices=values.POOLS,
        meaning="Reuse connections to servers: never (off), one client after the other, each until it leaves "
        "(session), or each only while it has requests outstanding (burst).",
    ),
    Option(
        name="pool-max-age",
        group="upstreams",
        unit="SECONDS",
        default="3600",
        check=values.positive_seconds,
        meaning="Do not reuse a connection older than this many seconds.",
    ),
    Option(
        name="pool-idle-timeout",
        group="upstreams",
        unit="SECONDS",
        default="60",
        check=values.positive_seconds,
        meaning="Close a pooled connection that no client has needed for this many seconds.",
    ),
    Option(
        name="pool-hold-timeout",
        group="upstreams",
        unit="SECONDS",
        default="10",
        check=values.positive_seconds,
        meaning="Close a client that holds a pooled connection without progress for this many seconds while others "
        "wait.",
    ),
    Option(
        name="idle-timeout",
        group="limits",
        unit="SECONDS",
        default="0",
        check=values.seconds,
        meaning="Close a session after this many seconds without traffic (0: never).",
    ),
    Option(
        name="reply-timeout",
        group="limits",
        unit="SECONDS",
        default="0",
        check=values.seconds,
        meaning="Close a session when its oldest request has waited for its reply for this many seconds (0: never).",
    ),
    Option(
        name="client-fin-timeout",
        group="limits",
        unit="SECONDS",
        default="10",
        check=values.positive_seconds,
        meaning="Seconds to wait for each outstanding reply after a client has finished sending.",
    ),
    Option(
        name="send-timeout",
        group="limits",
        unit="SECONDS",
        default="60",
        check=values.positive_seconds,
        meaning="Close a session when one side has read none of its pending data for this many seconds.",
    ),
    Option(
        name="drain-timeout",
        group="limits",
        unit="SECONDS",
        default="10",
        check=values.seconds,
        meaning="Seconds to wait for outstanding replies when stopping.",
    ),
    Option(
        name="allow",
        group="limits",
        unit="NETWORK",
        default="",
        absence="all",
        check=values.network,
        repeats=True,
        meaning="Accept clients only from this network (192.0.2.0/24) or address.",
    ),
    Option(
        name="log-sessions",
        group="log",
        default="off",
        check=values.switch,
        meaning="Log the end of every session with its counts, not just of sessions that failed.",
    ),
    Option(
        name="log-level",
        group="log",
        unit="LEVEL",
        default="info",
        check=values.level,
        choices=values.LEVELS,
        meaning="Log only lines of this level and above: debug, info, warn or error.",
    ),
    Option(
        name="log-format",
        group="log",
        unit="FORMAT",
        default="text",
        check=values.log_format,
        choices=values.LOG_FORMATS,
        meaning="Format of the log: text, or json for one JSON object a line.",
    ),
    Option(
        name="config",
        group="general",
        unit="FILE",
        default="",
        absence="none",
        check=values.path,
        meaning="TOML file with values for options that are neither on the command line nor in the environment.",
    ),
)
