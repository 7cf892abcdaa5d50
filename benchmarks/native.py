"""Compiles the load generator and the server, which are in C so that they never limit the measured proxy."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent


class CannotCompile(Exception):
    """There is no C compiler, or it failed; the message says why."""


class Programs(NamedTuple):
    """The compiled programs; the top of each C file lists its options."""

    load: Path
    server: Path


def compile_programs(directory: Path) -> Programs:
    """Compile both into `directory`.

    :raises CannotCompile: there is no compiler or it failed.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise CannotCompile("no C compiler: the benchmarks need `cc` (Debian: apt install gcc libc6-dev)")
    for name in Programs._fields:
        command = [compiler, "-O2", "-Wall", "-Wextra", "-o", str(directory / name), str(HERE / f"{name}.c")]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise CannotCompile(f"{name}.c does not compile:\n{done.stderr}")
    return Programs(directory / "load", directory / "server")
