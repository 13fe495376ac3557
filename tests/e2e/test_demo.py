"""The demo as a user runs it: all numbers of its table must be plausible.

``make test`` runs it on a tiny model under the name of the real one, ``make test-slow`` on both.
"""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.models.measured_speedups import NOT_MEASURED
from app.server.valkey import embedded_valkey
from pruning.models.demo_model import NAME
from tests.support import tiny_directory
from tests.support.processes import environment, free_port, is_ready, processes_of, running
from tests.support.waiting import wait_until
from tools.docs.demo import record, table

NUM_REMOVE = 2


@pytest.mark.timeout(300)
def test_the_demo_prunes_serves_compares_and_cleans_up(tiny_demo_dir: Path) -> None:
    report = demo(tiny_demo_dir)
    check_job(report["job"], tiny_directory.NUM_BLOCKS)
    check_sides(report["models"], tiny_directory.NUM_BLOCKS)
    assert form_of(report) == form_of(record()["report"]), "README quotes another form"
    left_behind = {path.name for path in tiny_demo_dir.iterdir()}
    kept = {"qualities.json", "qualities.json.lock"}
    kept |= {"speedups.json", "speedups.json.lock"}  # unless the machine is too busy to measure
    assert left_behind - kept == {"models", "demo", "checkpoints"}, "what is served next, no more"


def form_of(report: dict[str, Any]) -> tuple[list[str], set[int], list[str]]:
    """The rows of the table, the numbers of their cells, and what is explained below."""
    above, _, below = table(report).rpartition("┘")
    rows = [line.strip("│").split("│") for line in above.splitlines() if line.startswith("│")]
    explained = re.findall(r"^([a-z ]+): ", below, re.MULTILINE)
    known = [name for name in explained if name != NOT_MEASURED]  # as on a busy machine
    return [row[0].strip() for row in rows], {len(row) for row in rows}, known


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_makes_sense_of_the_real_model(demo_data_dir: Path) -> None:
    report = demo(demo_data_dir, threads=2, evaluate_s=10, verify="process")
    dense, _, pruned = report["models"]
    job = report["job"]
    check_job(job, 30)
    assert job["dense_loss"] < job["losses"][0] < job["losses"][1] < job["dense_loss"] + 1
    check_sides(report["models"], 30)
    left, right = dense["model"], pruned["model"]
    assert left["num_parameters"] == 134_515_008
    per_block = (left["num_parameters"] - right["num_parameters"]) / NUM_REMOVE
    assert per_block == 3_540_096  # attention 884 736, feed forward 2 654 208, two norms 1 152
    assert 5 < left["perplexity"] < right["perplexity"] < 3 * left["perplexity"] < 500
    assert "Paris" in dense["completion"]


def demo(
    data_dir: Path, threads: int = 1, evaluate_s: float = 0, verify: str = "inline"
) -> dict[str, Any]:
    """Run the demo to its end and return its report."""
    command = [sys.executable, "-m", "app", "demo", "--num-remove", str(NUM_REMOVE), "--json"]
    command += ["--port", "0", "--evaluate-s", str(evaluate_s), "--measure-s", "0"]
    ran = subprocess.run(
        command,
        env={**environment(data_dir, threads), "SLEB_VERIFY": verify},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    for next_step in ("/docs", "/metrics", "/prune-jobs/", "curl"):
        assert next_step in ran.stderr
    assert processes_of(data_dir) == []
    report: dict[str, Any] = json.loads(ran.stdout)
    return report


def check_job(job: dict[str, Any], num_blocks: int) -> None:
    assert job["status"] == "succeeded"
    assert job["spec"]["dtype"] in {"float32", "bfloat16"}
    evaluations = num_blocks - 2 + num_blocks - 3
    assert job["progress"] == {
        "evaluations_done": evaluations,
        "evaluations_total": evaluations,
        "ratio": 1.0,
    }
    assert len(set(job["removed_blocks"])) == NUM_REMOVE
    assert all(0 < block < num_blocks - 1 for block in job["removed_blocks"])
    assert len(job["losses"]) == NUM_REMOVE


def check_sides(sides: list[dict[str, Any]], num_blocks: int) -> None:
    dense, int8, pruned = sides
    removed = [0, 0, NUM_REMOVE]
    assert [side["model"]["num_blocks"] for side in sides] == [num_blocks - k for k in removed]
    assert [side["model"]["variant"] for side in sides] == ["dense", "dense", "pruned"]
    assert int8["model"]["id"] == f"{NAME}+int8"
    assert pruned["model"]["num_parameters"] < dense["model"]["num_parameters"]
    assert pruned["model"]["domains"]
    for side in (int8, pruned):
        ideal = num_blocks / side["model"]["num_blocks"]
        known = {kind: side["model"][f"{kind}_speedup"] for kind in ("measured", "predicted")}
        assert side["speedup"] == {"ideal": ideal, **known}
    for side in sides:
        assert len(side["completion"]) > 20
        assert 0 < side["ttft_s"] < 60
        assert 0 < side["tpot_s"] < 60
        # four prompts of 32 new tokens at once: the rate is at most four tokens per decode step
        assert 0 < side["tokens_per_s"] <= 4 / side["tpot_s"] * 1.1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ctrl_c_stops_everything_that_the_demo_started(tiny_demo_dir: Path) -> None:
    command = [sys.executable, "-m", "app", "demo", "--port", "0"]
    with running(command, environment(tiny_demo_dir), stderr=subprocess.DEVNULL) as started:
        wait_until(lambda: len(processes_of(tiny_demo_dir)) >= 4, "the service is up", 120)
        started.send_signal(signal.SIGINT)
        assert started.wait(90) == 130
    wait_until(lambda: processes_of(tiny_demo_dir) == [], "all processes have ended")


@contextmanager
def running_up(data_dir: Path) -> Iterator[tuple["subprocess.Popen[bytes]", httpx2.Client]]:
    """Run ``sleb up`` until the API is ready."""
    port = free_port()
    command = [sys.executable, "-m", "app", "up", "--port", str(port)]
    with (
        running(command, environment(data_dir)) as up,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        wait_until(lambda: is_ready(client), "the API is ready", 120)
        yield up, client


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_up_serves_a_request_and_ends_on_sigterm(tiny_demo_dir: Path) -> None:
    assert len(answer_of_up(tiny_demo_dir)) > 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_up_serves_the_real_model(demo_data_dir: Path) -> None:
    assert "Paris" in answer_of_up(demo_data_dir)


def answer_of_up(data_dir: Path) -> str:
    """The response of ``sleb up`` to one request. SIGTERM stops it afterwards."""
    with running_up(data_dir) as (up, client):
        body = {"model": NAME, "prompt": "The capital of France is", "max_new_tokens": 2}
        text: str = client.post("/generate", json=body).json()["outputs"][0]["text"]
        up.terminate()
        assert up.wait(60) == 0
    assert processes_of(data_dir) == []
    return text


@pytest.mark.timeout(300)
def test_nothing_outlives_an_up_that_was_killed(tiny_demo_dir: Path) -> None:
    with running_up(tiny_demo_dir) as (up, _client):
        assert len(processes_of(tiny_demo_dir)) == 4
        up.kill()
        up.wait()
    wait_until(
        lambda: all(map(is_valkey, processes_of(tiny_demo_dir))),
        "the other processes have ended",
        60,
    )
    # A killed user does not stop Valkey. The next user takes it over and stops it.
    wait_until(lambda: is_stopped_by_its_next_user(tiny_demo_dir), "Valkey has stopped")


def is_stopped_by_its_next_user(data_dir: Path) -> bool:
    with embedded_valkey(data_dir):
        pass
    return processes_of(data_dir) == []


def is_valkey(command: str) -> bool:
    return "valkey-server" in command
