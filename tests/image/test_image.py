"""Builds and runs the image: `make image-test`. Slow; needs root and Debian packages."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import boto3
import httpx2
import pytest

from tests.image.building import Image
from tests.image.compose import ROOT, Service, seconds, services, valkey_options
from tests.image.container import Container
from tests.support.processes import free_port
from tests.support.s3_server import variables
from tests.support.story import prune_and_generate
from tests.support.tiny_directory import write_tiny_model
from tests.support.valkey_server import valkey
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.image, pytest.mark.timeout(2400)]

USER = 10001


@dataclass(frozen=True)
class Running:
    api: Container
    worker: Container
    client: httpx2.Client
    data_dir: Path
    compose: dict[str, Service]


@pytest.fixture(scope="module")
def running(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """API, worker and Valkey as compose starts them, but on loopback."""
    directory = tmp_path_factory.mktemp("image")
    data_dir, secrets = directory / "data", directory / "secrets"
    write_tiny_model(data_dir / "models" / "tiny")
    subprocess.run(["chown", "--recursive", f"{USER}:{USER}", data_dir], check=True)
    make_secrets(secrets, store_port := free_port())
    compose = services("--profile", "cpu")
    mounts = {"/data": data_dir, "/run/secrets": secrets / "sleb"}
    loopback = {"SLEB_HOST": "127.0.0.1", "SLEB_THREADS": "1"}
    ports = {
        "api-cpu": ("SLEB_PORT", free_port()),
        "worker-cpu": ("SLEB_WORKER_METRICS_PORT", 9101),
    }
    with ExitStack() as stack:
        acl = secrets / "valkey" / "users.acl"
        options = ["--port", str(store_port), "--bind", "127.0.0.1"]
        stack.enter_context(valkey(*valkey_options(acl), *options))
        containers = []
        for name, (variable, port) in ports.items():
            variables = {**compose[name]["environment"], **loopback, variable: str(port)}
            container = Container(
                image,
                directory / name,
                compose[name]["command"],
                environment=variables,
                mounts=mounts,
            )
            containers.append(stack.enter_context(container))
        api, worker = containers
        url = f"http://127.0.0.1:{ports['api-cpu'][1]}"
        client = stack.enter_context(httpx2.Client(base_url=url))
        wait_until(
            lambda: is_healthy(api, image.config["Healthcheck"]["Test"]), "the API is healthy", 300
        )
        yield Running(api, worker, client, data_dir, compose)


def make_secrets(folder: Path, port: int) -> None:
    for name in ("sleb", "valkey", "grafana"):
        (folder / name).mkdir(parents=True)
    subprocess.run(["sh", ROOT / "docker/secrets/make.sh", folder], check=True)
    url = folder / "sleb" / "sleb_redis_url"
    url.write_text(url.read_text().replace("valkey:6379", f"127.0.0.1:{port}"))


def is_healthy(container: Container, test: list[str]) -> bool:
    assert container.is_running
    assert test[0] == "CMD"
    return container.do(*test[1:]).returncode == 0


def test_it_is_as_small_as_it_can_be(image: Image) -> None:
    unwanted = ["usr/bin/gcc", "usr/bin/make", "opt/pip", "src", "staged", "root/.cache"]
    assert not [name for name in unwanted if (image.root / name).exists()]
    assert not list(image.root.glob("var/lib/apt/lists/*Packages*"))
    assert not list(image.root.glob("opt/sleb/bin/pip*"))
    packages = {path.name.partition("-")[0] for path in image.site_packages.glob("*.dist-info")}
    assert {"sleb_serve", "torch", "opentelemetry_sdk", "gcsfs", "s3fs"} <= packages
    assert not packages & {"pip", "pytest", "ray", "ruff"}
    assert not (image.site_packages / "nvidia").exists()
    used = subprocess.run(["du", "-sm", image.root], capture_output=True, text=True, check=True)
    assert int(used.stdout.split()[0]) < 2500  # MiB


def test_it_says_what_it_is(image: Image) -> None:
    labels = image.config["Labels"]
    assert labels["org.opencontainers.image.title"] == "sleb-serve"
    assert labels["org.opencontainers.image.version"] == "1.2.3"
    assert labels["org.opencontainers.image.revision"] == "abcdef"
    assert image.config["User"] == f"{USER}:{USER}"
    assert image.config["Healthcheck"]["StartPeriod"] >= 60e9  # loading models takes time


def test_new_volumes_belong_to_its_user(image: Image) -> None:
    folders = [image.root / "data" / name for name in ("", "models", "texts", "checkpoints")]
    assert {(folder.stat().st_uid, folder.stat().st_gid) for folder in folders} == {(USER, USER)}
    program = image.root / "opt/sleb/bin/sleb"
    assert (program.stat().st_uid, program.stat().st_mode & 0o022) == (0, 0)


def test_it_prunes_and_generates_as_a_user_without_rights(running: Running) -> None:
    said = running.api.do(
        "sh", "-c", "id -u; id -g; touch /opt/sleb/x; grep CapEff /proc/self/status"
    )
    assert said.stdout.split() == [str(USER), str(USER), "CapEff:", "0" * 16]
    assert "Read-only file system" in said.stderr
    prune_and_generate(running.client)
    written = list((running.data_dir / "checkpoints").glob("*/model.safetensors"))
    assert [path.stat().st_uid for path in written] == [USER]


def test_a_worker_is_healthy_by_its_own_check(running: Running) -> None:
    test = running.compose["worker-cpu"]["healthcheck"]["test"]
    wait_until(lambda: is_healthy(running.worker, test), "the worker is healthy")


def test_it_writes_to_a_bucket(running: Running, s3_url: str, s3_bucket: str) -> None:
    given = [f"{name}={value}" for name, value in variables(s3_url).items()]
    url = f"s3://{s3_bucket}/tiny"
    said = running.worker.do("env", *given, "sleb", "export", "tiny", "--to", url)
    assert said.returncode == 0, said.stderr
    found = boto3.client("s3").list_objects_v2(Bucket=s3_bucket)["Contents"]
    assert {"tiny/config.json", "tiny/model.safetensors"} <= {entry["Key"] for entry in found}


def test_dead_orphans_are_reaped(running: Running) -> None:
    started = running.api.do("sh", "-c", "sleep 0.1 >/dev/null 2>&1 & echo $!")
    process = f"/proc/{int(started.stdout)}"
    wait_until(
        lambda: running.api.do("test", "-e", process).returncode != 0, "the process is reaped", 20
    )


def test_signals_arrive_and_both_end_well_in_their_time(running: Running) -> None:
    for name, container in (("api-cpu", running.api), ("worker-cpu", running.worker)):
        assert container.terminate(seconds(running.compose[name]["stop_grace_period"])) == 0
        assert "Traceback" not in container.log
