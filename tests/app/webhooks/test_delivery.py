"""Delivering webhooks to a real receiver: retries, claims that run out, several deliverers."""

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest
import redis

from app.webhooks.delivery import BACK_OFF_S, JITTER, WebhookDeliverer
from app.webhooks.sender import WebhookSender
from app.webhooks.target import address_rule
from pruning.jobs.job import Job, Webhook, WebhookEvent
from pruning.jobs.keys import OUTBOX
from pruning.jobs.outbox import WebhookOutbox
from pruning.jobs.store import JobStore
from pruning.spec.prune import PruneSpec
from tests.support.clock import Clock
from tests.support.job_lives import succeed
from tests.support.waiting import wait_until
from tests.support.webhook_receiver import SECRET, Received, Receiver, receiving, verify

SPEC = PruneSpec(model="tiny", num_remove=2)
ANY = address_rule(is_private_allowed=True)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outbox(redis_client: redis.Redis, clock: Clock) -> WebhookOutbox:
    return WebhookOutbox(redis_client, clock=clock)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def described(job: Job) -> dict[str, Any]:
    return {"id": job.id, "status": job.status.value, "pruned_model": job.pruned_model}


def delivering(
    outbox: WebhookOutbox, work: Callable[[WebhookDeliverer], Awaitable[None]], **given: Any
) -> None:
    async def main() -> None:
        deliverer = WebhookDeliverer(outbox, WebhookSender(SECRET, ANY), described, **given)
        await work(deliverer)
        await deliverer.stop(timeout_s=10)

    asyncio.run(asyncio.wait_for(main(), 100))


async def once(deliverer: WebhookDeliverer) -> None:
    await asyncio.gather(*await deliverer.claim_due())


def ended(store: JobStore, url: str, events: Sequence[WebhookEvent] = tuple(WebhookEvent)) -> str:
    job_id = store.create(SPEC, webhook=Webhook(url, tuple(events))).id
    succeed(store, job_id)
    return job_id


def test_a_message_arrives_signed_and_says_what_the_job_was_then(
    job_store: JobStore, outbox: WebhookOutbox, receiver: Receiver
) -> None:
    job_id = ended(job_store, f"{receiver.url}hook")
    delivering(outbox, once)
    told = {received.message["type"]: received for received in receiver.received}
    assert set(told) == {"prune_job.running", "prune_job.succeeded"}
    for received in told.values():
        verify(received)
    assert told["prune_job.running"].message["data"]["status"] == "running"
    message = told["prune_job.succeeded"].message
    assert message["data"] == {"id": job_id, "status": "succeeded", "pruned_model": "tiny@x"}
    assert message["timestamp"].endswith("Z")
    attempts = outbox.attempts(job_id)
    assert sorted(attempt.type for attempt in attempts) == sorted(told)
    assert {(a.number, a.response_status, a.error, a.next_attempt_at) for a in attempts} == {
        (1, 204, None, None)
    }


def test_a_failure_is_tried_again_with_growing_pauses_and_then_given_up(
    job_store: JobStore, outbox: WebhookOutbox, receiver: Receiver, clock: Clock
) -> None:
    receiver.answer = lambda _received: (503, {})
    job_id = ended(job_store, receiver.url, [WebhookEvent.SUCCEEDED])
    for number, pause_s in enumerate(BACK_OFF_S, start=1):
        delivering(outbox, once)
        attempt = outbox.attempts(job_id)[-1]
        assert (attempt.number, attempt.response_status) == (number, 503)
        assert attempt.error == "returned 503"
        assert attempt.next_attempt_at is not None
        waits_s = attempt.next_attempt_at - clock.now
        assert pause_s * (1 - JITTER) <= waits_s <= pause_s * (1 + JITTER)
        clock.now += waits_s - 0.1
        delivering(outbox, once)
        assert len(receiver.received) == number
        clock.now += 0.2
    delivering(outbox, once)
    last = outbox.attempts(job_id)[-1]
    assert (last.number, last.next_attempt_at) == (9, None)
    clock.now += 1e7
    delivering(outbox, once)
    assert len(receiver.received) == 9
    assert len({received.message_id for received in receiver.received}) == 1
    assert len({received.body for received in receiver.received}) == 1
    assert job_store.get(job_id).status == "succeeded"


def test_a_receiver_that_recovers_gets_the_message(
    job_store: JobStore, outbox: WebhookOutbox, receiver: Receiver
) -> None:
    answers = iter([500, 302, 200])
    receiver.answer = lambda _received: (next(answers), {"Location": "/elsewhere"})
    job_id = ended(job_store, receiver.url, [WebhookEvent.SUCCEEDED])
    for _ in range(5):
        delivering(outbox, once, back_off_s=[0.0] * 8)
    assert [attempt.response_status for attempt in outbox.attempts(job_id)] == [500, 302, 200]


def test_gone_is_for_ever(job_store: JobStore, outbox: WebhookOutbox, receiver: Receiver) -> None:
    receiver.answer = lambda _received: (410, {})
    job_id = ended(job_store, receiver.url, [WebhookEvent.SUCCEEDED])
    for _ in range(3):
        delivering(outbox, once, back_off_s=[0.0] * 8)
    (attempt,) = outbox.attempts(job_id)
    assert (attempt.response_status, attempt.next_attempt_at) == (410, None)


def test_what_cannot_be_described_is_an_attempt_that_failed(
    job_store: JobStore, outbox: WebhookOutbox, receiver: Receiver
) -> None:
    """Or it would be tried for ever, at every end of its claim."""
    job_id = ended(job_store, receiver.url, [WebhookEvent.SUCCEEDED])

    async def main() -> None:
        def breaks(_job: Job) -> dict[str, Any]:
            raise RuntimeError("a defect")

        deliverer = WebhookDeliverer(outbox, WebhookSender(SECRET, ANY), breaks)
        await once(deliverer)
        await deliverer.stop(0)

    asyncio.run(main())
    (attempt,) = outbox.attempts(job_id)
    assert "internal error" in str(attempt.error)
    assert attempt.next_attempt_at is not None


# ---- the loop


def test_the_loop_delivers_what_comes_while_a_slow_receiver_keeps_it_waiting(
    job_store: JobStore, outbox: WebhookOutbox, receiver: Receiver
) -> None:
    is_over = threading.Event()

    def slowly(received: Received) -> tuple[int, dict[str, str]]:
        if received.path == "/slow":
            assert is_over.wait(100)
        return 204, {}

    receiver.answer = slowly
    ended(job_store, f"{receiver.url}slow", [WebhookEvent.SUCCEEDED])

    async def work(deliverer: WebhookDeliverer) -> None:
        deliverer.start()
        await until(lambda: [got.path for got in receiver.received] == ["/slow"])
        ended(job_store, f"{receiver.url}next", [WebhookEvent.SUCCEEDED])
        await until(lambda: [got.path for got in receiver.received] == ["/slow", "/next"])
        is_over.set()

    delivering(outbox, work, poll_s=0.02)


async def until(predicate: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_until, predicate, "the receiver has it")


def test_the_loop_survives_a_store_that_is_away(
    job_store: JobStore, receiver: Receiver, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.webhooks.delivery.OUTAGE_S", 0.02)
    job_id = ended(job_store, receiver.url, [WebhookEvent.SUCCEEDED])
    with redis.Redis.from_url(redis_url) as client:
        outbox = WebhookOutbox(client)
        refusals = iter([redis.ConnectionError("away"), KeyError("a defect")])
        run = outbox._run

        def sometimes(*given: Any) -> Any:
            if refusal := next(refusals, None):
                raise refusal
            return run(*given)

        monkeypatch.setattr(outbox, "_run", sometimes)

        async def work(deliverer: WebhookDeliverer) -> None:
            deliverer.start()
            await until(lambda: len(outbox.attempts(job_id)) == 1)

        delivering(outbox, work, poll_s=0.02)


# ---- several deliverers, and one that dies


def test_two_deliverers_deliver_each_message_once(
    job_store: JobStore, receiver: Receiver, redis_url: str
) -> None:
    job_ids = [ended(job_store, receiver.url) for _ in range(40)]

    async def work(deliverer: WebhookDeliverer) -> None:
        deliverer.start()
        await until(lambda: len(receiver.received) >= 80)

    def run() -> None:
        with redis.Redis.from_url(redis_url) as client:
            delivering(WebhookOutbox(client), work, poll_s=0.01)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    ids = [received.message_id for received in receiver.received]
    assert sorted(ids) == sorted(f"msg_{job_id}_{n}" for job_id in job_ids for n in (1, 2))


DELIVERER = """
import asyncio, sys
import redis
from app.webhooks.delivery import WebhookDeliverer
from app.webhooks.sender import WebhookSender
from pruning.jobs.outbox import WebhookOutbox

async def main():
    outbox = WebhookOutbox(redis.Redis.from_url(sys.argv[1]))
    sender = WebhookSender(sys.argv[2], lambda address: True)
    deliverer = WebhookDeliverer(outbox, sender, lambda job: {"id": job.id})
    deliverer.start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_a_deliverer_that_dies_before_the_answer_is_outdone_when_its_claim_has_run_out(
    job_store: JobStore, redis_client: redis.Redis, receiver: Receiver, redis_url: str
) -> None:
    """Killed in a process of its own, while the receiver thinks."""
    is_dead = threading.Event()

    def late(_received: Received) -> tuple[int, dict[str, str]]:
        assert is_dead.wait(100)
        return 204, {}

    receiver.answer = late
    job_id = ended(job_store, receiver.url, [WebhookEvent.SUCCEEDED])
    with subprocess.Popen([sys.executable, "-c", DELIVERER, redis_url, SECRET]) as process:
        wait_until(lambda: receiver.received, "the first has sent it")
        process.send_signal(signal.SIGKILL)
        process.wait()
    is_dead.set()
    held: Any = redis_client.zrange(OUTBOX, 0, -1, withscores=True)
    ((_, held_until),) = held
    clock = Clock()
    outbox = WebhookOutbox(redis_client, clock=clock)
    for clock.now, num_received in ((held_until - 1, 1), (held_until + 1, 2), (1e10, 2)):
        delivering(outbox, once)
        assert len(receiver.received) == num_received
    assert len({received.message_id for received in receiver.received}) == 1
    (attempt,) = outbox.attempts(job_id)
    assert (attempt.number, attempt.error) == (1, None)


def test_what_has_not_arrived_when_it_stops_is_left_to_the_next(
    job_store: JobStore, outbox: WebhookOutbox, receiver: Receiver, clock: Clock
) -> None:
    is_over = threading.Event()

    def late(_received: Received) -> tuple[int, dict[str, str]]:
        assert is_over.wait(100)
        return 204, {}

    receiver.answer = late
    job_id = ended(job_store, receiver.url, [WebhookEvent.SUCCEEDED])

    async def stopped() -> None:
        deliverer = WebhookDeliverer(outbox, WebhookSender(SECRET, ANY), described)
        await deliverer.claim_due()
        await until(lambda: len(receiver.received) == 1)
        await deliverer.stop(0)

    asyncio.run(stopped())
    is_over.set()
    assert outbox.attempts(job_id) == ()
    clock.now += 61
    delivering(outbox, once)
    assert [attempt.error for attempt in outbox.attempts(job_id)] == [None]
