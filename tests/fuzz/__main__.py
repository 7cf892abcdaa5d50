"""Runs one target of `tests.fuzz.targets` under atheris, from its corpus on, for a while.

An input that fails is printed with its traceback and kept where ``--findings`` says, and the exit status is not 0; run
the target on it again by naming the file.  What is new and interesting is kept in the folder ``--keep``, from where
``--take`` adds to the corpus what covers more than the corpus does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


def main() -> None:
    """Fuzz; libFuzzer ends the process itself."""
    # The names only: the targets are imported below, under the fuzzer's eyes.
    names = sorted(folder.name for folder in CORPUS.iterdir())
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n\n")[0])
    parser.add_argument("target", choices=names)
    parser.add_argument("inputs", nargs="*", help="run on these files only, and do not fuzz")
    parser.add_argument("--seconds", type=int, default=60, help="how long (%(default)s)")
    parser.add_argument("--findings", type=Path, default=Path(), help="folder for inputs that fail (this one)")
    parser.add_argument("--keep", type=Path, help="folder for inputs that are interesting")
    parser.add_argument("--take", type=Path, metavar="KEPT", help="add to the corpus what there covers more, and end")
    chosen = parser.parse_args()

    import atheris

    with atheris.instrument_imports(include=["fooproxy"]):
        from tests.fuzz.targets import TARGETS

    with tempfile.TemporaryDirectory(prefix="fooproxy-corpus-") as scratch:
        keep = chosen.keep or Path(scratch)
        keep.mkdir(parents=True, exist_ok=True)
        corpus = CORPUS / chosen.target
        where = [keep, corpus] if chosen.take is None else ["-merge=1", corpus, chosen.take]
        limits = [f"-max_total_time={chosen.seconds}", "-timeout=10", "-rss_limit_mb=1024", "-max_len=4096"]
        # By this libFuzzer runs itself once more where it has to, with options of its own.
        again = f"{sys.executable} -m tests.fuzz {chosen.target} --"
        findings = f"-artifact_prefix={chosen.findings / chosen.target}-"
        atheris.Setup(
            [again, *limits, findings, *map(str, chosen.inputs or where)],
            TARGETS[chosen.target],
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
