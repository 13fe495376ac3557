"""What is around the work: health, metrics, versions, ids, errors that tell nothing internal."""

import asyncio
import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from fastapi import Response
from fastapi.testclient import TestClient

from app.api.routes.health import live
from app.config import ServeSettings
from app.engine.async_engine import AsyncEngine
from app.engine.engine import Engine
from app.metrics.metrics import latency_buckets
from app.readiness import Readiness
from tests.support.api_fixtures import publish_pruned
from tests.support.processes import free_port
from tests.support.serving import local_api


def test_metrics_have_the_names_and_labels_that_dashboards_use(
    client: TestClient, data_dir: Path
) -> None:
    publish_pruned(data_dir)
    for name in ("tiny", "tiny@-2"):
        body = {"model": name, "prompt": "the dog", "max_new_tokens": 5, "ignore_eos": True}
        client.post("/generate", json=body)
    text = client.get("/metrics").text
    for kind, name in (("dense", "tiny"), ("pruned", "tiny@-2")):
        model = f'model_name="{name}",traffic="live",variant="{kind}"'
        labels = f'engine="own",{model}'
        assert f"sleb_generation_tokens_total{{{labels}}} 5.0" in text
        assert f"sleb_time_to_first_token_seconds_count{{{labels}}} 1.0" in text
        assert f"sleb_inter_token_latency_seconds_count{{{labels}}} 4.0" in text
        assert f"sleb_request_time_per_output_token_seconds_count{{{labels}}} 1.0" in text
        assert f"sleb_e2e_request_latency_seconds_count{{{labels}}} 1.0" in text
        assert f"sleb_request_queue_time_seconds_count{{{labels}}} 1.0" in text
        length = f'engine="own",finished_reason="length",{model}'
        assert f"success_total{{{length}}} 1.0" in text
        labels_of_model = f'model_name="{name}",variant="{kind}"'
        for gauge in ("num_requests_running", "num_requests_waiting"):
            assert f"sleb_{gauge}{{{labels_of_model}}} 0.0" in text
    assert "sleb_kv_cache_usage_perc 0.0" in text
    assert 'model_name="tiny@-2",num_blocks="4",parent="tiny"' in text


@pytest.mark.parametrize("path", ["/health", "/ping"])
def test_readiness_has_vllms_paths(path: str, client: TestClient) -> None:
    assert client.get(path).json() == client.get("/health/ready").json()
    client.app_state["services"].readiness.reason = "draining"
    assert client.get(path).status_code == 503


def test_failed_lookups_make_no_labels(client: TestClient) -> None:
    for number in range(5):
        client.post("/generate", json={"model": f"made-up-{number}", "prompt": "a"})
    assert "made-up" not in client.get("/metrics").text


def test_buckets_tell_a_speed_up_of_a_quarter() -> None:
    buckets = latency_buckets(0.01, 0.025, 0.05)
    assert {0.01, 0.025, 0.05} <= set(buckets)
    ratios = [b / a for a, b in pairwise(buckets)]
    assert max(ratios) < 1.11
    assert buckets[0] == 0.001
    assert math.isclose(buckets[-1], 10, rel_tol=0.1)


def test_health_and_version(client: TestClient) -> None:
    assert client.get("/health/live").json()["status"] == "alive"
    assert client.get("/health/ready").json()["status"] == "ready"
    assert set(client.get("/version").json()) == {
        "version",
        "sleb_serve",
        "torch",
        "transformers",
    }


def test_it_is_not_ready_before_its_models_are_loaded(
    settings: ServeSettings, redis_url: str, data_dir: Path
) -> None:
    (data_dir / "models" / "tiny" / "model.safetensors").write_bytes(b"junk")
    with local_api(settings, redis_url) as client:  # ready without it
        answer = client.post("/generate", json={"model": "tiny", "prompt": "a"})
        assert answer.status_code == 422
        assert "not a safetensors file" in answer.json()["detail"]


def test_a_request_keeps_its_id(client: TestClient) -> None:
    answer = client.get("/models", headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    missing = client.get("/models/none", headers={"x-request-id": "mine-2"})
    assert missing.headers["x-request-id"] == "mine-2"
    made_up = client.get("/models", headers={"x-request-id": "x" * 500})
    assert len(made_up.headers["x-request-id"]) < 100


@pytest.mark.parametrize("path", ["/none", "/models/none", "/models/tiny@-1", "/models/tiny@x-1"])
def test_what_is_not_there_is_a_problem_document(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_models_that_cannot_be_served_are_listed_with_the_reason(
    client: TestClient, data_dir: Path
) -> None:
    (data_dir / "models" / "odd").mkdir()
    (data_dir / "models" / "odd" / "config.json").write_text('{"model_type": "mamba"}')
    entries = {entry["id"]: entry for entry in client.get("/models").json()["data"]}
    assert entries["tiny"]["error"] is None
    assert entries["tiny"]["is_loaded"]
    assert "safetensors" in entries["odd"]["error"]
    answer = client.post("/generate", json={"model": "odd", "prompt": "a"})
    assert answer.status_code == 422
    assert "safetensors" in answer.json()["detail"]


def test_the_schema_and_its_page_are_there(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/generate", "/prune-jobs", "/prune-jobs/{job_id}", "/models", "/metrics"} <= set(paths)
    assert client.get("/docs").status_code == 200


def test_a_process_that_shuts_down_is_alive() -> None:
    ended, readiness = AsyncEngine(Engine(), 1), Readiness()
    readiness.reason = None
    parts: Any = SimpleNamespace(readiness=readiness, generation=SimpleNamespace(engine=ended))
    for status in (503, 200):
        response = Response(status_code=200)
        asyncio.run(live(parts, response))
        assert response.status_code == status
        readiness.drain(30.0)


def test_metrics_have_a_port_of_their_own_if_it_is_set(
    settings: ServeSettings, redis_url: str
) -> None:
    port = free_port()
    with local_api(settings, redis_url, metrics_port=port) as client:
        assert client.get("/metrics").status_code == 404
        assert "/metrics" not in client.get("/openapi.json").json()["paths"]
        page = httpx2.get(f"http://127.0.0.1:{port}/metrics")
        assert "sleb_ready 1.0" in page.text.splitlines()
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"http://127.0.0.1:{port}/metrics")
    with local_api(settings, redis_url) as client:
        assert client.get("/metrics").status_code == 200
