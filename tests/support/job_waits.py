"""Waiting for a job of a real worker. An end that the test does not wait for fails it at once."""

from collections.abc import Callable

from pruning.jobs.job import Job, JobStatus
from pruning.jobs.store import JobStore
from tests.support.waiting import wait_until

LIMIT_S = 240.0  # children of a worker get the processor after all other processes


def wait_for_job(
    store: JobStore,
    job_id: str,
    is_there: Callable[[Job], bool],
    wanted: str,
    timeout_s: float = LIMIT_S,
) -> Job:
    """The job as it was when ``is_there`` became true of it."""

    def found() -> list[Job]:
        job = store.get(job_id)
        if is_there(job):
            return [job]
        assert not job.status.is_final, f"{job_id} is {job.status}, not {wanted}: {job.error}"
        return []

    return wait_until(found, f"{job_id} is {wanted}", timeout_s)[0]


def wait_for_status(
    store: JobStore, job_id: str, status: JobStatus, timeout_s: float = LIMIT_S
) -> Job:
    return wait_for_job(store, job_id, lambda job: job.status is status, status, timeout_s)


def wait_for_end(store: JobStore, job_id: str, timeout_s: float = LIMIT_S) -> Job:
    """Whatever the end is: the test looks at it."""
    return wait_for_job(store, job_id, lambda job: job.status.is_final, "at its end", timeout_s)


def wait_for_evaluations(store: JobStore, job_id: str, num_evaluations: int) -> Job:
    return wait_for_job(
        store,
        job_id,
        lambda job: job.progress.evaluations_done >= num_evaluations,
        f"at evaluation {num_evaluations}",
    )
