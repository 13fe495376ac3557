"""With a setting, /metrics has vLLM's names as well."""

from fastapi.testclient import TestClient

from app.config import ServeSettings
from app.metrics.vllm_names import NAMES
from tests.support.api_fixtures import publish_pruned
from tests.support.exposition import Scrape
from tests.support.serving import local_api

BODY = {"model": "tiny", "prompt": "the dog", "max_new_tokens": 5, "ignore_eos": True}
COMPARE = {"models": ["tiny", "tiny@-1"], "prompt": "the dog", "max_new_tokens": 3, "repeats": 1}


def scrape(client: TestClient) -> Scrape:
    return Scrape(client.get("/metrics").text)


def test_vllms_names_have_the_values_of_live_requests(
    settings: ServeSettings, redis_url: str
) -> None:
    publish_pruned(settings.data_dir)
    with local_api(settings, redis_url, vllm_metrics=True) as client:
        assert client.post("/generate", json=BODY).status_code == 200
        assert client.post("/compare", json=COMPARE).status_code == 200
        found = scrape(client)
        ours = {name for name in found.names if name.startswith("vllm:")}
        endings = "", "_total", "_bucket", "_count", "_sum", "_created"
        assert ours <= {f"vllm:{name}{ending}" for name in NAMES for ending in endings}
        assert all(ours & {f"vllm:{name}{ending}" for ending in endings} for name in NAMES)
        model = {"model_name": "tiny"}
        assert found.value("vllm:generation_tokens_total", **model) == 5
        assert found.value("vllm:time_to_first_token_seconds_count", **model) == 1
        assert found.value("vllm:kv_cache_usage_perc", **model) == 0
        assert found.value("vllm:num_requests_waiting", **model) == 0
        own = {**model, "traffic": "live", "variant": "dense"}
        for name in ("e2e_request_latency_seconds_sum", "request_prompt_tokens_sum"):
            assert found.value(f"vllm:{name}", **model) == found.value(f"sleb_{name}", **own)
        ended = {**model, "finished_reason": "length"}
        assert found.value("vllm:request_success_total", **ended) == 1
        text = client.get("/metrics").text.splitlines()
        series = [line.rpartition(" ")[0] for line in text if line.startswith("vllm:")]
        assert len(series) == len({*series})


def test_by_default_there_are_none(client: TestClient) -> None:
    assert not [name for name in scrape(client).names if name.startswith("vllm:")]
