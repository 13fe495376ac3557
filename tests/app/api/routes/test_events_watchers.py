"""Streams of events while something goes away: the watcher, the job store, the server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
from fastapi.testclient import TestClient
from filelock import FileLock

from app.config import ServeSettings
from app.main import create_app
from app.server.valkey import embedded_valkey
from pruning.jobs.events import EventFeed
from pruning.jobs.store import JobStore
from pruning.spec.prune import PruneSpec
from tests.support.prune_requests import EVENT_STREAM, events_url
from tests.support.serving import LocalClient, serving
from tests.support.waiting import wait_until


@pytest.fixture
def job_id(job_store: JobStore) -> str:
    return job_store.create(PruneSpec("tiny", num_remove=1)).id


def test_one_watcher_too_many_is_told_to_wait_until_another_leaves(
    client: TestClient, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EventFeed, "max_watchers", 1)
    with client.sse(events_url(job_id)) as source:
        events = iter(source)  # kept, as the stream ends with its iterator
        next(events)
        refused = client.get(events_url(job_id), headers=EVENT_STREAM)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert "application/json" in refused.json()["detail"]
        assert client.get(events_url(job_id)).status_code == 200
    with client.sse(events_url(job_id)) as source:
        assert source.response.status_code == 200


def num_waiting(redis_client: redis.Redis) -> int:
    return sum(found["cmd"] == "xread" for found in redis_client.client_list())


@pytest.fixture
def mortal_store(tmp_path: Path) -> Iterator[str]:
    """The URL of a server of its own, which a test may stop: nothing starts it again."""
    with embedded_valkey(tmp_path) as url, FileLock(tmp_path / "valkey" / "start.lock"):
        yield url


def test_a_store_that_goes_away_ends_the_stream_and_is_503_before_it(
    settings: ServeSettings, mortal_store: str
) -> None:
    app = create_app(settings, redis_url=mortal_store)
    server = redis.Redis.from_url(mortal_store)
    with LocalClient(app, raise_server_exceptions=False) as client:
        job_id = JobStore(server).create(PruneSpec("tiny", num_remove=1)).id
        with client.stream("GET", events_url(job_id), headers=EVENT_STREAM) as response:
            lines = response.iter_lines()
            assert any("job created" in line for line in lines)
            server.shutdown()
            assert any(line.startswith(": the job store") for line in lines)
            assert set(lines) <= {""}
        refused = client.get(events_url(job_id), headers=EVENT_STREAM)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
    server.close()


def test_a_server_that_stops_does_not_wait_for_watchers(
    settings: ServeSettings, redis_url: str, job_id: str
) -> None:
    patient = settings.model_copy(update={"drain_s": 60.0})
    with (
        serving(patient, redis_url) as (server, url),
        httpx2.Client(base_url=url) as client,
        client.sse(events_url(job_id), timeout=30) as source,
    ):
        events: Iterator[Any] = (event for event in source if event.data)
        assert next(events).json()["message"] == "job created"
        server.should_exit = True
        assert list(events) == []  # a clean end: nothing is cut off


def test_a_watcher_that_leaves_a_real_connection_is_forgotten(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis, job_id: str
) -> None:
    with serving(settings, redis_url) as (_, url), httpx2.Client(base_url=url) as client:
        with client.sse(events_url(job_id), timeout=30) as source:
            events = iter(source)
            next(events)
            wait_until(lambda: num_waiting(redis_client) == 1, "the watcher waits for news")
        wait_until(lambda: num_waiting(redis_client) == 0, "its connection is closed")
