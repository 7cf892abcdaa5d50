"""The real process on disks that are full, read-only or slow: traffic continues, and saves resume by themselves."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fooserver import FooServer, exchange
from tests.helpers.processes import completed
from tests.helpers.proxyprocess import TWISTD, Proxy, eventually, fooproxy, settles

pytestmark = pytest.mark.slow

FINE: tuple[int, Any] = (200, {"ready": True, "reasons": [], "warnings": []})
FAILING: tuple[int, Any] = (200, {"ready": True, "reasons": [], "warnings": ["recovery_failing"]})


class Mount:
    """A small separate disk, visible only to one process and its children."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "disk"
        self.path.mkdir()
        self.more = ("--recovery-path", str(self.path / "recovery.json"))

    def command(self, first: str = "true") -> tuple[str, ...]:
        """Return the start of a command that mounts the disk, runs `first` there, and then runs the proxy."""
        script = f'mount -t tmpfs -o size=256k none "$0" && cd "$0" && {{ {first}; cd ..; }} && exec "$@"'
        return ("unshare", "-m", "sh", "-c", script, str(self.path), *TWISTD, "-n")

    def seen_by(self, proxy: Proxy) -> Path:
        return Path(f"/proc/{proxy.pid}/root{self.path}")

    def remount(self, proxy: Proxy, how: str) -> None:
        command = ["nsenter", "-m", "-t", str(proxy.pid), "mount", "-o", f"remount,{how}", str(self.path)]
        done = completed(command)
        if done.returncode:
            raise OSError(done.stderr)


@pytest.fixture
def mount(tmp_path: Path) -> Mount:
    if os.geteuid():
        pytest.skip("needs root, to mount")
    try:
        end = completed(["unshare", "-m", "mount", "-t", "tmpfs", "none", tmp_path])
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if end.returncode:
        pytest.skip(f"needs the right to mount: {end.stderr}")
    return Mount(tmp_path)


def fill(folder: Path) -> None:
    """Fill the disk completely."""
    with (folder / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
        while True:
            filler.write(bytes(1024))


def saves(proxy: Proxy) -> tuple[int, int]:
    counted = proxy.stats()["recovery_saves"]
    return counted["ok"], counted["failed"]


def fails_harmlessly(proxy: Proxy, folder: Path, why: str) -> None:
    """Check that saves fail and that nothing else does."""
    before = saves(proxy)[1]
    eventually(lambda: saves(proxy)[1] > before + 2)
    assert proxy.get("/ready") == FAILING
    _, live = proxy.get("/live")
    assert live["recovery"]["failing"] and live["health"]["warnings"] == ["recovery_failing"]
    assert exchange(proxy.port, b"REQ 1 a\n") == b"ACK 1 a\n"
    (line,) = proxy.says("cannot save the statistics", times=1)
    assert why in line
    # The old state is intact, and no other files are left behind.
    assert json.loads((folder / "recovery.json").read_bytes())["counters"]["client_req"] == 1
    kept = {"recovery.json", "recovery.json.lock", "filler"}
    eventually(lambda: {file.name for file in folder.iterdir()} <= kept)


def recovers(proxy: Proxy, folder: Path) -> None:
    settles(lambda: proxy.get("/ready"), FINE)
    proxy.says("works again", times=1)
    assert json.loads((folder / "recovery.json").read_bytes())["counters"]["client_req"] == 2


def saved_one(proxy: Proxy, folder: Path) -> None:
    """Send one request, and wait until it has been saved."""
    assert exchange(proxy.port, b"REQ 1 a\n") == b"ACK 1 a\n"
    eventually(lambda: json.loads((folder / "recovery.json").read_bytes())["counters"]["client_req"] == 1)


def test_a_disk_that_gets_full_costs_the_saves_until_there_is_room_again(tmp_path: Path, mount: Mount) -> None:
    with (
        FooServer() as server,
        fooproxy(tmp_path, *mount.more, upstream=server.port, command=mount.command()) as proxy,
    ):
        folder = mount.seen_by(proxy)
        saved_one(proxy, folder)
        fill(folder)
        fails_harmlessly(proxy, folder, "No space left on device")
        (folder / "filler").unlink()
        recovers(proxy, folder)


def test_a_disk_that_becomes_read_only_costs_the_saves_until_it_is_mended(tmp_path: Path, mount: Mount) -> None:
    with (
        FooServer() as server,
        fooproxy(tmp_path, *mount.more, upstream=server.port, command=mount.command()) as proxy,
    ):
        folder = mount.seen_by(proxy)
        saved_one(proxy, folder)
        # A save in progress prevents this for a moment.
        eventually(lambda: _succeeds(lambda: mount.remount(proxy, "ro")))
        fails_harmlessly(proxy, folder, "Read-only file system")
        mount.remount(proxy, "rw")
        recovers(proxy, folder)


def _succeeds(action: Any) -> bool:
    try:
        action()
    except OSError:
        return False
    return True


def test_a_disk_that_is_full_at_the_start_is_no_reason_not_to_relay(tmp_path: Path, mount: Mount) -> None:
    full = mount.command("! cat /dev/zero >filler 2>/dev/null")
    with FooServer() as server, fooproxy(tmp_path, *mount.more, upstream=server.port, command=full) as proxy:
        settles(lambda: proxy.get("/ready"), FAILING)
        assert exchange(proxy.port, b"REQ 1 a\n") == b"ACK 1 a\n"
        folder = mount.seen_by(proxy)
        assert not (folder / "recovery.json").exists()
        (folder / "filler").unlink()
        settles(lambda: proxy.get("/ready"), FINE)
        assert json.loads((folder / "recovery.json").read_bytes())["counters"]["client_req"] == 1
        assert (folder / "recovery.json.lock").exists()


def test_a_disk_that_is_read_only_at_the_start_is_refused_with_one_line(tmp_path: Path, mount: Mount) -> None:
    command = [*mount.command("mount -o remount,ro ."), "fooproxy", "--listen", "127.0.0.1:0", *mount.more]
    end = completed(command, cwd=tmp_path)
    assert end.returncode == 1
    (line,) = [line for line in end.stderr.splitlines() if "#critical]" in line]
    assert "cannot save statistics" in line and "Read-only file system" in line and "--recovery-path" in line
    assert "Traceback" not in end.stderr


def test_a_disk_that_is_slow_does_not_hold_up_the_relay(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    # The first save after the start lasts until the test writes to the pipe.
    program = (
        "import os, threading; sync, waited = os.fsync, []\n"
        "def slow(fd):\n"
        "    if threading.current_thread() is not threading.main_thread() and not waited:\n"
        "        waited.append(open('go').read())\n"
        "    sync(fd)\n"
        "os.fsync = slow; from twisted.scripts.twistd import run; run()"
    )
    command = (sys.executable, "-c", program, "-n")
    with FooServer() as server, fooproxy(tmp_path, upstream=server.port, command=command) as proxy:
        settles(lambda: proxy.get("/ready"), FAILING)
        assert exchange(proxy.port, b"REQ 1 a\n") == b"ACK 1 a\n"
        assert saves(proxy) == (0, 0)
        assert json.loads((tmp_path / "recovery.json").read_text())["counters"]["client_req"] == 0
        (tmp_path / "go").write_text("on")
        settles(lambda: proxy.get("/ready"), FINE)
        proxy.says("the save has already taken 3 s")
        proxy.signal(signal.SIGTERM)
        assert proxy.wait() == 0
    assert json.loads((tmp_path / "recovery.json").read_text())["counters"]["client_req"] == 1
