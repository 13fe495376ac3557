"""Searches by real workers that are killed or paused: they end as if nothing had happened."""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import redis

from pruning.checkpoints.store import CheckpointStore, Manifest
from pruning.jobs.job import Job, JobStatus
from pruning.jobs.queue import PruneQueue
from pruning.jobs.store import JobStore
from pruning.spec.prune import PruneSpec
from tests.support.job_waits import wait_for_evaluations, wait_for_status
from tests.support.long_search import EVALUATIONS, long_search
from tests.support.waiting import wait_until
from tests.support.worker_fixtures import Workers, is_alive


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


def pause(store: JobStore, job_id: str, parent: "subprocess.Popen[bytes]") -> None:
    """Wait until no process works on it, so that the GPU is free."""
    child = child_of(parent)
    assert child is not None
    assert store.pause(job_id).status is JobStatus.RUNNING
    wait_for_status(store, job_id, JobStatus.PAUSED)
    wait_until(lambda: not is_alive(child), "the child gone")
    assert store.get(job_id).num_lost == 0


def resume(store: JobStore, client: redis.Redis, job_id: str) -> None:
    store.resume(job_id)
    PruneQueue(client).enqueue(job_id)


def disturbed(
    workers: Workers, client: redis.Redis, job_id: str, victims: Sequence[str]
) -> list[int]:
    """Kill or pause as told, each time a little further on; what was done when it happened."""
    store = JobStore(client)
    parent = workers.start()
    killed_at: list[int] = []
    for step, victim in enumerate(victims, start=1):
        further = step * EVALUATIONS // (len(victims) + 1)
        wait_for_evaluations(store, job_id, further)
        if victim == "pause":
            pause(store, job_id, parent)
        else:
            kill(victim, parent)
        killed_at.append(store.get(job_id).progress.evaluations_done)
        if victim == "pause":
            resume(store, client, job_id)
        elif victim != "child":
            parent = workers.start()
    wait_for_status(store, job_id, JobStatus.SUCCEEDED)
    return killed_at


def check(workers: Workers, client: redis.Redis, spec: PruneSpec, victims: Sequence[str]) -> None:
    store = JobStore(client)
    job = submit(client, spec)
    killed_at = disturbed(workers, client, job.id, victims)
    whole = submit(client, spec)
    wait_for_status(store, whole.id, JobStatus.SUCCEEDED)
    ended = store.get(job.id)
    assert (ended.status, ended.attempt) == (JobStatus.SUCCEEDED, len(victims) + 1)
    assert found(workers.data_dir, job) == found(workers.data_dir, whole)
    resumed_at = [
        event.data["evaluations_done"]
        for event in store.events(job.id, limit=1000)
        if event.message.startswith("search resumes after")
    ]
    # whatever was recorded was not evaluated again; a last write may have been on its way
    assert len(resumed_at) == len(killed_at)
    assert all(0 <= again - at <= 1 for at, again in zip(killed_at, resumed_at, strict=True))


def found(data_dir: Path, job: Job) -> tuple[tuple[int, ...], tuple[float, ...], str]:
    checkpoints = CheckpointStore(data_dir / "checkpoints")
    manifest: Manifest = checkpoints.manifest(job.checkpoint_name)
    record = (checkpoints.path(job.checkpoint_name) / "removal.json").read_text()
    return manifest.removed_blocks, manifest.quality.losses, record


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_search_goes_on_behind_a_killed_worker_and_its_killed_child(
    workers: Workers, redis_client: redis.Redis
) -> None:
    check(workers, redis_client, long_search(workers.data_dir, num_samples=24), ["both"])


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_ten_kills_and_two_pauses_of_one_job_change_nothing(
    workers: Workers, redis_client: redis.Redis
) -> None:
    victims = ["child", "parent", "both", "pause", "child", "child", "both", "parent", "child"]
    spec = long_search(workers.data_dir)
    check(workers, redis_client, spec, [*victims, "both", "pause", "child"])
