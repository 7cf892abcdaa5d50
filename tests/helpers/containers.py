"""Containers, run by podman as root in networks of the tests' own.

Such a network is a network namespace, so that ports, bridges and firewall rules conflict with no others, and no packet
leaves it.  podman uses the machine's image store, so that images stay for the next run.  A `containers.conf` for the
tests alone lets podman run without systemd.
"""

from __future__ import annotations

import ast
import configparser
import ctypes
import fcntl
import http.client
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.helpers.fooserver import PATIENCE
from tests.helpers.processes import ROOT, completed, started

T = TypeVar("T")

BASE = "docker.io/library/debian:bookworm-slim"
IMAGE = "localhost/fooproxy"

MAKING = 900.0
"""Maximum seconds to build an image, including the download of its packages."""

# runc and cgroupfs need no systemd; a limit above the machine's own cannot be set.
_CONFIGURATION = """\
[containers]
default_ulimits = ["nofile=1024:{hard}", "nproc=1000:1000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
"""

# Loopback of a new network namespace is down: SIOCSIFFLAGS with IFF_UP and IFF_RUNNING.
_NETWORK = """\
import fcntl, socket, struct, sys
with socket.socket() as any:
    fcntl.ioctl(any, 0x8914, struct.pack("16sh22x", b"lo", 0x41))
print("up", flush=True)
sys.stdin.read()
"""


class Podman:
    """Runs podman and other commands in the network namespace of the process `pid`."""

    def __init__(self, pid: int, environment: Mapping[str, str]) -> None:
        self._pid = pid
        self.environment = environment

    def run(self, *command: str | Path, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Run a command in the network."""
        return completed(self.command(*command), timeout=timeout, env=self.environment, cwd=ROOT)

    def command(self, *command: str | Path) -> list[str | Path]:
        """Return the command line that runs a command in the network."""
        return ["nsenter", f"--net=/proc/{self._pid}/ns/net", *command]

    def __call__(self, *arguments: str | Path, timeout: float = PATIENCE) -> str:
        """Run podman, which must succeed; return its output."""
        end = self.run("podman", *arguments, timeout=timeout)
        assert end.returncode == 0, end.stderr
        return end.stdout.strip()

    def within(self, action: Callable[[], T]) -> T:
        """Do something in the network, such as connecting to a port of a container."""

        def enter() -> T:
            with Path(f"/proc/{self._pid}/ns/net").open() as namespace:
                # This changes only the namespace of this thread.
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0):
                    raise OSError(ctypes.get_errno(), "cannot enter the network")
            return action()

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(enter).result()

    def get(self, path: str, port: int = 8088) -> tuple[int, Any]:
        """Get a JSON resource from a published port; return its status (0 without an answer) and content."""

        def ask() -> tuple[int, Any]:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
                try:
                    connection.request("GET", path)
                    answer = connection.getresponse()
                    return answer.status, json.loads(answer.read())
                except (OSError, http.client.HTTPException):
                    return 0, None
                except json.JSONDecodeError:
                    # Until Prometheus is ready, it answers with text, not JSON.
                    return answer.status, None

        return self.within(ask)


@contextmanager
def network(environment: Mapping[str, str]) -> Iterator[Podman]:
    """Make a network, and let podman run in it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(["unshare", "--net", sys.executable, "-c", _NETWORK], text=True, **pipes) as process:
        assert process.stdout is not None and process.stderr is not None
        if process.stdout.readline() != "up\n":
            pytest.skip(f"this machine does not allow new networks: {process.stderr.read()[-300:]}")
        yield Podman(process.pid, environment)


def prepare(folder: Path) -> Mapping[str, str]:
    """Build the image of the checkout, or skip the test and say what is missing; return the environment for podman."""
    if os.geteuid():
        pytest.skip("containers need root")
    for name, package in {"podman": "podman", "runc": "runc", "nsenter": "util-linux"}.items():
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed (Debian: {package})")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    configuration = folder / "containers.conf"
    configuration.write_text(_CONFIGURATION.format(hard=hard))
    environment = {**os.environ, "CONTAINERS_CONF": str(configuration)}
    # Tests in several processes share the images.
    with (Path(tempfile.gettempdir()) / "fooproxy-test-image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _make_base(environment)
        with network(environment) as trial:
            ran = trial.run("podman", "run", "--rm", BASE, "true", timeout=60)
        if ran.returncode:
            pytest.skip(f"podman cannot run a container here: {ran.stderr[-300:]}")
        _make_image(folder, environment)
    return environment


def _make_base(environment: Mapping[str, str]) -> None:
    """Make the base image of ours, unless it exists."""
    if shutil.which("mmdebstrap") is None and completed(["podman", "image", "exists", BASE]).returncode:
        pytest.skip(f"there is no image {BASE}, and mmdebstrap, which makes it, is not installed (Debian: mmdebstrap)")
    made = completed([ROOT / "contrib" / "container" / "make-base"], timeout=MAKING, env=environment)
    if made.returncode:
        pytest.skip(f"the image {BASE} cannot be made here: {made.stderr[-300:]}")


def _make_image(folder: Path, environment: Mapping[str, str]) -> None:
    """Build the image of the checkout; most layers are cached."""
    # A network of the build's own would need more from the machine.
    how = ["--format=docker", "--isolation=chroot", "--network=host", "--tag", IMAGE, *_secrets(folder)]
    made = completed(["podman", "build", *how, ROOT], timeout=MAKING, env=environment)
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]


def _secrets(folder: Path) -> Iterator[str]:
    """Let the build use the package index that pip uses on this machine."""
    pip = completed([sys.executable, "-m", "pip", "config", "list"])
    settings = dict(line.split("=", 1) for line in pip.stdout.splitlines())
    found = {key.rpartition(".")[2]: str(ast.literal_eval(value)) for key, value in settings.items()}
    certificates = found.get("cert") or os.environ.get("SSL_CERT_FILE")
    if certificates:
        yield f"--secret=id=certificates,src={certificates}"
    configuration = configparser.RawConfigParser()
    configuration["global"] = {
        key: found[key] for key in ("index-url", "trusted-host", "proxy", "timeout") if key in found
    }
    with (folder / "pip.conf").open("w") as file:
        configuration.write(file)
    yield f"--secret=id=pip,src={file.name}"
