"""The manifests: by Kubernetes' own schemas, and by what the service needs of them."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.config import ServeSettings
from app.main import create_app
from app.settings import check_variables, settings

ROOT = Path(__file__).parents[2] / "deploy" / "kubernetes"
VERSION = "1.37"
OWN_S = 10  # that the API may take to end, behind its drain
OVERLAYS = ("cpu", "gpu")

Manifest = dict[str, Any]


def documents(path: Path) -> list[Any]:
    return [its for its in yaml.safe_load_all(path.read_text(encoding="utf-8")) if its]


def kustomization(name: str) -> Manifest:
    found: Manifest
    (found,) = documents(ROOT / name / "kustomization.yaml")
    return found


def base() -> list[Manifest]:
    resources = kustomization("base")["resources"]
    return [its for file in resources for its in documents(ROOT / "base" / file)]


def overlay(name: str) -> list[Manifest]:
    """As kustomize makes it, of what is used of kustomize here: images, and patches that add."""
    found, rules = deepcopy(base()), kustomization(name)
    tags = {its["name"]: its["newTag"] for its in rules["images"]}
    for manifest in found:
        for patch in rules["patches"]:
            target = patch["target"]
            if (manifest["kind"], manifest["metadata"]["name"]) == (target["kind"], target["name"]):
                for operation in documents(ROOT / name / patch["path"])[0]:
                    add(manifest, operation)
        for container in containers(manifest):
            if container["image"] in tags:
                container["image"] += f":{tags[container['image']]}"
    return found


def add(manifest: Manifest, operation: Mapping[str, Any]) -> None:
    """JSON Patch, RFC 6902, as far as ``add`` goes."""
    assert operation["op"] == "add"
    *way, last = [part.replace("~1", "/") for part in operation["path"].split("/")[1:]]
    place: Any = manifest
    for part in way:
        place = place[int(part) if isinstance(place, list) else part]
    if isinstance(place, list):
        assert last == "-"
        place.append(operation["value"])
    else:
        place[last] = operation["value"]


def pod(manifest: Manifest) -> Manifest:
    found: Manifest = manifest["spec"]["template"]["spec"]
    return found


def containers(manifest: Manifest) -> list[Manifest]:
    if manifest["kind"] not in {"Deployment", "StatefulSet"}:
        return []
    found: list[Manifest] = pod(manifest)["containers"]
    return found


def workloads(manifests: list[Manifest]) -> dict[str, Manifest]:
    return {its["metadata"]["name"]: its for its in manifests if containers(its)}


def environment(container: Manifest) -> dict[str, str]:
    return {its["name"]: its["value"] for its in container.get("env", ())}


def labels(workload: Manifest) -> Mapping[str, str]:
    found: Mapping[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return found


@pytest.fixture(params=["base", *OVERLAYS])
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return base() if request.param == "base" else overlay(request.param)


def test_every_manifest_is_what_its_schema_says(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_the_schemas_refuse_what_is_none() -> None:
    wrong = deepcopy(workloads(base())["api"])
    wrong["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_every_file_is_used() -> None:
    files = {its.name for its in (ROOT / "base").iterdir()} - {"kustomization.yaml"}
    assert files == set(kustomization("base")["resources"])
    assert {its.name for its in ROOT.iterdir()} == {"base", *OVERLAYS}


def test_no_process_has_more_rights_than_it_needs(manifests: list[Manifest]) -> None:
    for workload in workloads(manifests).values():
        its = pod(workload)
        assert its["securityContext"]["runAsNonRoot"] is True
        assert its["securityContext"]["runAsUser"] > 0
        assert its["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert its["automountServiceAccountToken"] is False
        for container in containers(workload):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]


def test_every_setting_exists_and_no_secret_is_a_variable(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {name.lower() for its in settings() for name in its.variables}
    for name, workload in workloads(manifests).items():
        (container,) = containers(workload)
        variables = environment(container)
        check_variables(variables)
        mounted = [
            item["key"]
            for volume in pod(workload)["volumes"]
            for item in volume.get("secret", {}).get("items", ())
        ]
        assert mounted, "secrets are files"
        assert name == "valkey" or set(mounted) <= known
        assert not {"SLEB_REDIS_URL", "SLEB_WEBHOOK_SECRET"} & variables.keys()
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)
    monkeypatch.delenv("SLEB_SECRETS_DIR")  # which is not here
    assert ServeSettings().data_dir == Path("/data")


def test_kubernetes_makes_no_variables_that_look_like_settings(manifests: list[Manifest]) -> None:
    services = [its["metadata"]["name"] for its in manifests if its["kind"] == "Service"]
    assert services
    assert not [name for name in services if name.upper().startswith("SLEB")]
    assert all(pod(its)["enableServiceLinks"] is False for its in workloads(manifests).values())


def test_the_api_has_time_to_drain(manifests: list[Manifest]) -> None:
    workload = workloads(manifests)["api"]
    (container,) = containers(workload)
    waits_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_s = ServeSettings(drain_s=float(environment(container)["SLEB_DRAIN_S"])).drain_s
    assert pod(workload)["terminationGracePeriodSeconds"] >= waits_s + drain_s + OWN_S
    ready = container["readinessProbe"]
    assert waits_s >= ready["periodSeconds"] * ready["failureThreshold"]


def test_probes_ask_routes_that_there_are(manifests: list[Manifest]) -> None:
    app = create_app(ServeSettings(data_dir=Path("/nonexistent")), redis_url="unix:///none")
    with_paths = set(app.openapi()["paths"])
    for name, workload in workloads(manifests).items():
        (container,) = containers(workload)
        ports = {its["name"] for its in container["ports"]}
        kinds = ("startupProbe", "livenessProbe", "readinessProbe")
        probes = [container[its] for its in kinds if its in container]
        assert len(probes) >= 2, name
        for probe in probes:
            asked = probe.get("httpGet") or probe.get("tcpSocket")
            assert asked is None or asked["port"] in ports
            assert asked is None or asked.get("path", "/metrics") in with_paths
    (api,) = containers(workloads(manifests)["api"])
    assert api["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    assert api["livenessProbe"]["httpGet"]["path"] == "/health/live"


def test_selectors_and_mounts_find_what_they_name(manifests: list[Manifest]) -> None:
    pods = [labels(its) for its in workloads(manifests).values()]
    for selector in selectors(manifests):
        assert any(selector.items() <= its.items() for its in pods), selector
    for workload in workloads(manifests).values():
        volumes = {its["name"] for its in pod(workload)["volumes"]}
        claims = workload["spec"].get("volumeClaimTemplates", ())
        volumes |= {its["metadata"]["name"] for its in claims}
        for container in containers(workload):
            assert {its["name"] for its in container["volumeMounts"]} == volumes


def selectors(manifests: list[Manifest]) -> Iterator[Mapping[str, str]]:
    for its in manifests:
        if its["kind"] == "Service":
            yield its["spec"]["selector"]
        elif its["kind"] == "NetworkPolicy":
            yield its["spec"]["podSelector"]["matchLabels"]
        elif "selector" in its.get("spec", {}):
            yield its["spec"]["selector"]["matchLabels"]


def test_a_node_can_be_drained_and_the_api_stays(manifests: list[Manifest]) -> None:
    (budget,) = [its for its in manifests if its["kind"] == "PodDisruptionBudget"]
    api = workloads(manifests)["api"]
    assert budget["spec"]["selector"]["matchLabels"] == labels(api)
    assert 1 <= budget["spec"]["minAvailable"] < api["spec"]["replicas"]


@pytest.mark.parametrize(("name", "device", "number"), [("cpu", "cpu", None), ("gpu", "cuda", 1)])
def test_an_overlay_says_device_and_image(name: str, device: str, number: int | None) -> None:
    for workload in (workloads(overlay(name))[its] for its in ("api", "worker")):
        (container,) = containers(workload)
        assert environment(container)["SLEB_DEVICE"] == device
        assert container["resources"]["limits"].get("nvidia.com/gpu") == number
        assert container["image"].startswith("sleb-serve:")


def test_a_worker_tells_its_metrics_where_the_probe_asks() -> None:
    (worker,) = containers(workloads(base())["worker"])
    (port,) = worker["ports"]
    assert environment(worker)["SLEB_WORKER_METRICS_PORT"] == str(port["containerPort"])
