"""Limits of keys over HTTP: who is refused how, and when a place is free again."""

import logging
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import openai
import pytest
import redis
from fastapi.testclient import TestClient

from app.auth.keys import KeyFile, Scope
from app.config import ServeSettings
from app.main import create_app
from pruning.jobs.keys import KEY_RECENT, KEY_RUNNING
from tests.support.engines import gated
from tests.support.exposition import Scrape
from tests.support.raw_requests import LONG
from tests.support.serving import LocalClient, serving
from tests.support.valkey_server import ValkeyServer
from tests.support.waiting import wait_until

GENERATE = {"model": "tiny", "prompt": "the dog", "max_new_tokens": 2}


@pytest.fixture
def keys(settings: ServeSettings) -> KeyFile:
    return KeyFile(settings.keys_file)


def auth(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def refusals(client: TestClient, limit: str) -> float:
    metrics = Scrape(client.get("/metrics").text)
    return metrics.value("sleb_key_limit_refusals_total", limit=limit) or 0


def test_more_than_a_key_may_ask_for_in_a_minute_is_refused(
    client: TestClient, keys: KeyFile
) -> None:
    key, other = (
        keys.create(name, [Scope.GENERATE], rate_per_min=rate)
        for name, rate in (("few", 3), ("any", 0))
    )
    assert client.post("/generate", json=GENERATE, headers=auth(key)).status_code == 200
    assert client.post("/prune-jobs", headers=auth(key)).status_code == 403  # counts for nothing
    assert [client.get("/models", headers=auth(key)).status_code for _ in range(3)] == [
        200,
        200,
        429,
    ]
    refused = client.post("/generate", content=b"{", headers=auth(key))
    assert (refused.status_code, refused.json()["type"]) == (429, "key-limit-reached")
    assert refused.headers["content-type"] == "application/problem+json"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert "'few'" in refused.json()["detail"]
    assert client.get("/health/ready", headers=auth(key)).status_code == 200
    assert client.get("/models", headers=auth(other)).status_code == 200
    assert refusals(client, "rate") == 2
    api = openai.OpenAI(
        base_url="http://localhost/v1", api_key=key, max_retries=0, http_client=client
    )
    with pytest.raises(openai.RateLimitError) as error:
        api.models.list()
    assert (error.value.code, error.value.type) == ("rate_limit_exceeded", "rate_limit_error")
    assert int(error.value.response.headers["retry-after"]) >= 1


def test_answers_that_run_hold_a_place_until_they_have_ended(
    settings: ServeSettings, redis_url: str, keys: KeyFile, redis_client: redis.Redis
) -> None:
    key = keys.create("one", [Scope.ADMIN], max_concurrent=1)
    long = {**GENERATE, "max_new_tokens": LONG, "ignore_eos": True}
    with gated() as engine, serving(settings, redis_url, engine=engine) as (_, url):
        wait_until(lambda: httpx2.get(f"{url}/health/ready").is_success, "the API is ready")
        with (
            httpx2.Client(base_url=url, headers=auth(key)) as http,
            http.stream("POST", "/generate", json={**long, "stream": True}) as answer,
        ):
            wait_until(lambda: engine.is_at_gate, "it is being answered")
            for path in ("/generate", "/compare", "/v1/completions", "/v1/chat/completions"):
                refused = httpx2.post(f"{url}{path}", json=GENERATE, headers=auth(key))
                assert refused.status_code == 429, path
                assert refused.headers["retry-after"] == "1"
            for path in ("/models", "/v1/models", "/prune-jobs"):  # are no work for the engine
                assert httpx2.get(f"{url}{path}", headers=auth(key)).is_success, path
            engine.gate.set()
            assert answer.read()
            # a client that has read the end may send at once, on the same connection too
            for body in (GENERATE, {**GENERATE, "stream": True}, {**GENERATE, "seed": -1}) * 5:
                assert http.post("/generate", json=body).status_code != 429
        engine.close_after(0)
        with httpx2.stream(
            "POST", f"{url}/generate", json={**long, "stream": True}, headers=auth(key)
        ):
            wait_until(lambda: engine.is_at_gate, "it is being answered")
        running = KEY_RUNNING.format(name="one")
        wait_until(lambda: not redis_client.exists(running), "its place is free: it has gone")
        engine.gate.set()


@pytest.fixture
def limited(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis
) -> Iterator[TestClient]:
    redis_client.ping()
    set_ = settings.model_copy(update={"key_rate": 2, "key_concurrent": 1, "preload": ()})
    with LocalClient(create_app(set_, redis_url=redis_url)) as client:
        yield client


def test_settings_are_the_limits_of_keys_without_their_own(
    limited: TestClient, keys: KeyFile, redis_client: redis.Redis
) -> None:
    plain = keys.create("plain", [Scope.ADMIN])
    own = keys.create("own", [Scope.ADMIN], rate_per_min=0, max_concurrent=0)
    for key, statuses in ((plain, [200, 200, 429]), (own, [200] * 3)):
        assert [limited.get("/models", headers=auth(key)).status_code for _ in range(3)] == statuses
    future: Any = redis_client.time()[0] + 60
    redis_client.delete(KEY_RECENT.format(name="plain"))
    for name in ("plain", "own"):
        redis_client.zadd(KEY_RUNNING.format(name=name), {"another": future})
        redis_client.expire(KEY_RUNNING.format(name=name), 60)
    asked = [
        limited.post("/generate", json=GENERATE, headers=auth(key)).status_code
        for key in (plain, own)
    ]
    assert asked == [429, 200]
    assert refusals(limited, "concurrent") == 1


def test_without_redis_generation_goes_on_without_limits(
    settings: ServeSettings, keys: KeyFile, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    key = keys.create("few", [Scope.ADMIN], rate_per_min=2, max_concurrent=1)
    with TemporaryDirectory(prefix="sleb-") as directory:
        server = ValkeyServer(Path(directory))
        with server.start():
            server.wait_until_it_answers()
            with LocalClient(create_app(settings, redis_url=server.url)) as client:
                wait_until(lambda: client.get("/health/ready").status_code == 200, "it is ready")
                first = client.post("/generate", json=GENERATE, headers=auth(key))
                server.process.kill()
                server.process.wait()
                later = [
                    client.post("/generate", json=GENERATE, headers=auth(key)) for _ in range(4)
                ]
                assert {answer.status_code for answer in (first, *later)} == {200}
                metrics = Scrape(client.get("/metrics").text)
                assert metrics.value("sleb_key_limits_unknown_total") == 4
    assert "Redis does not respond" in caplog.text
