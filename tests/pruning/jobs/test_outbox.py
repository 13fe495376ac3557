"""The outbox on a real server: written with the status, claimed by one, kept until settled."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pruning.checkpoints.store import CheckpointStore
from pruning.jobs.deletion import JobDeletion
from pruning.jobs.job import (
    FINAL_EVENTS,
    IllegalTransition,
    JobError,
    JobStatus,
    Webhook,
    WebhookEvent,
)
from pruning.jobs.keys import MESSAGES, OUTBOX
from pruning.jobs.outbox import MAX_ATTEMPTS_KEPT, DeliveryAttempt, Message, WebhookOutbox
from pruning.jobs.store import JobStore
from tests.support.clock import Clock
from tests.support.job_lives import CHANGES, SPEC, succeed

URL = "https://hooks.example/x?team=a"
ALL = Webhook(URL, tuple(WebhookEvent))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outbox(redis_client: redis.Redis, clock: Clock) -> WebhookOutbox:
    return WebhookOutbox(redis_client, clock=clock)


def failed(
    message: Message, next_attempt_at: float | None, error: str | None = "x"
) -> DeliveryAttempt:
    number = message.num_attempts + 1
    return DeliveryAttempt(message.id, message.type, number, 1.0, 0.5, 500, error, next_attempt_at)


# ---- what is written


def test_every_status_has_its_event_and_no_other() -> None:
    assert [f"prune_job.{status}" for status in JobStatus] == list(WebhookEvent)
    finals = [status for status in JobStatus if status.is_final]
    assert [f"prune_job.{status}" for status in finals] == list(FINAL_EVENTS)


LIVES: list[tuple[Callable[[JobStore, str], object], list[str]]] = [
    (succeed, ["running", "succeeded"]),
    (lambda store, job_id: store.fail(job_id, JobError("x", "y")), ["failed"]),
    (lambda store, job_id: store.cancel(job_id), ["cancelled"]),
    (
        lambda store, job_id: (store.start(job_id, "w"), store.cancel(job_id)),
        ["running", "cancelling"],
    ),
    (
        lambda store, job_id: (
            store.start(job_id, "w"),
            store.start(job_id, "takes over"),
            store.requeue(job_id, "requeued", is_lost=False),
        ),
        ["running", "queued"],
    ),
]


@pytest.mark.parametrize(("live", "statuses"), LIVES)
def test_each_change_of_the_status_is_a_message(
    job_store: JobStore,
    outbox: WebhookOutbox,
    live: Callable[[JobStore, str], object],
    statuses: list[str],
) -> None:
    job = job_store.create(SPEC, {"team": "ä"}, webhook=ALL)
    assert job.webhook == job_store.get(job.id).webhook == ALL
    assert outbox.claim(10) == ()
    live(job_store, job.id)
    messages = outbox.claim(10)
    assert [message.type for message in messages] == [f"prune_job.{s}" for s in statuses]
    assert [message.id for message in messages] == [
        f"msg_{job.id}_{number}" for number in range(1, len(statuses) + 1)
    ]
    for message, status in zip(messages, statuses, strict=True):
        assert message.job_id == job.id
        assert message.job.status.value == status  # as it was, and not as it is now
        assert message.job.webhook == ALL
    assert messages[-1].job == job_store.get(job.id)


def test_only_the_events_that_were_asked_for_are_messages(
    job_store: JobStore, outbox: WebhookOutbox
) -> None:
    by_default, paused = Webhook(URL), Webhook(URL, (WebhookEvent.PAUSED,))
    for webhook in (by_default, paused, None):
        succeed(job_store, job_store.create(SPEC, webhook=webhook).id)
    assert [message.type for message in outbox.claim(10)] == ["prune_job.succeeded"]


def test_a_refused_change_sends_nothing(job_store: JobStore, outbox: WebhookOutbox) -> None:
    job_id = job_store.create(SPEC, webhook=ALL).id
    job_store.cancel(job_id)
    for _ in range(2):
        with pytest.raises(ValueError, match="cannot start job"):
            job_store.start(job_id, "w")
    assert len(outbox.claim(10)) == 1


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.sampled_from(sorted(CHANGES)), max_size=12))
def test_whatever_happens_every_change_of_the_status_is_told_once(
    job_store: JobStore, outbox: WebhookOutbox, redis_client: redis.Redis, names: list[str]
) -> None:
    redis_client.flushdb()
    job_id = job_store.create(SPEC, webhook=ALL).id
    statuses = [JobStatus.QUEUED]
    for name in names:
        with suppress(IllegalTransition):
            CHANGES[name](job_store, job_id)
        if (status := job_store.get(job_id).status) is not statuses[-1]:
            statuses.append(status)
    messages = sorted(outbox.claim(100), key=lambda message: int(message.id.split("_")[2]))
    assert [message.job.status for message in messages] == statuses[1:]
    assert [message.type for message in messages] == [f"prune_job.{s}" for s in statuses[1:]]


# ---- claims


def ended(store: JobStore, number: int = 1) -> None:
    for _ in range(number):
        store.cancel(store.create(SPEC, webhook=ALL).id)


def test_of_many_at_once_each_message_has_one_claim(
    job_store: JobStore, outbox: WebhookOutbox
) -> None:
    ended(job_store, 30)
    with ThreadPoolExecutor(8) as pool:
        claimed = [m.id for found in pool.map(outbox.claim, [7] * 8) for m in found]
    assert len(claimed) == len(set(claimed)) == 30
    assert outbox.claim(10) == ()


def test_a_claim_that_is_not_settled_runs_out(
    job_store: JobStore, outbox: WebhookOutbox, clock: Clock
) -> None:
    ended(job_store)
    (first,) = outbox.claim(10)
    clock.now += 59
    assert outbox.claim(10) == ()
    clock.now += 2
    assert outbox.claim(10) == (first,)


def test_a_failure_is_tried_again_when_it_is_due_and_a_success_never(
    job_store: JobStore, outbox: WebhookOutbox, clock: Clock, redis_client: redis.Redis
) -> None:
    ended(job_store)
    (message,) = outbox.claim(10)
    outbox.settle(message, failed(message, clock.now + 300))
    clock.now += 299
    assert outbox.claim(10) == ()
    clock.now += 2
    (again,) = outbox.claim(10)
    assert again == replace(message, num_attempts=1)
    outbox.settle(again, failed(again, None, error=None))
    clock.now += 1e6
    assert outbox.claim(10) == ()
    assert redis_client.exists(OUTBOX, MESSAGES.format(id=message.job_id)) == 0
    assert [attempt.number for attempt in outbox.attempts(message.job_id)] == [1, 2]


def test_a_claim_that_has_run_out_cannot_put_a_message_off(
    job_store: JobStore, outbox: WebhookOutbox, clock: Clock
) -> None:
    ended(job_store)
    (late,) = outbox.claim(10)
    clock.now += 61
    (message,) = outbox.claim(10)
    outbox.settle(message, failed(message, clock.now + 5))
    outbox.settle(late, failed(late, clock.now + 1000))
    clock.now += 6
    (again,) = outbox.claim(10)
    assert again.num_attempts == 1
    assert len(outbox.attempts(message.job_id)) == 1
    outbox.settle(late, failed(late, None, error=None))  # but it may have delivered it
    clock.now += 1000
    assert outbox.claim(10) == ()
    outbox.settle(again, failed(again, clock.now))
    assert outbox.claim(10) == ()


# ---- the log, and the end


def test_the_log_is_bounded(job_store: JobStore, outbox: WebhookOutbox, clock: Clock) -> None:
    ended(job_store)
    for _ in range(MAX_ATTEMPTS_KEPT + 5):
        (message,) = outbox.claim(10)
        outbox.settle(message, failed(message, clock.now))
    attempts = outbox.attempts(message.job_id)
    assert [attempt.number for attempt in attempts] == list(range(6, MAX_ATTEMPTS_KEPT + 6))
    assert attempts[-1] == failed(message, clock.now)


def test_nothing_is_left_of_a_deleted_job_and_nothing_comes_back(
    job_store: JobStore,
    outbox: WebhookOutbox,
    redis_client: redis.Redis,
    clock: Clock,
    checkpoint_store: CheckpointStore,
) -> None:
    gone, other = (job_store.create(SPEC, webhook=ALL).id for _ in range(2))
    for job_id in (gone, other):
        succeed(job_store, job_id)
    first, on_its_way, *_ = outbox.claim(10)
    outbox.settle(first, failed(first, clock.now + 5))
    JobDeletion(redis_client, job_store, checkpoint_store).delete(gone)
    outbox.settle(on_its_way, failed(on_its_way, clock.now + 5))
    assert redis_client.keys(f"*{gone}*") == []
    clock.now += 100
    assert {message.job_id for message in outbox.claim(10)} == {other}
    assert not any(gone in str(member) for member in redis_client.zrange(OUTBOX, 0, -1))


def test_a_message_whose_job_is_deleted_while_it_is_claimed_is_no_message(
    job_store: JobStore, outbox: WebhookOutbox, redis_client: redis.Redis
) -> None:
    ended(job_store, 2)
    kept, gone = (job.id for job in job_store.list().jobs)
    redis_client.delete(MESSAGES.format(id=gone))  # between the claim and the reading
    assert [message.job_id for message in outbox.claim(10)] == [kept]


@pytest.fixture
def checkpoint_store(tmp_path_factory: pytest.TempPathFactory) -> CheckpointStore:
    return CheckpointStore(tmp_path_factory.mktemp("checkpoints"))


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"{}", b"\xff", b'{"type": 5, "created_at": 1, "num_attempts": 0}'],
)
def test_a_broken_message_keeps_no_other_waiting(
    job_store: JobStore, redis_client: redis.Redis, outbox: WebhookOutbox, clock: Clock, text: bytes
) -> None:
    bad, good = (job_store.create(SPEC, webhook=ALL).id for _ in range(2))
    for job_id in (bad, good):
        job_store.cancel(job_id)
    redis_client.hset(MESSAGES.format(id=bad), f"msg_{bad}_1", text)
    redis_client.zadd(OUTBOX, {b"\xff": 0, b"x": 0, b"msg_x_1": 0})
    claimed = list(outbox.claim(10))
    clock.now += 1e6
    claimed += outbox.claim(10)
    assert {message.job_id for message in claimed} == {good}
    left: Any = redis_client.zrange(OUTBOX, 0, -1)
    assert left == [f"msg_{good}_1".encode()]
    redis_client.delete(OUTBOX)
