"""The options: that each declaration is complete, and what becomes of what an operator says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from docutils import nodes
from docutils.core import publish_doctree
from twisted.python.usage import UsageError

from fooproxy import parts, service
from fooproxy.commandline import Options
from fooproxy.options import GROUPS, OPTIONS, Option
from tests.helpers.sources import other_tests

README = Path(__file__).resolve().parents[1] / "README.rst"
OTHER_TESTS = other_tests(__file__)


def parsed(*arguments: str, **environment: str) -> Options:
    """Parse a command line, in an environment."""
    options = Options(environment)
    options.parseOptions(arguments)
    return options


def refusal(*arguments: str, **environment: str) -> str:
    """Parse a command line that is refused; give what is said about it."""
    with pytest.raises(UsageError) as refused:
        parsed(*arguments, **environment)
    return str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["-l8002", "-l127.0.0.1:8002"], "--listen: cannot listen on '127.0.0.1:8002' beside '8002' (--listen); expe"),
        (["-l8003", "--http", "[::]:8003"], "--http: cannot listen on '[::]:8003' beside '8003' (--listen); expected "),
        (["-l8088"], "--http: cannot listen on '127.0.0.1:8088' beside '8088' (--listen); expected another address"),
        (["--http", "unix:a", "--control", "unix:a"], "--control: 'unix:a' is given twice; expected another address"),
    ],
)
def test_two_addresses_of_which_only_one_can_be_listened_on_are_refused(arguments: list[str], why: str) -> None:
    assert refusal(*arguments).startswith(why)


@pytest.mark.parametrize("arguments", [["-l0", "-l0", "--http", "0"], ["-l[::1]:8002", "-l8002"], ["--http", "off"]])
def test_addresses_that_can_be_listened_on_together_are_taken(arguments: list[str]) -> None:
    parsed(*arguments)


def test_quotes_in_a_variable_are_noticed() -> None:
    said = refusal(FOOPROXY_FORWARD='"foo.example:8001"')
    assert said.startswith("FOOPROXY_FORWARD: ") and said.endswith("; leave out the quotes, which belong to shells")


def test_two_commands_are_refused_together() -> None:
    for arguments in ["--check-config", "--check-health"], ["--check-health", "--check-config"]:
        assert (
            refusal(*arguments) == "--check-config: cannot be combined with --check-health; expected only one of them"
        )


each = pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
"""What has to hold for each declaration."""


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, ...]]:
    """All rows of all tables in the README."""
    readme = publish_doctree(README.read_text())
    return [
        tuple(" ".join(cell.astext().split()) for cell in row.findall(nodes.entry)) for row in readme.findall(nodes.row)
    ]


@each
def test_an_option_has_a_row_in_the_readme(option: Option, rows: list[tuple[str, ...]]) -> None:
    assert (option.form, option.shown_default, option.help) in rows


@each
def test_an_option_is_in_the_help_of_its_group(option: Option) -> None:
    words = re.sub(r"\s+", " ", helped(option.group))
    assert f" {option.forms} {option.help} [default: {option.shown_default}]" in words


def helped(group: str) -> str:
    """Return one group of the help."""
    heading = f"{group[0].upper()}{group[1:]}:\n"
    (found,) = [part for part in Options({}).getUsage(width=100).split("\n\n") if part.startswith(heading)]
    return found


@each
def test_the_words_that_an_option_takes_pass_its_check(option: Option) -> None:
    for word in option.choices:
        option.check(word)
    if option.choices:
        assert ", ".join(option.choices) in refusal(f"--{option.name}", "other")


@each
def test_an_option_is_in_a_group(option: Option) -> None:
    assert option.group in GROUPS


@pytest.mark.parametrize(("width", "longest"), [(20, 60), (80, 80), (500, 120)])
def test_the_help_is_as_wide_as_the_terminal_within_reason(width: int, longest: int) -> None:
    lines = Options({}).getUsage(width).splitlines()
    assert longest - 8 < max(map(len, lines)) <= longest


@each
def test_an_options_default_passes_its_own_check(option: Option) -> None:
    values = [option.check(option.default)] if option.default else []
    assert parsed()[option.name] == (values if option.repeats else values[0] if values else None)


@each
def test_an_options_meaning_is_one_sentence(option: Option) -> None:
    assert re.fullmatch(r"[A-Z].+[^.]\.", option.meaning)
    assert not re.search(r"\.\s", option.meaning)


@each
def test_an_option_has_a_default_or_a_word_for_having_none(option: Option) -> None:
    assert bool(option.default) != bool(option.absence)


def test_no_two_options_have_a_form_in_common() -> None:
    forms = ["help", "version", "h", *(form for option in OPTIONS for form in (option.name, option.short) if form)]
    assert len(set(forms)) == len(forms)


SAMPLES = {
    "ADDRESS": "127.0.0.1:7",
    "SERVER": "127.0.0.1:7,weight=3,backup,name=seven",
    "HOW": "hash",
    "MODE": "burst",
    "KIND": "foo",
    "HOST": "192.0.2.53:5353",
    "CHECKS": "7",
    "SESSIONS": "7",
    "CONNECTIONS": "8",
    "SOCKET": "unix:/run/fooproxy/control.sock",
    # As a configuration, it is empty.
    "FILE": "/dev/null",
    "SECONDS": "7",
    "NETWORK": "192.0.2.7",
    "NAME": "stats.example",
    "LEVEL": "warn",
    "FORMAT": "json",
    "": "on",
}
"""A value of each kind that is no option's default."""


OF_THE_PROXY: list[Any] = [option for option in OPTIONS if option.name != "config"]
"""All but the one that only names where others come from."""


@each
def test_there_is_a_sample_for_the_unit_of_an_option(option: Option) -> None:
    assert option.unit in SAMPLES, f"give SAMPLES a value for {option.unit}"


@pytest.mark.parametrize("option", OF_THE_PROXY, ids=lambda option: option.name)
def test_the_service_uses_an_option(option: Option) -> None:
    assert f'ptions["{option.name}"]' in inspect.getsource(service) + inspect.getsource(parts), (
        f"nothing uses --{option.name}: take its value in fooproxy/parts.py or fooproxy/service.py"
    )


@pytest.mark.parametrize("option", OF_THE_PROXY, ids=lambda option: option.name)
def test_a_test_shows_what_an_option_does(option: Option) -> None:
    assert re.search(rf"--{option.name}\b(?!-)|{option.variable}\b", OTHER_TESTS), (
        f"write a test of what --{option.name} does, such as those in tests/test_parts.py"
    )


@each
def test_an_option_is_taken_from_its_environment_variable(option: Option) -> None:
    text = SAMPLES[option.unit]
    value = parsed(**{option.variable: text})[option.name]
    assert value == ([option.check(text)] if option.repeats else option.check(text))
    assert value != parsed()[option.name]


@each
def test_the_command_line_comes_before_the_environment(option: Option) -> None:
    text = SAMPLES[option.unit]
    given = [f"--{option.name}"] if option.is_flag else [f"--{option.name}", text]
    wrong = "off" if option.is_flag else "nonsense"
    assert parsed(*given, **{option.variable: wrong})[option.name] == parsed(*given)[option.name]


@each
def test_an_empty_variable_is_as_good_as_none(option: Option) -> None:
    assert parsed(**{option.variable: ""})[option.name] == parsed()[option.name]


@pytest.mark.parametrize(
    ("variable", "text", "right"),
    [
        ("FOOPROXY_LISTEN", "nonsense", "host:port"),
        ("FOOPROXY_HTTP", "70000", "expected a port up to 65535"),
        ("FOOPROXY_CONNECT_TIMEOUT", "0", "more than 0 seconds"),
        ("FOOPROXY_IDLE_TIMEOUT", "soon", "such as 10 or 2.5"),
        ("FOOPROXY_CONTROL", "8088", "expected an address such as unix:/run"),
        ("FOOPROXY_CONTROL", "unix:/run/a:mode=660", "whose mode is always 600"),
        ("FOOPROXY_UPSTREAM_MAX_CONNECTIONS", "auto", "expected 0 to 999999999"),
        ("FOOPROXY_QUEUE_TIMEOUT", "0", "more than 0 seconds"),
        ("FOOPROXY_MAX_CONNECTIONS", "many", "1 to 999999999, or auto"),
        ("FOOPROXY_ALLOW", "everybody", "192.0.2.0/24"),
        ("FOOPROXY_BALANCE", "best", "least, round-robin, hash"),
        ("FOOPROXY_FORWARD", "dns:foo.example", "dns:foo.example:8001"),
        ("FOOPROXY_FORWARD", "dns:192.0.2.1:8001", "dns:foo.example:8001"),
        ("FOOPROXY_FORWARD", "srv:foo.example", "srv:_foo._tcp.example"),
        ("FOOPROXY_NAME_SERVER", "ns.example", "127.0.0.1:5353"),
        ("FOOPROXY_CHECK", "http", "off, tcp, foo"),
        ("FOOPROXY_CHECK_RISE", "0", "1 to 999"),
        ("FOOPROXY_FORWARD", "foo:1,weight=0", "host:port"),
        ("FOOPROXY_FORWARD", "foo:1,backup,backup", "expected it once"),
        ("FOOPROXY_LOG_SESSIONS", "maybe", "1, true, yes, on, 0, false, no, off"),
    ],
)
def test_a_wrong_variable_is_refused_with_its_value_and_what_would_be_right(
    variable: str, text: str, right: str
) -> None:
    line = refusal(**{variable: text})
    assert line.startswith(f"{variable}: {text!r} ") and right in line


@pytest.mark.parametrize("text", ["1", "true", "yes", "on", "ON", "True"])
def test_a_flag_is_on_by_its_variable(text: str) -> None:
    assert parsed(FOOPROXY_LOG_SESSIONS=text)["log-sessions"] is True


@pytest.mark.parametrize("text", ["0", "false", "no", "off", "Off"])
def test_a_flag_is_off_by_its_variable(text: str) -> None:
    assert parsed(FOOPROXY_LOG_SESSIONS=text)["log-sessions"] is False


def test_a_variable_repeats_an_option_by_whitespace() -> None:
    found = parsed(FOOPROXY_ALLOW=" 192.0.2.0/24\t::1\n")["allow"]
    assert list(map(str, found)) == ["192.0.2.0/24", "::1/128"]


@pytest.mark.parametrize(("variable", "text"), [("ALLOW", "192.0.2.7,::1"), ("HTTP_HOST", "a.example, b.example")])
def test_commas_between_the_values_of_a_variable_are_refused_with_what_separates_them(variable: str, text: str) -> None:
    hint = "; separate several values by spaces, not commas"
    assert refusal(**{f"FOOPROXY_{variable}": text}).endswith(hint)
    assert not refusal("--allow", "192.0.2.7,::1").endswith(hint)


def test_a_conflict_between_two_variables_names_both() -> None:
    line = refusal(FOOPROXY_ALLOW="192.0.2.7", FOOPROXY_LISTEN="haproxy:tcp:8002")
    assert line.startswith("FOOPROXY_ALLOW: ") and "FOOPROXY_LISTEN haproxy:tcp:8002" in line


def test_variables_that_are_not_options_are_ignored() -> None:
    # What Kubernetes sets for a Service called fooproxy, and what our systemd unit sets.
    strangers = {
        "FOOPROXY_PORT": "tcp://10.0.0.1:8002",
        "FOOPROXY_PORT_8002_TCP": "tcp://10.0.0.1:8002",
        "FOOPROXY_SERVICE_HOST": "10.0.0.1",
        "FOOPROXY_OPTIONS": "--listen nonsense",
    }
    assert dict(parsed(**strangers)) == dict(parsed())


@each
def test_an_options_variable_is_not_one_that_others_set(option: Option) -> None:
    assert not re.match("FOOPROXY_(OPTIONS$|PORT|SERVICE)", option.variable)


ONCE: list[Any] = [option for option in OPTIONS if not option.repeats]


@pytest.mark.parametrize("option", ONCE, ids=lambda option: option.name)
def test_an_option_is_not_taken_twice(option: Option) -> None:
    once = [f"--{option.name}"] if option.is_flag else [f"--{option.name}", option.default]
    assert f"--{option.name}: given 2 times" in refusal(*once, *once)


def test_an_option_that_is_given_twice_is_refused_with_both_values() -> None:
    assert refusal("--http", "8002", "--drain-timeout=5", "--http=8003").startswith(
        "--http: given 2 times ('8002', '8003')"
    )


def test_the_short_form_of_an_option_is_the_same_option() -> None:
    assert parsed("--listen", "8002", "-l8003")["listen"] == ["8002", "8003"]


@pytest.mark.parametrize("address", ["8002", "unix:/run/foo.sock"])
def test_an_address_to_listen_on_is_not_taken_twice(address: str) -> None:
    assert refusal("-l", address, "-l8003", "-l", address).startswith(f"--listen: {address!r} is given twice; expected")


def test_ports_that_the_system_chooses_may_be_given_twice() -> None:
    assert parsed("-l127.0.0.1:0", "-l127.0.0.1:0")["listen"] == ["127.0.0.1:0"] * 2


@pytest.mark.parametrize("which", [0, 1])
def test_each_address_to_listen_on_is_compared_with_the_other_options(which: int) -> None:
    listen = ["-l8002", "-lhaproxy:tcp:8003"][:: 1 if which else -1]
    assert "where the proxy itself listens" in refusal(*listen, "-f8002")
    assert "cannot be combined with --listen haproxy:tcp:8003" in refusal(*listen, "--allow", "::1")


def test_an_option_that_may_be_repeated_has_all_its_values_in_their_order() -> None:
    assert list(map(str, parsed("--allow", "192.0.2.0/24", "--allow=::1")["allow"])) == ["192.0.2.0/24", "::1/128"]


@pytest.mark.parametrize(
    ("servers", "right"),
    [
        (["foo:1", "foo:1"], "two servers are called 'foo:1'; expected each once, or names"),
        (["foo:1", "bar:1,name=foo:1"], "such as bar:1,name=other"),
        (["foo:1", ":8002"], "':8002' is where the proxy itself listens"),
    ],
)
def test_servers_that_cannot_be_told_apart_or_are_the_proxy_are_refused(servers: list[str], right: str) -> None:
    assert right in refusal(*(word for server in servers for word in ("--forward", server)))
    assert refusal(FOOPROXY_FORWARD=" ".join(servers)).startswith("FOOPROXY_FORWARD: ")


def test_more_servers_than_the_recovery_file_has_room_for_are_refused() -> None:
    many = [f"--forward=unix:/{number}" for number in range(1_001)]
    parsed(*many[:-1])
    assert refusal(*many) == "--forward: 1001 servers are given; expected at most 1000"


def test_a_unix_path_may_have_commas() -> None:
    (server,) = parsed("--forward", "unix:/run/a,b,weight=2")["forward"]
    assert (server.address, server.weight) == ("unix:/run/a,b", 2)


@pytest.mark.parametrize("option", ["forward", "listen", "http", "balance", "recovery-path"])
def test_a_value_with_control_characters_is_refused_in_one_printable_line(option: str) -> None:
    assert refusal(f"--{option}", "a\x1b[31mb\n:9", "--nonsense\x1b[0m\n").isprintable()
    if option != "recovery-path":
        assert refusal(f"--{option}", "a\x1b[31mb\n:9").isprintable()
