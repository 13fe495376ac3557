"""`docker compose up` with a real Docker daemon.

No registry is used: the images of Valkey and Prometheus are built from Debian packages. Debian
has no package of Grafana, so Grafana is not started.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import pytest

from tests.image.building import BASE, IMAGE, Buildah, Image
from tests.image.compose import services
from tests.image.docker import Docker, daemon
from tests.support.processes import free_port
from tests.support.story import prune_and_generate
from tests.support.tiny_directory import write_tiny_model
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.image, pytest.mark.timeout(2400)]

PROFILE = ("--profile", "cpu")
_VALKEY, _PROMETHEUS = "localhost/sleb-test-valkey", "localhost/sleb-test-prometheus"
STARTED = ("secrets", "valkey", "api-cpu", "worker-cpu", "prometheus")


@dataclass(frozen=True)
class Stack:
    compose: Callable[..., str]  # returns the output of `docker compose`
    docker: Docker
    client: httpx2.Client


@pytest.fixture(scope="module")
def docker(buildah: Buildah, image: Image) -> Iterator[Docker]:
    """A daemon with the images of the services."""
    assert image
    images = {
        tag: services(*PROFILE)[name]["image"]
        for tag, name in ((IMAGE, "api-cpu"), (_VALKEY, "valkey"), (_PROMETHEUS, "prometheus"))
    }
    buildah.install(BASE, _VALKEY, "valkey-server", folder="/data", owner="999:1000")
    buildah.install(
        BASE, _PROMETHEUS, "prometheus", "wget", folder="/prometheus", owner="65534:65534",
        entrypoint="/usr/bin/prometheus",
    )  # fmt: skip
    with TemporaryDirectory(prefix="sleb-docker-", dir="/var/tmp") as directory:
        archive = Path(directory) / "image.tar"
        with daemon(Path(directory)) as docker:
            for built, name in images.items():
                buildah.save(built, archive, name)
                docker.do("load", "--input", str(archive))
                archive.unlink()
            yield docker


@pytest.fixture(scope="module")
def stack(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    port = free_port()

    def compose(*command: str) -> str:
        ran = docker.do(
            "compose", *PROFILE, *command, environment={"API_PORT": str(port)}, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    model = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_model(model)
    subprocess.run(["chmod", "--recursive", "a+rX", model], check=True)
    try:
        compose("up", "--detach", "--no-build", "--wait", *STARTED[1:])
        compose("cp", str(model), "api-cpu:/data/models/")
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
            yield Stack(compose, docker, client)
    finally:
        compose("down", "--volumes")


def states(stack: Stack) -> dict[str, dict[str, Any]]:
    """States of all containers by service, including those that have exited."""
    lines = stack.compose("ps", "--all", "--format", "json").splitlines()
    return {state["Service"]: state for state in map(json.loads, lines)}


def test_everything_comes_up_and_is_healthy(stack: Stack) -> None:
    found = states(stack)
    assert found.keys() == set(STARTED)
    secrets = found.pop("secrets")
    assert (secrets["State"], secrets["ExitCode"]) == ("exited", 0)
    assert {state["Health"] for state in found.values()} == {"healthy"}
    ports = {
        name: [port["URL"] for port in state["Publishers"] or ()] for name, state in found.items()
    }
    assert {name for name, urls in ports.items() if any(urls)} == {"api-cpu"}
    assert ports["api-cpu"] == ["127.0.0.1"]


def test_a_job_runs_and_both_models_answer(stack: Stack) -> None:
    prune_and_generate(stack.client)


def test_prometheus_sees_both_and_no_other_service_sees_the_store(stack: Stack) -> None:
    def up() -> set[tuple[str, str]]:
        query = "http://127.0.0.1:9090/api/v1/query?query=up"
        said = json.loads(stack.compose("exec", "-T", "prometheus", "wget", "-qO-", query))
        found = {(result["metric"]["job"], result["value"][1]) for result in said["data"]["result"]}
        return found if {value for _, value in found} == {"1"} and len(found) >= 2 else set()

    assert wait_until(up, "api and worker are scraped", 120)
    reach = "import socket; socket.create_connection(('valkey', 6379), 3)"
    stack.compose("exec", "-T", "api-cpu", "python3", "-c", reach)
    request = ("wget", "--timeout=3", "--tries=1", "-qO-", "http://valkey:6379")
    tried = stack.docker.do("compose", *PROFILE, "exec", "-T", "prometheus", *request, check=False)
    assert tried.returncode == 4, tried  # wget: no such host


def test_the_store_keeps_jobs_and_everybody_comes_back_to_it(stack: Stack) -> None:
    before = [job["id"] for job in stack.client.get("/prune-jobs").json()["data"]]
    assert before
    stack.compose("restart", "valkey")

    def after() -> list[str]:
        answer = stack.client.get("/prune-jobs")
        return [job["id"] for job in answer.json()["data"]] if answer.status_code == 200 else []

    assert wait_until(after, "the store answers again", 60) == before


def test_all_of_it_stops_well(stack: Stack) -> None:
    stack.compose("stop")
    found = states(stack)
    assert {name: state["ExitCode"] for name, state in found.items()} == dict.fromkeys(STARTED, 0)
