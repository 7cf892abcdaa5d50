"""How the real process starts, or refuses to: one clear line, an exit status, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fooproxy import __version__
from fooproxy.core import IMPLEMENTATION
from fooproxy.options import OPTIONS
from tests.helpers.processes import completed
from tests.helpers.proxyprocess import TWIST, TWISTD, options, run

pytestmark = pytest.mark.slow

ADDRESSES = [option.name for option in OPTIONS if option.unit == "ADDRESS"]
TIMES = [option.name for option in OPTIONS if option.unit == "SECONDS"]

WRONG_OPTIONS = [
    *[(f"--{option}", value, value) for option in ADDRESSES for value in ("70000", "nonsense")],
    *[(f"--{option}", value, value) for option in TIMES for value in ("soon", "-1")],
    ("--listen", "", "''"),
    ("--listen", "[::zz]:8001", "[::zz]:8001"),
    ("--listen", "systemd:domain=INET:index=0", "systemd:domain=INET:index=0"),
    ("--listen", "ssl:8002:privateKey=none.pem", "none.pem"),
    *[(f"--{option}", "unix:", "unix:/run/foo.sock") for option in ADDRESSES],
    ("--listen", "haproxy:unix:", "unix:/run/foo.sock"),
    ("--http", f"unix:{'a' * 108}", "107 bytes"),
    ("--forward", "0", "'0'"),
    ("--forward", "tcp:no-port", "tcp:no-port"),
    ("--listen", "tcp:70000", "a port up to 65535"),
    ("--listen", "unix:/run/foo.sock:mode=999", "such as 660"),
    ("--drain-timeout", "inf", "inf"),
    *[(f"--{option}", "0", "'0'") for option in ("connect-timeout", "client-fin-timeout", "send-timeout")],
    *[("--max-connections", value, repr(value)) for value in ("", "0", "-1", "many", "1_000", "1e3", "\u0663")],
    *[("--allow", value, repr(value)) for value in ("", "everybody", "192.0.2.0/33", "foo.example")],
    ("--allow", "192.0.2.7/24", "192.0.2.0/24"),
    ("--recovery-path", "", "''"),
]
"""The option, a wrong value, and what the line must name."""


MANY = """
import gc, json, os, sys
import fooproxy.service, twisted.scripts.twistd

# Else each child looks through all of that at its end, and copies it.
gc.freeze()
for number, arguments in enumerate(json.load(sys.stdin)):
    child = os.fork()
    if not child:
        for fd, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT), fd)
        sys.argv[1:] = ["-n", "--pidfile", f"{number}.pid", "fooproxy", *arguments]
        twisted.scripts.twistd.run()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs twistd once for each list of arguments, having loaded all that takes time before."""


def refuses(folder: Path, *arguments: str) -> str:
    """Start the proxy with the arguments; give what it printed, having checked how it refused."""
    end = run(folder, "-n", "--pidfile", "foo.pid", "fooproxy", *arguments)
    return refusal(folder, "foo", end.returncode, end.stdout, end.stderr)


def refusal(folder: Path, name: str, status: int, stdout: str, stderr: str) -> str:
    assert status > 0
    assert stdout == ""
    assert "Traceback" not in stderr
    assert not (folder / f"{name}.pid").exists()
    assert not (folder / ".lock").is_symlink()
    return stderr


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], str]:
    """What a proxy that was started with each of the wrong options printed."""
    folder = tmp_path_factory.mktemp("refused")
    lists = [[option, value] for option, value, _ in WRONG_OPTIONS]
    end = completed([sys.executable, "-c", MANY], given=json.dumps(lists), cwd=folder)
    assert (end.returncode, end.stderr) == (0, "")
    statuses = list(map(int, end.stdout.split()))
    assert len(statuses) == len(lists)

    def printed(option: str, value: str) -> str:
        number = lists.index([option, value])
        streams = [(folder / f"{number}.{stream}").read_text() for stream in ("stdout", "stderr")]
        return refusal(folder, str(number), statuses[number], *streams)

    return printed


@pytest.mark.parametrize(("option", "value", "named"), WRONG_OPTIONS)
def test_a_wrong_value_is_refused_with_one_line(
    refused: Callable[[str, str], str], option: str, value: str, named: str
) -> None:
    (line,) = refused(option, value).splitlines()
    assert line.startswith("fooproxy: ")
    assert option in line and named in line


@pytest.mark.parametrize("command", [(*TWISTD, "-n"), TWIST], ids=["twistd", "twist"])
def test_a_wrong_environment_variable_is_refused_with_one_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    end = run(tmp_path, "fooproxy", command=("env", "FOOPROXY_IDLE_TIMEOUT=soon", *command))
    assert (end.returncode, end.stdout) == (2, "")
    assert re.fullmatch("fooproxy: FOOPROXY_IDLE_TIMEOUT: 'soon' is not a time; expected .*\n", end.stderr)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["8002"], "8002"), (["--lisen", "8002"], "lisen"), (["--listen"], "listen")],
    ids=["an argument", "an unknown option", "an option without its value"],
)
def test_a_wrong_command_line_is_refused_with_one_line(tmp_path: Path, arguments: list[str], named: str) -> None:
    (line,) = refuses(tmp_path, *arguments).splitlines()
    assert line.startswith("fooproxy: ") and named in line and line.endswith("(see --help)")


@pytest.mark.parametrize("listen", ["haproxy:tcp:8002", "HAProxy:tcp:8002"])
def test_networks_that_may_connect_are_not_taken_where_addresses_come_too_late(tmp_path: Path, listen: str) -> None:
    (line,) = refuses(tmp_path, "--allow", "192.0.2.0/24", "--listen", listen).splitlines()
    assert "--allow" in line and listen in line


def critical(log: str) -> str:
    (line,) = re.findall(r".*#(?:critical|error)\].*", log)
    return str(line)


@pytest.mark.parametrize("option", ["--listen", "--http"])
def test_a_busy_port_is_refused_with_one_line(tmp_path: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        line = critical(refuses(tmp_path, *options(tmp_path, None, option, address)))
    assert option in line and address in line and "Address already in use" in line


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("192.0.2.1:0", "Cannot assign requested address"),
        ("unix:/nowhere/at/all", "No such file or directory"),
    ],
)
def test_an_address_that_cannot_be_had_is_refused_with_one_line(tmp_path: Path, address: str, reason: str) -> None:
    line = critical(refuses(tmp_path, *options(tmp_path, None, "--listen", address)))
    assert "--listen" in line and address in line and reason in line


def test_a_unix_socket_that_cannot_be_had_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "foo.sock"
    path.write_text("not a socket")
    line = critical(refuses(tmp_path, *options(tmp_path, None, "--listen", f"unix:{path}")))
    assert f"cannot listen on unix:{path}: Address already in use" in line
    assert not Path(f"{path}.lock").is_symlink()
    assert path.read_text() == "not a socket"


@pytest.mark.parametrize("more", ["", ":lockfile=0"])
def test_a_unix_socket_that_another_process_has_keeps_its_lock(tmp_path: Path, more: str) -> None:
    path, lock = tmp_path / "foo.sock", tmp_path / "foo.sock.lock"
    lock.symlink_to(str(os.getpid()))
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        line = critical(refuses(tmp_path, *options(tmp_path, None, "--listen", f"unix:{path}{more}")))
    assert f"cannot listen on unix:{path}" in line
    assert lock.readlink() == Path(str(os.getpid()))


CANNOT_SAVE = """
import errno, sys
from fooproxy.__main__ import main
from fooproxy.recovery.saving import Saving

def start(self):
    raise OSError(errno.EIO, "Input/output error")

Saving.start = start
main()
"""


@pytest.mark.parametrize(
    ("command", "more", "why"),
    [
        (["-m", "fooproxy"], ["--control", "unix:/nowhere/at/all"], "cannot listen on unix:/nowhere/at/all"),
        (["-c", CANNOT_SAVE], ["--control", "unix:control.sock"], "cannot save statistics"),
    ],
    ids=["the last listener", "the first save"],
)
def test_a_start_that_fails_leaves_no_unix_socket(
    tmp_path: Path, command: list[str], more: list[str], why: str
) -> None:
    addresses = ["--listen", "unix:foo.sock", "--http", "unix:http.sock", *more]
    end = completed([sys.executable, *command, *addresses, "--recovery-path", "recovery.json"], cwd=tmp_path)
    assert (end.returncode, end.stdout) == (1, "")
    assert why in critical(end.stderr)
    assert "Traceback" not in end.stderr
    assert list(tmp_path.glob("*.sock*")) == []


def test_a_directory_in_place_of_the_recovery_file_is_refused_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "recovery.json").mkdir()
    line = critical(refuses(tmp_path, *options(tmp_path, None)))
    assert "--recovery-path" in line and f"{tmp_path}/recovery.json" in line


def test_a_recovery_path_below_a_file_is_refused_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = f"{tmp_path}/file/recovery.json"
    line = critical(refuses(tmp_path, *options(tmp_path, None, "--recovery-path", path)))
    assert "--recovery-path" in line and path in line


def test_a_recovery_path_where_nothing_can_be_written_is_refused_with_one_line(tmp_path: Path) -> None:
    # Not even root can make folders there.
    path = "/proc/self/recovery/recovery.json"
    line = critical(refuses(tmp_path, *options(tmp_path, None, "--recovery-path", path)))
    assert "--recovery-path" in line and path in line


def daemon(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Start a daemon that refuses to."""
    arguments = ["--pidfile", "foo.pid", "--logfile", "foo.log", "fooproxy", *options(folder, None, *more)]
    end = run(folder, *arguments)
    assert (end.returncode, end.stdout) == (1, "")
    assert not (folder / "foo.pid").exists()
    return end


def test_a_daemon_that_cannot_start_tells_its_caller_in_the_line_of_its_log(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        address = f"127.0.0.1:{busy.getsockname()[1]}"
        end = daemon(tmp_path, "--listen", address)
    line = f"cannot listen on {address}: Address already in use; choose another address with --listen"
    assert end.stderr == f"fooproxy: {line}\n"
    assert critical((tmp_path / "foo.log").read_text()).endswith(f"#critical] {line}")


def test_a_daemon_that_cannot_start_tells_its_caller_all_of_a_long_line(tmp_path: Path) -> None:
    (tmp_path / "fil\u00e9").touch()
    path = f"{tmp_path}/fil\u00e9/{'deep/' * 50}recovery.json"
    end = daemon(tmp_path, "--recovery-path", path)
    assert end.stderr.startswith(f"fooproxy: cannot save statistics in {path}: ")
    assert end.stderr.endswith("choose a writable file with --recovery-path\n")
    assert end.stderr.count("\n") == 1


def test_a_refused_start_does_not_stand_in_the_way_of_the_next(tmp_path: Path) -> None:
    listen = ("--listen", f"unix:{tmp_path}/foo.sock")
    with socket.create_server(("127.0.0.1", 0)) as busy:
        http = f"127.0.0.1:{busy.getsockname()[1]}"
        refuses(tmp_path, *options(tmp_path, None, *listen, "--http", http))
    line = critical(refuses(tmp_path, *options(tmp_path, None, *listen, "--recovery-path", "/proc/self/no/file")))
    assert "--recovery-path" in line


@pytest.mark.parametrize("form", ["--help", "-h"])
def test_help_tells_of_each_option(tmp_path: Path, form: str) -> None:
    end = run(tmp_path, "-n", "fooproxy", form)
    assert end.returncode == 0
    for option in OPTIONS:
        assert f"--{option.name}" in end.stdout
    assert end.stderr == ""


@pytest.mark.parametrize("command", [TWISTD, TWIST], ids=["twistd", "twist"])
def test_version_tells_the_version(tmp_path: Path, command: tuple[str, ...]) -> None:
    end = run(tmp_path, "fooproxy", "--version", command=command)
    assert (end.returncode, end.stdout, end.stderr) == (0, f"fooproxy {__version__} ({IMPLEMENTATION})\n", "")


def test_the_plugin_is_listed(tmp_path: Path) -> None:
    end: subprocess.CompletedProcess[str] = run(tmp_path, "--help")
    assert re.search(r"^ +fooproxy +A proxy for the Foo protocol", end.stdout, re.MULTILINE)


def test_the_proxy_is_loaded_without_looking_for_garbage(tmp_path: Path) -> None:
    program = (
        "import gc, sys; from twisted.plugins.fooproxy_plugin import fooproxy\n"
        "def looks(): return [generation['collections'] for generation in gc.get_stats()]\n"
        "before = looks(); fooproxy.options; after = looks()\n"
        "assert 'fooproxy.service' in sys.modules and gc.isenabled()\n"
        "print(after == before)"
    )
    end = completed([sys.executable, "-c", program], cwd=tmp_path)
    assert (end.returncode, end.stdout, end.stderr) == (0, "True\n", "")
