"""A job record that somebody else has written is one failed job, which can be deleted."""

from collections.abc import Iterator

import pytest
import redis

from app.config import ServeSettings
from pruning.jobs import transitions
from pruning.jobs.job import JobStatus, Sink, Webhook, WebhookEvent
from pruning.jobs.keys import RECORD, STATUS_INDEX
from pruning.jobs.outbox import DeliveryAttempt, WebhookOutbox
from pruning.jobs.queue import LeasedQueue, PruneQueue
from pruning.jobs.redis import UNAVAILABLE, JobStoreUnavailable
from pruning.jobs.store import JobStore
from pruning.search.state import ScoredCandidate, SearchPlan
from tests.support.job_lives import REMOVAL, SPEC, ended
from tests.support.redis_mutations import one_changed
from tests.support.serving import LocalClient, local_api

BODY = {"model": "tiny", "num_remove": 1}
JSON = {"Accept": "application/json"}
UNKNOWN = '{"model": "tiny", "num_remove": 1, "unknown": 1}'


@pytest.fixture
def client(settings: ServeSettings, redis_url: str) -> Iterator[LocalClient]:
    with local_api(settings, redis_url, preload=("tiny",)) as client:
        yield client


@pytest.mark.parametrize("status", [JobStatus.QUEUED, JobStatus.RUNNING])
def test_a_broken_record_breaks_no_route(
    client: LocalClient, redis_client: redis.Redis, status: JobStatus
) -> None:
    good, bad = (client.post("/prune-jobs", json=BODY).json()["id"] for _ in range(2))
    redis_client.hset(RECORD.format(id=bad), mapping={"spec": UNKNOWN, "status": status})
    redis_client.hset(RECORD.format(id=bad), "status_since", "x")
    redis_client.zrem(STATUS_INDEX.format(status=JobStatus.QUEUED), bad)
    redis_client.zadd(STATUS_INDEX.format(status=status), {bad: 0})
    for path in ("/models", "/v1/models", "/metrics", "/status"):
        assert client.get(path).status_code == 200, path
    jobs = {job["id"]: job for job in client.get("/prune-jobs").json()["data"]}
    assert (jobs[good]["status"], jobs[bad]["status"]) == ("queued", "failed")
    assert jobs[bad]["error"]["code"] == "broken_record"
    assert "unknown" in client.get(f"/prune-jobs/{bad}").json()["error"]["message"]
    assert client.get(f"/prune-jobs/{bad}/events").status_code < 500
    assert client.post(f"/prune-jobs/{bad}/cancel").status_code < 500
    assert client.delete(f"/prune-jobs/{bad}").status_code < 300
    assert client.get(f"/prune-jobs/{bad}").status_code == 404
    assert not redis_client.zscore(STATUS_INDEX.format(status=status), bad)
    body = {"model": "tiny", "prompt": "a", "max_new_tokens": 1}
    assert client.post("/generate", json=body).status_code == 200


def running_job(store: JobStore, queue: PruneQueue) -> str:
    """With all that is stored of one: events, a search, messages, sinks and a lease."""
    webhook = Webhook("http://127.0.0.1:9/", (WebhookEvent.RUNNING, WebhookEvent.FAILED))
    job_id = store.create(SPEC, {"a": "b"}, webhook=webhook).id
    queue.enqueue(job_id)
    attempt = store.start(job_id, "w").attempt
    store.record(job_id, transitions.searching(SearchPlan("d1g", 2), 0, 7), attempt)
    store.record(job_id, transitions.evaluated(4, 7, (ScoredCandidate("1", 2, [1.5]),)), attempt)
    store.record(job_id, transitions.removed([REMOVAL]), attempt)
    outbox = WebhookOutbox(queue.rq.connection)
    for message in outbox.claim(1):
        told = DeliveryAttempt(message.id, message.type, 1, 0.0, 0.1, None, "away", 1e12)
        outbox.settle(message, told)
    return job_id


def routes_fail(client: LocalClient, good: str) -> Iterator[object]:
    """What is no answer that a client may get who asks for other records."""
    body = {"model": "tiny", "prompt": "a", "max_new_tokens": 1}
    of_job = ("", "/events", "/webhook-deliveries")
    asked = [
        client.post("/generate", json=body),
        *(client.get(path) for path in ("/models", "/v1/models", "/metrics", "/status")),
        *(client.get(f"/prune-jobs/{good}{rest}", headers=JSON) for rest in of_job),
    ]
    yield from (each for each in asked if each.status_code != 200)
    listed = client.get("/prune-jobs", params={"limit": 100})
    made = client.post("/prune-jobs", json=BODY)
    yield from (each for each in (listed, made) if each.status_code not in (200, 202))
    if made.status_code == 202:
        path = f"/prune-jobs/{made.json()['id']}"
        ended = [client.post(f"{path}/cancel"), client.delete(path)]
        yield from (each for each in ended if each.status_code >= 300)
    if listed.status_code == 200 and good not in listed.text:
        yield listed.text


def own_routes_fail(client: LocalClient, bad: str) -> Iterator[object]:
    """Of the record that was changed: it may be refused."""
    for path in ("", "/events", "/webhook-deliveries"):
        found = client.get(f"/prune-jobs/{bad}{path}", headers=JSON)
        if found.status_code == 500:
            yield found


def workers_fail(queue: PruneQueue, store: JobStore, client: redis.Redis) -> Iterator[object]:
    """What a worker does before it has a job."""
    try:
        queue.recover(store)
        LeasedQueue.lmove(client, queue.rq.key, None)
    except (JobStoreUnavailable, *UNAVAILABLE) as error:
        yield error


@pytest.mark.slow
def test_no_key_of_the_job_store_breaks_what_others_ask_for(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis, num_mutations: int
) -> None:
    """A third of the number, as each is followed by 17 requests."""
    store, queue = JobStore(redis_client), PruneQueue(redis_client)
    with local_api(settings, redis_url, preload=("tiny",)) as client:
        good = client.post("/prune-jobs", json=BODY, headers={"Idempotency-Key": "k"}).json()["id"]
        ended(store, JobStatus.SUCCEEDED, [Sink.STORE])
        bad = running_job(store, queue)
        keys = sorted(key for key in redis_client.scan_iter() if good.encode() not in key)
        shared = {key for key in keys if bad.encode() not in key}
        try:
            for seed in range(num_mutations // 3):
                with one_changed(redis_client, keys, seed) as key:
                    failed = [
                        *own_routes_fail(client, bad),
                        *workers_fail(queue, store, redis_client),
                        *routes_fail(client, good),
                    ]
                    if key in shared:  # where others are looked up
                        failed = [each for each in failed if getattr(each, "status_code", 0) == 500]
                    assert not failed, (seed, key, failed)
        finally:
            redis_client.flushdb()  # what was restored has no lifetime
