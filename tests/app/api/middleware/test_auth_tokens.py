"""Tokens per minute of a tenant over HTTP: what counts, and who is refused how."""

from typing import Any

import httpx2
import openai
import pytest
import redis
from fastapi.testclient import TestClient

from app.auth.keys import KeyFile, Quota, Scope
from app.config import ServeSettings
from pruning.jobs.keys import KEY_RUNNING, TENANT_TOKENS
from tests.support.engines import gated
from tests.support.exposition import Scrape
from tests.support.raw_requests import LONG
from tests.support.serving import serving
from tests.support.waiting import wait_until

GENERATE = {"model": "tiny", "prompt": "the dog", "max_new_tokens": 2, "ignore_eos": True}


@pytest.fixture
def file(settings: ServeSettings) -> KeyFile:
    return KeyFile(settings.keys_file)


def auth(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def used(client: redis.Redis, tenant: str) -> int:
    found: Any = client.hvals(TENANT_TOKENS.format(name=tenant))
    return sum(map(int, found))


def test_a_tenant_that_has_used_its_tokens_is_refused_on_every_route_that_generates(
    client: TestClient, file: KeyFile, redis_client: redis.Redis
) -> None:
    ann, bob = (file.create(name, [Scope.GENERATE], tenant="team") for name in ("ann", "bob"))
    eve = file.create("eve", [Scope.GENERATE])
    file.change_quota("team", Quota(tokens_per_min=10**6))
    body = {"model": "tiny", "prompt": ["the dog", "a cat"], "max_tokens": 3, "ignore_eos": True}
    usage = client.post("/v1/completions", json=body, headers=auth(ann)).json()["usage"]
    wait_until(lambda: used(redis_client, "team") == usage["total_tokens"], "it is charged")
    file.change_quota("team", Quota(tokens_per_min=usage["total_tokens"] + 1))
    assert client.post("/generate", json=GENERATE, headers=auth(bob)).status_code == 200
    for path in ("/generate", "/compare", "/v1/completions", "/v1/chat/completions"):
        refused = client.post(path, json=GENERATE, headers=auth(ann))
        assert refused.status_code == 429, path
        assert 50 <= int(refused.headers["retry-after"]) <= 60
    refused = client.post("/generate", json=GENERATE, headers=auth(bob))
    assert refused.json()["type"] == "token-quota-reached"
    assert "'team'" in refused.json()["detail"]
    assert client.get("/models", headers=auth(ann)).status_code == 200
    assert client.post("/generate", json=GENERATE, headers=auth(eve)).status_code == 200
    api = openai.OpenAI(
        base_url="http://localhost/v1", api_key=ann, max_retries=0, http_client=client
    )
    with pytest.raises(openai.RateLimitError) as error:
        api.completions.create(model="tiny", prompt="the dog")
    assert (error.value.code, error.value.type) == ("rate_limit_exceeded", "rate_limit_error")
    metrics = Scrape(client.get("/metrics").text)
    assert metrics.value("sleb_key_limit_refusals_total", limit="tokens") == 6


def test_a_comparison_is_charged_with_all_that_it_reads_and_writes(
    client: TestClient, file: KeyFile, redis_client: redis.Redis
) -> None:
    key = file.create("ann", [Scope.GENERATE])
    file.change_quota("ann", Quota(tokens_per_min=1))
    body = {**GENERATE, "models": ["tiny", "tiny"], "repeats": 3}
    del body["model"]
    answer = client.post("/compare", json=body, headers=auth(key))
    assert answer.status_code == 200, answer.text
    other = auth(file.create("eve", [Scope.GENERATE]))
    alone = {"model": "tiny", "prompt": GENERATE["prompt"], "max_tokens": 2, "ignore_eos": True}
    once = client.post("/v1/completions", json=alone, headers=other).json()["usage"]["total_tokens"]
    # two warm-ups, two models with three repeats, and the score of their equal outputs
    wait_until(lambda: used(redis_client, "ann") == (2 + 2 * 3 + 1) * once, "it is charged")
    assert client.post("/compare", json=body, headers=auth(key)).status_code == 429


def test_what_a_client_has_left_is_charged_and_settings_are_the_default(
    settings: ServeSettings, redis_url: str, file: KeyFile, redis_client: redis.Redis
) -> None:
    key = file.create("ann", [Scope.ADMIN], max_concurrent=1)
    settings = settings.model_copy(update={"tenant_tokens_per_min": 4})
    long = {**GENERATE, "max_new_tokens": LONG, "stream": True}
    with gated(4) as engine, serving(settings, redis_url, engine=engine) as (_, url):
        wait_until(lambda: httpx2.get(f"{url}/health/ready").is_success, "the API is ready")
        with httpx2.stream("POST", f"{url}/generate", json=long, headers=auth(key)) as answer:
            assert answer.status_code == 200
            wait_until(lambda: engine.is_at_gate, "it is in the middle")
            assert used(redis_client, "ann") == 0
        running = KEY_RUNNING.format(name="ann")
        wait_until(lambda: not redis_client.exists(running), "the service knows that it has gone")
        engine.gate.set()
        wait_until(lambda: used(redis_client, "ann") > 0, "it is charged")
        assert 4 <= used(redis_client, "ann") < LONG
        refused = httpx2.post(f"{url}/generate", json=GENERATE, headers=auth(key))
        assert refused.status_code == 429
