"""The fuzz targets pass on their corpora and under the fuzzer for a few seconds; the fuzzing command itself."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import Popen
from typing import Any, NamedTuple

import pytest

from tests.fuzz.targets import TARGETS
from tests.helpers.processes import ROOT, completed, environment, started
from tests.helpers.proxyprocess import eventually

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"
SECONDS = 3
"""How long each target is fuzzed here; ``python -m tests.fuzz`` does it for longer."""

needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed: pip install -e '.[fuzz]'"
)


class Fuzzer(NamedTuple):
    """A fuzzer at work, what it says, and where it leaves inputs that fail."""

    process: Popen[Any]
    output: Path
    findings: Path


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_passes(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs
    for path in inputs:
        TARGETS[name](path.read_bytes())


def fuzz(*arguments: str, cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz", *arguments]
    return completed(command, cwd=cwd, env={**environment(), **more}, timeout=120)


@pytest.fixture(scope="module")
def fuzzers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Fuzzer]]:
    """All fuzzers at once, since they mostly wait for the time to pass."""
    with ExitStack() as stack:

        def fuzzer(name: str) -> Fuzzer:
            findings, output = tmp_path_factory.mktemp(name), tmp_path_factory.mktemp("output") / name
            command = [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(SECONDS)]
            # The same inputs in each run, so that none fails by chance.
            command += ["--seed", "1", "--findings", str(findings)]
            log = stack.enter_context(output.open("wb"))
            return Fuzzer(stack.enter_context(started(command, cwd=ROOT, stdout=log, stderr=log)), output, findings)

        yield {name: fuzzer(name) for name in TARGETS}


@needs_atheris
@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_found_in_a_few_seconds(name: str, fuzzers: dict[str, Fuzzer]) -> None:
    fuzzer = fuzzers[name]
    status = fuzzer.process.wait(120)
    output = fuzzer.output.read_text(errors="replace")
    assert status == 0, output
    assert not list(fuzzer.findings.iterdir())
    # It did fuzz.
    assert "Done " in output


@needs_atheris
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_fuzzer_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "log"
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-m", "tests.fuzz", "recovery", "--seconds", "60", "--findings", str(tmp_path)]
    where: dict[str, Any] = {"cwd": ROOT, "env": {**environment(), "TMPDIR": str(tmp_path / "tmp")}}
    with log.open("wb") as output, started(command, stdout=output, stderr=output, **where) as process:
        eventually(lambda: b"INITED" in log.read_bytes())
        assert list((tmp_path / "tmp").iterdir())
        process.send_signal(number)
        process.wait(60)
    assert not list((tmp_path / "tmp").iterdir())


FIRST = "--allow\n192.0.2.0/24\n--allow\n192.0.2.0/24"


def taken(tmp_path: Path, *kept: str) -> set[str]:
    """Take `kept` into a corpus that holds `FIRST` alone; return what was added."""
    # A copy of the package, so that the corpus is not the real one.
    package, folder = tmp_path / "tests" / "fuzz", tmp_path / "kept"
    shutil.copytree(ROOT / "tests" / "fuzz", package, ignore=shutil.ignore_patterns("options", "__pycache__"))
    (package.parent / "__init__.py").touch()
    corpus = package / "corpus" / "options"
    for directory in (corpus, folder):
        directory.mkdir()
    (corpus / "first").write_text(FIRST)
    for number, text in enumerate(kept):
        (folder / str(number)).write_text(text)
    done = fuzz("options", "--take", str(folder), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return {path.read_text() for path in corpus.iterdir()} - {FIRST}


@needs_atheris
@pytest.mark.slow
def test_take_adds_only_inputs_that_reach_more_code_than_the_corpus(tmp_path: Path) -> None:
    the_same_more_often, more = f"{FIRST}\n" * 20 + FIRST, "--max-connections\nx"
    assert taken(tmp_path, the_same_more_often, more) == {more}


@needs_atheris
@pytest.mark.slow
def test_take_looks_at_the_whole_of_a_long_input(tmp_path: Path) -> None:
    long = f"{FIRST}\n" * 300 + "--max-connections\nx"
    assert taken(tmp_path, long) == {long}


@pytest.mark.slow
def test_without_atheris_one_line_says_how_to_install_it(tmp_path: Path) -> None:
    (tmp_path / "atheris.py").write_text("raise ModuleNotFoundError(\"No module named 'atheris'\")")
    done = fuzz("options", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("python -m tests.fuzz: cannot import atheris (No module named 'atheris')")
    assert "pip install -e '.[test,fuzz]' (wheels: CPython 3.11 and later on Linux x86-64)" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_h_is_help_and_needs_no_atheris(tmp_path: Path) -> None:
    (tmp_path / "atheris.py").write_text("raise ImportError")
    done = fuzz("-h", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 0, done.stderr
    assert "--take DIR" in done.stdout
