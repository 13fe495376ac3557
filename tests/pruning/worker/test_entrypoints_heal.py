"""Healing jobs of real workers that are killed: they end as if nothing had happened."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from pruning.checkpoints.store import CheckpointStore, Manifest, verify
from pruning.healing.record import Run
from pruning.jobs.job import Job, JobStatus
from pruning.jobs.queue import PruneQueue
from pruning.jobs.store import JobStore
from pruning.models.names import healed_name
from pruning.spec.prune import PruneSpec
from tests.support.deaths import Death, When, plan_death
from tests.support.healing import HEAL, NAME, Healed
from tests.support.waiting import wait_until
from tests.support.worker_fixtures import Workers

NUM_STEPS = 30
STEP, SAVE, DISCARD = (
    "pruning.healing.train:Training._step",
    "pruning.healing.state:save_file",  # behind every tenth step of this healing
    "pruning.healing.places:HealedPlaces.discard_state",
)
IN_THE_FIRST_SAVE = Death(SAVE, when=When.HALF_WRITTEN)
DEATHS = (
    Death("pruning.heal_checkpoint:load_dense_model", takes_parent=True),
    Death("pruning.heal_checkpoint:healing_windows", when=When.AFTER),
    Death(STEP, 6),  # before the first saved state
    Death(SAVE, 2, When.AFTER),  # the state is written, but not in its place
    Death(STEP, 17, takes_parent=True),  # between two saves
    Death(SAVE, 5, When.AFTER),  # behind four of the healing: the control has ended
    Death("pruning.heal_checkpoint:assess_healed", when=When.AFTER),
    Death("pruning.heal_checkpoint:copy_companions"),  # only the merged weights are written
    Death("pruning.heal_checkpoint:verify_portable", takes_parent=True),  # all is written
    Death(DISCARD),  # the checkpoint is visible
    Death(DISCARD, when=When.AFTER),  # only the end of the job is not recorded
)


def submit(data_dir: Path, client: redis.Redis, source: Manifest, death: Death) -> Job:
    spec = replace(PruneSpec.from_dict(source.spec), heal=HEAL)
    job = JobStore(client).create(spec, source=NAME)
    plan_death(data_dir, job.id, death)
    PruneQueue(client).enqueue(job.id)
    return job


def run(workers: Workers, client: redis.Redis, jobs: Sequence[Job]) -> list[Job]:
    """Wait for the end of all, with another worker in place of each one that is killed."""
    store, worker = JobStore(client), workers.start()

    def have_ended() -> bool:
        nonlocal worker
        if worker.poll() is not None:
            worker = workers.start()
        return all(store.get(job.id).status.is_final for job in jobs)

    wait_until(have_ended, "the end of all jobs", timeout_s=2400)
    return [store.get(job.id) for job in jobs]


def check(data_dir: Path, job: Job, undisturbed: Manifest) -> None:
    """The job has healed as the undisturbed run has, in a later attempt."""
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.attempt > 1
    manifest = verify(data_dir / "checkpoints" / healed_name(job.checkpoint_name))
    found, whole = manifest.healing, undisturbed.healing
    assert found is not None
    assert whole is not None
    assert held_out(found.run) == pytest.approx(held_out(whole.run), abs=1e-3)
    assert found.control is not None
    assert whole.control is not None
    assert held_out(found.control) == pytest.approx(held_out(whole.control), abs=1e-3)
    for domain, other in zip(manifest.quality.domains, undisturbed.quality.domains, strict=True):
        one, other_one = domain.healed[-1], other.healed[-1]
        assert one is not None
        assert other_one is not None
        assert one.loss == pytest.approx(other_one.loss, abs=1e-3)


def held_out(run: Run) -> list[float]:
    """All of its losses, in order."""
    return [check.loss for check in run.checks]


def kill_and_check(
    workers: Workers, client: redis.Redis, healed: Healed, deaths: Sequence[Death]
) -> list[Job]:
    data_dir = workers.data_dir
    for folder in ("models", "checkpoints"):
        shutil.copytree(
            healed.data_dir / folder, data_dir / folder, ignore=shutil.ignore_patterns("*+*")
        )
    jobs = run(workers, client, [submit(data_dir, client, healed.pruned, each) for each in deaths])
    assert not list(data_dir.glob("*.death"))
    for job, death in zip(jobs, deaths, strict=True):
        print(death.name)  # noqa: T201 - which one, if a check fails
        check(data_dir, job, healed.manifest)
    checkpoints = CheckpointStore(data_dir / "checkpoints")
    names = {NAME, *(healed_name(job.checkpoint_name) for job in jobs)}
    assert set(checkpoints.names()) == names
    assert {path.name for path in checkpoints.path(NAME).parent.iterdir()} <= {*names, ".staging"}
    assert not list(data_dir.glob("checkpoints/.staging/*"))
    return jobs


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_healing_goes_on_behind_a_worker_that_was_killed_while_it_wrote_its_state(
    workers: Workers, redis_client: redis.Redis, healed: Healed
) -> None:
    kill_and_check(workers, redis_client, healed, [IN_THE_FIRST_SAVE])


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_healing_goes_on_behind_a_worker_that_was_killed_at_any_moment(
    workers: Workers, redis_client: redis.Redis, healed: Healed
) -> None:
    jobs = kill_and_check(workers, redis_client, healed, DEATHS)
    last = JobStore(redis_client).events(jobs[-1].id, limit=1000)
    checks = [event.data["heal"]["training"] for event in last if "heal" in event.data]
    assert checks.count("healed") == NUM_STEPS // HEAL.steps_per_check  # not trained again
