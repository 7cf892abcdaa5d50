"""What is written about the proxy, against the proxy: tables, paths, the documentation's build and the systemd unit."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from docutils import nodes
from docutils.core import publish_doctree

from fooproxy.commandline import Options
from fooproxy.options import OPTIONS
from fooproxy.recovery.saving import LAST_SAVE_TIMEOUT
from fooproxy.stats.counters import Stats
from fooproxy.web.resource import Web
from tests.helpers.processes import ROOT, completed

README = ROOT / "README.rst"
UNIT = ROOT / "contrib" / "systemd" / "fooproxy.service"
SOCKET = UNIT.with_suffix(".socket")
WITH_SOCKET = UNIT.with_name("fooproxy-socket.conf")
OURS = re.compile(r"(?!\.data/|\.venv/)[\w.-]+(?:/[\w.-]+)+|[\w-]+\.(?:cfg|in|py|rst|toml)")
"""A relative path in the checkout, or a file at its top."""

REGENERATE = "run `python docs/tables.py`"


def parsed(name: str) -> nodes.document:
    """Parse a document as a package index would; whatever docutils complains about fails the test."""
    return publish_doctree((ROOT / name).read_text(), settings_overrides={"halt_level": 2, "report_level": 2})


def table(document: nodes.document, heading: str) -> list[tuple[str, ...]]:
    """Give the rows of the table in the section with `heading`."""
    (section,) = (section for section in document.findall(nodes.section) if heading.lower() in section["names"])
    (body,) = section.findall(nodes.tbody)
    return [tuple(entry.astext() for entry in row.findall(nodes.entry)) for row in body.findall(nodes.row)]


def write_tables(top: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command that writes the tables of the checkout, or its copy, at `top`."""
    return completed([sys.executable, "docs/tables.py", *arguments], cwd=top)


@pytest.fixture
def stale(tmp_path: Path) -> Path:
    """A copy of the documents in which one row of the README has been changed by hand."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("_build", "__pycache__"))
    changed, rows = re.subn("^``msg_total`` +counter", "``msg_total`` gauge", README.read_text(), flags=re.MULTILINE)
    assert rows == 1
    (tmp_path / README.name).write_text(changed)
    return tmp_path


def test_the_tables_in_the_documents_are_those_of_the_code() -> None:
    check = write_tables(ROOT, "--check")
    assert check.returncode == 0, check.stderr


def test_a_table_that_differs_is_named_together_with_the_command_to_run(stale: Path) -> None:
    check = write_tables(stale, "--check")
    assert check.returncode == 1
    assert "README.rst: the table 'report' differs from the code: run `python docs/tables.py`\n" in check.stderr


def test_the_command_writes_a_table_that_differs(stale: Path) -> None:
    write_tables(stale)
    assert write_tables(stale, "--check").returncode == 0


def test_a_table_without_its_comments_is_reported(stale: Path) -> None:
    (stale / README.name).write_text(README.read_text().replace(".. end of table report\n", ""))
    check = write_tables(stale, "--check")
    assert check.returncode == 1
    assert "'.. end of table report'" in check.stderr


def test_a_row_of_several_lines_is_rendered_as_one() -> None:
    rows = [tuple(" ".join(cell.split()) for cell in row) for row in table(parsed("README.rst"), "Report")]
    assert rows == [(field.name, field.kind, field.unit, field.meaning) for field in Stats.reported], REGENERATE


def test_the_readme_has_every_route() -> None:
    listed = [url for row in table(parsed("README.rst"), "URLs") for url in row[0].split(", ")]
    assert sorted(listed) == sorted(rule.rule for rule in Web.app.url_map.iter_rules()), REGENERATE


@pytest.mark.parametrize("route", sorted({rule.rule for rule in Web.app.url_map.iter_rules()} - {"/<name>"}))
def test_the_usage_describes_the_answer_of_a_route(route: str) -> None:
    usage = (ROOT / "docs" / "usage.rst").read_text()
    prose = re.sub(r"\.\. table (\w+): .*?\.\. end of table \1\n", "", usage, flags=re.DOTALL)
    assert f"``{route}``" in prose, f"say in docs/usage.rst what ``{route}`` answers"


def test_urls_with_the_same_answer_share_a_row() -> None:
    assert "/health, /heartbeat, /status" in [row[0] for row in table(parsed("README.rst"), "URLs")]


@pytest.mark.parametrize("name", ["README.rst", "CONTRIBUTING.rst"])
def test_the_files_that_are_named_exist(name: str) -> None:
    written = [node.astext() for node in parsed(name).findall(nodes.literal)]
    paths = [path for path in written if OURS.fullmatch(path) and path != "docs/_build"]
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_design_lists_every_file_of_the_package() -> None:
    listed = re.findall(r"^``([\w/]+\.(?:py|c))``  ", (ROOT / "docs" / "design.rst").read_text(), re.MULTILINE)
    modules = [path for path in (ROOT / "fooproxy").rglob("*") if path.suffix in (".py", ".c")]
    there = {str(path.relative_to(ROOT / "fooproxy")) for path in modules if path.name != "__init__.py"}
    assert there - set(listed) == set(), "describe them in docs/design.rst"
    assert set(listed) - there == set(), "take them out of docs/design.rst"


def test_the_changelog_is_well_formed() -> None:
    assert parsed("CHANGELOG.rst").findall(nodes.section)


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning_and_has_every_statistic(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-d", f"{tmp_path}/doctrees", "docs", f"{tmp_path}/html"]
    build = completed(command, cwd=ROOT, timeout=120)
    assert (build.returncode, build.stdout, build.stderr) == (0, "", "")
    page = (tmp_path / "html" / "statistics.html").read_text()
    assert [field.name for field in Stats.reported if field.name not in page] == []
    assert "fooproxy_messages_total" in page


@pytest.mark.slow
@pytest.mark.parametrize("activated", [False, True], ids=["alone", "with its socket"])
def test_systemd_accepts_the_unit(tmp_path: Path, activated: bool) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    # The program must exist, and nothing is installed in /opt here.
    text = UNIT.read_text().replace("/opt/fooproxy/bin/fooproxy", sys.executable)
    (tmp_path / UNIT.name).write_text(text)
    units = [tmp_path / UNIT.name]
    if activated:
        folder = tmp_path / f"{UNIT.name}.d"
        folder.mkdir()
        shutil.copy(WITH_SOCKET, folder)
        units.append(Path(shutil.copy(SOCKET, tmp_path)))
    command = ["systemd-analyze", "verify", "--man=no", *map(str, units)]
    verify = completed(command)
    # A wrong line is no error to it: it says that it ignores the line.
    assert "fooproxy" not in verify.stdout + verify.stderr
    assert verify.returncode == 0, verify.stderr


def setting(name: str, unit: Path = UNIT) -> str:
    """Give a setting of the unit."""
    (value,) = re.findall(rf"^{name}=(.*)$", unit.read_text(), re.MULTILINE)
    return str(value)


def environment(unit: Path = UNIT) -> dict[str, str]:
    """Give the environment that the unit sets."""
    settings = re.findall(r"^Environment=(.*)$", unit.read_text().replace("%S", "/var/lib"), re.MULTILINE)
    return dict(word.split("=", 1) for text in settings for word in shlex.split(text))


def test_the_socket_unit_is_what_the_drop_in_with_it_asks_for() -> None:
    assert environment(WITH_SOCKET) == {"FOOPROXY_LISTEN": "systemd:domain=INET:index=0"}
    host, port = setting("ListenStream", SOCKET).split(":")
    assert socket.inet_aton(host)
    assert f":{port}" == Options()["listen"]


def test_the_unit_runs_the_command_with_the_configuration_that_comes_with_it() -> None:
    assert environment() == {}
    assert setting("ExecStart") == "/opt/fooproxy/bin/fooproxy --config /etc/fooproxy/fooproxy.toml"
    options = Options({})
    options.parseOptions(["--config", str(UNIT.with_suffix(".toml"))])
    assert options["recovery-path"] == "/var/lib/fooproxy/recovery.json"
    assert (options["listen"], [str(server) for server in options["forward"]]) == ([":8002"], [":8001"])
    assert int(setting("TimeoutStopSec")) > options["drain-timeout"] + 2 * LAST_SAVE_TIMEOUT


def test_what_is_commented_out_in_the_configuration_is_the_default(tmp_path: Path) -> None:
    given = UNIT.with_suffix(".toml").read_text()
    names = re.findall(r"^#?([\w-]+) = ", given, re.MULTILINE)
    assert sorted(names) == sorted(option.name for option in OPTIONS if option.name != "config")
    for option in OPTIONS:
        (line,) = re.findall(rf"^#{option.name} = (.*)$", given, re.MULTILINE) or [""]
        if line and option.default:
            (tmp_path / "one.toml").write_text(f"{option.name} = {line}")
            options, defaults = Options({}), Options({})
            options.parseOptions(["--config", str(tmp_path / "one.toml")])
            defaults.parseOptions([])
            assert options[option.name] == defaults[option.name]
