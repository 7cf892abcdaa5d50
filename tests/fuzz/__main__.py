"""Runs one target of `tests.fuzz.targets` under atheris, starting from the target's corpus.

An input that fails is printed with its traceback and saved in ``--findings``, and the exit status is not 0; to run the
target on it again, name the file.  ``--keep`` saves inputs that reach new code or new hit counts; ``--take`` then adds
to the corpus those of them that reach more code than the corpus does.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "corpus"

_SCRATCH = "FUZZ_SCRATCH"
"""The variable that names the folder for everything temporary to the process that fuzzes."""

_LONGEST = 4096
"""Bytes of an input that the fuzzer makes."""


def main() -> None:
    """Fuzz in a process of its own, and remove what it leaves behind, however it ends."""
    chosen = _parser().parse_args()
    scratch = os.environ.get(_SCRATCH)
    if scratch is None:
        sys.exit(_in_a_child())
    _fuzz(chosen, Path(scratch))


def _in_a_child() -> int:
    """Run the same command again with a folder for everything temporary, and return its exit status."""
    with tempfile.TemporaryDirectory(prefix="fooproxy-fuzz-") as scratch:
        command = [sys.executable, "-m", "tests.fuzz", *sys.argv[1:]]
        child = subprocess.Popen(command, env={**os.environ, _SCRATCH: scratch, "TMPDIR": scratch})
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda number, _: child.send_signal(number))
        status = child.wait()
    return status if status >= 0 else 128 - status


def _fuzz(chosen: argparse.Namespace, scratch: Path) -> None:
    """Fuzz; libFuzzer ends the process itself, whatever Python would still have to do."""
    atheris = _import_atheris()
    # Not before: atheris instruments modules while they are imported.
    with atheris.instrument_imports(include=["fooproxy"]):
        from tests.fuzz.targets import TARGETS

    corpus = CORPUS / chosen.target
    keep = chosen.keep or scratch / "corpus"
    keep.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={chosen.seconds}", f"-seed={chosen.seed}", "-timeout=10", "-rss_limit_mb=1024"]
    options.append(f"-artifact_prefix={chosen.findings / chosen.target}-")
    if chosen.inputs:
        options += chosen.inputs
    elif chosen.take:
        options += [*_merge(corpus, chosen.take), str(corpus), str(chosen.take)]
    else:
        options += [f"-max_len={_LONGEST}", str(keep), str(corpus)]
    # libFuzzer runs this command, with more options, when it needs a process of its own, as merging does.
    command = f"{sys.executable} -m tests.fuzz {chosen.target} --"
    atheris.Setup([command, *options], TARGETS[chosen.target])
    atheris.Fuzz()


def _parser() -> argparse.ArgumentParser:
    # From the folders: the targets themselves must not be imported before atheris.
    names = sorted(folder.name for folder in CORPUS.iterdir())
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Fuzz one target with atheris, guided by coverage."
    )
    add = parser.add_argument
    add("target", choices=names, help="what to fuzz")
    add("inputs", nargs="*", metavar="FILE", help="run the target on these files only, without fuzzing")
    add("--seconds", type=int, default=60, metavar="N", help="fuzz for this many seconds (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="try inputs in the order of this seed (default: any order)")
    add("--findings", type=Path, default=Path(), metavar="DIR", help="save inputs that fail here (default: .)")
    add("--keep", type=Path, metavar="DIR", help="save inputs that reach new code or new hit counts here")
    add("--take", type=_directory, metavar="DIR", help="add inputs from here to the corpus if they reach new code")
    return parser


def _directory(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a directory")
    return path


def _import_atheris() -> Any:
    try:
        import atheris
    except ImportError as error:
        sys.exit(
            f"python -m tests.fuzz: cannot import atheris ({error}); install it with: "
            f"{sys.executable} -m pip install -e '.[test,fuzz]' (wheels: CPython 3.11 and later on Linux x86-64)"
        )
    return atheris


def _merge(corpus: Path, taken: Path) -> list[str]:
    """Make libFuzzer's options for a merge that adds an input only if it reaches code that the corpus does not.

    Without ``-use_counters=0`` the same code run more often counts as new.  An input longer than ``-max_len`` would be
    measured by its beginning alone.
    """
    sizes = [path.stat().st_size for folder in (corpus, taken) for path in folder.rglob("*") if path.is_file()]
    return ["-merge=1", "-use_counters=0", f"-max_len={max(sizes, default=_LONGEST)}"]


if __name__ == "__main__":
    main()
