"""The demo as a user runs it, on the real model: every number of its table must make sense."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.server.valkey import embedded_valkey
from tests.support.processes import environment, free_port, is_ready, processes_of, running
from tests.support.waiting import wait_until

NUM_REMOVE = 2


@pytest.mark.timeout(900)
def test_the_demo_prunes_serves_compares_and_cleans_up(demo_data_dir: Path) -> None:
    command = [sys.executable, "-m", "app", "demo", "--num-remove", str(NUM_REMOVE), "--json"]
    command += ["--port", "0"]
    ran = subprocess.run(
        command, env=environment(demo_data_dir), capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    check_job(report["job"])
    check_sides(report["dense"], report["pruned"])
    speedup = report["speedup"]
    assert speedup["ideal"] == pytest.approx(30 / 28)
    assert speedup["measured"] == pytest.approx(
        report["dense"]["tpot_s"] / report["pruned"]["tpot_s"]
    )
    for next_step in ("/docs", "/metrics", "/prune-jobs/", "curl"):
        assert next_step in ran.stderr
    assert processes_of(demo_data_dir) == []


def check_job(job: dict[str, Any]) -> None:
    assert job["status"] == "succeeded"
    evaluations = 28 + 27
    assert job["progress"] == {
        "evaluations_done": evaluations,
        "evaluations_total": evaluations,
        "ratio": 1.0,
    }
    assert len(set(job["removed_blocks"])) == NUM_REMOVE
    assert all(0 < block < 29 for block in job["removed_blocks"])
    assert job["dense_loss"] < job["losses"][0] < job["losses"][1] < job["dense_loss"] + 1


def check_sides(dense: dict[str, Any], pruned: dict[str, Any]) -> None:
    left, right = dense["model"], pruned["model"]
    assert (left["num_blocks"], right["num_blocks"]) == (30, 30 - NUM_REMOVE)
    assert left["num_parameters"] == 134_515_008
    per_block = (left["num_parameters"] - right["num_parameters"]) / NUM_REMOVE
    assert per_block == 3_540_096  # attention 884 736, feed forward 2 654 208, two norms 1 152
    assert 5 < left["perplexity"] < right["perplexity"] < 3 * left["perplexity"] < 500
    assert (left["variant"], right["variant"]) == ("dense", "pruned")
    assert "Paris" in dense["completion"]
    for side in (dense, pruned):
        assert len(side["completion"]) > 20
        assert 0 < side["ttft_s"] < 60
        assert 0 < side["tpot_s"] < 60
        # four prompts at once, 48 tokens each: the rate cannot beat four per decode step
        assert 0 < side["tokens_per_s"] <= 4 / side["tpot_s"] * 1.1


@pytest.mark.timeout(300)
def test_ctrl_c_stops_everything_that_the_demo_started(demo_data_dir: Path) -> None:
    command = [sys.executable, "-m", "app", "demo", "--port", "0"]
    with running(command, environment(demo_data_dir), stderr=subprocess.DEVNULL) as demo:
        wait_until(lambda: len(processes_of(demo_data_dir)) >= 4, "the service is up", 120)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(90) == 130
    wait_until(lambda: processes_of(demo_data_dir) == [], "all processes have ended")


@contextmanager
def running_up(data_dir: Path) -> Iterator[tuple["subprocess.Popen[bytes]", httpx2.Client]]:
    """``sleb up``, ready to answer."""
    port = free_port()
    command = [sys.executable, "-m", "app", "up", "--port", str(port)]
    with (
        running(command, environment(data_dir)) as up,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        wait_until(lambda: is_ready(client), "the API is ready", 120)
        yield up, client


@pytest.mark.timeout(300)
def test_up_serves_a_real_request_and_ends_on_sigterm(demo_data_dir: Path) -> None:
    with running_up(demo_data_dir) as (up, client):
        body = {"model": "smollm2-135m", "prompt": "The capital of France is", "max_new_tokens": 2}
        assert "Paris" in client.post("/generate", json=body).json()["outputs"][0]["text"]
        up.terminate()
        assert up.wait(60) == 0
    assert processes_of(demo_data_dir) == []


@pytest.mark.timeout(300)
def test_nothing_outlives_an_up_that_was_killed(demo_data_dir: Path) -> None:
    with running_up(demo_data_dir) as (up, _client):
        assert len(processes_of(demo_data_dir)) == 4
        up.kill()
        up.wait()
    wait_until(lambda: all(map(is_valkey, processes_of(demo_data_dir))), "the others' end", 60)
    # Users that were killed do not stop Valkey; the next one takes it over, and does.
    wait_until(lambda: is_stopped_by_its_next_user(demo_data_dir), "Valkey's end")


def is_stopped_by_its_next_user(data_dir: Path) -> bool:
    with embedded_valkey(data_dir):
        pass
    return processes_of(data_dir) == []


def is_valkey(command: str) -> bool:
    return "valkey-server" in command
