"""Kubernetes' files against the API's schemas, and against the options, the paths and the ports that they name.

No test runs them in a cluster.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from fooproxy import __version__
from fooproxy.web.resource import Web
from tests.helpers.processes import ROOT, completed
from tests.project.test_deployment import DISK, configured, drain_timeout

KUBERNETES = ROOT / "contrib" / "kubernetes"


def documents(text: str) -> Iterator[dict[str, Any]]:
    yield from filter(None, yaml.safe_load_all(text))


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict[str, Any]]:
    """All resources that the kustomization names, by kind and name."""
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    found = [each for name in kustomization["resources"] for each in documents((KUBERNETES / name).read_text())]
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in found}


def pod(manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = manifests["Deployment/fooproxy"]["spec"]["template"]["spec"]
    return spec


def test_kubernetes_knows_every_field(manifests: dict[str, dict[str, Any]]) -> None:
    for name, manifest in manifests.items():
        # Not part of Kubernetes itself.
        if name != "ServiceMonitor/fooproxy":
            kubernetes_validate.validate(manifest, "1.31", strict=True)


def test_every_file_is_part_of_the_kustomization() -> None:
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    named = {"kustomization.yaml", *kustomization["resources"], *kustomization["configMapGenerator"][0]["files"]}
    assert {path.name for path in KUBERNETES.iterdir()} == named


def test_kubectl_builds_the_kustomization(manifests: dict[str, dict[str, Any]]) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed (Debian: kubernetes-client)")
    end = completed(["kubectl", "kustomize", KUBERNETES])
    assert end.returncode == 0, end.stderr
    built = list(documents(end.stdout))
    assert len(built) == len(manifests) + 1
    (proxy,) = (each for each in built if each["kind"] == "Deployment" and each["metadata"]["name"] == "fooproxy")
    spec = proxy["spec"]["template"]["spec"]
    (configuration,) = (each for each in built if each["kind"] == "ConfigMap")
    assert spec["volumes"][0]["configMap"]["name"] == configuration["metadata"]["name"]
    assert spec["containers"][0]["image"] == f"registry.example/fooproxy:{__version__}"
    assert {each["metadata"].get("namespace", "fooproxy") for each in built} == {"fooproxy"}


def test_kubernetes_gives_the_proxy_valid_options_and_time_to_drain(manifests: dict[str, dict[str, Any]]) -> None:
    options = configured(KUBERNETES / "fooproxy.toml")
    (container,) = pod(manifests)["containers"]
    wait = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod(manifests)["terminationGracePeriodSeconds"] >= wait + drain_timeout(options) + DISK
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(Path(options["recovery-path"]).parent) in mounts
    # Where the image looks for it.
    assert (
        f"FOOPROXY_CONFIG={next(iter(mounts - {'/var/lib/fooproxy'}))}/fooproxy.toml"
        in (ROOT / "Dockerfile").read_text()
    )


def test_the_options_for_kubernetes_are_valid() -> None:
    configured(KUBERNETES / "fooproxy.toml")


def test_probes_and_ports_are_the_proxys(manifests: dict[str, dict[str, Any]]) -> None:
    options = configured(KUBERNETES / "fooproxy.toml")
    (container,) = pod(manifests)["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert options.in_force()["options"]["listen"]["value"] == [f":{ports['foo']}"]
    assert options.in_force()["options"]["http"]["value"] == f"0.0.0.0:{ports['http']}"
    routes = {rule.rule for rule in Web.app.url_map.iter_rules()}
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/health",
        "liveness": "/health",
        "readiness": "/ready",
    }
    assert {probe["path"] for probe in probes.values()} < routes
    assert {probe["port"] for probe in probes.values()} == {"http"}
    service = {port["name"]: port["port"] for port in manifests["Service/fooproxy"]["spec"]["ports"]}
    assert service == ports
    (endpoint,) = manifests["ServiceMonitor/fooproxy"]["spec"]["endpoints"]
    assert endpoint["port"] in service and endpoint["path"] in routes


def test_the_proxy_forwards_to_the_headless_service(manifests: dict[str, dict[str, Any]]) -> None:
    service = manifests["Service/foo"]["spec"]
    assert service["clusterIP"] == "None"
    port = service["ports"][0]["port"]
    namespace = manifests["Namespace/fooproxy"]["metadata"]["name"]
    assert f'forward = "dns:foo.{namespace}.svc.cluster.local.:{port}"\n' in (KUBERNETES / "fooproxy.toml").read_text()
    template = manifests["Deployment/foo"]["spec"]["template"]
    assert service["selector"] == template["metadata"]["labels"]


def test_everything_about_the_proxy_selects_its_pods(manifests: dict[str, dict[str, Any]]) -> None:
    labels = manifests["Deployment/fooproxy"]["spec"]["template"]["metadata"]["labels"]
    assert manifests["Deployment/fooproxy"]["spec"]["selector"]["matchLabels"] == labels
    assert manifests["Service/fooproxy"]["spec"]["selector"] == labels
    assert manifests["PodDisruptionBudget/fooproxy"]["spec"]["selector"]["matchLabels"] == labels
    assert manifests["ServiceMonitor/fooproxy"]["spec"]["selector"]["matchLabels"] == labels
    assert manifests["Service/fooproxy"]["metadata"]["labels"] == labels
    assert manifests["HorizontalPodAutoscaler/fooproxy"]["spec"]["scaleTargetRef"]["name"] == "fooproxy"


def test_all_pods_run_locked_up(manifests: dict[str, dict[str, Any]]) -> None:
    for name in ("Deployment/fooproxy", "Deployment/foo"):
        spec = manifests[name]["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and not spec["enableServiceLinks"]
        (container,) = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"requests", "limits"} == set(container["resources"])


def test_the_autoscaler_uses_a_metric_of_ours(manifests: dict[str, dict[str, Any]]) -> None:
    (metric,) = manifests["HorizontalPodAutoscaler/fooproxy"]["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name in (ROOT / "docs" / "statistics.rst").read_text()
