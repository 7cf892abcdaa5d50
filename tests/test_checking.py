"""``--check-config``: what it says would run, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fooproxy.commandline import Options
from fooproxy.net.addresses import tcp_place
from fooproxy.options import OPTIONS


def checked(capsys: Any, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Check a command line; return the status, what is said, and what is said to be wrong."""
    options = Options(environment)
    with pytest.raises(SystemExit) as end:
        options.parseOptions(["--check-config", *arguments])
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def test_each_option_is_listed_with_its_value_and_source(capsys: Any, tmp_path: Path) -> None:
    file = tmp_path / "fooproxy.toml"
    file.write_text('allow = ["192.0.2.0/24",\n"::1"]')
    status, out, err = checked(capsys, "-l127.0.0.1:8003", "--config", str(file), FOOPROXY_IDLE_TIMEOUT="7")
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()[2:] if not line.startswith(" ")]
    assert {row[0] for row in rows} == {option.name for option in OPTIONS}
    assert ["listen", "127.0.0.1:8003", "command", "line"] in rows
    assert ["idle-timeout", "7", "FOOPROXY_IDLE_TIMEOUT"] in rows
    assert ["allow", "192.0.2.0/24", f"{file}:1:", "allow"] in rows
    assert ["allow", "::1", f"{file}:2:", "allow"] in rows
    assert ["drain-timeout", "10", "default"] in rows
    assert ["http-host", "none", "default"] in rows


def test_addresses_are_resolved(capsys: Any) -> None:
    _, out, _ = checked(capsys, "--listen", "8003", "--forward", "tls:localhost:9001", "--http", "8004")
    lines = [line.strip() for line in out.splitlines()]
    assert "listens on 0.0.0.0:8003" in lines
    assert "listens on 127.0.0.1:8004" in lines
    assert [line for line in lines if line.startswith("connects to ") and "127.0.0.1:9001" in line]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--forward", "nobody.invalid:1"], "--forward: 'nobody.invalid:1' names 'nobody.invalid', which cannot be"),
        (["--listen", "192.0.2.1:1"], "--listen: cannot listen on '192.0.2.1:1': Cannot assign requested"),
        (
            ["--forward", "a..b:1"],
            "--forward: 'a..b:1' names 'a..b', which cannot be resolved: it is not a host name",
        ),
        (["--forward", "unix:/dev/null/x"], "--forward: cannot connect to 'unix:/dev/null/x': Not a directory"),
        (["--recovery-path", "/"], "--recovery-path: cannot save statistics in '/': it exists, but is not a regul"),
        (["--recovery-path", "/dev/null/x"], "--recovery-path: cannot save statistics in '/dev/null/x': /dev/null"),
        (["--recovery-path", "/proc/x/y"], "--recovery-path: cannot save statistics in '/proc/x/y': /proc: Operat"),
        (["--recovery-path", "a" * 300], f"--recovery-path: cannot save statistics in '{'a' * 300}': "),
        (["--listen", "unix:/no/sock"], "--listen: cannot listen on 'unix:/no/sock': /no: No such file or direct"),
        (
            ["--http", "unix:/dev/null"],
            "--http: cannot listen on 'unix:/dev/null': it exists, and is not a socket",
        ),
        (["--control", "unix:/proc/x"], "--control: cannot listen on 'unix:/proc/x': /proc: Operation not permit"),
    ],
)
def test_what_cannot_run_here_is_refused_with_one_line_each(capsys: Any, arguments: list[str], what: str) -> None:
    status, out, err = checked(capsys, *arguments)
    assert status == 2
    assert out.startswith("fooproxy ")
    (line,) = err.splitlines()
    assert line.startswith(f"fooproxy: {what}") and "expected" in line


def test_the_recovery_file_is_looked_at(capsys: Any, tmp_path: Path) -> None:
    path = tmp_path / "new" / "recovery.json"
    assert f"{path}: does not exist yet\n" in checked(capsys, "--recovery-path", str(path))[1]
    path.parent.mkdir()
    path.touch()
    assert f"{path}: written 0 s ago\n" in checked(capsys, "--recovery-path", str(path))[1]
    assert list(path.parent.iterdir()) == [path]


def test_unix_sockets_are_looked_for(capsys: Any, tmp_path: Path) -> None:
    status, out, _ = checked(capsys, "--listen", "unix:/run/no/sock", "--forward", f"unix:{tmp_path}/nobody")
    assert "the directory /run/no does not exist now; systemd creates it at start if RuntimeDirectory= names" in out
    assert "there is no socket now\n" in out
    assert status == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "listens", "place"),
    [
        ("8001", False, ("", 8001)),
        ("tcp:foo.example:8001", False, ("foo.example", 8001)),
        ("ssl:port=8001:host=foo.example", False, ("foo.example", 8001)),
        (r"tls:foo.example:1:endpoint=tcp\:192.0.2.7\:2", False, ("192.0.2.7", 2)),
        ("unix:/run/foo.sock", False, None),
        ("tcp:8002:interface=127.0.0.1", True, ("127.0.0.1", 8002)),
        ("haproxy:tcp:8002", True, ("", 8002)),
        ("tcp6:8002", True, ("::", 8002)),
        ("unix:/run/foo.sock", True, None),
    ],
)
def test_the_tcp_place_of_an_address_is_found(text: str, listens: bool, place: tuple[str, int] | None) -> None:
    assert tcp_place(text, listens=listens) == place
