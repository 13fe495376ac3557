"""Creating jobs on a real server: how many may wait, and what a repeated command does."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from pruning.jobs.conditions import Conditions, QueueFull
from pruning.jobs.job import JobStatus
from pruning.jobs.keys import RECORD
from pruning.jobs.script import CREATE, create_job
from pruning.jobs.store import JobStore
from pruning.spec.prune import PruneSpec

SPEC = PruneSpec(model="tiny", num_remove=2)


def test_no_more_may_wait_than_the_terms_say(job_store: JobStore) -> None:
    first = job_store.create(SPEC, conditions=Conditions(max_queued=2))
    job_store.create(SPEC, conditions=Conditions(max_queued=2))
    with pytest.raises(QueueFull, match="the job queue is full") as refused:
        job_store.create(SPEC, conditions=Conditions(max_queued=2))
    assert refused.value.retry_after_s > 0
    assert job_store.counts()[JobStatus.QUEUED] == 2
    job_store.start(first.id, "w")
    job_store.create(SPEC, conditions=Conditions(max_queued=2))


def test_the_bound_holds_for_many_at_once(job_store: JobStore) -> None:
    def is_taken(_client: int) -> bool:
        try:
            job_store.create(SPEC, conditions=Conditions(max_queued=7))
        except QueueFull:
            return False
        return True

    with ThreadPoolExecutor(max_workers=20) as clients:
        assert sum(clients.map(is_taken, range(60))) == 7
    assert len(job_store.list(100).jobs) == 7


def test_a_command_that_is_sent_again_creates_nothing_more(
    job_store: JobStore, redis_client: redis.Redis
) -> None:
    job_id = job_store.create(SPEC).id
    record: Any = redis_client.hgetall(RECORD.format(id=job_id))
    fields = {name.decode(): value.decode() for name, value in record.items()}
    script = redis_client.register_script(CREATE)
    job_store.start(job_id, "w")
    create_job(script, fields, Conditions(max_queued=0))
    assert job_store.get(job_id).status is JobStatus.RUNNING
    assert [event.message for event in job_store.events(job_id)] == ["job created", "started by w"]
