"""The compose file as `docker compose` renders it, with and without GPUs."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.config import ServeSettings
from app.settings import check_variables
from pruning.config import WorkerSettings
from tests.image.compose import ROOT, rendered, seconds, services, volumes

GPU: tuple[str, ...] = ()
CPU = ("--profile", "cpu")
COMMON = {"secrets", "valkey", "prometheus", "grafana"}
ONCE = {"secrets"}  # exits after its work
NO_LIMIT = {"api", "worker", "api-cpu", "worker-cpu"}  # may use all cores

both = pytest.mark.parametrize("options", [GPU, CPU], ids=["gpu", "cpu"])


def test_gpus_are_what_is_asked_for_by_default_and_a_profile_goes_without() -> None:
    assert services(*GPU).keys() == {"api", "worker"} | COMMON
    assert services(*CPU).keys() == {"api-cpu", "worker-cpu"} | COMMON


def test_only_api_and_worker_have_a_gpu_each() -> None:
    found = {
        name: service["deploy"]["resources"]["reservations"]["devices"]
        for name, service in services(*GPU).items()
        if "reservations" in service["deploy"]["resources"]
    }
    gpu = {"driver": "nvidia", "capabilities": ["gpu"]}
    assert found == {
        "api": [{**gpu, "device_ids": ["0"]}],
        "worker": [{**gpu, "device_ids": ["1"]}],
    }
    assert {services(*GPU)[name]["environment"]["SLEB_DEVICE"] for name in found} == {"cuda"}


def test_the_cpu_profile_asks_for_no_gpu() -> None:
    for name, service in services(*CPU).items():
        assert service["deploy"]["resources"].keys() == {"limits"}, name
        assert not service.keys() & {"devices", "gpus", "runtime"}
        assert service.get("environment", {}).get("SLEB_DEVICE", "cpu") == "cpu"
    for name in ("api-cpu", "worker-cpu"):
        service = services(*CPU)[name]
        assert service["build"]["args"] == {"TORCH": "cpu", "TORCH_CPU_INDEX": ""}
        assert service["image"] not in {other["image"] for other in services(*GPU).values()}


@both
def test_only_api_and_grafana_are_published_and_on_loopback(options: tuple[str, ...]) -> None:
    ports = {
        name: service["ports"]
        for name, service in services(*options).items()
        if service.get("ports")
    }
    api = "api-cpu" if options else "api"
    assert ports.keys() == {api, "grafana"}
    assert {port["host_ip"] for published in ports.values() for port in published} == {"127.0.0.1"}
    assert [port["target"] for port in ports[api]] == [8000]
    assert not [
        name
        for name, service in services(*options).items()
        if service.get("network_mode") == "host"
    ]


@both
def test_every_service_is_limited_restarted_and_looked_after(options: tuple[str, ...]) -> None:
    for name, service in services(*options).items():
        limits = service["deploy"]["resources"]["limits"]
        wanted = {"memory", "pids"} if name in NO_LIMIT else {"memory", "pids", "cpus"}
        assert limits.keys() == wanted, name
        assert service["restart"] == ("no" if name in ONCE else "unless-stopped"), name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}
        if name in ONCE:
            continue
        if name in {"api", "api-cpu"}:  # uses the health check of the image
            assert "healthcheck" not in service
        else:
            assert service["healthcheck"].keys() >= {"test", "interval", "timeout", "retries"}
            assert not service["healthcheck"].get("disable")


@both
def test_no_service_can_write_to_its_image_or_change_user(options: tuple[str, ...]) -> None:
    for name, service in services(*options).items():
        assert service.get("read_only") is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.keys() & {"cap_add", "privileged", "pid", "ipc"}


@both
def test_what_is_needed_is_healthy_first(options: tuple[str, ...]) -> None:
    found = services(*options)
    for service in found.values():
        for needed, how in service.get("depends_on", {}).items():
            ended = "service_completed_successfully"
            assert how["condition"] == (ended if needed in ONCE else "service_healthy")
    needs = {name: set(service.get("depends_on", {})) for name, service in found.items()}
    for name in found.keys() & NO_LIMIT:
        assert needs[name] == {"valkey"}
    assert needs["valkey"] == {"secrets"}


@both
def test_no_secret_is_among_what_docker_inspect_shows(options: tuple[str, ...]) -> None:
    for name, service in services(*options).items():
        variables: dict[str, str] = service.get("environment", {})
        secret = re.compile(r"PASSW|SECRET|TOKEN|KEY|CREDENTIAL|REDIS_URL")
        for variable in filter(secret.search, variables):
            assert variable.endswith(("__FILE", "_DIR")), f"{variable} of {name}"
        words = [*variables.values(), *(service.get("command") or [])]
        shown = [word for word in words if re.search(r"://[^/]*@|requirepass", word or "")]
        assert not shown, name


@both
def test_secrets_are_mounted_by_those_who_read_them(options: tuple[str, ...]) -> None:
    readers: dict[str, set[str]] = {}
    for name, service in services(*options).items():
        for source, mount in volumes(service).items():
            if source.endswith("-secrets"):
                assert mount.get("read_only", False) is (name != "secrets")
                readers.setdefault(source, set()).add(name)
    sleb = {"api-cpu", "worker-cpu"} if options else {"api", "worker"}
    assert readers == {
        "sleb-secrets": {"secrets", *sleb},
        "valkey-secrets": {"secrets", "valkey"},
        "grafana-secrets": {"secrets", "grafana"},
    }
    assert services(*options)["secrets"]["network_mode"] == "none"


@both
def test_stores_have_no_way_out_and_only_their_clients_a_way_in(
    options: tuple[str, ...],
) -> None:
    inside = {
        name for name, network in rendered(*options)["networks"].items() if network.get("internal")
    }
    assert inside == {"store", "metrics"}
    found = {
        name: set(service.get("networks") or ()) for name, service in services(*options).items()
    }
    assert found["valkey"] == {"store"}
    assert found["prometheus"] == {"metrics"}
    assert found["grafana"] == {"outside", "metrics"}
    assert {name for name, networks in found.items() if "store" in networks} == {
        "valkey",
        *(found.keys() & NO_LIMIT),
    }


@both
def test_prometheus_finds_whom_it_scrapes(options: tuple[str, ...]) -> None:
    names = set()
    for name, service in services(*options).items():
        networks = service.get("networks") or {}
        if "metrics" in networks:
            names |= {name, *((networks["metrics"] or {}).get("aliases", ()))}
    shipped = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())
    scraped = [job for job in shipped["scrape_configs"] if job["job_name"] != "prometheus"]
    targets = [config for job in scraped for config in job.get("static_configs", ())]
    hosts = {address.partition(":")[0] for config in targets for address in config["targets"]}
    hosts |= {
        name
        for job in scraped
        for config in job.get("dns_sd_configs", ())
        for name in config["names"]
    }
    assert hosts == {"api", "worker"}
    assert hosts <= names
    [worker] = [
        service for name, service in services(*options).items() if name.startswith("worker")
    ]
    [looked_up] = [config for job in scraped for config in job.get("dns_sd_configs", ())]
    assert worker["environment"]["SLEB_WORKER_METRICS_PORT"] == str(looked_up["port"])
    assert f":{looked_up['port']}/metrics" in worker["healthcheck"]["test"][-1]


@both
def test_the_settings_in_it_are_taken(
    options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sleb_redis_url").write_text("redis://sleb:word@valkey:6379")
    for name in services(*options).keys() & NO_LIMIT:
        variables = services(*options)[name]["environment"]
        assert variables["SLEB_SECRETS_DIR"] == "/run/secrets"
        assert volumes(services(*options)[name])["sleb-secrets"]["target"] == "/run/secrets"
        for variable, value in {**variables, "SLEB_SECRETS_DIR": str(tmp_path)}.items():
            monkeypatch.setenv(variable, value)
    check_variables()
    api, worker = ServeSettings(), WorkerSettings()
    assert api.redis_url == worker.redis_url == "redis://sleb:word@valkey:6379"
    assert (api.max_weight_bytes is None) is not bool(options)
    assert (worker.state_budget is None) is not bool(options)


@both
def test_containers_are_given_the_time_that_they_take_to_end(options: tuple[str, ...]) -> None:
    [api] = [service for name, service in services(*options).items() if name.startswith("api")]
    drain_s = float(api["environment"]["SLEB_DRAIN_S"])
    assert drain_s + 10 <= seconds(api["stop_grace_period"])


@both
def test_what_is_to_be_kept_lies_in_named_volumes(options: tuple[str, ...]) -> None:
    kept = {"data": "/data", "valkey": "/data", "prometheus": "/prometheus"}
    kept["grafana"] = "/var/lib/grafana"
    mounts = [volume for service in services(*options).values() for volume in service["volumes"]]
    found = {
        (volume["source"], volume["target"]) for volume in mounts if volume["type"] == "volume"
    }
    assert found >= set(kept.items())
    for mount in mounts:
        if mount["type"] == "bind":
            assert mount["read_only"]
            assert Path(mount["source"]).exists()


def test_versions_of_images_are_named() -> None:
    ours = {"sleb-serve:cuda", "sleb-serve:cpu"}
    images = {service["image"] for options in (GPU, CPU) for service in services(*options).values()}
    assert ours <= images
    for image in images - ours:
        assert re.search(r":v?\d+\.\d+", image), image


def test_what_may_be_chosen_is_in_the_file_for_it_with_its_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    chosen: dict[str, Any] = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", text))
    lines = (ROOT / ".env").read_text().splitlines()
    shown = dict(
        line.removeprefix("#").split("=", 1) for line in lines if re.match(r"#?\w+=", line)
    )
    assert {name: shown.get(name) for name in chosen if chosen[name]} == {
        name: default for name, default in chosen.items() if default
    }
    assert shown.keys() == chosen.keys() | {"COMPOSE_PROFILES"}
    assert [line for line in lines if re.match(r"\w+=", line)] == ["COMPOSE_PROFILES=gpu"]
