"""What dies under ``sleb up`` is started again, and the rest of it goes on meanwhile.

All of it is real: the processes, the model, the job and SIGKILL.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import redis

from app.server.valkey import socket_path
from tests.support.long_search import long_search
from tests.support.processes import (
    environment,
    free_port,
    is_alive,
    is_ready,
    processes_of,
    running,
)
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROMPT = {"model": "tiny", "prompt": "the dog", "temperature": 0, "ignore_eos": True}


@dataclass(frozen=True)
class Service:
    up: psutil.Process
    client: httpx2.Client
    data_dir: Path

    def pid_of(self, name: str) -> int | None:
        """The process of a command that ``sleb up`` runs now."""
        for child in self.up.children():
            with suppress(psutil.Error):
                if child.cmdline()[-1] == name:
                    return int(child.pid)
        return None

    def kill(self, name: str) -> None:
        pid = wait_until(lambda: self.pid_of(name), f"{name} runs")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), f"{name} is dead")

    def kill_valkey(self) -> None:
        with redis.Redis(unix_socket_path=str(socket_path(self.data_dir / "valkey"))) as client:
            pid = int(client.info("server")["process_id"])
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), "Valkey is dead")

    def ready(self) -> dict[str, Any]:
        response = self.client.get("/health/ready")
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        return body

    def answer(self) -> str:
        response = self.client.post("/generate", json={**PROMPT, "max_new_tokens": 4})
        assert response.status_code == 200, response.text
        return str(response.json()["outputs"][0]["text"])

    def job(self, job_id: str) -> dict[str, Any]:
        """Empty while the API or the job store is away."""
        with suppress(httpx2.TransportError):
            response = self.client.get(f"/prune-jobs/{job_id}")
            if response.status_code == 200:
                body: dict[str, Any] = response.json()
                return body
            assert response.status_code == 503, response.text
        return {}

    def wait_until_it_searches(self, job_id: str) -> None:
        def is_searching() -> bool:
            job = self.job(job_id)
            return job.get("status") == "running" and job["progress"]["evaluations_done"] > 0

        wait_until(is_searching, "the job searches", 200)

    def wait_for_success(self, job_id: str) -> None:
        ended = ("succeeded", "failed", "cancelled")
        wait_until(lambda: self.job(job_id).get("status") in ended, "the end of the job", 400)
        assert self.job(job_id)["status"] == "succeeded", self.job(job_id)["error"]


@contextmanager
def service_of(data_dir: Path) -> Iterator[Service]:
    port = free_port()
    env = {**environment(data_dir), "SLEB_PORT": str(port), "SLEB_VERIFY": "inline"}
    with (
        running([sys.executable, "-m", "app", "up"], env) as process,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        wait_until(lambda: is_ready(client), "the service is ready", 300)
        service = Service(psutil.Process(process.pid), client, data_dir)
        wait_until(lambda: service.ready()["num_workers"] == 1, "the worker is there", 100)
        yield service
        process.terminate()
        assert process.wait(100) == 0
    wait_until(lambda: processes_of(data_dir) == [], "no process is left")


def submit(service: Service) -> str:
    calibration = {"dataset": "file", "num_samples": 128, "seqlen": 128, "path": "text.txt"}
    body = {"model": "tiny", "num_remove": 5, "calibration": calibration}
    response = service.client.post(
        "/prune-jobs", json={**body, "evaluate": False, "repair": "none"}
    )
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def test_each_of_the_three_is_killed_and_comes_back(tmp_path: Path) -> None:
    long_search(tmp_path)  # for its model and its text
    with service_of(tmp_path) as service:
        expected, job_id = service.answer(), submit(service)

        service.wait_until_it_searches(job_id)
        body = {**PROMPT, "max_new_tokens": 100, "stream": True}
        with service.client.stream("POST", "/generate", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            service.kill("worker")
            assert sum(line.startswith("data:") for line in lines) > 1
        wait_until(lambda: service.ready()["num_workers"] == 0, "it says that no worker is there")
        assert service.client.get("/status").json()["jobs"]["num_workers"] == 0
        assert service.answer() == expected
        wait_until(lambda: service.ready()["num_workers"] == 1, "the worker is back")

        service.wait_until_it_searches(job_id)
        worker = service.pid_of("worker")
        service.kill("serve")
        wait_until(lambda: is_ready(service.client), "the API is back", 300)
        assert service.answer() == expected
        assert service.pid_of("worker") == worker

        processes = service.pid_of("worker"), service.pid_of("serve")
        service.kill_valkey()
        assert service.answer() == expected
        wait_until(lambda: service.job(job_id), "Valkey is back")
        service.wait_for_success(job_id)
        assert (service.pid_of("worker"), service.pid_of("serve")) == processes


def test_a_worker_that_cannot_start_ends_the_command_with_the_reason(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = {"SLEB_PORT": str(free_port()), "SLEB_WORKER_METRICS_PORT": str(port)}
        env = {**environment(tmp_path), **ports}
        command = [sys.executable, "-m", "app", "up"]
        with running(command, env, stderr=subprocess.PIPE, text=True) as process:
            said = process.communicate(timeout=300)[1]
    assert process.returncode == 1
    assert f"cannot serve metrics on port {port}" in said
    assert "error: the worker cannot start (exit code 1): see its output above" in said
    wait_until(lambda: processes_of(tmp_path) == [], "no process is left")
