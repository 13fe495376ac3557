"""A test that waits for a job fails at once where the job ends otherwise, and says how it ended."""

import pytest

from pruning.jobs.job import JobStatus
from pruning.jobs.store import JobStore
from tests.support.job_lives import ERROR, SPEC, succeed
from tests.support.job_waits import wait_for_end, wait_for_evaluations, wait_for_status


def test_an_end_that_is_not_waited_for_is_told_with_its_error(job_store: JobStore) -> None:
    job_id = job_store.create(SPEC).id
    job_store.start(job_id, "w")
    job_store.fail(job_id, ERROR)
    with pytest.raises(
        AssertionError, match=rf"^{job_id} is failed, not succeeded: .*not_enough_text"
    ):
        wait_for_status(job_store, job_id, JobStatus.SUCCEEDED)
    with pytest.raises(AssertionError, match="is failed, not at evaluation 3: "):
        wait_for_evaluations(job_store, job_id, 3)
    assert wait_for_end(job_store, job_id).error == ERROR


def test_a_job_that_goes_on_is_waited_for(job_store: JobStore) -> None:
    job_id = job_store.create(SPEC).id
    with pytest.raises(AssertionError, match=f"after 0 s still not: {job_id} is succeeded"):
        wait_for_status(job_store, job_id, JobStatus.SUCCEEDED, timeout_s=0)
    succeed(job_store, job_id)
    assert wait_for_status(job_store, job_id, JobStatus.SUCCEEDED).pruned_model == "tiny@x"
    assert wait_for_evaluations(job_store, job_id, 2).status is JobStatus.SUCCEEDED
