"""Two ``sleb up`` on one directory: they share jobs and models, and either outlives the other."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.auth.keys import KeyFile
from tests.support.processes import (
    environment,
    free_port,
    is_ready,
    processes_of,
    running,
)
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BODY = {
    "model": "tiny",
    "num_remove": 1,
    "calibration": {"dataset": "prose", "num_samples": 4, "seqlen": 16},
    "evaluate": False,
    "repair": "none",
}
PROMPT = {"prompt": "the dog", "max_new_tokens": 4, "temperature": 0}


@contextmanager
def up(data_dir: Path, port: int) -> Iterator[tuple["subprocess.Popen[Any]", httpx2.Client]]:
    env = {**environment(data_dir), "SLEB_PORT": str(port), "SLEB_VERIFY": "inline"}
    with (
        running([sys.executable, "-m", "app", "up"], env, stderr=subprocess.PIPE) as process,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        yield process, client


def succeed(submits: httpx2.Client, watches: httpx2.Client, **changes: Any) -> str:
    """Submit a job to one of them, and see its end at the other; return what it published."""
    job = submits.post("/prune-jobs", json={**BODY, **changes}).json()

    def found() -> dict[str, Any]:
        answer: dict[str, Any] = watches.get(f"/prune-jobs/{job['id']}").json()
        return answer

    ended = ("succeeded", "failed", "cancelled")
    wait_until(lambda: found()["status"] in ended, "the end of the job", 300)
    assert found()["status"] == "succeeded", found()["error"]
    return str(found()["pruned_model"])


def num_workers(client: httpx2.Client) -> int:
    return int(client.get("/status").json()["jobs"]["num_workers"])


def answer(client: httpx2.Client, model: str) -> str:
    response = client.post("/generate", json={**PROMPT, "model": model})
    assert response.status_code == 200, response.text
    return str(response.json()["outputs"][0]["text"])


def test_they_share_everything_and_one_outlives_the_other(data_dir: Path) -> None:
    assert not KeyFile(data_dir / "keys.json").exists
    with ExitStack() as stack:
        (first, one), (second, other) = (
            stack.enter_context(up(data_dir, free_port())) for _ in range(2)
        )
        wait_until(lambda: is_ready(one) and is_ready(other), "both are ready", 300)
        name = succeed(one, other)
        assert answer(one, name) == answer(other, name)
        one.put("/models/prod", json={"target": name}).raise_for_status()
        assert answer(other, "prod") == answer(one, name)
        wait_until(lambda: num_workers(other) == 2, "two workers")
        first.kill()  # its worker and its API end with it
        wait_until(lambda: num_workers(other) == 1, "one of them is gone", 120)
        again = succeed(other, other, num_remove=2)
        assert answer(other, again)
        second.send_signal(signal.SIGTERM)
        assert second.wait(100) == 0
    wait_until(lambda: processes_of(data_dir) == [], "no process of either is left")


def test_one_with_the_port_of_another_ends_and_says_so(data_dir: Path) -> None:
    port = free_port()
    with up(data_dir, port) as (first, client):
        wait_until(lambda: is_ready(client), "it is ready", 300)
        with up(data_dir, port) as (second, _):
            assert second.stderr is not None
            said = second.stderr.read().decode()
            assert second.wait(120) != 0
            assert "is in use" in said
        assert succeed(client, client)
        assert first.poll() is None
        first.send_signal(signal.SIGTERM)
        assert first.wait(100) == 0
    wait_until(lambda: processes_of(data_dir) == [], "no process of either is left")
