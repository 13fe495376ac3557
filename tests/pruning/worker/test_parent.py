"""The parent of a worker, called in this process: leases that ran out, were lost, or are held."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from traceback import walk_stack

import pytest
import redis
from rq.executions import Execution
from rq.job import Job as RQJob
from rq.job import JobStatus as DeliveryStatus
from rq.serializers import JSONSerializer

from pruning.jobs.job import JobStatus, StopRequest
from pruning.jobs.queue import Delivery, PruneQueue
from pruning.jobs.redis import connect
from pruning.jobs.store import JobStore
from pruning.spec.prune import PruneSpec
from pruning.worker.parent import PruneWorker
from tests.support.waiting import LIMIT_S, wait_until

LONGER_THAN_THE_SERVER_IS_UP_S = 10**9


@pytest.fixture
def delivery(redis_client: redis.Redis, job_store: JobStore) -> RQJob:
    """A job that a worker has taken and started, as RQ and the record have it."""
    job = job_store.create(PruneSpec(model="tiny", num_remove=1))
    queue = PruneQueue(redis_client)
    queue.enqueue(job.id)
    redis_client.delete(queue.rq.key)
    job_store.start(job.id, "a worker")
    taken = Delivery.fetch(job.id, redis_client, JSONSerializer)
    taken.set_status(DeliveryStatus.STARTED)
    return taken


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "60"], process_group=0) as process:
        yield process
        process.kill()


def registered(client: redis.Redis) -> PruneWorker:
    worker = PruneWorker("worker", client, lease_s=15)
    worker.register_birth()  # type: ignore[no-untyped-call]  # so it is in RQ
    return worker


def lease(delivery: RQJob, client: redis.Redis, lease_s: int = 60) -> Execution:
    with client.pipeline() as pipeline:
        execution = Execution.create(delivery, lease_s, pipeline)
        pipeline.execute()
    return execution


def let_it_run_out(delivery: RQJob, client: redis.Redis) -> None:
    execution = lease(delivery, client)
    past = {execution.composite_key: time.time() - 1}
    client.zadd(delivery.started_job_registry.key, past)


def test_a_lease_that_ran_out_sends_the_job_back(
    delivery: RQJob, redis_client: redis.Redis, job_store: JobStore
) -> None:
    let_it_run_out(delivery, redis_client)
    worker = PruneWorker("worker", redis_client, lease_s=1)

    def is_sent_back() -> bool:
        worker.clean_registries()  # does nothing until the server has been up for a lease
        return job_store.get(delivery.id).status is not JobStatus.RUNNING

    wait_until(is_sent_back, "the job taken from its worker")
    job = job_store.get(delivery.id)
    assert (job.status, job.num_lost) == (JobStatus.QUEUED, 1)
    assert worker.queues[0].get_job_ids() == [delivery.id]


def test_a_lease_that_could_not_be_renewed_while_redis_was_away_is_kept(
    delivery: RQJob, redis_client: redis.Redis, job_store: JobStore
) -> None:
    let_it_run_out(delivery, redis_client)
    worker = PruneWorker("worker", redis_client, lease_s=LONGER_THAN_THE_SERVER_IS_UP_S)
    worker.clean_registries()
    assert job_store.get(delivery.id).status is JobStatus.RUNNING
    assert worker.queues[0].get_job_ids() == []


def test_the_child_of_a_lost_lease_is_killed(
    delivery: RQJob, redis_client: redis.Redis, child: "subprocess.Popen[bytes]"
) -> None:
    """Long phases write nothing, so a child may not see by itself that the job is gone."""
    worker = registered(redis_client)
    execution = lease(delivery, redis_client)
    worker._horse_pid = child.pid
    worker.maintain_heartbeats(delivery, execution)
    assert child.poll() is None
    redis_client.delete(delivery.started_job_registry.key)
    worker.maintain_heartbeats(delivery, execution)
    assert child.wait(LIMIT_S) == -signal.SIGKILL


def test_a_child_that_has_paused_its_job_and_given_the_lease_back_may_end_by_itself(
    delivery: RQJob,
    redis_client: redis.Redis,
    job_store: JobStore,
    child: "subprocess.Popen[bytes]",
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = registered(redis_client)
    execution = lease(delivery, redis_client)
    worker._horse_pid = child.pid
    job_store.pause(delivery.id)
    job_store.requeue(delivery.id, "paused", is_lost=False)
    assert job_store.get(delivery.id).status is JobStatus.PAUSED
    redis_client.delete(delivery.started_job_registry.key)
    worker.maintain_heartbeats(delivery, execution)
    assert (child.poll(), caplog.text) == (None, "")


def test_a_stopping_worker_asks_its_child_to_end_for_certain(
    delivery: RQJob, redis_client: redis.Redis, child: "subprocess.Popen[bytes]"
) -> None:
    """The alarm by which RQ interrupts its wait can interrupt the handler of SIGTERM as well."""
    worker = registered(redis_client)
    worker._horse_pid = child.pid
    worker.is_stopping = True
    worker.maintain_heartbeats(delivery, lease(delivery, redis_client))
    assert child.wait(LIMIT_S) == -signal.SIGTERM


@pytest.mark.parametrize("request_", StopRequest)
def test_a_child_that_does_not_stop_as_asked_is_killed(
    delivery: RQJob,
    redis_client: redis.Redis,
    job_store: JobStore,
    child: "subprocess.Popen[bytes]",
    request_: StopRequest,
) -> None:
    worker = registered(redis_client)
    execution = lease(delivery, redis_client)
    worker._horse_pid, worker.cancel_s = child.pid, 0.2
    is_pause = request_ is StopRequest.PAUSE
    (job_store.pause if is_pause else job_store.cancel)(delivery.id)
    worker.maintain_heartbeats(delivery, execution)
    assert child.poll() is None

    def is_killed() -> bool:
        worker.maintain_heartbeats(delivery, execution)
        return child.poll() is not None

    wait_until(is_killed, "the child killed")
    worker.handle_job_failure(delivery, worker.queues[0], execution=execution)
    job, told = job_store.get(delivery.id), job_store.events(delivery.id)[-1].message
    assert job.status is (JobStatus.PAUSED if is_pause else JobStatus.CANCELLED)
    assert job.num_lost == 0
    assert told.endswith("killed: it did not stop within 0.2 s")
    assert worker.queues[0].get_job_ids() == []
    assert not redis_client.exists(delivery.key)


def test_a_child_that_is_asked_no_longer_has_all_its_time_again(
    delivery: RQJob,
    redis_client: redis.Redis,
    job_store: JobStore,
    child: "subprocess.Popen[bytes]",
) -> None:
    worker = registered(redis_client)
    execution = lease(delivery, redis_client)
    worker._horse_pid = child.pid
    job_store.pause(delivery.id)
    worker.maintain_heartbeats(delivery, execution)
    job_store.resume(delivery.id)
    worker.maintain_heartbeats(delivery, execution)
    asked_since = worker._stop_requested_s
    worker.cancel_s = 0
    worker.maintain_heartbeats(delivery, execution)
    assert (asked_since, child.poll()) == (None, None)


def is_waiting_for_its_child() -> bool:
    """Of the main thread."""
    stack = walk_stack(sys._current_frames()[threading.main_thread().ident or 0])
    return any(frame.f_code is PruneWorker.wait_for_horse.__code__ for frame, _ in stack)


def test_a_signal_that_another_thread_got_is_noticed(
    redis_client: redis.Redis, child: "subprocess.Popen[bytes]"
) -> None:
    class NoticedError(Exception):
        pass

    def notice(_number: int, _frame: object) -> None:
        raise NoticedError

    def signal_itself() -> None:
        wait_until(is_waiting_for_its_child, "the main thread waits for the child")
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    worker = PruneWorker("worker", redis_client, lease_s=15, is_child=True)
    worker._horse_pid = child.pid
    before = signal.signal(signal.SIGUSR1, notice)
    threading.Thread(target=signal_itself).start()
    try:
        with pytest.raises(NoticedError):
            worker.wait_for_horse()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_end_of_a_child_is_seen(redis_client: redis.Redis) -> None:
    worker = PruneWorker("worker", redis_client, lease_s=15, is_child=True)
    child = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 3"], {})
    worker._horse_pid = child
    pid, status, _usage = worker.wait_for_horse()
    assert status is not None
    assert (pid, os.waitstatus_to_exitcode(status)) == (child, 3)
    assert worker.wait_for_horse() == (None, None, None)


def test_a_worker_without_a_child_kills_no_process() -> None:
    """Process group 0 would be its own, so a process of its own tries it."""
    attempt = (
        "from pruning.jobs.redis import connect\n"
        "from pruning.worker.parent import PruneWorker\n"
        "away = connect('unix:///nowhere', num_retries=0)\n"
        "PruneWorker('worker', away, lease_s=15, is_child=True).kill_horse()\n"
    )
    done = subprocess.run([sys.executable, "-c", attempt], process_group=0, check=False)
    assert done.returncode == 0


def test_a_child_that_died_before_it_had_started_leaves_nothing_behind(
    delivery: RQJob, redis_client: redis.Redis
) -> None:
    """Its job would be found, and delivered once more, when it has long been running again."""
    worker = registered(redis_client)
    queue = worker.queues[0]
    redis_client.rpush(queue.intermediate_queue_key, delivery.id)
    worker.handle_job_failure(delivery, queue, execution=lease(delivery, redis_client))
    assert queue.intermediate_queue.get_job_ids() == []
    assert queue.get_job_ids() == [delivery.id]


def test_a_heartbeat_may_fail(delivery: RQJob, redis_client: redis.Redis) -> None:
    execution = lease(delivery, redis_client)
    away = connect("unix:///nowhere/valkey.sock", num_retries=0)
    worker = PruneWorker("worker", away, lease_s=15, is_child=True)
    worker.maintain_heartbeats(delivery, execution)


def test_a_second_delivery_of_a_leased_job_is_dropped(
    delivery: RQJob, redis_client: redis.Redis, job_store: JobStore
) -> None:
    lease(delivery, redis_client)
    worker = registered(redis_client)
    queue = worker.queues[0]
    redis_client.rpush(queue.intermediate_queue_key, delivery.id)
    worker.execute_job(delivery, queue)
    assert queue.intermediate_queue.get_job_ids() == []
    assert job_store.get(delivery.id).attempt == 1


def test_the_log_does_not_call_a_child_that_was_told_to_stop_unexpected() -> None:
    away = connect("unix:///nowhere", num_retries=0)
    worker = PruneWorker("worker", away, lease_s=15, is_child=True)
    of_rq = logging.makeLogRecord({"msg": "job failed (Work-horse terminated unexpectedly; 9)"})
    assert worker.is_news(of_rq)
    worker.is_stopping = True
    assert not worker.is_news(of_rq)
    assert worker.is_news(logging.makeLogRecord({"msg": "anything else"}))
