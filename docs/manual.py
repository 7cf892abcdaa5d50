"""Writes man pages, completions and a configuration file from the options' declarations, so that they cannot differ.

Run it after a change to an option of ``fooproxy`` or of one of the ``foo-`` commands::

    python docs/manual.py            # writes the files
    python docs/manual.py --check    # only names the files that differ, and exits with status 1

The files are in ``contrib/man`` and ``contrib/completions``, which setup.cfg has installed; ``fooproxy.toml``, the
configuration to begin with, is beside the systemd unit.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

# The checkout need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fooproxy import __version__
from fooproxy.commandline import ABOUT, COMMANDS
from fooproxy.driver import client, demo, fooctl, server
from fooproxy.options import GROUPS, OPTIONS

ROOT = Path(__file__).resolve().parents[1]


class Entry(NamedTuple):
    """An option of a command."""

    forms: tuple[str, ...]
    """The short form, if there is one, and the long one."""
    unit: str
    meaning: str
    group: str = ""
    choices: tuple[str, ...] = ()
    repeats: bool = False


class Command(NamedTuple):
    """A command, what it is in a clause, what it does, its options, and further sections of its page."""

    name: str
    summary: str
    about: str
    entries: tuple[Entry, ...]
    sections: tuple[tuple[str, str], ...] = ()
    commands: tuple[tuple[str, str, str], ...] = ()
    """What it can be told to do: the word, what follows it, and what it does."""


ADDRESSES = """\
An ADDRESS is a port (8001 or :8001), host:port, [IPv6 address]:port, or one of Twisted's endpoint descriptions, such \
as unix:/run/foo.sock, tls:foo.example:8001 (to connect), ssl:8002:privateKey=key.pem:certKey=cert.pem (to listen), \
systemd:domain=INET:index=0 or haproxy:tcp:8002."""

SERVERS = """\
A SERVER is an ADDRESS, and after commas weight=N (1 to 9999, its share of the clients), backup (it is used only if \
no other server can be reached) and name=TEXT, each of them or none: foo.example:8001,weight=3,name=first.
Commas before these belong to the address.
dns:foo.example:8001 stands for a server at each address of a host, srv:_foo._tcp.example for one at each target of a \
service; both are looked up again as the answer's TTL says."""

SECTIONS = (
    ("ADDRESSES", ADDRESSES),
    ("SERVERS", SERVERS),
    (
        "ENVIRONMENT",
        """\
An option that is not on the command line is taken from the variable FOOPROXY_ and its name in capitals, with _ for -: \
FOOPROXY_CONNECT_TIMEOUT for --connect-timeout.
Several values are separated by spaces.
An empty variable counts as not set, and other variables that begin with FOOPROXY_ are ignored.""",
    ),
    (
        "CONFIGURATION FILE",
        """\
An option that is in neither is taken from the TOML file that --config names, under its name without dashes before it:

    listen = ":8002"
    connect-timeout = 2.5
    log-sessions = true
    allow = ["192.0.2.0/24", "2001:db8::/32"]""",
    ),
    (
        "SIGNALS",
        """\
SIGUSR2 and SIGUSR1 print the statistics as one line of JSON on standard output.
SIGTERM, SIGINT and SIGHUP stop the proxy: it accepts no new clients, and ends each session when its replies have \
arrived, or at --drain-timeout; a second signal stops it at once.""",
    ),
    ("EXIT STATUS", "0 as asked, 1 if the proxy cannot start, 2 if an option is wrong."),
    ("SEE ALSO", "twistd(1), which runs the same proxy with options of its own: twistd -n fooproxy"),
)


def commands() -> Iterator[Command]:
    """Yield all commands."""
    groups = sorted(OPTIONS, key=lambda option: GROUPS.index(option.group))
    entries = [
        Entry(
            tuple(re.findall(r"--?[\w-]+", option.forms.removesuffix(option.unit))),
            option.unit,
            f"{option.help} Default: {option.shown_default}.",
            option.group,
            option.choices,
            option.repeats,
        )
        for option in groups
    ]
    entries += [Entry(tuple(forms.split(", ")), "", meaning, "general") for forms, meaning in COMMANDS]
    about = " ".join(ABOUT.split())
    yield Command("fooproxy", "proxy for the Foo protocol that counts what passes", about, tuple(entries), SECTIONS)
    for module in (server, client, demo, fooctl):
        yield _from_parser(module.make_parser())


def _from_parser(parser: argparse.ArgumentParser) -> Command:
    about = parser.description or ""
    formatter = parser._get_formatter()
    entries = {
        tuple(action.option_strings): Entry(
            tuple(action.option_strings),
            str(action.metavar or ""),
            # The only way to have the defaults filled in.
            _sentence(formatter._expand_help(action)),
        )
        for action in parser._actions
        if action.option_strings
    }
    commands: list[tuple[str, str, str]] = []
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        for name, one in action.choices.items():
            after = one.format_usage().partition(f"{parser.prog} {name} [-h] [--control ADDRESS] [--json]")[2]
            commands.append((name, " ".join(after.split()), one.description or ""))
            for found in one._actions:
                if found.option_strings:
                    forms = tuple(found.option_strings)
                    entries.setdefault(forms, Entry(forms, str(found.metavar or ""), _sentence(found.help or "")))
    takes_addresses = not commands and any(entry.unit == "ADDRESS" for entry in entries.values())
    sections: tuple[tuple[str, str], ...] = (("ADDRESSES", ADDRESSES),) if takes_addresses else ()
    if parser.epilog:
        sections += (("NOTES", parser.epilog),)
    summary = about.rstrip(".").removeprefix("Run ").removeprefix("a ")
    if commands:
        summary = f"{summary[:1].lower()}{summary[1:]}"
    return Command(parser.prog, summary, about, tuple(entries.values()), sections, tuple(commands))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def man(command: Command) -> str:
    """Return the man page of a command."""
    name = command.name
    lines = [
        '.\\" Written by docs/manual.py',
        f'.TH {name.upper()} 1 "" "fooproxy {__version__}" "User Commands"',
        ".SH NAME",
        f"{_roff(name)} \\- {_roff(command.summary)}",
        ".SH SYNOPSIS",
        f".B {_roff(name)}",
        "[options] COMMAND" if command.commands else "[options]",
        ".SH DESCRIPTION",
        _roff(command.about),
    ]
    if command.commands:
        lines.append(".SH COMMANDS")
    for word, after, meaning in command.commands:
        lines += [".TP", f"\\fB{_roff(word)}\\fR {_roff(after)}".rstrip(), _roff(meaning)]
    lines.append(".SH OPTIONS")
    group = ""
    for entry in command.entries:
        if entry.group != group:
            group = entry.group
            lines.append(f".SS {group[0].upper()}{group[1:]}")
        forms = ", ".join(f"\\fB{_roff(form)}\\fR" for form in entry.forms)
        lines += [".TP", f"{forms} \\fI{entry.unit}\\fR" if entry.unit else forms, _roff(entry.meaning)]
    for title, text in command.sections:
        lines += [f".SH {title}", *_paragraphs(text)]
    return "\n".join([*lines, ""])


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(text.split("\n\n")):
        if paragraph.startswith("    "):
            yield from (".PP", ".RS", ".nf")
            yield from (_roff(line[4:]) for line in paragraph.split("\n"))
            yield from (".fi", ".RE")
        else:
            if number:
                yield ".PP"
            yield from map(_roff, paragraph.split("\n"))


def _roff(text: str) -> str:
    """Escape text: a dash is the one that is typed, and no line is a request."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def bash(command: Command) -> str:
    """Return the completion for bash."""
    function = f"_{command.name.replace('-', '_')}"
    cases = [
        f"        {'|'.join(entry.forms)})\n            {_bash_value(entry)}\n            return ;;"
        for entry in command.entries
        if entry.unit
    ]
    words = " ".join([*(word for word, _, _ in command.commands), *_forms(command)])
    return "\n".join(
        [
            f"# Completes the options of {command.name} in bash; written by docs/manual.py.",
            "",
            f"{function}() {{",
            "    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}",
            "    # bash takes the = of --option=value for a word.",
            "    if [[ $current == = ]]; then",
            "        current=",
            "    elif [[ $previous == = ]]; then",
            "        previous=${COMP_WORDS[COMP_CWORD-2]}",
            "    fi",
            "    COMPREPLY=()",
            "    case $previous in",
            *cases,
            "    esac",
            f'    mapfile -t COMPREPLY < <(compgen -W "{words}" -- "$current")',
            "}",
            f"complete -F {function} {command.name}",
            "",
        ]
    )


def _forms(command: Command) -> Iterator[str]:
    for entry in command.entries:
        yield from entry.forms


def _bash_value(entry: Entry) -> str:
    if entry.choices:
        return f'mapfile -t COMPREPLY < <(compgen -W "{" ".join(entry.choices)}" -- "$current")'
    if entry.unit == "FILE":
        return 'compopt -o filenames\n            mapfile -t COMPREPLY < <(compgen -f -- "$current")'
    return ": # Any value."


def zsh(command: Command) -> str:
    """Return the completion for zsh."""
    lines = []
    for entry in command.entries:
        shown = re.sub(r"([\[\]:\\])", r"\\\1", entry.meaning).replace("'", "'\\''")
        excluded = "*" if entry.repeats else f"({' '.join(entry.forms)})"
        # The value follows a short form at once or in the next word, a long one after = or in the next word.
        ends = {True: "=", False: "+"} if entry.unit else {True: "", False: ""}
        written = [f"{form}{ends[form.startswith('--')]}" for form in entry.forms]
        forms = f"{{{','.join(written)}}}" if len(written) > 1 else written[0]
        value = ""
        if entry.unit:
            action = f"({' '.join(entry.choices)})" if entry.choices else "_files" if entry.unit == "FILE" else " "
            value = f":{entry.unit}:{action}"
        lines.append(f"  '{excluded}'{forms}'[{shown}]{value}'")
    if command.commands:
        described = " ".join(f'{word}\\:"{meaning}"' for word, _, meaning in command.commands)
        lines.append(f"  '1:command:(({described}))'")
        lines.append("  '2:name or ID: '")
    return "\n".join(
        [
            f"#compdef {command.name}",
            f"# Completes the options of {command.name} in zsh; written by docs/manual.py.",
            "",
            "_arguments -s \\",
            " \\\n".join(lines),
            "",
        ]
    )


def fish(command: Command) -> str:
    """Return the completion for fish."""
    lines = [
        f"# Completes the options of {command.name} in fish; written by docs/manual.py.",
        "",
        f"complete -c {command.name} -f",
    ]
    for entry in command.entries:
        words = [f"-l {form[2:]}" if form.startswith("--") else f"-s {form[1:]}" for form in entry.forms]
        if entry.unit:
            words.append(
                f"-x -a '{' '.join(entry.choices)}'" if entry.choices else "-rF" if entry.unit == "FILE" else "-x"
            )
        shown = entry.meaning.replace("\\", "\\\\").replace("'", "\\'")
        lines.append(f"complete -c {command.name} {' '.join(words)} -d '{shown}'")
    for word, _, meaning in command.commands:
        lines.append(f"complete -c {command.name} -n __fish_use_subcommand -a {word} -d '{meaning}'")
    return "\n".join([*lines, ""])


ACTIVE = {"listen": ":8002", "forward": ":8001", "recovery-path": "/var/lib/fooproxy/recovery.json"}
"""What the configuration for systemd sets; the other options are in it as comments."""


def configuration() -> str:
    """Return a configuration to begin with: all options by group, with their meanings and defaults."""
    lines = [
        "# Options of fooproxy, see fooproxy(1).  Written by docs/manual.py; what is commented out is the default."
    ]
    group = ""
    for option in sorted(OPTIONS, key=lambda option: GROUPS.index(option.group)):
        if option.name == "config":
            continue
        if option.group != group:
            group = option.group
            lines += ["", f"# {group[0].upper()}{group[1:]}"]
        text = ACTIVE.get(option.name, option.default or option.unit)
        value = {True: "true", False: "false"}[option.check(text)] if option.is_flag else _toml(text)
        value = f"[{value}]" if option.repeats else value
        without = "" if option.default else f" Default: {option.absence}."
        wrapped = textwrap.wrap(option.help + without, 116)
        mark = "" if option.name in ACTIVE else "#"
        lines += ["", *(f"# {line}" for line in wrapped), f"{mark}{option.name} = {value}"]
    return "\n".join([*lines, ""])


def _toml(text: str) -> str:
    return text if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else f'"{text}"'


def files() -> Iterator[tuple[Path, str]]:
    """Yield each file with its content."""
    yield ROOT / "contrib" / "systemd" / "fooproxy.toml", configuration()
    completions = ROOT / "contrib" / "completions"
    for command in commands():
        yield ROOT / "contrib" / "man" / f"{command.name}.1", man(command)
        yield completions / "bash" / command.name, bash(command)
        yield completions / "zsh" / f"_{command.name}", zsh(command)
        yield completions / "fish" / f"{command.name}.fish", fish(command)


def main() -> None:
    """Write the files, or check them."""
    parser = argparse.ArgumentParser(description="Write the man pages and completions from the options.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with status 1 if a file differs")
    only_check = parser.parse_args().check
    differing = []
    for path, content in files():
        if not path.exists() or path.read_text(encoding="utf-8") != content:
            differing.append(str(path.relative_to(ROOT)))
            if not only_check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content, encoding="utf-8")
    if only_check and differing:
        hint = "differs from the options: run `python docs/manual.py`"
        raise SystemExit("\n".join(f"{name} {hint}" for name in differing))
    for name in differing:
        print(f"{name} was written")


if __name__ == "__main__":
    main()
