"""What gives a comparison no verdict: the noise of equal models, other kernels, and warming up."""

import time
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from app.config import ServeSettings
from app.engine.async_engine import AsyncEngine, StillWarmingUp
from app.engine.scheduling.sequence import TokenEvent
from app.engine.step import NEVER, Interruption
from tests.support.api_fixtures import publish_pruned
from tests.support.comparisons import MODELS, PROMPTS, Noting, Uneven, compare
from tests.support.serving import local_api


@pytest.fixture(autouse=True)
def _published(data_dir: Path) -> None:
    publish_pruned(data_dir)


@pytest.mark.parametrize(
    ("models", "repeats"), [(["tiny", "tiny@-1"], 1), (["tiny@-1", "tiny", "tiny"], 3)]
)
def test_a_control_costs_a_side_only_where_it_is_needed(
    settings: ServeSettings,
    redis_url: str,
    redis_client: redis.Redis,
    models: list[str],
    repeats: int,
) -> None:
    redis_client.ping()
    engine = Noting()
    with local_api(settings, redis_url, engine) as client:
        found = compare(client, models=models, baseline="tiny", prompt="the dog", repeats=repeats)
    assert len(engine.added) == len(models) * (1 + repeats)
    assert (found["control"] is None) == (repeats == 1)


def test_what_equal_models_read_is_said(client: TestClient) -> None:
    found = compare(client, repeats=3, ignore_eos=True)
    control = found["control"]
    assert control["agreement"] == 1
    for kind in ("tpot", "ttft", "e2e"):
        assert control[kind]["low"] <= control[kind]["ratio"] <= control[kind]["high"]
    # the control is no model of the result
    assert [each["model"] for each in found["results"]] == MODELS[1:]
    assert [len(each["outputs"]) for each in found["prompts"]] == [3, 3]


def test_a_speed_up_within_the_noise_of_equal_models_has_no_verdict(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis
) -> None:
    redis_client.ping()
    engine = Uneven()
    with local_api(settings, redis_url, engine) as client:
        body: dict[str, Any] = {"models": ["tiny", "tiny@-1"], "prompt": "the dog", "repeats": 6}
        found = compare(client, ignore_eos=True, **body)
        [result] = found["results"]
        assert result["tpot"]["verdict"] == "faster"
        assert found["control"]["tpot"]["verdict"] == "no difference"
        engine.is_control_noisy, engine.num_dense = True, 0
        found = compare(client, ignore_eos=True, **body)
    [result] = found["results"]
    assert result["tpot"]["verdict"] == "undecided", result
    assert "overlaps the noise floor" in result["tpot"]["reason"]


class OneSlower(Noting):
    """The second of two sides is slower each time, whatever its model is."""

    def __init__(self) -> None:
        self.now_s = round(time.monotonic()) + 1000.0  # later than any request arrives
        super().__init__(clock=lambda: self.now_s)

    def step(self, interruption: Interruption = NEVER) -> list[TokenEvent]:
        repeat, place = divmod(len(self.added) - 3, 2)  # two requests warm up
        self.now_s += (1300 if (repeat + place) % 2 else 1000) / 2**20
        return super().step(interruption)


def test_a_model_is_never_slower_than_itself(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis
) -> None:
    redis_client.ping()
    with local_api(settings, redis_url, OneSlower()) as client:
        body: dict[str, Any] = {"models": ["tiny", "tiny"], "prompt": "the dog", "repeats": 6}
        found = compare(client, ignore_eos=True, **body)
    [result] = found["results"]
    assert result["tpot"]["high"] < 0.8
    assert result["tpot"]["verdict"] == "undecided"
    assert "overlaps the noise floor" in result["tpot"]["reason"]
    assert found["control"]["tpot"] == result["tpot"]


@pytest.mark.slow
def test_different_kernels_are_said_and_give_no_verdict(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis
) -> None:
    redis_client.ping()
    engine = Uneven()
    body: dict[str, Any] = {"models": ["tiny", "tiny@-1"], "prompt": "the dog", "repeats": 4}
    with local_api(settings, redis_url, engine) as client:
        engine.scripted = {"tiny": {"blocks": "compiled"}, "tiny@-1": {"other blocks": "torch"}}
        found = compare(client, ignore_eos=True, **body)
        [result] = found["results"]
        assert result["tpot"]["verdict"] == "faster"
        assert found["baseline_kernels"]["blocks"] == "compiled"
        assert result["kernels"]["other blocks"] == "torch"
        engine.scripted["tiny@-1"] = {"blocks": "torch"}
        [result] = compare(client, ignore_eos=True, **body)["results"]
    for kind in ("tpot", "ttft", "e2e"):
        assert result[kind]["verdict"] == "undecided"
        assert result[kind]["reason"] == "different kernels: blocks (compiled against torch)"


def test_it_waits_until_kernels_are_compiled_and_chosen(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_engine: AsyncEngine, variants: Any, limit_s: float) -> None:
        raise StillWarmingUp(variants, limit_s)

    monkeypatch.setattr(AsyncEngine, "warmed_up", refuse)
    body = {"models": MODELS, "prompt": PROMPTS, "max_new_tokens": 2}
    response = client.post("/compare", json=body)
    assert (response.status_code, response.headers["retry-after"]) == (503, "10")
    assert response.json()["type"].endswith("still-warming-up")
    assert "kernels of tiny, tiny@-1, tiny@-3 are still being compiled" in response.json()["detail"]
    assert "sleb_request_success_total{" not in client.get("/metrics").text


@pytest.mark.slow
def test_what_warms_up_meanwhile_gives_no_verdict(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AsyncEngine, "is_warming_up", lambda _engine, each: each.name == "tiny@-1")

    waits: list[float] = []

    async def go_on(_engine: AsyncEngine, _variants: Any, limit_s: float) -> None:
        waits.append(limit_s)

    monkeypatch.setattr(AsyncEngine, "warmed_up", go_on)
    results = compare(client, repeats=3)["results"]
    assert len(waits) == 1 + 3 * (len(MODELS) + 1)  # before the first turn, and before each
    for result in results:
        assert result["tpot"]["verdict"] == "undecided"
        assert "compiled or selected during the comparison" in result["tpot"]["reason"]
