"""The man pages and the completions: they are those of the options, and the programs that read them take them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fooproxy.options import OPTIONS
from tests.helpers.processes import ROOT, completed

CONTRIB = ROOT / "contrib"
PAGES = sorted((CONTRIB / "man").iterdir())


def write(top: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command that writes the files of the checkout, or its copy, at `top`."""
    return completed([sys.executable, "docs/manual.py", *arguments], cwd=top)


def needed(program: str) -> str:
    """Return the path of a program, or skip the test."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


def test_the_man_pages_and_completions_are_those_of_the_options() -> None:
    check = write(ROOT, "--check")
    assert check.returncode == 0, check.stderr


def test_a_file_that_differs_is_named_and_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "manual.py", tmp_path / "docs")
    shutil.copytree(CONTRIB, tmp_path / "contrib")
    write(tmp_path)
    (tmp_path / "contrib/man/fooproxy.1").write_text("old")
    check = write(tmp_path, "--check")
    assert check.returncode == 1
    assert check.stderr == "contrib/man/fooproxy.1 differs from the options: run `python docs/manual.py`\n"
    write(tmp_path)
    assert write(tmp_path, "--check").returncode == 0


def test_groff_has_no_complaint_about_a_man_page() -> None:
    end = completed([needed("groff"), "-man", "-Tutf8", "-ww", "-z", *PAGES])
    assert (end.returncode, end.stdout, end.stderr) == (0, "", "")


def in_bash(*words: str) -> list[str]:
    """Return what bash offers for the last of the words."""
    script = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); compopt() { :; };'
        '_fooproxy; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    completion = CONTRIB / "completions" / "bash" / "fooproxy"
    end = completed([needed("bash"), "-c", script, "bash", completion, "fooproxy", *words])
    assert (end.returncode, end.stderr) == (0, "")
    return end.stdout.split()


def test_bash_completes_every_option() -> None:
    assert {f"--{option.name}" for option in OPTIONS} <= set(in_bash("--"))
    assert in_bash("--recovery-p") == ["--recovery-path"]


@pytest.mark.parametrize("words", [("--log-level", "w"), ("--log-level", "=", "w")])
def test_bash_completes_words_and_files(words: tuple[str, ...]) -> None:
    assert in_bash(*words) == ["warn"]
    assert in_bash("--config", f"{ROOT}/setup.c") == [f"{ROOT}/setup.cfg"]
    assert in_bash("--listen", "") == []


def test_zsh_takes_the_completions(tmp_path: Path) -> None:
    script = (
        "fpath=($1 $fpath); autoload -Uz compinit; compinit -u -d $2/dump;"
        "autoload -Uz +X _fooproxy; functions _fooproxy; print $_comps[fooproxy]"
    )
    folder = CONTRIB / "completions" / "zsh"
    end = completed([needed("zsh"), "-fc", script, "zsh", folder, tmp_path])
    assert (end.returncode, end.stderr) == (0, "")
    assert end.stdout.endswith("\n_fooproxy\n")
    for path in folder.iterdir():
        assert completed([needed("zsh"), "-fn", path]).returncode == 0


def test_fish_completes_options_and_words() -> None:
    completion = CONTRIB / "completions" / "fish" / "fooproxy.fish"
    fish = needed("fish")

    def offered(line: str) -> list[str]:
        end = completed([fish, "--no-config", "-c", f"source {completion}; complete -C '{line}'"])
        assert (end.returncode, end.stderr) == (0, "")
        return [row.split("\t")[0] for row in end.stdout.splitlines()]

    assert {f"--{option.name}" for option in OPTIONS} <= set(offered("fooproxy --"))
    assert offered("fooproxy --log-level w") == ["warn"]
