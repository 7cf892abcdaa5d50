"""The image, built from the checkout and run by podman, and what compose.yaml makes of it.

Most tests look at one proxy, which runs as docs/containers.rst says; those that end it have one of their own.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from fooproxy import __version__
from tests.helpers.containers import BASE, IMAGE, MAKING, Podman, network, prepare
from tests.helpers.fooserver import PATIENCE
from tests.helpers.processes import started
from tests.helpers.proxyprocess import eventually
from tests.project.test_deployment import COMPOSE

# The first test of a machine makes the image.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * MAKING)]

NAMES = {
    "/usr/lib/cni/dnsname": "golang-github-containernetworking-plugin-dnsname",
    "/usr/lib/podman/aardvark-dns": "aardvark-dns",
}
"""What resolves the names of containers, of which one suffices, and Debian's package that has it."""

LOCKED = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges")


class Container:
    """A running container of the image, called `name`."""

    def __init__(self, podman: Podman, name: str) -> None:
        self.podman = podman
        self.name = name

    def inspect(self, what: str) -> Any:
        """Return a part of what podman knows, such as ``State``."""
        return json.loads(self.podman("inspect", self.name, "--format", f"{{{{json .{what}}}}}"))

    def said(self) -> tuple[str, str]:
        """Return all of its standard output and standard error."""
        end = self.podman.run("podman", "logs", self.name)
        assert end.returncode == 0, end.stderr
        return end.stdout, end.stderr

    def serves(self) -> None:
        """Wait until it serves HTTP."""
        eventually(lambda: self.podman.get("/health")[0] == 200)

    def stats(self) -> dict[str, Any]:
        status, report = self.podman.get("/stats")
        assert status == 200
        return dict(report)

    def exec(self, *command: str) -> subprocess.CompletedProcess[str]:
        return self.podman.run("podman", "exec", self.name, *command)


class Composed(NamedTuple):
    """What a compose file describes, running: how to run podman-compose on it, its services and its name."""

    engine: Podman
    command: list[str]
    services: list[str]
    project: str


@contextmanager
def running(
    podman: Podman, *arguments: str, entrypoint: str = "fooproxy", how: tuple[str, ...] = ()
) -> Iterator[Container]:
    """Run a container with these arguments, locked up, and remove it with its volume."""
    name = f"fooproxy-test-{secrets.token_hex(4)}"
    try:
        podman("run", "--detach", f"--name={name}", f"--entrypoint={entrypoint}", *LOCKED, *how, IMAGE, *arguments)
        yield Container(podman, name)
    finally:
        podman("rm", "--force", "--volumes", "--time=0", "--ignore", name)


@contextmanager
def proxy(environment: Mapping[str, str], *arguments: str) -> Iterator[Container]:
    """Run a proxy whose ports are published, with a Foo server beside it, in a network of its own."""
    ports = ("--publish=127.0.0.1:8002:8002", "--publish=127.0.0.1:8088:8088")
    with (
        network(environment) as podman,
        running(podman, "--forward", "127.0.0.1:8001", *arguments, how=ports) as relay,
        running(podman, entrypoint="foo-server", how=(f"--network=container:{relay.name}",)) as server,
    ):
        # A proxy that finds no server is not ready for some seconds.
        eventually(lambda: server.said()[0].startswith("listening on "))
        relay.serves()
        yield relay


def exchanged(container: Container, requests: int = 100) -> int:
    """Have a client in the proxy's network send requests; return its exit status."""
    return container.exec("foo-client", f"--requests={requests}").returncode


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    return prepare(tmp_path_factory.mktemp("podman"))


@pytest.fixture(scope="module")
def shared(environment: Mapping[str, str]) -> Iterator[Container]:
    """A proxy that serves, for tests that only look."""
    with proxy(environment) as container:
        yield container


@pytest.fixture(scope="module")
def engine(environment: Mapping[str, str]) -> Iterator[Podman]:
    """podman in a network, for what needs none."""
    with network(environment) as podman:
        yield podman


def test_the_image_says_what_it_is_and_how_to_run_it(engine: Podman) -> None:
    (image,) = json.loads(engine("image", "inspect", IMAGE))
    config = image["Config"]
    assert (config["Entrypoint"], config["User"], config["StopSignal"]) == (["fooproxy"], "10001:10001", "SIGTERM")
    assert set(config["Volumes"]) == {"/var/lib/fooproxy"}
    assert set(config["ExposedPorts"]) == {"8002/tcp", "8088/tcp"}
    assert image["HealthCheck" if "HealthCheck" in image else "Healthcheck"]["Test"] == [
        "CMD",
        "fooproxy",
        "--check-health",
    ]
    labels = {name: value for name, value in config["Labels"].items() if name.startswith("org.opencontainers.image.")}
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.base.name"] == BASE
    assert {name.rpartition(".")[2] for name in labels} >= {"title", "description", "licenses"}


def test_the_image_has_the_compiled_core(engine: Podman) -> None:
    assert engine("run", "--rm", *LOCKED, IMAGE, "--version") == f"fooproxy {__version__} (compiled)"


def test_twistd_finds_the_plugin_without_writing(engine: Podman) -> None:
    end = engine.run("podman", "run", "--rm", *LOCKED, "--entrypoint=twistd", IMAGE, "fooproxy", "--version")
    assert end.stdout == f"fooproxy {__version__} (compiled)\n"
    assert "plugin" not in end.stderr


def test_it_relays_what_comes_to_the_published_port(shared: Container) -> None:
    before = shared.stats()["msg_req"]
    client = [sys.executable, "-m", "fooproxy.driver.client", "--connect=127.0.0.1:8002", "--requests=100"]
    end = shared.podman.run(*client)
    assert end.returncode == 0, end.stderr
    assert "100 requests, 100 ACK, 0 NAK" in end.stdout
    assert shared.stats()["msg_req"] == before + 100


def test_probes_are_answered_from_outside(shared: Container) -> None:
    assert shared.podman.get("/health") == (200, {"status": "OK!"})
    status, ready = shared.podman.get("/ready")
    assert (status, ready["reasons"]) == (200, [])


def test_its_own_health_check_passes(shared: Container) -> None:
    shared.podman("healthcheck", "run", shared.name)


def test_it_is_locked_up(shared: Container) -> None:
    end = shared.exec("sh", "-c", "id -u; cat /proc/1/comm; touch /etc/fooproxy/x; find / -xdev -name '*.pid'")
    assert end.stdout.split() == ["10001", "fooproxy"]
    assert "Read-only file system" in end.stderr


def test_reports_are_on_standard_output_and_the_log_is_json_on_standard_error(shared: Container) -> None:
    before, _ = shared.said()
    shared.podman("kill", "--signal=USR2", shared.name)
    printed = eventually(lambda: shared.said()[0].removeprefix(before))
    assert printed.count("\n") == 1
    assert json.loads(printed)["msg_total"] == shared.stats()["msg_total"]
    lines = [json.loads(line) for line in shared.said()[1].splitlines()]
    assert {"time", "level", "message"} <= set.intersection(*map(set, lines))
    assert "listening for clients on 0.0.0.0:8002" in [line["message"] for line in lines]


def test_an_option_that_is_wrong_ends_the_container_with_one_line(engine: Podman) -> None:
    end = engine.run("podman", "run", "--rm", *LOCKED, IMAGE, "--listen", "nonsense")
    (line,) = [line for line in end.stderr.splitlines() if line.startswith("fooproxy:")]
    assert (end.returncode, end.stdout) == (2, "")
    assert line.startswith("fooproxy: --listen: 'nonsense' is not an address")


def test_a_volume_that_belongs_to_somebody_else_ends_the_container_with_one_line(engine: Podman) -> None:
    end = engine.run("podman", "run", "--rm", *LOCKED, "--user=10002:10002", IMAGE)
    assert (end.returncode, end.stdout) == (1, "")
    assert "cannot save statistics in /var/lib/fooproxy/recovery.json" in end.stderr
    assert "Traceback" not in end.stderr


def test_after_a_kill_it_continues_from_the_volume(environment: Mapping[str, str]) -> None:
    with proxy(environment) as container:
        engine = container.podman
        assert exchanged(container) == 0
        saves = container.stats()["recovery_saves"]["ok"]
        # One may have begun before the last request.
        eventually(lambda: container.stats()["recovery_saves"]["ok"] > saves + 1)
        engine("kill", "--signal=KILL", container.name)
        assert engine("wait", container.name) == "137"
        engine("start", container.name)
        container.serves()
        assert container.stats()["msg_req"] == 100
        assert any(
            "restored the statistics from /var/lib/fooproxy/" in line for line in container.said()[1].splitlines()
        )


def test_a_stop_waits_for_replies_and_ends_well_within_the_grace_period(environment: Mapping[str, str]) -> None:
    with proxy(environment) as container:
        engine = container.podman
        client = ["podman", "exec", container.name, "foo-client", "--pipeline=4", "--requests=1000000"]
        with started(engine.command(*client), env=engine.environment, stderr=subprocess.PIPE):
            eventually(lambda: container.stats()["connections_active"])
            before = time.monotonic()
            engine("stop", "--time=25", container.name, timeout=PATIENCE + 25)
            assert time.monotonic() - before < 25
        assert container.inspect("State.ExitCode") == 0


def test_it_takes_a_stop_from_the_first_moment_on(engine: Podman) -> None:
    with created(engine) as (container, pid):
        with started(engine.command("podman", "start", container.name), env=engine.environment) as start:
            eventually(lambda: "python" in str(Path(f"/proc/{pid}/exe").readlink()))
            # tests/test_command.py tells how early that is.
            eventually(lambda: _catches(pid, signal.SIGTERM))
            os.kill(pid, signal.SIGTERM)
            assert start.wait(PATIENCE) == 0
        assert engine("wait", container.name) == "0"


@contextmanager
def created(engine: Podman) -> Iterator[tuple[Container, int]]:
    """Make a container whose process waits to become the proxy; yield it with the process id."""
    name = f"fooproxy-test-{secrets.token_hex(4)}"
    try:
        engine("create", f"--name={name}", "--network=none", *LOCKED, IMAGE)
        engine("init", name)
        container = Container(engine, name)
        yield container, int(container.inspect("State.Pid"))
    finally:
        engine("rm", "--force", "--volumes", "--time=0", "--ignore", name)


def _catches(pid: int, number: signal.Signals) -> bool:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) >> number - 1 & 1)


@pytest.fixture(scope="module")
def composed(environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    """What compose.yaml describes, with Debian's Prometheus in place of the image's, and without Grafana."""
    folder = tmp_path_factory.mktemp("compose")
    if not any(Path(place).exists() for place in NAMES):
        pytest.skip(f"podman cannot resolve names of containers (Debian: {', '.join(NAMES.values())})")
    watches = shutil.which("prometheus")
    services = [name for name in COMPOSE["services"] if name != "grafana" and (watches or name != "prometheus")]
    place = {"image": BASE, "entrypoint": ["/prometheus/bin"], "volumes": [f"{watches}:/prometheus/bin:ro"]}
    place["command"] = ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/tmp/data"]
    (folder / "override.yaml").write_text(yaml.safe_dump({"services": {"prometheus": place} if watches else {}}))
    project = f"fooproxy-test-{secrets.token_hex(4)}"
    command = [sys.executable, "-m", "podman_compose", "--project-name", project, "--file", "compose.yaml"]
    command += ["--file", str(folder / "override.yaml")]
    with network(environment) as engine:
        try:
            end = engine.run(*command, "up", "--detach", "--no-build", *services, timeout=120)
            assert end.returncode == 0, end.stderr
            yield Composed(engine, command, services, project)
        finally:
            engine.run(*command, "down", "--volumes", "--timeout=0", timeout=120)


def test_what_compose_describes_serves_clients_by_both_servers(composed: Composed) -> None:
    def answered() -> bool:
        status, answer = composed.engine.get("/upstreams")
        return status == 200 and all(each["replies"]["ack"] for each in answer["upstreams"])

    eventually(answered)
    assert [each["name"] for each in composed.engine.get("/upstreams")[1]["upstreams"]] == ["one", "two"]
    status, ready = composed.engine.get("/ready")
    assert (status, ready["reasons"]) == (200, [])


def test_prometheus_finds_the_proxy_and_the_rules_by_what_compose_mounts(composed: Composed) -> None:
    if "prometheus" not in composed.services:
        pytest.skip("prometheus is not installed (Debian: prometheus)")

    def ask(path: str) -> Any:
        status, answer = composed.engine.get(f"/api/v1/{path}", port=9090)
        return answer["data"] if status == 200 else {}

    def target() -> Any:
        return next((each for each in ask("targets").get("activeTargets", []) if each["health"] == "up"), None)

    assert eventually(target)["labels"] == {"instance": "proxy:8088", "job": "fooproxy"}
    assert {group["name"] for group in ask("rules")["groups"]} == {"fooproxy-recordings", "fooproxy-alerts"}
    assert eventually(lambda: ask("query?query=fooproxy_server_replies_total").get("result"))


# The last test of it.
def test_what_compose_describes_stops_in_order(composed: Composed) -> None:
    end = composed.engine.run(*composed.command, "stop", timeout=120)
    assert end.returncode == 0, end.stderr
    for service in ("proxy", "server-1", "server-2"):
        container = Container(composed.engine, f"{composed.project}_{service}_1")
        assert (service, container.inspect("State.ExitCode")) == (service, 0)
