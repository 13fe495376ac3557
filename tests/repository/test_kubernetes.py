"""The manifests: valid by the schemas of Kubernetes, and consistent with the service."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.config import ServeSettings
from app.generation.token_check import DEADLINE_S
from app.main import create_app
from app.settings import check_variables, settings

ROOT = Path(__file__).parents[2] / "deploy" / "kubernetes"
VERSION = "1.37"
EXIT_S = 10  # for the API to exit after its drain
OVERLAYS = ("cpu", "gpu", "vllm")

Manifest = dict[str, Any]


def documents(path: Path) -> list[Any]:
    return [
        document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document
    ]


def kustomization(name: str) -> Manifest:
    found: Manifest
    (found,) = documents(ROOT / name / "kustomization.yaml")
    return found


def base() -> list[Manifest]:
    resources = kustomization("base")["resources"]
    return [document for file in resources for document in documents(ROOT / "base" / file)]


def overlay(name: str) -> list[Manifest]:
    """Build an overlay as kustomize does. Supports images and ``add`` patches."""
    found, rules = deepcopy(base()), kustomization(name)
    tags = {image["name"]: image["newTag"] for image in rules["images"]}
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
    """The operation ``add`` of a JSON Patch (RFC 6902)."""
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
    return {
        manifest["metadata"]["name"]: manifest for manifest in manifests if containers(manifest)
    }


def environment(container: Manifest) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container.get("env", ())}


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
    files = {path.name for path in (ROOT / "base").iterdir()} - {"kustomization.yaml"}
    assert files == set(kustomization("base")["resources"])
    assert {path.name for path in ROOT.iterdir()} == {"base", *OVERLAYS}


def test_no_process_has_more_rights_than_it_needs(manifests: list[Manifest]) -> None:
    for workload in workloads(manifests).values():
        spec = pod(workload)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
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
    known = {name.lower() for setting in settings() for name in setting.variables}
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
    monkeypatch.delenv("SLEB_SECRETS_DIR")  # does not exist on this machine
    assert ServeSettings().data_dir == Path("/data")


def test_kubernetes_makes_no_variables_that_look_like_settings(manifests: list[Manifest]) -> None:
    services = [
        manifest["metadata"]["name"] for manifest in manifests if manifest["kind"] == "Service"
    ]
    assert services
    assert not [name for name in services if name.upper().startswith("SLEB")]
    assert all(
        pod(workload)["enableServiceLinks"] is False for workload in workloads(manifests).values()
    )


def test_the_api_has_time_to_drain(manifests: list[Manifest]) -> None:
    workload = workloads(manifests)["api"]
    (container,) = containers(workload)
    waits_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_s = ServeSettings(drain_s=float(environment(container)["SLEB_DRAIN_S"])).drain_s
    assert pod(workload)["terminationGracePeriodSeconds"] >= waits_s + drain_s + EXIT_S
    ready = container["readinessProbe"]
    assert waits_s >= ready["periodSeconds"] * ready["failureThreshold"]


def test_probes_ask_routes_that_there_are(manifests: list[Manifest]) -> None:
    app = create_app(ServeSettings(data_dir=Path("/nonexistent")), redis_url="unix:///none")
    with_paths = set(app.openapi()["paths"])
    for name, workload in workloads(manifests).items():
        (container,) = containers(workload)
        ports = {port["name"] for port in container["ports"]}
        kinds = ("startupProbe", "livenessProbe", "readinessProbe")
        probes = [container[kind] for kind in kinds if kind in container]
        assert len(probes) >= 2, name
        for probe in probes:
            asked = probe.get("httpGet") or probe.get("tcpSocket")
            assert asked is None or asked["port"] in ports
            assert asked is None or asked.get("path", "/metrics") in with_paths
    (api,) = containers(workloads(manifests)["api"])
    assert api["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    assert api["livenessProbe"]["httpGet"]["path"] == "/health/live"
    started = api["startupProbe"]
    assert started["httpGet"]["path"] == "/health/generate"
    assert started["timeoutSeconds"] > DEADLINE_S  # else it never tells why it failed


def test_selectors_and_mounts_find_what_they_name(manifests: list[Manifest]) -> None:
    pods = [labels(workload) for workload in workloads(manifests).values()]
    for selector in selectors(manifests):
        assert any(selector.items() <= pod_labels.items() for pod_labels in pods), selector
    for workload in workloads(manifests).values():
        volumes = {volume["name"] for volume in pod(workload)["volumes"]}
        claims = workload["spec"].get("volumeClaimTemplates", ())
        volumes |= {claim["metadata"]["name"] for claim in claims}
        for container in containers(workload):
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def selectors(manifests: list[Manifest]) -> Iterator[Mapping[str, str]]:
    for manifest in manifests:
        if manifest["kind"] == "Service":
            yield manifest["spec"]["selector"]
        elif manifest["kind"] == "NetworkPolicy":
            yield manifest["spec"]["podSelector"]["matchLabels"]
        elif "selector" in manifest.get("spec", {}):
            yield manifest["spec"]["selector"]["matchLabels"]


def test_a_node_can_be_drained_and_the_api_stays(manifests: list[Manifest]) -> None:
    (budget,) = [manifest for manifest in manifests if manifest["kind"] == "PodDisruptionBudget"]
    api = workloads(manifests)["api"]
    assert budget["spec"]["selector"]["matchLabels"] == labels(api)
    assert 1 <= budget["spec"]["minAvailable"] < api["spec"]["replicas"]


@pytest.mark.parametrize(("name", "device", "number"), [("cpu", "cpu", None), ("gpu", "cuda", 1)])
def test_an_overlay_says_device_and_image(name: str, device: str, number: int | None) -> None:
    for workload in (
        workloads(overlay(name))[workload_name] for workload_name in ("api", "worker")
    ):
        (container,) = containers(workload)
        assert environment(container)["SLEB_DEVICE"] == device
        assert container["resources"]["limits"].get("nvidia.com/gpu") == number
        assert container["image"].startswith("sleb-serve:")


def test_a_worker_tells_its_metrics_where_the_probe_asks() -> None:
    (worker,) = containers(workloads(base())["worker"])
    (port,) = worker["ports"]
    assert environment(worker)["SLEB_WORKER_METRICS_PORT"] == str(port["containerPort"])
