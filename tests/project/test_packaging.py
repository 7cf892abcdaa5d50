"""What is installed: a wheel, and an editable install, each alone in a fresh environment, bring the plugin along.

The environments are fresh but for what the project depends on, which is linked in from the environment that runs the
tests.  Twisted itself is copied, so that its plugin folder is the environment's own, as after a real installation.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import twisted

from fooproxy import __version__
from tests.helpers.processes import ROOT, completed

pytestmark = pytest.mark.slow

DEPENDENCIES = Path(twisted.__file__).parents[1]

NOT_OURS = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "dropin.cache", "_trial_temp*")


def pip(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the pip that belongs to the tests' environment, with these environment variables set."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    # Not with our checkout on its path.
    return completed(command, timeout=300, env={**os.environ, **variables})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout: building leaves its traces where it builds."""
    folder = tmp_path_factory.mktemp("source")
    reached = pip("download", "--quiet", "--no-deps", "--dest", folder / "probe", "setuptools")
    if reached.returncode:
        pytest.skip(f"pip cannot reach a package index to build with: {reached.stderr[-300:]}")
    shutil.copytree(ROOT, folder / "fooproxy", ignore=NOT_OURS)
    return folder / "fooproxy"


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    """A wheel of the checkout, with the compiled core."""
    return build(source, source.parent / "wheel", FOOPROXY_EXTENSION="require")


def build(source: Path, folder: Path, **variables: str) -> Path:
    """Build a wheel in `folder`, without what another build has left in `source`."""
    shutil.rmtree(source / "build", ignore_errors=True)
    built = pip("wheel", "--no-deps", "--wheel-dir", folder, source, **variables)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("fooproxy-*.whl")
    return path


class Environment:
    """A virtual environment in which nothing of this project is to be found yet."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True)
        self.folder = folder.resolve()
        self.python = folder / "bin" / "python"
        (self.site_packages,) = folder.glob("lib/*/site-packages")
        for entry in DEPENDENCIES.iterdir():
            if entry.name == "twisted":
                shutil.copytree(entry, self.site_packages / "twisted", ignore=_plugin_of_ours)
            elif "fooproxy" not in entry.name and entry.suffix != ".pth":
                (self.site_packages / entry.name).symlink_to(entry)

    def install(self, *what: str | Path) -> None:
        installed = pip("--python", self.python, "install", "--no-deps", *what)
        assert installed.returncode == 0, installed.stderr

    def run(self, *arguments: str) -> str:
        """Run this environment's interpreter with nothing else on its path; give what it prints."""
        end = completed([self.python, "-I", *arguments], timeout=60, cwd=self.folder)
        assert end.returncode == 0, end.stderr
        return end.stdout

    def twistd(self, *arguments: str) -> str:
        return self.run("-c", "from twisted.scripts.twistd import run; run()", *arguments)

    def origins(self) -> Sequence[Path]:
        """Say where the project and its plugin are imported from."""
        code = (
            "import json, fooproxy.web.resource, twisted.plugins.fooproxy_plugin as p;"
            "print(json.dumps([fooproxy.web.resource.__file__, p.__file__]))"
        )
        return [Path(origin).resolve() for origin in json.loads(self.run("-c", code))]


def _plugin_of_ours(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("fooproxy") or name in ("dropin.cache", "__pycache__")]


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    fresh = Environment(tmp_path / "venv")
    assert "fooproxy" not in fresh.twistd("--help")
    return fresh


def contents(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_holds_the_plugin_the_static_files_and_the_type_marker(wheel: Path) -> None:
    expected = {"twisted/plugins/fooproxy_plugin.py", "fooproxy/py.typed", "fooproxy/driver/__init__.py"}
    static = (ROOT / "fooproxy" / "web" / "static").iterdir()
    expected |= {f"fooproxy/web/static/{path.name}" for path in static}
    assert expected <= set(contents(wheel))


def test_the_wheel_holds_the_compiled_core_and_not_its_sources(wheel: Path) -> None:
    endings = {Path(name).suffix for name in contents(wheel) if name.startswith("fooproxy/")}
    assert ".so" in endings
    assert not endings & {".c", ".h"}


def test_without_the_compiled_core_the_wheel_is_for_any_machine(
    source: Path, tmp_path: Path, environment: Environment
) -> None:
    pure = build(source, tmp_path / "pure", FOOPROXY_EXTENSION="no")
    assert pure.name.endswith("-py3-none-any.whl")
    environment.install(pure)
    assert environment.twistd("fooproxy", "--version") == f"fooproxy {__version__} (pure)\n"


def test_without_a_compiler_the_compiled_core_is_left_out_unless_it_is_required(
    source: Path, tmp_path: Path, environment: Environment
) -> None:
    environment.install(build(source, tmp_path / "without", FOOPROXY_EXTENSION="", CC="false"))
    assert environment.twistd("fooproxy", "--version") == f"fooproxy {__version__} (pure)\n"
    required = pip("wheel", "--no-deps", "-w", tmp_path, source, FOOPROXY_EXTENSION="require", CC="false")
    assert required.returncode == 1
    assert "building 'fooproxy._core' extension" in required.stderr + required.stdout


def test_a_word_for_the_extension_that_is_not_known_is_refused(source: Path, tmp_path: Path) -> None:
    refused = pip("wheel", "--no-deps", "-w", tmp_path, source, FOOPROXY_EXTENSION="yes")
    assert refused.returncode == 1
    assert "FOOPROXY_EXTENSION=yes is not known: use require or no, or leave it out" in refused.stderr + refused.stdout


def test_the_wheel_holds_nothing_else_than_the_packages(wheel: Path) -> None:
    names = contents(wheel)
    ours = {"fooproxy", "twisted", f"fooproxy-{__version__}.dist-info", f"fooproxy-{__version__}.data"}
    assert {name.split("/")[0] for name in names} == ours
    assert [name for name in names if name.startswith("twisted/")] == ["twisted/plugins/fooproxy_plugin.py"]


def test_the_wheel_brings_man_pages_and_completions_for_each_command(wheel: Path) -> None:
    data = f"fooproxy-{__version__}.data/data/share"
    names = set(contents(wheel))
    for command in ("fooproxy", "foo-server", "foo-client", "foo-demo"):
        assert {
            f"{data}/man/man1/{command}.1",
            f"{data}/bash-completion/completions/{command}",
            f"{data}/zsh/site-functions/_{command}",
            f"{data}/fish/vendor_completions.d/{command}.fish",
        } <= names


def test_the_wheel_installed_alone_gives_twistd_the_command(wheel: Path, environment: Environment) -> None:
    environment.install(wheel)
    assert "fooproxy" in environment.twistd("--help")
    assert environment.twistd("fooproxy", "--version") == f"fooproxy {__version__} (compiled)\n"
    assert all(origin.is_relative_to(environment.site_packages.resolve()) for origin in environment.origins())


def test_an_editable_install_gives_twistd_the_command(source: Path, environment: Environment) -> None:
    environment.install("--editable", source)
    assert "fooproxy" in environment.twistd("--help")
    assert environment.twistd("fooproxy", "--version") == f"fooproxy {__version__} (compiled)\n"
    assert all(origin.is_relative_to(source.resolve()) for origin in environment.origins())


def test_the_commands_are_installed(wheel: Path, environment: Environment) -> None:
    environment.install(wheel)
    folder = environment.python.parent
    assert {"fooproxy", "foo-server", "foo-client", "foo-demo"} <= {path.name for path in folder.iterdir()}
    end = completed([folder / "fooproxy", "--version"], env={}, cwd=environment.folder)
    assert (end.returncode, end.stdout, end.stderr) == (0, f"fooproxy {__version__} (compiled)\n", "")
