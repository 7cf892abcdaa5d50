"""The fuzz targets: each passes on its corpus, and under the fuzzer for a few seconds."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS
from tests.helpers.proxyprocess import ENVIRONMENT

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"
SECONDS = 3
"""How long each target is fuzzed here; ``python -m tests.fuzz`` does it for longer."""


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_passes(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs
    for path in inputs:
        TARGETS[name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_found_in_a_few_seconds(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: pip install -e '.[fuzz]'")
    command = [sys.executable, "-m", "tests.fuzz", name, "--seconds", str(SECONDS), "--findings", str(tmp_path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(tmp_path.iterdir())
    # It did fuzz.
    assert "Done " in done.stderr
