"""Webhooks over HTTP: taken or refused at once, told of the end, listed, deleted with their job."""

import json
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from standardwebhooks import WebhookVerificationError

from app.config import ServeSettings
from app.main import create_app
from pruning.jobs.job import JobError, JobStatus, WebhookEvent
from pruning.jobs.store import JobStore
from tests.support.api_fixtures import publish_pruned
from tests.support.job_lives import succeed
from tests.support.pages import GUIDES, blocks
from tests.support.prune_requests import JOB, submit
from tests.support.serving import LocalClient, local_api
from tests.support.waiting import wait_until
from tests.support.webhook_receiver import SECRET, Receiver, receiving, verify


@pytest.fixture
def settings(data_dir: Path) -> ServeSettings:
    return ServeSettings(
        data_dir=data_dir,
        preload=(),
        drain_s=0,
        webhook_secret=SECRET,
        webhook_allow_private=True,
    )


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def deliveries(client: TestClient, job: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(job["urls"]["webhook_deliveries"]).json()["data"]
    return found


def refused(client: TestClient, **webhook: Any) -> dict[str, Any]:
    body = json.dumps({**JOB, "webhook": webhook})  # of any text, as a client may send it
    answer = client.post("/prune-jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert client.get("/prune-jobs").json()["data"] == []
    problem: dict[str, Any] = answer.json()
    return problem


# ---- told


def test_the_end_of_a_job_is_told_as_the_job_shows_it(
    client: TestClient, job_store: JobStore, receiver: Receiver, data_dir: Path
) -> None:
    webhook = {"url": f"{receiver.url}hook"}
    job = submit(client, webhook=webhook, metadata={"team": "ä"})
    finals = ["prune_job.succeeded", "prune_job.failed", "prune_job.cancelled"]
    assert job["webhook"] == {**webhook, "events": finals}
    assert deliveries(client, job) == []
    name = publish_pruned(data_dir, job=job["id"]).name
    succeed(job_store, job["id"], name)
    wait_until(lambda: deliveries(client, job), "the attempt is in the log")
    (received,) = receiver.received
    verify(received)
    message = received.message
    assert set(message) == {"type", "timestamp", "data"}
    assert message["type"] == "prune_job.succeeded"
    assert message["data"] == client.get(job["urls"]["self"]).json()
    assert message["data"]["pruned_model"] == name
    assert message["data"]["domains"]
    assert message["data"]["urls"]["self"] == job["urls"]["self"]
    (delivery,) = deliveries(client, job)
    assert delivery["id"] == received.message_id
    assert (delivery["object"], delivery["type"]) == ("webhook_delivery", "prune_job.succeeded")
    assert (delivery["attempt"], delivery["response_status"]) == (1, 204)
    assert (delivery["error"], delivery["next_attempt_at"]) == (None, None)
    assert 0 <= delivery["duration_s"] < 15


def test_the_events_that_were_asked_for_are_told_each_once(
    client: TestClient, job_store: JobStore, receiver: Receiver
) -> None:
    events = ["prune_job.running", "prune_job.failed", "prune_job.running"]
    job = submit(client, webhook={"url": receiver.url, "events": events})
    assert job["webhook"]["events"] == events[:2]
    job_store.start(job["id"], "w")
    job_store.fail(job["id"], JobError("x", "so it is"))
    wait_until(lambda: len(deliveries(client, job)) == 2, "both are told")
    told = {received.message["type"]: received.message["data"] for received in receiver.received}
    assert told["prune_job.running"]["status"] == "running"
    assert told["prune_job.failed"]["error"]["message"] == "so it is"
    client.post("/prune-jobs", json=JOB)
    assert client.get("/prune-jobs").json()["data"][0]["webhook"] is None


def test_a_failure_is_listed_and_forgotten_with_the_job(
    client: TestClient, job_store: JobStore, receiver: Receiver, redis_client: redis.Redis
) -> None:
    receiver.answer = lambda _received: (500, {})
    job = submit(client, webhook={"url": receiver.url})
    succeed(job_store, job["id"])
    wait_until(lambda: deliveries(client, job), "the attempt is in the log")
    (delivery,) = deliveries(client, job)
    assert (delivery["response_status"], delivery["error"]) == (500, "returned 500")
    assert 3 < delivery["next_attempt_at"] - delivery["at"] < 15
    assert client.delete(job["urls"]["self"]).status_code == 204
    assert client.get(job["urls"]["webhook_deliveries"]).status_code == 404
    assert redis_client.keys("sleb:*") == []


def test_a_repeated_request_gets_the_same_webhook(client: TestClient, receiver: Receiver) -> None:
    body, headers = {**JOB, "webhook": {"url": receiver.url}}, {"Idempotency-Key": "k"}
    first, again = (client.post("/prune-jobs", json=body, headers=headers) for _ in range(2))
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json() == first.json()
    other = client.post("/prune-jobs", json=JOB, headers=headers)
    assert other.status_code == 422


# ---- refused


@pytest.mark.parametrize(
    "url",
    [
        "ftp://hooks.example/",
        "hooks.example",
        "https://user:password@hooks.example/",
        "https://127.0.0.1/" + "x" * 2048,
        "http://127.0.0.1:99999/",
        "http://[::1/",
        "https://hooks.invalid/",
        "http://127.0.0.1/\ud800",
        "http://\ud800/",
        "",
    ],
)
def test_a_bad_url_is_refused_at_once(client: TestClient, url: str) -> None:
    problem = refused(client, url=url)
    assert problem["type"].endswith("invalid-webhook")
    assert problem["param"] == "webhook.url"
    assert "password" not in str(problem)


@pytest.mark.parametrize(
    ("webhook", "pointer"),
    [
        ({}, "/webhook/url"),
        ({"url": 7}, "/webhook/url"),
        ({"url": "http://127.0.0.1/", "events": []}, "/webhook/events"),
        ({"url": "http://127.0.0.1/", "events": ["prune_job.ended"]}, "/webhook/events/0"),
        ({"url": "http://127.0.0.1/", "events": ["prune_job.failed"] * 8}, "/webhook/events"),
        ({"url": "http://127.0.0.1/", "secret": "x"}, "/webhook/secret"),
    ],
)
def test_a_bad_webhook_is_refused_at_once(
    client: TestClient, webhook: dict[str, Any], pointer: str
) -> None:
    assert refused(client, **webhook)["errors"][0]["pointer"] == pointer


@pytest.fixture
def strict(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis
) -> Iterator[TestClient]:
    """An API that sends to public addresses only."""
    redis_client.ping()
    with local_api(settings, redis_url, webhook_allow_private=False) as client:
        yield client


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "0x7f.1", "localhost", "[::1]", "[::ffff:10.0.0.1]", "169.254.169.254", "0"],
)
def test_an_address_that_is_not_public_is_refused_at_once(strict: TestClient, host: str) -> None:
    problem = refused(strict, url=f"http://{host}/latest/meta-data")
    assert problem["param"] == "webhook.url"
    assert "SLEB_WEBHOOK_ALLOW_PRIVATE" in problem["detail"]


def test_an_address_that_turns_private_later_gets_nothing(
    strict: TestClient,
    job_store: JobStore,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = "8.8.8.8"
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Sequence[Any]:
        return real(address if host == "hooks.example" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    job = submit(strict, webhook={"url": f"http://hooks.example:{receiver.port}/"})
    address = "127.0.0.1"
    job_store.cancel(job["id"])
    wait_until(lambda: deliveries(strict, job), "the attempt is in the log")
    (delivery,) = deliveries(strict, job)
    assert "non-public" in delivery["error"]
    assert delivery["next_attempt_at"] is not None
    assert receiver.received == []


def test_without_a_secret_a_webhook_is_refused_and_says_what_to_set(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis
) -> None:
    redis_client.ping()
    with local_api(settings, redis_url, webhook_secret=None) as client:
        problem = refused(client, url="http://127.0.0.1/")
        assert problem["type"].endswith("webhooks-off")
        assert problem["param"] == "webhook"
        assert "SLEB_WEBHOOK_SECRET" in problem["detail"]
        assert submit(client)["webhook"] is None


def test_messages_wait_for_a_process_that_has_a_secret(
    settings: ServeSettings,
    redis_url: str,
    job_store: JobStore,
    client: TestClient,
    receiver: Receiver,
) -> None:
    job = submit(client, webhook={"url": receiver.url})
    client.__exit__()
    job_store.cancel(job["id"])
    for secret, number in ((None, 0), (SECRET, 1)):
        one = settings.model_copy(update={"webhook_secret": secret})
        with LocalClient(create_app(one, redis_url=redis_url)) as again:
            if number:
                wait_until(lambda: receiver.received, "the message has arrived")
            assert again.get("/health/live").status_code == 200
        assert len(receiver.received) == number


def test_a_dry_run_refuses_the_same_and_sends_nothing(
    client: TestClient, receiver: Receiver
) -> None:
    bad = {"url": "ftp://x/"}
    answer = client.post("/prune-jobs", json={**JOB, "dry_run": True, "webhook": bad})
    assert answer.status_code == 422
    good = {"url": receiver.url}
    answer = client.post("/prune-jobs", json={**JOB, "dry_run": True, "webhook": good})
    assert answer.status_code == 200


def test_every_status_can_be_asked_for() -> None:
    assert {event.removeprefix("prune_job.") for event in WebhookEvent} == set(JobStatus)


# ---- the receiver of the guide


def test_the_receiver_of_the_guide_verifies(client: TestClient, job_store: JobStore) -> None:
    (code,) = [each.code for each in blocks(*GUIDES) if "import Webhook" in each.code]
    names: dict[str, Any] = {}
    exec(code.replace("whsec_...", SECRET), names)  # noqa: S102 - our own guide
    app = names["app"]
    assert isinstance(app, FastAPI)
    with receiving() as receiver, LocalClient(app) as documented:
        job_store.cancel(submit(client, webhook={"url": receiver.url})["id"])
        (received,) = wait_until(lambda: receiver.received, "the message has arrived")
        headers = dict(received.headers)
        assert documented.post("/hook", content=received.body, headers=headers).is_success
        with pytest.raises(WebhookVerificationError):
            documented.post("/hook", content=received.body + b" ", headers=headers)
