"""Deliveries without a worker: what enqueue and recover put into RQ."""

import json
import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import pytest
import redis
from rq.executions import Execution
from rq.job import Job as RQJob
from rq.job import JobStatus as DeliveryStatus
from rq.serializers import JSONSerializer

from pruning.jobs.job import JobStatus
from pruning.jobs.queue import (
    DELIVERIES,
    TASK,
    Delivery,
    DeliveryRefused,
    PruneQueue,
    Task,
    worker_lost,
)
from pruning.jobs.redis import JobStoreUnavailable, connect
from pruning.jobs.store import JobStore
from pruning.spec.prune import PruneSpec

SPEC = PruneSpec(model="tiny", num_remove=1)


@pytest.fixture
def queue(redis_client: redis.Redis) -> PruneQueue:
    return PruneQueue(redis_client)


@pytest.fixture
def job_id(job_store: JobStore) -> str:
    return job_store.create(SPEC).id


def delivery_of(client: redis.Redis, job_id: str) -> RQJob:
    return Delivery.fetch(job_id, client, JSONSerializer)


def take(queue: PruneQueue, job_id: str, lease_s: int = 60) -> None:
    """What a worker does first: take the job off the queue, then lease it."""
    client = queue.rq.connection
    client.lmove(queue.rq.key, queue.rq.intermediate_queue_key, "LEFT", "RIGHT")
    with client.pipeline() as pipeline:
        Execution.create(delivery_of(client, job_id), lease_s, pipeline)
        pipeline.execute()


def test_enqueue_twice_delivers_once(queue: PruneQueue, job_id: str) -> None:
    queue.enqueue(job_id)
    queue.enqueue(job_id)
    assert queue.rq.get_job_ids() == [job_id]


def test_a_delivery_is_plain_json(
    queue: PruneQueue, redis_client: redis.Redis, job_id: str
) -> None:
    queue.enqueue(job_id)
    data = redis_client.hget(f"rq:job:{job_id}", "data")
    assert isinstance(data, bytes)
    assert json.loads(zlib.decompress(data)) == ["pruning.worker.run_job", None, [job_id], {}]


class _Tasks(Delivery):
    tasks: ClassVar[Mapping[str, Task]] = MappingProxyType({TASK: print})


def fetched(client: redis.Redis, job_id: str, **fields: str) -> RQJob:
    for name, value in fields.items():
        client.hset(f"rq:job:{job_id}", name, value)
    return _Tasks.fetch(job_id, client, JSONSerializer)


def test_a_delivery_runs_a_task_that_the_worker_knows(
    queue: PruneQueue, redis_client: redis.Redis, job_id: str
) -> None:
    queue.enqueue(job_id)
    assert fetched(redis_client, job_id).func is print
    with pytest.raises(DeliveryRefused):  # where nothing is to run, nothing is known
        _ = delivery_of(redis_client, job_id).func


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ('["os.system", null, ["{id}"], {}]', "no task named 'os.system'"),
        ('["pruning.worker.task.run_job", null, ["{id}"], {}]', "no task named"),
        ('[["os.system"], null, ["{id}"], {}]', "no task named"),
        ('[null, null, ["{id}"], {}]', "no task named"),
        ('["pruning.worker.run_job", null, ["prn-612f1ee9a5b4c0000abcd"], {}]', "argument"),
        ('["pruning.worker.run_job", null, [], {}]', "argument"),
        ('["pruning.worker.run_job", null, ["{id}"], {"x": 1}]', "argument"),
        ('["pruning.worker.run_job"]', "data"),
        ("no JSON", "data"),
    ],
)
def test_a_delivery_of_anything_else_is_refused(
    queue: PruneQueue, redis_client: redis.Redis, job_id: str, data: str, reason: str
) -> None:
    queue.enqueue(job_id)
    delivery = fetched(redis_client, job_id, data=data.replace("{id}", job_id))
    with pytest.raises(DeliveryRefused, match=reason):
        _ = delivery.func


def test_a_delivery_whose_id_is_not_that_of_a_job_is_refused(
    queue: PruneQueue, redis_client: redis.Redis
) -> None:
    queue.rq.enqueue_call(TASK, args=("another",), job_id="another", result_ttl=60, failure_ttl=60)
    with pytest.raises(DeliveryRefused, match="argument"):
        _ = fetched(redis_client, "another").func
    redis_client.delete(queue.rq.key)


def test_a_delivery_has_no_callbacks_and_no_webhooks(
    queue: PruneQueue, redis_client: redis.Redis, job_id: str
) -> None:
    """RQ would import the former by their names, and post to the latter."""
    queue.enqueue(job_id)
    delivery = fetched(
        redis_client,
        job_id,
        success_callback_name="os.abort",
        failure_callback_name="os.abort",
        stopped_callback_name="os.abort",
        webhooks='[{"url": "http://127.0.0.1/", "statuses": ["finished"]}]',
    )
    assert delivery.success_callback is None
    assert delivery.failure_callback is None
    assert delivery.stopped_callback is None
    assert not delivery.webhooks


def test_a_delivery_has_no_time_limit(
    queue: PruneQueue, redis_client: redis.Redis, job_id: str
) -> None:
    queue.enqueue(job_id)
    assert delivery_of(redis_client, job_id).timeout == -1


def test_enqueue_without_redis_says_so() -> None:
    client = connect("unix:///nowhere/valkey.sock", num_retries=0)
    with pytest.raises(JobStoreUnavailable):
        PruneQueue(client).enqueue("prn-0")


def test_recover_delivers_what_was_only_recorded(
    queue: PruneQueue, job_store: JobStore, job_id: str
) -> None:
    queue.recover(job_store)
    assert queue.rq.get_job_ids() == [job_id]


def test_recover_leaves_a_waiting_job(queue: PruneQueue, job_store: JobStore, job_id: str) -> None:
    queue.enqueue(job_id)
    num_events = len(job_store.events(job_id))
    queue.recover(job_store)
    assert queue.rq.get_job_ids() == [job_id]
    assert len(job_store.events(job_id)) == num_events


@pytest.mark.parametrize("was_recorded", [True, False])
def test_recover_leaves_a_leased_job(
    queue: PruneQueue, job_store: JobStore, job_id: str, was_recorded: bool
) -> None:
    queue.enqueue(job_id)
    take(queue, job_id)
    delivery_of(queue.rq.connection, job_id).set_status(DeliveryStatus.STARTED)
    if was_recorded:
        job_store.start(job_id, "worker")
    before = job_store.get(job_id)
    queue.recover(job_store)
    assert job_store.get(job_id) == before
    assert queue.rq.get_job_ids() == []


def test_recover_leaves_a_job_between_queue_and_lease(
    queue: PruneQueue, job_store: JobStore, job_id: str
) -> None:
    queue.enqueue(job_id)
    queue.rq.connection.lmove(queue.rq.key, queue.rq.intermediate_queue_key, "LEFT", "RIGHT")
    queue.recover(job_store)
    assert queue.rq.get_job_ids() == []


def test_recover_delivers_a_running_job_without_a_worker(
    queue: PruneQueue, job_store: JobStore, job_id: str
) -> None:
    job_store.start(job_id, "worker")
    queue.recover(job_store)
    assert queue.rq.get_job_ids() == [job_id]
    job = job_store.get(job_id)
    assert (job.status, job.num_lost, job.worker) == (JobStatus.QUEUED, 0, None)


def test_recover_delivers_a_job_whose_delivery_has_ended(
    queue: PruneQueue, job_store: JobStore, job_id: str
) -> None:
    queue.enqueue(job_id)
    queue.rq.connection.delete(queue.rq.key)
    delivery_of(queue.rq.connection, job_id).set_status(DeliveryStatus.FINISHED)
    queue.recover(job_store)
    assert queue.rq.get_job_ids() == [job_id]
    assert delivery_of(queue.rq.connection, job_id).get_status() == "queued"


def test_recover_ends_a_cancelled_job_without_a_worker(
    queue: PruneQueue, job_store: JobStore, job_id: str
) -> None:
    job_store.start(job_id, "worker")
    job_store.cancel(job_id)
    queue.recover(job_store)
    assert job_store.get(job_id).status is JobStatus.CANCELLED
    assert queue.rq.get_job_ids() == []


def test_recover_leaves_ended_jobs(queue: PruneQueue, job_store: JobStore, job_id: str) -> None:
    attempt = job_store.start(job_id, "worker").attempt
    job_store.succeed(job_id, "tiny@x", attempt)
    queue.recover(job_store)
    assert queue.rq.get_job_ids() == []


def test_recover_pauses_a_job_whose_worker_went_before_it_obeyed(
    queue: PruneQueue, job_store: JobStore, job_id: str
) -> None:
    job_store.start(job_id, "worker")
    job_store.pause(job_id)
    queue.recover(job_store)
    job = job_store.get(job_id)
    assert (job.status, job.num_lost) == (JobStatus.PAUSED, 0)
    queue.recover(job_store)
    assert queue.rq.get_job_ids() == []


@pytest.mark.parametrize("status", [None, DeliveryStatus.FINISHED, DeliveryStatus.FAILED])
def test_a_job_is_delivered_again_once_its_delivery_is_over(
    queue: PruneQueue, job_id: str, status: DeliveryStatus | None
) -> None:
    queue.enqueue(job_id)
    queue.rq.connection.delete(queue.rq.key)
    if status is not None:
        delivery_of(queue.rq.connection, job_id).set_status(status)
    queue.enqueue(job_id)
    assert queue.rq.get_job_ids() == ([] if status is None else [job_id])


@pytest.mark.parametrize("is_running", [True, False])
def test_a_job_that_is_to_stop_is_not_handed_to_anybody(
    queue: PruneQueue, job_store: JobStore, job_id: str, is_running: bool
) -> None:
    queue.enqueue(job_id)
    queue.rq.connection.delete(queue.rq.key)
    delivery = delivery_of(queue.rq.connection, job_id)
    if is_running:
        job_store.start(job_id, "worker")
    job_store.pause(job_id)
    with queue.rq.connection.pipeline() as pipeline:
        queue.requeue(job_store, delivery, "it stops", pipeline)
        pipeline.execute()
    assert job_store.get(job_id).status is JobStatus.PAUSED
    assert queue.rq.get_job_ids() == []
    job_store.resume(job_id)
    queue.enqueue(job_id)
    assert queue.rq.get_job_ids() == [job_id]


def test_a_lost_worker_of_a_job_that_was_to_pause_is_no_reason_to_go_on(
    queue: PruneQueue, job_store: JobStore, job_id: str
) -> None:
    queue.enqueue(job_id)
    delivery = delivery_of(queue.rq.connection, job_id)
    job_store.start(job_id, "worker")
    job_store.pause(job_id)
    worker_lost(job_store, delivery)
    assert job_store.get(job_id).status is JobStatus.PAUSED
    assert not delivery.should_retry


@pytest.mark.parametrize("status", [JobStatus.QUEUED, JobStatus.PAUSED, None])
def test_what_went_back_before_its_delivery_had_ended_is_delivered_again(
    queue: PruneQueue, job_store: JobStore, job_id: str, status: JobStatus | None
) -> None:
    attempt = job_store.start(job_id, "worker").attempt
    job_store.pause(job_id)
    job_store.stopped(job_id, attempt)
    if status is JobStatus.QUEUED:
        job_store.resume(job_id)
    queue.enqueue_again(job_store, job_id if status else "prn-" + "0" * 21)
    assert queue.rq.get_job_ids() == ([job_id] if status is JobStatus.QUEUED else [])


def test_the_third_lost_worker_ends_the_job(
    queue: PruneQueue, job_store: JobStore, job_id: str
) -> None:
    queue.enqueue(job_id)
    delivery = delivery_of(queue.rq.connection, job_id)
    for num_lost in range(1, DELIVERIES):
        job_store.start(job_id, "worker")
        worker_lost(job_store, delivery)
        job = job_store.get(job_id)
        assert (job.status, job.num_lost) == (JobStatus.QUEUED, num_lost)
        assert delivery.should_retry
    job_store.start(job_id, "worker")
    worker_lost(job_store, delivery)
    ended = job_store.get(job_id)
    assert ended.status is JobStatus.FAILED
    assert ended.error is not None
    assert ended.error.code == "worker_lost"
    assert not delivery.should_retry


def test_a_lost_worker_of_an_ended_job_changes_nothing(
    queue: PruneQueue, job_store: JobStore, job_id: str
) -> None:
    queue.enqueue(job_id)
    delivery = delivery_of(queue.rq.connection, job_id)
    attempt = job_store.start(job_id, "worker").attempt
    job_store.succeed(job_id, "tiny@x", attempt)
    worker_lost(job_store, delivery)
    assert job_store.get(job_id).status is JobStatus.SUCCEEDED
    assert not delivery.should_retry


def test_the_caretaker_of_the_queue_may_die(queue: PruneQueue, redis_client: redis.Redis) -> None:
    assert queue.rq.acquire_maintenance_lock()
    assert not queue.rq.acquire_maintenance_lock()
    assert 0 < redis_client.ttl(queue.rq.registry_cleaning_key) <= queue.rq.lease_s
