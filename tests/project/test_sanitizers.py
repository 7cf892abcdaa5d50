"""The compiled core, built with the sanitizers of the compiler, makes no mistake with memory and overflows nothing."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.helpers.processes import ROOT, completed, environment

pytestmark = pytest.mark.slow

FLAGS = "-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"

TESTS = (
    *("tests/foo/test_twins.py", "tests/foo/test_latency.py", "tests/net/test_pump.py", "tests/net/test_pump_twins.py"),
    *("tests/net/test_further_batches.py", "tests/net/test_poller.py", "tests/net/test_transport.py"),
    "tests/relay/test_relaying.py",
)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Build the core with the sanitizers, in a copy of the checkout; return the environment that loads it there."""
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("the headers of Python are missing: apt install python3-dev")
    found = {}
    for name in ("asan", "ubsan"):
        library = completed(["cc", f"-print-file-name=lib{name}.so"]).stdout.strip() if shutil.which("cc") else ""
        if not Path(library).is_absolute():
            pytest.skip(f"the compiler has no lib{name}: apt install gcc")
        found[name] = library
    folder = tmp_path_factory.mktemp("sanitized") / "fooproxy"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*NOT_OURS))
    variables = {**environment(), "CFLAGS": FLAGS, "FOOPROXY_EXTENSION": "require"}
    built = completed([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=folder, env=variables)
    assert built.returncode == 0, built.stderr
    return {
        **variables,
        "PYTHONPATH": str(folder),
        "LD_PRELOAD": " ".join(found.values()),
        # Python itself keeps memory until the end; what the core leaks is another test's.
        "ASAN_OPTIONS": "detect_leaks=0",
        # Or reads beyond the end of an object would find other objects there.
        "PYTHONMALLOC": "malloc",
        "FOLDER": str(folder),
        # Short, for the paths of sockets.
        "TEMPORARY": str(tmp_path_factory.getbasetemp() / "s"),
    }


NOT_OURS = (".*", "__pycache__", "*.egg-info", "build", "dist", "*.so", "dropin.cache", "_trial_temp*")


def test_the_tests_of_the_core_pass_with_the_sanitizers(sanitized: dict[str, str]) -> None:
    (core,) = Path(sanitized["FOLDER"], "fooproxy").glob("_core.*.so")
    assert b"__asan_report_load" in core.read_bytes()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", "not pure"]
    command += ["--basetemp", sanitized["TEMPORARY"]]
    end = completed([*command, *TESTS], cwd=sanitized["FOLDER"], env=sanitized, timeout=150)
    assert end.returncode == 0, end.stdout + end.stderr
    assert "skipped" not in end.stdout


def test_the_corpus_of_the_fuzzer_passes_with_the_sanitizers(sanitized: dict[str, str]) -> None:
    program = (
        "from pathlib import Path; from tests.fuzz.targets import TARGETS\n"
        "for name in ('analyzer', 'twins'):\n"
        "    for path in sorted(Path('tests/fuzz/corpus', name).iterdir()): TARGETS[name](path.read_bytes())"
    )
    end = completed([sys.executable, "-c", program], cwd=sanitized["FOLDER"], env=sanitized, timeout=100)
    assert (end.returncode, end.stderr) == (0, "")
