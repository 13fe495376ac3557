"""Requests that end otherwise than they should, and an engine that does not come to any end."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from fastapi.testclient import TestClient

from app.config import ServeSettings
from app.engine.sampling.text import TextStream
from tests.support.engines import CrashingEngine, FailingEngine, gated
from tests.support.exposition import Scrape
from tests.support.serving import local_api
from tests.support.waiting import wait_until

BODY = {"model": "tiny", "prompt": "the dog", "max_new_tokens": 40, "ignore_eos": True}


@pytest.fixture(autouse=True)
def _empty_store(redis_client: redis.Redis) -> None:
    redis_client.ping()


def num_ended(client: TestClient, reason: str) -> float | None:
    registry = client.app_state["services"].metrics.registry
    labels = {"model_name": "tiny", "variant": "dense", "traffic": "live", "engine": "own"}
    found: float | None = registry.get_sample_value(
        "sleb_request_success_total", {**labels, "finished_reason": reason}
    )
    return found


def test_an_answer_whose_text_cannot_be_made_fails_alone(
    settings: ServeSettings, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = TextStream.push
    broken: list[TextStream] = []

    def break_the_first(text: TextStream, token_id: int) -> str:
        broken[:] = broken or [text]
        if text is broken[0]:
            raise RuntimeError("no such text")
        return push(text, token_id)

    monkeypatch.setattr(TextStream, "push", break_the_first)
    with local_api(settings, redis_url) as client, ThreadPoolExecutor() as clients:
        asks = [clients.submit(client.post, "/generate", json=BODY) for _ in range(3)]
        assert sorted(ask.result().status_code for ask in asks) == [200, 200, 500]
        services = client.app_state["services"]
        wait_until(
            lambda: not services.generation.engine.stats().num_running, "the failed one has ended"
        )
        assert num_ended(client, "abort") == 1


def test_what_the_engine_fails_on_is_counted_as_an_error_and_as_no_latency(
    settings: ServeSettings, redis_url: str
) -> None:
    with local_api(settings, redis_url, FailingEngine(num_good=3)) as client:
        answer = client.post("/generate", json={**BODY, "prompt": ["the dog"] * 2})
        assert answer.status_code == 500
        assert answer.json()["type"] == "generation-failed"
        assert num_ended(client, "error") == 2
        found = Scrape(client.get("/metrics").text)
        labels = {"model_name": "tiny", "variant": "dense", "traffic": "live", "engine": "own"}
        for name in ("e2e_request_latency", "time_to_first_token", "request_queue_time"):
            assert found.value(f"sleb_{name}_seconds_count", **labels) == 0
        assert client.get("/health/ready").status_code == 200


def test_a_crash_is_a_503_and_counted_too(settings: ServeSettings, redis_url: str) -> None:
    with local_api(settings, redis_url, CrashingEngine(num_good=3)) as client:
        answer = client.post("/generate", json={**BODY, "prompt": ["the dog"] * 2})
        assert answer.status_code == 503
        assert num_ended(client, "error") == 2
        for probe in ("/health/live", "/health/ready"):
            dead = client.get(probe)
            assert dead.status_code == 503
            assert dead.json()["detail"] == "the engine thread has stopped: restart the process"


def test_the_service_sets_the_longest_timeout(settings: ServeSettings, redis_url: str) -> None:
    with local_api(settings, redis_url, request_timeout_s=1e-6) as client:
        for own in ({}, {"timeout_s": 100.0}):
            [output] = client.post("/generate", json={**BODY, **own}).json()["outputs"]
            assert output["finish_reason"] == "timeout"
        assert num_ended(client, "timeout") == 2


def test_what_would_make_too_many_tokens_wait_is_refused_and_counted(
    settings: ServeSettings, redis_url: str
) -> None:
    with (
        gated() as engine,
        local_api(settings, redis_url, engine, max_waiting_tokens=50) as client,
        ThreadPoolExecutor() as pool,
    ):
        waits = pool.submit(client.post, "/generate", json=BODY)
        services = client.app_state["services"]
        wait_until(lambda: services.generation.engine.stalled_s > 0, "it is in the line")
        refused = client.post("/generate", json=BODY)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert "tokens are waiting" in refused.json()["detail"]
        registry = services.metrics.registry
        labels = {"model_name": "tiny", "variant": "dense", "traffic": "live", "engine": "own"}
        labels["reason"] = "queue_tokens_full"
        assert registry.get_sample_value("sleb_admission_rejections_total", labels) == 1
        engine.gate.set()
        assert waits.result().status_code == 200


def test_what_a_stop_string_ends_is_counted_as_a_stop(
    settings: ServeSettings, redis_url: str
) -> None:
    with local_api(settings, redis_url) as client:
        [output] = client.post("/generate", json=BODY).json()["outputs"]
        stop = output["text"][4:6]
        assert client.post("/generate", json={**BODY, "stop": stop}).status_code == 200
        assert (num_ended(client, "length"), num_ended(client, "stop")) == (1, 1)
        assert num_ended(client, "abort") == 0


def test_an_engine_that_is_stuck_in_a_step_is_dead_until_it_is_not(
    settings: ServeSettings, redis_url: str
) -> None:
    with (
        gated(num_free=1) as engine,
        local_api(settings, redis_url, engine, engine_stall_s=0.3) as client,
        ThreadPoolExecutor() as pool,
    ):
        assert client.get("/health/live").status_code == 200
        answer = pool.submit(client.post, "/generate", json=BODY)
        wait_until(lambda: client.get("/health/live").status_code == 503, "it counts as dead")
        for probe in ("/health/live", "/health/ready"):
            dead = client.get(probe)
            assert dead.status_code == 503
            assert "no engine step has finished for" in dead.json()["detail"]
            assert "the limit of 0.3 s" in dead.json()["detail"]
        engine.gate.set()
        assert answer.result().status_code == 200
        assert client.get("/health/live").status_code == 200
