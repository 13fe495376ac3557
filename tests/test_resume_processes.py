"""Searches by real workers that are killed in the middle: they end as if nothing had happened."""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import redis

from pruning.checkpoints import CheckpointStore, Manifest
from pruning.job import Job, JobStatus
from pruning.jobs import JobStore
from pruning.queue import PruneQueue
from pruning.spec import CalibrationSpec, Dataset, PruneSpec
from tests.tiny_directory import write_tiny_model
from tests.waiting import wait_until
from tests.worker_fixtures import Workers

NUM_BLOCKS, NUM_REMOVE = 14, 5
EVALUATIONS = 12 + 11 + 10 + 9 + 8


@pytest.fixture
def spec(workers: Workers) -> PruneSpec:
    """Of a search that takes some seconds, on one thread as the workers have it."""
    write_tiny_model(workers.data_dir / "models" / "tiny", num_blocks=NUM_BLOCKS)
    text = workers.data_dir / "text.txt"
    text.write_text("\n".join(f"{number} lazy dogs, {7 * number} foxes" for number in range(9000)))
    calibration = CalibrationSpec(Dataset.FILE, num_samples=128, seqlen=128, path=str(text))
    return PruneSpec("tiny", num_remove=NUM_REMOVE, calibration=calibration, evaluate=False)


def submit(client: redis.Redis, spec: PruneSpec) -> Job:
    job = JobStore(client).create(spec)
    PruneQueue(client).enqueue(job.id)
    return job


def child_of(parent: "subprocess.Popen[bytes]") -> int | None:
    children = psutil.Process(parent.pid).children()
    return children[0].pid if children else None


def kill(victims: str, parent: "subprocess.Popen[bytes]") -> None:
    """The child, its parent (which takes it along), or one right after the other."""
    child = child_of(parent)
    if victims in {"child", "both"} and child is not None:
        os.kill(child, signal.SIGKILL)
    if victims in {"parent", "both"}:
        parent.kill()
        parent.wait()


def disturbed(workers: Workers, store: JobStore, job_id: str, victims: Sequence[str]) -> list[int]:
    """Kill as told, each time a little further on; what was done when it happened."""
    parent = workers.start()
    killed_at: list[int] = []
    for step, victim in enumerate(victims, start=1):
        further = step * EVALUATIONS // (len(victims) + 1)

        def has_got_further(further: int = further) -> bool:
            return store.get(job_id).progress.evaluations_done >= further

        wait_until(has_got_further, f"{further} evaluations", timeout_s=90)
        kill(victim, parent)
        killed_at.append(store.get(job_id).progress.evaluations_done)
        if victim != "child":
            parent = workers.start()
    wait_until(lambda: store.get(job_id).status.is_final, "the end", timeout_s=90)
    return killed_at


def check(workers: Workers, client: redis.Redis, spec: PruneSpec, victims: Sequence[str]) -> None:
    store = JobStore(client)
    job = submit(client, spec)
    killed_at = disturbed(workers, store, job.id, victims)
    whole = submit(client, spec)
    wait_until(lambda: store.get(whole.id).status.is_final, "the undisturbed job", timeout_s=90)
    ended = store.get(job.id)
    assert (ended.status, ended.attempt) == (JobStatus.SUCCEEDED, len(victims) + 1)
    assert found(workers.data_dir, job) == found(workers.data_dir, whole)
    resumed_at = [
        event.data["evaluations_done"]
        for event in store.events(job.id, limit=1000)
        if event.message.startswith("search goes on behind")
    ]
    # whatever was recorded was not evaluated again; a last write may have been on its way
    assert len(resumed_at) == len(killed_at)
    assert all(0 <= again - at <= 1 for at, again in zip(killed_at, resumed_at, strict=True))


def found(data_dir: Path, job: Job) -> tuple[tuple[int, ...], tuple[float, ...], str]:
    checkpoints = CheckpointStore(data_dir / "checkpoints")
    manifest: Manifest = checkpoints.manifest(job.checkpoint_name)
    record = (checkpoints.path(job.checkpoint_name) / "removal.json").read_text()
    return manifest.removed_blocks, manifest.quality.losses, record


@pytest.mark.timeout(400)
def test_a_search_goes_on_behind_a_killed_child_and_a_killed_worker(
    workers: Workers, redis_client: redis.Redis, spec: PruneSpec
) -> None:
    check(workers, redis_client, spec, ["child", "parent"])


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_ten_kills_of_one_job_change_nothing(
    workers: Workers, redis_client: redis.Redis, spec: PruneSpec
) -> None:
    victims = ["child", "parent", "both", "child", "child", "both", "parent", "child", "both"]
    check(workers, redis_client, spec, [*victims, "child"])
