"""The check of health that generates one real token."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from app.config import ServeSettings
from tests.support.engines import CrashingEngine, FailingEngine, gated
from tests.support.serving import local_api
from tests.support.waiting import wait_until

PATH = "/health/generate"
BODY: dict[str, Any] = {"model": "tiny", "prompt": "the dog", "max_new_tokens": 1}


def test_it_succeeds_with_and_without_a_loaded_model(
    settings: ServeSettings, redis_url: str
) -> None:
    with local_api(settings, redis_url) as client:
        assert client.get(PATH).json() == {"status": "generating", "detail": None}
        client.post("/generate", json=BODY)
        assert client.get(PATH).json() == {"status": "generating", "detail": None}


def test_a_token_that_does_not_come_in_time_is_a_503(
    settings: ServeSettings, redis_url: str
) -> None:
    with gated(num_free=1) as engine, local_api(settings, redis_url, engine) as client:
        assert client.post("/generate", json=BODY).status_code == 200
        client.app_state["services"].generation.token_check.deadline_s = 0.2
        late = client.get(PATH)
        assert late.status_code == 503
        assert late.json()["detail"] == "the engine generated no token within 0.2 s"
        assert client.get("/health/live").status_code == 200


def test_an_engine_that_fails_or_has_crashed_is_a_503(
    settings: ServeSettings, redis_url: str
) -> None:
    expected = {FailingEngine: "the engine failed: see the", CrashingEngine: "the engine"}
    for make, detail in expected.items():
        with local_api(settings, redis_url, make(1)) as client:
            assert client.post("/generate", json=BODY).status_code == 200
            failed = client.get(PATH)
            assert failed.status_code == 503
            assert failed.json()["detail"].startswith(detail)


def test_probes_at_the_same_time_share_one_token(settings: ServeSettings, redis_url: str) -> None:
    with (
        gated(num_free=1) as engine,
        local_api(settings, redis_url, engine) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        assert client.post("/generate", json=BODY).status_code == 200
        served = client.app_state["services"].generation.engine
        probes = [pool.submit(client.get, PATH) for _ in range(8)]
        wait_until(lambda: engine.is_at_gate, "a probe is in the engine")
        assert len(served._streams) == 1
        engine.gate.set()
        assert {probe.result().status_code for probe in probes} == {200}
