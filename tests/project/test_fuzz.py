"""The fuzz targets pass on their corpora and under the fuzzer for a few seconds; the fuzzing command itself."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS
from tests.helpers.processes import ROOT, completed, environment

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"
SECONDS = 3
"""How long each target is fuzzed here; ``python -m tests.fuzz`` does it for longer."""

needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed: pip install -e '.[fuzz]'"
)


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_passes(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs
    for path in inputs:
        TARGETS[name](path.read_bytes())


def fuzz(*arguments: str, cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz", *arguments]
    return completed(command, cwd=cwd, env={**environment(), **more}, timeout=120)


@needs_atheris
@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_found_in_a_few_seconds(name: str, tmp_path: Path) -> None:
    done = fuzz(name, "--seconds", str(SECONDS), "--findings", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(tmp_path.iterdir())
    # It did fuzz.
    assert "Done " in done.stderr


FIRST = "--allow\n192.0.2.0/24"


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
def test_take_adds_only_inputs_that_reach_more_code_than_the_corpus(tmp_path: Path) -> None:
    the_same_more_often, more = f"{FIRST}\n" * 20 + FIRST, "--max-connections\nx"
    assert taken(tmp_path, the_same_more_often, more) == {more}


@needs_atheris
def test_take_looks_at_the_whole_of_a_long_input(tmp_path: Path) -> None:
    long = f"{FIRST}\n" * 300 + "--max-connections\nx"
    assert taken(tmp_path, long) == {long}


def test_without_atheris_one_line_says_how_to_install_it(tmp_path: Path) -> None:
    (tmp_path / "atheris.py").write_text("raise ModuleNotFoundError(\"No module named 'atheris'\")")
    done = fuzz("options", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("python -m tests.fuzz: cannot import atheris (No module named 'atheris')")
    assert "pip install -e '.[test,fuzz]' (wheels: CPython 3.11 and later on Linux x86-64)" in done.stderr
    assert done.stderr.count("\n") == 1


def test_h_is_help_and_needs_no_atheris(tmp_path: Path) -> None:
    (tmp_path / "atheris.py").write_text("raise ImportError")
    done = fuzz("-h", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 0, done.stderr
    assert "--take DIR" in done.stdout
