"""What was read of prompts over HTTP: who may find it, and what is said about it."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.auth.keys import KeyFile, Scope
from app.config import PrefixCache, ServeSettings
from app.engine.cache.pages import PAGE_TOKENS
from tests.support.api_fixtures import publish_pruned
from tests.support.exposition import Scrape
from tests.support.serving import local_api

NUM_SHARED = 4 * PAGE_TOKENS  # as many as outputs of one prompt wait for
PROMPT = [4 + at % 30 for at in range(NUM_SHARED + 3)]
TINY = {"model_name": "tiny"}
BODY: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "max_tokens": 2, "temperature": 0}


def num_cached(client: TestClient, key: str | None = None, **changes: Any) -> int:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    answer = client.post("/v1/completions", json={**BODY, **changes}, headers=headers)
    assert answer.status_code == 200, answer.text
    found: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


def test_a_prompt_that_was_read_is_found_under_the_same_salt(client: TestClient) -> None:
    assert [num_cached(client) for _ in range(2)] == [0, NUM_SHARED]
    assert [num_cached(client, cache_salt="mine") for _ in range(2)] == [0, NUM_SHARED]
    own = {"model": "tiny", "prompt": "the dog", "cache_salt": "mine", "max_new_tokens": 1}
    assert client.post("/generate", json=own).status_code == 200
    assert client.post("/v1/completions", json={**BODY, "cache_salt": ""}).status_code == 400


def test_outputs_of_one_prompt_and_echoes_share_what_is_read(client: TestClient) -> None:
    assert num_cached(client, n=3, temperature=1.0) == 0  # counted once, by its first output
    found = Scrape(client.get("/metrics").text)
    assert found.value("sleb_prefix_cache_hits_total", **TINY) == 2 * NUM_SHARED
    assert num_cached(client, echo=True) == NUM_SHARED
    for _ in range(2):  # the log-probabilities of a prompt are those of all of it
        assert num_cached(client, echo=True, logprobs=1) == 0
        assert num_cached(client, echo=True, logprobs=1, max_tokens=0) == 0


def test_metrics_count_what_was_looked_for_and_found(client: TestClient) -> None:
    for _ in range(2):
        num_cached(client)
    found = Scrape(client.get("/metrics").text)
    assert found.value("sleb_prefix_cache_queries_total", **TINY) == 2 * len(PROMPT)
    assert found.value("sleb_prefix_cache_hits_total", **TINY) == NUM_SHARED
    labels = {**TINY, "variant": "dense", "traffic": "live"}
    by_source = [
        found.value("sleb_prompt_tokens_by_source_total", source=source, **labels)
        for source in ("local_compute", "local_cache_hit")
    ]
    assert by_source == [2 * len(PROMPT) - NUM_SHARED, NUM_SHARED]
    status = client.get("/status").json()["engine"]
    assert status["num_prefix_queries"] == 2 * len(PROMPT)
    assert status["num_prefix_hits"] == NUM_SHARED


def test_counters_of_a_loaded_model_begin_with_zero(client: TestClient) -> None:
    found = Scrape(client.get("/metrics").text)
    for name in ("prefix_cache_queries", "prefix_cache_hits", "num_preemptions"):
        assert found.value(f"sleb_{name}_total", **TINY) == 0


def test_a_comparison_reads_every_prompt_in_full_and_says_so(
    client: TestClient, settings: ServeSettings
) -> None:
    publish_pruned(settings.data_dir)
    num_cached(client)
    body = {"models": ["tiny", "tiny@-2"], "prompt": "the dog and the cat " * 8, "repeats": 2}
    answer = client.post("/compare", json={**body, "max_new_tokens": 2})
    assert answer.status_code == 200
    assert answer.json()["prompt_reading"] == "in full"
    found = Scrape(client.get("/metrics").text)
    assert found.value("sleb_prefix_cache_queries_total", **TINY) == len(PROMPT)


@pytest.mark.parametrize(
    ("mode", "of_another_tenant"), [("on", 0), ("shared", NUM_SHARED), ("off", 0)]
)
def test_tenants_find_what_others_have_read_only_if_it_is_shared(
    settings: ServeSettings, redis_url: str, mode: PrefixCache, of_another_tenant: int
) -> None:
    file = KeyFile(settings.keys_file)
    ann, bob, eve = (
        file.create(name, [Scope.GENERATE], tenant=tenant)
        for name, tenant in (("ann", "team"), ("bob", "team"), ("eve", "others"))
    )
    with local_api(settings, redis_url, prefix_cache=mode) as client:
        num_cached(client, ann)
        assert num_cached(client, eve) == of_another_tenant
        assert num_cached(client, bob) == (0 if mode == "off" else NUM_SHARED)
