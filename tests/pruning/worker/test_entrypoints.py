"""Workers as real processes over a real Valkey: killed, frozen, stopped, cut off."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
import redis

from pruning.checkpoints.store import CheckpointStore
from pruning.jobs.job import Job, JobStatus
from pruning.jobs.queue import DELIVERIES, PruneQueue
from pruning.jobs.store import JobStore
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec
from tests.support.exposition import Scrape
from tests.support.job_lives import REMOVAL
from tests.support.job_waits import wait_for_evaluations, wait_for_job, wait_for_status
from tests.support.processes import free_port
from tests.support.waiting import LIMIT_S, wait_until
from tests.support.worker_fixtures import Workers, is_alive
from tests.support.worker_process import DIE, FINISH, HOLD, IGNORE, OVERFLOW

SPEC = PruneSpec(
    model="tiny", num_remove=2, calibration=CalibrationSpec(Dataset.SELF, num_samples=2, seqlen=16)
)


def submit(client: redis.Redis, task: str = HOLD) -> Job:
    job = JobStore(client).create(SPEC)
    PruneQueue(client, task=task).enqueue(job.id)
    return job


def scrape(port: int) -> Scrape:
    with urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        return Scrape(page.read().decode())


def wait_for_metric(port: int, name: str, value: float, **labels: str) -> None:
    wait_until(lambda: scrape(port).value(name, **labels) == value, f"{name} at {value}")


@pytest.mark.slow
def test_a_worker_prunes_a_real_model(
    workers: Workers, redis_client: redis.Redis, job_store: JobStore, tiny_models_dir: Path
) -> None:
    assert tiny_models_dir == workers.data_dir / "models"
    job = job_store.create(SPEC)
    PruneQueue(redis_client).enqueue(job.id)
    workers.start(port := free_port())
    ended = wait_for_status(job_store, job.id, JobStatus.SUCCEEDED)
    checkpoints = CheckpointStore(workers.data_dir / "checkpoints")
    manifest = checkpoints.manifest(f"tiny@{job.id}")
    assert checkpoints.open(f"tiny@{job.id}").model.config.num_hidden_layers == 4
    assert ended.pruned_model == f"tiny@{job.id}"
    assert ended.removed_blocks == manifest.removed_blocks
    assert (ended.dense_loss, *ended.losses) == manifest.quality.losses
    assert ended.progress.evaluations_done == ended.progress.evaluations_total == 4 + 3
    assert (ended.attempt, ended.num_lost) == (1, 0)
    wait_for_metric(port, "sleb_prune_jobs_ended_total", 1, state="succeeded")
    assert scrape(port).value("sleb_prune_evaluations_total") == 4 + 3
    assert scrape(port).value("sleb_worker_up") == 1


def test_a_killed_child_is_replaced(
    workers: Workers, redis_client: redis.Redis, job_store: JobStore
) -> None:
    job = submit(redis_client)
    workers.start(port := free_port())
    (first,) = workers.wait_for_children(1)
    wait_for_evaluations(job_store, job.id, 5)
    os.kill(first, signal.SIGSTOP)  # it evaluates no more while they are counted
    wait_until(lambda: psutil.Process(first).status() == psutil.STATUS_STOPPED, "it has stopped")
    by_the_first = job_store.get(job.id).progress.evaluations_done
    os.kill(first, signal.SIGKILL)
    workers.wait_for_children(2)
    assert scrape(port).value("sleb_prune_children_lost_total") == 1
    workers.release()
    ended = wait_for_status(job_store, job.id, JobStatus.SUCCEEDED)
    assert (ended.attempt, ended.num_lost) == (2, 1)
    wait_for_metric(port, "sleb_prune_jobs_ended_total", 1, state="succeeded")
    by_both = by_the_first + ended.progress.evaluations_done
    assert scrape(port).value("sleb_prune_evaluations_total") == by_both


def test_a_child_dies_with_its_parent_and_the_next_worker_takes_over(
    workers: Workers, redis_client: redis.Redis, job_store: JobStore
) -> None:
    job = submit(redis_client)
    parent = workers.start()
    (first,) = workers.wait_for_children(1)
    parent.kill()
    wait_until(lambda: not is_alive(first), "the child dead")
    workers.start()
    workers.wait_for_children(2)
    workers.release()
    ended = wait_for_status(job_store, job.id, JobStatus.SUCCEEDED)
    assert (ended.attempt, ended.num_lost) == (2, 1)


@pytest.mark.slow
def test_a_frozen_worker_cannot_write_over_its_successor(
    workers: Workers, redis_client: redis.Redis, job_store: JobStore
) -> None:
    job = submit(redis_client)
    parent = workers.start(port := free_port())
    (first,) = workers.wait_for_children(1)
    for pid in (parent.pid, first):
        os.kill(pid, signal.SIGSTOP)
    workers.start(others_port := free_port())
    workers.wait_for_children(2)
    # the child first, alone: no parent kills it, so it ends by the result of its write
    os.kill(first, signal.SIGCONT)
    wait_until(lambda: not is_alive(first), "the child that had lost the job dead")
    os.kill(parent.pid, signal.SIGCONT)
    running = job_store.get(job.id)
    assert (running.status, running.attempt) == (JobStatus.RUNNING, 2)
    wait_for_metric(port, "sleb_prune_leases_lost_total", 1)
    assert scrape(others_port).value("sleb_prune_leases_expired_total") == 1
    workers.release()
    ended = wait_for_status(job_store, job.id, JobStatus.SUCCEEDED)
    assert (ended.attempt, len(workers.children())) == (2, 2)
    wait_for_metric(others_port, "sleb_prune_jobs_ended_total", 1, state="succeeded")
    assert scrape(port).value("sleb_prune_jobs_ended_total", state="succeeded") == 0


def test_a_stopped_worker_hands_its_job_back(
    workers: Workers, redis_client: redis.Redis, job_store: JobStore
) -> None:
    job = submit(redis_client)
    parent = workers.start()
    (first,) = workers.wait_for_children(1)
    parent.terminate()
    assert parent.wait(LIMIT_S) == 0
    assert not is_alive(first)
    assert job_store.get(job.id).status is JobStatus.QUEUED
    workers.start()
    workers.wait_for_children(2)
    workers.release()
    ended = wait_for_status(job_store, job.id, JobStatus.SUCCEEDED)
    assert (ended.attempt, ended.num_lost) == (2, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "num_done"), [(FINISH, 1), (IGNORE, 0)])
def test_a_worker_that_stops_waits_for_its_evaluation_but_not_for_ever(
    workers: Workers,
    redis_client: redis.Redis,
    job_store: JobStore,
    task: str,
    num_done: int,
) -> None:
    job = submit(redis_client, task)
    parent = workers.start()
    (child,) = workers.wait_for_children(1)
    parent.terminate()
    assert parent.wait(LIMIT_S) == 0
    assert not is_alive(child)
    left = job_store.get(job.id)
    assert (left.status, left.num_lost) == (JobStatus.QUEUED, 0)
    assert left.progress.evaluations_done == num_done


def test_an_idle_worker_stops_at_once(workers: Workers, redis_client: redis.Redis) -> None:
    parent = workers.start()

    def is_idle() -> bool:
        return any(
            redis_client.hget(key, "state") == b"idle"
            for key in redis_client.smembers("rq:workers")
        )

    wait_until(is_idle, "the worker waiting for a job")
    parent.send_signal(signal.SIGINT)
    assert parent.wait(LIMIT_S) == 0


def test_a_running_job_obeys_cancel(
    workers: Workers, redis_client: redis.Redis, job_store: JobStore
) -> None:
    job = submit(redis_client)
    workers.start()
    (child,) = workers.wait_for_children(1)
    wait_for_evaluations(job_store, job.id, 1)
    # it may have obeyed before the answer is read
    assert job_store.cancel(job.id).status in (JobStatus.CANCELLING, JobStatus.CANCELLED)
    ended = wait_for_status(job_store, job.id, JobStatus.CANCELLED)
    assert ended.progress.evaluations_done > 0
    wait_until(lambda: not is_alive(child), "the child gone")


def test_a_job_that_does_not_obey_cancel_is_killed(
    workers: Workers, redis_client: redis.Redis, job_store: JobStore
) -> None:
    job = submit(redis_client, IGNORE)
    workers.cancel_s = 1
    workers.start()
    (child,) = workers.wait_for_children(1)
    job_store.cancel(job.id)
    ended = wait_for_status(job_store, job.id, JobStatus.CANCELLED)
    assert not is_alive(child)
    assert ended.removed_blocks == (REMOVAL.block,)
    wait_until(lambda: not redis_client.llen("rq:queue:prune"), "no further delivery")


@pytest.mark.slow
def test_a_job_that_is_out_of_memory_is_tried_again_at_once(
    workers: Workers, redis_client: redis.Redis, job_store: JobStore, tiny_models_dir: Path
) -> None:
    """By the task that workers know, which has memory enough."""
    assert tiny_models_dir == workers.data_dir / "models"
    job = submit(redis_client, OVERFLOW)
    workers.start()
    ended = wait_for_status(job_store, job.id, JobStatus.SUCCEEDED)
    assert (ended.attempt, ended.num_lost, ended.num_halvings) == (2, 0, 1)
    said = [re.split(r" by |:", event.message)[0] for event in job_store.events(job.id)]
    # the sweep did not have to find it without a delivery
    assert said[:4] == ["job created", "started", "out of memory in main memory", "started"]


def test_a_job_that_kills_its_workers_fails_in_the_end(
    workers: Workers, redis_client: redis.Redis, job_store: JobStore
) -> None:
    job = submit(redis_client, DIE)
    workers.start()
    ended = wait_for_status(job_store, job.id, JobStatus.FAILED)
    assert ended.error is not None
    assert ended.error.code == "worker_lost"
    assert (ended.attempt, ended.num_lost) == (DELIVERIES, DELIVERIES)
    wait_until(lambda: not redis_client.llen("rq:queue:prune"), "no further delivery")


def test_a_recorded_job_that_was_never_enqueued_is_taken(
    workers: Workers, job_store: JobStore
) -> None:
    """Its submitter died between the two."""
    job = job_store.create(SPEC)
    workers.start()
    wait_for_job(job_store, job.id, lambda job: job.attempt == 1, "started")


def test_a_worker_waits_for_no_torch() -> None:
    """Only a child that has something to prune pays for it, in seconds and in memory."""
    check = (
        "import sys, pruning.worker.entrypoints, pruning.worker.task; print('torch' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True
    )
    assert answer.stdout == "False\n"


def test_a_child_has_no_secrets_on_its_command_line(
    workers: Workers, redis_client: redis.Redis, redis_url: str
) -> None:
    submit(redis_client)
    workers.start()
    (child,) = workers.wait_for_children(1)
    command = Path(f"/proc/{child}/cmdline").read_text()
    assert "run_child" in command
    assert redis_url.removeprefix("unix://") not in command


def test_a_child_gives_way_to_a_service_on_the_same_cpus(
    workers: Workers, redis_client: redis.Redis
) -> None:
    submit(redis_client)
    workers.start()
    (child,) = workers.wait_for_children(1)
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    wait_until(lambda: os.getpriority(os.PRIO_PROCESS, child) > ours, "the priority is lower")
