"""The container's and compose's files against the options, the paths and the ports that they name.

What runs them for real, as far as that is possible, is in test_container.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from fooproxy import __version__
from fooproxy.commandline import Options
from tests.helpers.processes import ROOT

CONTAINER = ROOT / "contrib" / "container"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
DISK = 10
"""Seconds that a stop may take for a disk that hangs, after --drain-timeout."""


def drain_timeout(options: Options) -> float:
    return float(options["drain-timeout"])


def configured(file: Path, *arguments: str) -> Options:
    options = Options({"FOOPROXY_CONFIG": str(file)})
    options.parseOptions(arguments)
    return options


def seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+)s", text)
    assert match is not None
    return float(match[1])


def test_the_image_is_of_this_version() -> None:
    assert f"\nARG VERSION={__version__}\n" in (ROOT / "Dockerfile").read_text()


def test_the_images_options_are_ours_and_it_serves_http_to_others() -> None:
    options = configured(CONTAINER / "fooproxy.toml")
    assert options.in_force()["options"]["http"]["value"] == "0.0.0.0:8088"
    assert (options["recovery-path"], options["log-format"]) == ("/var/lib/fooproxy/recovery.json", "json")


def test_the_build_gets_what_it_is_built_from_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert all((ROOT / line.removeprefix("!")).exists() for line in lines if line.startswith("!"))


def test_the_composed_proxy_has_valid_options_and_time_to_drain() -> None:
    service = COMPOSE["services"]["proxy"]
    options = configured(CONTAINER / "fooproxy.toml", *service["command"])
    assert seconds(service["stop_grace_period"]) >= drain_timeout(options) + DISK
    servers = {server.address for server in options["forward"]}
    assert servers == {f"{name}:8001" for name in COMPOSE["services"] if name.startswith("server-")}


def test_only_the_composed_proxy_is_checked_and_leaves_a_volume() -> None:
    others = [
        service
        for name, service in COMPOSE["services"].items()
        if name != "proxy" and service["image"] == COMPOSE["services"]["proxy"]["image"]
    ]
    assert len(others) == 3
    assert all(each["tmpfs"] == ["/var/lib/fooproxy"] and each["healthcheck"] == {"disable": True} for each in others)


def test_what_compose_mounts_is_there_and_publishes_on_this_machine_only() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (source.startswith("./") and (ROOT / source).is_file())
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_the_composed_prometheus_has_our_rules_and_the_proxy(tmp_path: Path) -> None:
    own = yaml.safe_load((CONTAINER / "prometheus.yml").read_text())
    ours = yaml.safe_load((ROOT / "contrib" / "prometheus" / "prometheus.yml").read_text())
    (job,) = own["scrape_configs"]
    assert own["rule_files"] == ours["rule_files"]
    assert job["job_name"] == ours["scrape_configs"][0]["job_name"]
    assert job["static_configs"] == [{"targets": ["proxy:8088"]}]


def test_the_composed_grafana_finds_its_source_and_our_dashboard() -> None:
    service = COMPOSE["services"]["grafana"]
    mounts = dict(volume.removesuffix(":ro").split(":") for volume in service["volumes"])
    (source,) = yaml.safe_load((CONTAINER / "grafana" / "datasources.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((CONTAINER / "grafana" / "dashboards.yml").read_text())["providers"]
    assert (source["url"], source["type"]) == ("http://prometheus:9090", "prometheus")
    dashboard = mounts["./contrib/prometheus/grafana-dashboard.json"]
    assert Path(dashboard).parent == Path(provider["options"]["path"])
    assert service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == dashboard
    assert json.loads((ROOT / "contrib/prometheus/grafana-dashboard.json").read_text())["title"] == "fooproxy"
