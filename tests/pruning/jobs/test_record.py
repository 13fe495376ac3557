"""Job records that somebody else has written: a broken one is a failed job, and hides no other."""

import json
import logging
from collections.abc import Mapping
from typing import Any

import pytest
import redis

from pruning.jobs import transitions
from pruning.jobs.job import JobStatus
from pruning.jobs.keys import RECORD
from pruning.jobs.record import BROKEN, stored_job
from pruning.jobs.store import JobStore
from tests.support.job_lives import SPEC, removals
from tests.support.mutations import mutations

BROKEN_FIELDS: Mapping[str, Any] = {
    "spec": '{"model": "tiny", "num_remove": 1, "unknown": 1}',
    "created_at": "x",
    "status": "ready",
    "finished_at": "1e300",
    "removed_blocks": "1 1",
    "losses": "nan",
    "attempt": "1.5",
    "error": "[" * 200_000,
    "webhook": "[]",
    "id": "prn-000000000000000000000",
    "sink_store": "{}",
    "metadata": b"\xff",
    "heal_progress": '{"training": 5}',
}


def searched(jobs: JobStore) -> str:
    job_id = jobs.create(SPEC, {"a": "b"}).id
    jobs.start(job_id, "worker-1")
    jobs.record(job_id, transitions.evaluated(7, 20))
    jobs.record(job_id, transitions.removed(removals(1)))
    return job_id


@pytest.mark.parametrize("field", BROKEN_FIELDS)
def test_a_broken_record_is_a_failed_job_and_hides_no_other(
    job_store: JobStore,
    redis_client: redis.Redis,
    field: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    good, bad = job_store.create(SPEC), searched(job_store)
    key = RECORD.format(id=bad)
    record: Any = redis_client.hgetall(key)
    redis_client.hset(key, field, BROKEN_FIELDS[field])
    with caplog.at_level(logging.WARNING):
        broken = job_store.get(bad)
    assert broken.status is JobStatus.FAILED
    assert broken.error is not None
    assert broken.error.code == BROKEN
    assert len(caplog.messages) == 1
    assert {job.id for job in job_store.list().jobs} == {good.id, bad}
    assert job_store.get(good.id) == good
    redis_client.delete(key)
    redis_client.hset(key, mapping=record)
    assert job_store.get(bad).error is None


def test_what_is_no_hash_is_a_broken_record(job_store: JobStore, redis_client: redis.Redis) -> None:
    good, bad = job_store.create(SPEC), searched(job_store)
    key = RECORD.format(id=bad)
    record: Any = redis_client.hgetall(key)
    redis_client.delete(key)
    redis_client.set(key, "x")
    assert [job.error is None for job in job_store.list().jobs] == [False, True]
    assert job_store.get(good.id) == good
    redis_client.delete(key)
    redis_client.hset(key, mapping=record)


def test_every_record_is_a_job(
    job_store: JobStore, redis_client: redis.Redis, num_mutations: int
) -> None:
    job_id = searched(job_store)
    record: Any = redis_client.hgetall(RECORD.format(id=job_id))
    texts = {name.decode(): value.decode() for name, value in record.items()}
    num_good = 0
    for text in mutations({**texts, "spec": json.loads(texts["spec"])}, num_mutations):
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            fields = {"spec": text}
        if not isinstance(fields, dict):
            fields = {"spec": text}
        stored = {
            name.encode(errors="surrogatepass"): written(value) for name, value in fields.items()
        }
        job = stored_job(job_id, stored)
        assert job.id == job_id
        assert json.dumps(job.spec.to_dict(), allow_nan=False)
        num_good += job.error is None
    assert 0 < num_good < num_mutations


def written(value: object) -> bytes:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode(errors="surrogatepass")
