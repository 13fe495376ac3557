"""Watching a job over HTTP: pages of its events, and streams that replay, follow and end."""

from itertools import islice

import httpx2
import pytest
import redis
from fastapi.testclient import TestClient

from pruning.jobs import transitions
from pruning.jobs.events import EventFeed
from pruning.jobs.job import JobError
from pruning.jobs.keys import EVENTS
from pruning.jobs.store import JobStore
from pruning.spec.prune import PruneSpec
from tests.support.job_lives import succeed
from tests.support.prune_requests import EVENT_STREAM, events_url

pytestmark = pytest.mark.usefixtures("nothing_preloaded")


@pytest.fixture
def job_id(job_store: JobStore) -> str:
    return job_store.create(PruneSpec("tiny", num_remove=1)).id


def streamed(
    client: httpx2.Client, job_id: str, last: str | None = None
) -> list[httpx2.ServerSentEvent]:
    """The whole of a stream that ends by itself, but for its first line, which is no event."""
    headers = {"Last-Event-ID": last} if last else {}
    with client.sse(events_url(job_id), headers=headers) as source:
        assert source.response.status_code == 200
        return [event for event in source if event.data]


def ids_of(store: JobStore, job_id: str) -> list[str]:
    return [event.id for event in store.events(job_id)]


# ---- pages


def test_a_page_has_the_oldest_first_and_says_whether_more_follow(
    client: TestClient, job_store: JobStore, job_id: str
) -> None:
    succeed(job_store, job_id)
    first = client.get(events_url(job_id), params={"limit": 2}).json()
    assert (first["object"], first["has_more"]) == ("list", True)
    assert [event["message"] for event in first["data"]] == ["job created", "started by worker-1"]
    after = first["data"][-1]["id"]
    rest = client.get(events_url(job_id), params={"limit": 5, "after": after}).json()
    assert [event["id"] for event in rest["data"]] == ids_of(job_store, job_id)[2:]
    assert not rest["has_more"]
    every = client.get(events_url(job_id), params={"limit": 100, "after": "0"}).json()["data"]
    assert [event["id"] for event in every] == ids_of(job_store, job_id)
    event = rest["data"][3]
    assert {name: event[name] for name in ("object", "level", "message", "type")} == {
        "object": "prune_job.event",
        "level": "info",
        "message": "removed block 3",
        "type": "metrics",
    }
    assert (event["data"]["block"], event["data"]["loss"]) == (3, 2.5)
    assert event["created_at"] >= first["data"][0]["created_at"]


@pytest.mark.parametrize("after", ["", "-", "+", "1-", "(1-1", "1-1-1", "x-1", "9" * 20 + "-0"])
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_an_id_that_no_event_has_is_refused(
    client: TestClient, job_id: str, after: str, accept: str
) -> None:
    response = client.get(events_url(job_id), params={"after": after}, headers={"Accept": accept})
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    headers = {"Accept": accept, "Last-Event-ID": after}
    assert client.get(events_url(job_id), headers=headers).status_code == 422


@pytest.mark.parametrize("limit", [0, 101, "many"])
def test_a_page_has_its_limits(client: TestClient, job_id: str, limit: int | str) -> None:
    assert client.get(events_url(job_id), params={"limit": limit}).status_code == 422


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
@pytest.mark.parametrize("job_id", ["prn-" + "0" * 21, "x", "%00"])
def test_an_unknown_job_has_no_events(client: TestClient, job_id: str, accept: str) -> None:
    response = client.get(events_url(job_id), headers={"Accept": accept})
    assert response.status_code == 404
    assert response.json()["type"].endswith("job-not-found")


# ---- streams


def test_a_stream_of_an_ended_job_is_the_whole_of_it(
    client: TestClient, job_store: JobStore, job_id: str
) -> None:
    succeed(job_store, job_id)
    listed = client.get(events_url(job_id), params={"limit": 100}).json()["data"]
    response = client.get(events_url(job_id), headers=EVENT_STREAM)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.text.startswith("retry: ")
    events = streamed(client, job_id)
    assert [event.json() for event in events] == listed
    assert [event.id for event in events] == [event["id"] for event in listed]
    assert [event.event for event in events] == [event["type"] for event in listed]


def test_a_stream_follows_a_job_to_its_end(
    client: TestClient, job_store: JobStore, job_id: str
) -> None:
    with client.sse(events_url(job_id)) as source:
        messages = (event.json()["message"] for event in source if event.data)  # type: ignore[index]
        assert next(messages) == "job created"
        attempt = job_store.start(job_id, "worker-1").attempt
        assert next(messages) == "started by worker-1"
        job_store.cancel(job_id)
        assert next(messages) == "cancel requested"
        job_store.stopped(job_id, attempt)
        assert list(messages) == ["cancelled"]


@pytest.mark.parametrize("end", ["fail", "cancel"])
def test_a_stream_ends_however_the_job_does(
    client: TestClient, job_store: JobStore, job_id: str, end: str
) -> None:
    if end == "fail":
        job_store.fail(job_id, JobError("not_enough_text", "too short"))
    else:
        job_store.cancel(job_id)
    last = streamed(client, job_id)[-1]
    assert last.id == ids_of(job_store, job_id)[-1]
    assert streamed(client, job_id, last.id) == []


def test_every_event_comes_once_wherever_the_connection_breaks(
    client: TestClient, job_store: JobStore, job_id: str
) -> None:
    job_store.start(job_id, "worker-1")
    for done in range(1, 121):
        job_store.record(job_id, transitions.evaluated(done, 120))
    job_store.succeed(job_id, "tiny@x")
    ids = [event.id for event in job_store.events(job_id, limit=1000)]
    assert len(ids) > 100  # more than the feed reads at once
    for count in (1, 60, len(ids) - 1):
        with client.sse(events_url(job_id)) as source:
            seen = [event.id for event in islice((e for e in source if e.data), count)]
        seen += [event.id for event in streamed(client, job_id, seen[-1])]
        assert seen == ids


def test_the_header_counts_before_the_query_that_a_reconnecting_browser_repeats(
    client: TestClient, job_store: JobStore, job_id: str
) -> None:
    succeed(job_store, job_id)
    ids = ids_of(job_store, job_id)
    headers = {"Last-Event-ID": ids[3]}
    with client.sse(events_url(job_id), params={"after": ids[1]}, headers=headers) as source:
        assert [event.id for event in source if event.data] == ids[4:]
    with client.sse(events_url(job_id), params={"after": ids[1]}) as source:
        assert [event.id for event in source if event.data] == ids[2:]


def test_what_was_trimmed_is_skipped_and_nothing_else(
    client: TestClient, job_store: JobStore, job_id: str, redis_client: redis.Redis
) -> None:
    succeed(job_store, job_id)
    ids = ids_of(job_store, job_id)
    redis_client.xtrim(EVENTS.format(id=job_id), maxlen=2, approximate=False)
    assert [event.id for event in streamed(client, job_id, ids[0])] == ids[-2:]


def test_a_quiet_stream_says_that_it_is_alive(
    client: TestClient, job_store: JobStore, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.api.routes.events.KEEP_ALIVE_S", 0.05)
    monkeypatch.setattr(EventFeed, "poll_s", 0.01)
    with client.stream("GET", events_url(job_id), headers=EVENT_STREAM) as response:
        lines = response.iter_lines()
        assert ": ping" in lines
        job_store.cancel(job_id)
        assert any("cancel requested" in line for line in lines)


def test_a_stream_ends_with_its_deleted_job(
    client: TestClient, job_id: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EventFeed, "poll_s", 0.01)
    with client.sse(events_url(job_id)) as source:
        events = (event for event in source if event.data)
        next(events)
        redis_client.flushdb()
        assert list(events) == []
