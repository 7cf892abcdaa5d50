"""The configuration file: what becomes of its values, which come before it, and what is said about a wrong one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from twisted.python.usage import UsageError

from fooproxy.commandline import Options
from fooproxy.options import OPTIONS, Option
from tests.test_options import SAMPLES

IN_FILES: list[Any] = [option for option in OPTIONS if option.name != "config"]

each = pytest.mark.parametrize("option", IN_FILES, ids=lambda option: option.name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "fooproxy.toml"


def configured(file: Path, content: str | bytes, *arguments: str, **environment: str) -> Options:
    """Parse the options of a proxy with a file of this content."""
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    options = Options(environment)
    options.parseOptions(["--config", str(file), *arguments])
    return options


def written(option: Option) -> str:
    """Write the sample of an option's kind as TOML."""
    sample = SAMPLES[option.unit]
    if option.is_flag:
        return f"{option.name} = true"
    if option.unit in ("SECONDS", "SESSIONS", "CONNECTIONS"):
        return f"{option.name} = {sample}"
    return f'{option.name} = ["{sample}"]' if option.repeats else f'{option.name} = "{sample}"'


@each
def test_an_option_is_taken_from_the_file(file: Path, option: Option) -> None:
    value = option.check(SAMPLES[option.unit])
    assert configured(file, written(option))[option.name] == ([value] if option.repeats else value)


@each
def test_the_environment_comes_before_the_file(file: Path, option: Option) -> None:
    wrong = f'{option.name} = "nonsense!"'
    found = configured(file, wrong, **{option.variable: SAMPLES[option.unit]})
    assert found[option.name] == configured(file, written(option))[option.name]
    assert found.in_force()["options"][option.name]["source"] == "environment"


@each
def test_the_command_line_comes_before_the_file(file: Path, option: Option) -> None:
    given = [f"--{option.name}"] if option.is_flag else [f"--{option.name}", SAMPLES[option.unit]]
    found = configured(file, f'{option.name} = "nonsense!"', *given)
    assert found[option.name] == configured(file, written(option))[option.name]
    assert found.in_force()["options"][option.name]["source"] == "command line"


def test_the_file_may_be_named_by_the_environment(file: Path) -> None:
    file.write_text("drain-timeout = 2.5")
    options = Options({"FOOPROXY_CONFIG": str(file)})
    options.parseOptions([])
    assert options["drain-timeout"] == 2.5


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ("listen = 8003", "8003"),
        ("listen = '8003'", "8003"),
        ('"listen" = "8003"', "8003"),
        ("\ufefflisten = 8003\r\n", "8003"),
        ('listen = """\\\n  8003"""', "8003"),
        ("# nothing", ":8002"),
        ("", ":8002"),
    ],
)
def test_what_toml_allows_is_taken(file: Path, content: str, value: str) -> None:
    assert configured(file, content)["listen"] == [value]


@pytest.mark.parametrize(("word", "value"), [("true", True), ("false", False), ('"yes"', True), ("0", False)])
def test_a_flag_is_on_or_off(file: Path, word: str, value: bool) -> None:
    assert configured(file, f"log-sessions = {word}")["log-sessions"] is value


def test_a_list_has_the_values_of_an_option_in_their_order(file: Path) -> None:
    found = configured(file, 'allow = [ "192.0.2.0/24", # one\n  "::1",\n]')["allow"]
    assert list(map(str, found)) == ["192.0.2.0/24", "::1/128"]


def test_an_option_that_may_be_repeated_takes_one_value_without_a_list(file: Path) -> None:
    assert list(map(str, configured(file, 'allow = "::1"')["allow"])) == ["::1/128"]


WRONG = [
    ("\nlisten = :8002\ndrain-timeout = 10", 2, "invalid value; expected lines such as listen = "),
    ("drain-timeout 10", 1, "expected '='"),
    ('allow = [\n"::1"\nlisten = "8002"', 3, "nclosed array"),
    ('# x\n\nlisten = """\n8002\n', 3, "nterminated string"),
    ("lisen = 8002", 1, "'lisen' is not an option that a configuration file can have; did you mean listen?"),
    ("idle_timeout = 1", 1, "did you mean idle-timeout?"),
    ("\n\ncolour = 1", 3, "expected the name of an option"),
    ('config = "other.toml"', 1, "'config' is not an option that a configuration file can have; expected --config on"),
    ("listen = 1\n[limits]\nidle-timeout = 3", 2, "'limits' is a table; expected options without tables"),
    ("a.b = 1", 1, "'a' is a table"),
    ("listen = 1\n\nlisten = 2", 3, "listen: given a second time, after line 1; expected only once"),
    ("listen = true", 1, "listen: has true or false; expected one text in quotes or one number"),
    ("http = [1]", 1, "http: has a list; expected one text"),
    ("listen = {a = 1}", 1, "listen: has a table; expected one text"),
    ("listen = 1979-05-27", 1, "listen: has a date or time; expected one text"),
    ("log-sessions = []", 1, "log-sessions: has a list; expected true or false"),
    ("allow = []", 1, "allow: [] has no value; expected one or more, or no such line"),
    (
        'allow = ["::1",\n["::2"]]',
        1,
        "allow: has a list in a list; expected one text in quotes or one number, or a list",
    ),
    (
        "\n[[listen]]",
        2,
        "listen: has a table in a list; expected one text in quotes or one number, or a list of them: li",
    ),
    (
        "[listen]",
        1,
        'listen: has a table; expected one text in quotes or one number, or a list of them: listen = ["...", "..."]',
    ),
    ("check-config = true", 1, "can have; expected --check-config on the command line"),
    ("version = 1", 1, "can have; expected --version on the command line"),
    ("listen = 1\n\0", 2, "invalid statement"),
    ('\nlog-sessions = "maybe"', 2, "log-sessions: 'maybe' is neither on nor off"),
    ('\n\nidle-timeout = "soon"', 3, "idle-timeout: 'soon' is not a time; expected"),
    ("idle-timeout = inf", 1, "idle-timeout: 'inf' is not a time; expected"),
    ("listen = 70000", 1, "listen: '70000' names port 70000; expected a port up to 65535"),
    ('allow = ["192.0.2.0/24",\n"x", "y"]', 2, "allow: 'x' is not a network"),
    ('allow = [ # both\n\n"192.0.2.0/24", "x"\n]', 3, "allow: 'x' is not a network"),
    ('listen = "haproxy:tcp:8002"\nallow = "::1"', 2, "allow: cannot be combined with"),
    (b'listen = "8002"\nallow = "\xff"', 2, "not UTF-8; expected a TOML file"),
    ("x = " + "[" * 100_000, 1, "expected lines such as"),
]
"""The content of a file, the line that is wrong, and what is said about it."""


@pytest.mark.parametrize(("content", "line", "what"), WRONG, ids=[str(content)[:20] for content, *_ in WRONG])
def test_a_wrong_file_is_refused_with_its_name_and_the_line(
    file: Path, content: str | bytes, line: int, what: str
) -> None:
    with pytest.raises(UsageError) as refused:
        configured(file, content)
    said = str(refused.value)
    assert said.startswith(f"{file}:{line}: ") and what.lower() in said.lower()
    assert "expected" in said or "did you mean" in said
    assert "\n" not in said


def test_a_conflict_between_two_lines_names_both(file: Path) -> None:
    with pytest.raises(UsageError) as refused:
        configured(file, 'listen = "haproxy:tcp:8002"\nallow = "::1"')
    assert f"{file}:1: listen haproxy:tcp:8002" in str(refused.value)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/no/such/file", "cannot read '/no/such/file': No such file or directory; expected a TOML file"),
        ("/", "'/' is a directory; expected a regular file, which is TOML with options"),
        ("/dev/zero", "'/dev/zero' is a device; expected a regular file"),
        ("/dev/zero\n", "cannot read '/dev/zero\\n': No such file or directory; expected a TOML file"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_option_that_names_it(path: str, why: str) -> None:
    for arguments, environment, place in (
        (["--config", path], {}, "--config"),
        ([], {"FOOPROXY_CONFIG": path}, "FOOPROXY_CONFIG"),
    ):
        options = Options(environment)
        with pytest.raises(UsageError) as refused:
            options.parseOptions(arguments)
        assert str(refused.value).startswith(f"{place}: {why}")


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match=f"--config: '{pipe}' is a pipe; expected a regular file"):
        Options({}).parseOptions(["--config", str(pipe)])


def test_a_link_to_nothing_is_refused_as_such(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("nothing")
    with pytest.raises(UsageError, match=r"cannot read '.*/link': it is a symbolic link to a missing file; expec"):
        Options({}).parseOptions(["--config", str(link)])


def test_a_file_that_is_too_large_is_refused(file: Path) -> None:
    with pytest.raises(UsageError, match=r"--config: '.*' is larger than 1 MiB; expected a TOML file with options"):
        configured(file, "#" * ((1 << 20) + 1))


def test_a_long_list_is_read_in_a_moment_and_its_lines_are_known(file: Path) -> None:
    networks = [f'"192.0.{number >> 8}.{number & 255}",' for number in range(20_000)]
    with pytest.raises(UsageError, match=r":20002: allow: 'x' is not a network"):
        configured(file, "\n".join(["allow = [", *networks, '"x"]']))


def test_the_options_in_force_tell_their_values_and_where_to_change_them(file: Path) -> None:
    options = configured(
        file, 'idle-timeout = 2\nlog-sessions = true\nallow = ["::1", "::2"]', "-l8003", FOOPROXY_FORWARD="foo:1"
    )
    found = options.in_force()
    assert found["file"] == str(file)
    shown = {name: tuple(entry.values()) for name, entry in found["options"].items()}
    assert shown["listen"] == (["8003"], "command line", "--listen")
    assert shown["forward"] == (["foo:1"], "environment", "FOOPROXY_FORWARD")
    assert shown["idle-timeout"] == (2.0, "file", f"{file}:1: idle-timeout")
    assert shown["log-sessions"] == (True, "file", f"{file}:2: log-sessions")
    assert shown["allow"] == (["::1", "::2"], "file", f"{file}:3: allow")
    assert shown["http-host"] == ([], "default", "--http-host")
    assert shown["max-connections"] == ("auto", "default", "--max-connections")
    assert list(shown) == [option.name for option in OPTIONS]
