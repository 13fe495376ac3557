"""What a comparison measures, the catalog and the advice know from then on."""

import time
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from app.config import ServeSettings
from app.engine.async_engine import AsyncEngine
from app.engine.variant import Variant
from app.models.measured_speedups import COMPARISON, Measurand, MeasuredSpeedup, MeasuredSpeedups
from tests.support.api_fixtures import publish_pruned
from tests.support.clock import Clock
from tests.support.comparisons import Uneven, compare
from tests.support.serving import local_api

BODY: dict[str, Any] = {"models": ["tiny", "tiny@-1"], "prompt": "the dog", "ignore_eos": True}


@pytest.fixture(autouse=True)
def _published(data_dir: Path, redis_client: redis.Redis) -> None:
    redis_client.ping()
    publish_pruned(data_dir)


def advised(client: TestClient) -> dict[str, Any]:
    depths: list[dict[str, Any]] = client.get("/models/tiny/advice").json()["depths"]
    return next(depth for depth in depths if depth["name"] == "tiny@-1")


def test_advice_joins_what_a_comparison_measured(
    settings: ServeSettings, redis_url: str, data_dir: Path
) -> None:
    with local_api(settings, redis_url, Uneven()) as client:
        assert not advised(client)["is_measured"]
        [result] = compare(client, **BODY, max_new_tokens=16, repeats=4)["results"]
        found = advised(client)
        assert found["is_measured"]
        tpot = result["tpot"]
        assert found["speedup"] == {
            "value": tpot["ratio"],
            "low": tpot["low"],
            "high": tpot["high"],
        }
        measured = client.get("/models/tiny@-1").json()["measured_speedup"]
        assert (measured["ratio"], measured["scenario"]) == (tpot["ratio"], COMPARISON)
        assert MeasuredSpeedups(data_dir).of("tiny", 1) is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    "different", [{"max_new_tokens": 15}, {"repeats": 2}, {"baseline": "tiny@-1"}]
)
def test_what_says_little_is_not_kept(
    settings: ServeSettings, redis_url: str, data_dir: Path, different: dict[str, Any]
) -> None:
    with local_api(settings, redis_url, Uneven()) as client:
        compare(client, **{**BODY, "max_new_tokens": 16, "repeats": 4, **different})
    assert MeasuredSpeedups(data_dir).of_model("tiny") == {}


@pytest.mark.slow
def test_a_busy_machine_measures_nothing_that_is_kept_at_once(
    settings: ServeSettings, redis_url: str, data_dir: Path
) -> None:
    engine = Uneven()
    engine.is_control_noisy = True
    with local_api(settings, redis_url, engine) as client:
        found = compare(client, **BODY, max_new_tokens=16, repeats=6)
    assert found["control"]["tpot"]["high"] > 1.1
    assert MeasuredSpeedups(data_dir).of_model("tiny") == {}


@pytest.mark.slow
def test_other_kernels_and_benchmarks_are_not_replaced(
    settings: ServeSettings, redis_url: str, data_dir: Path
) -> None:
    engine = Uneven()
    engine.scripted = {"tiny": {"blocks": "compiled"}, "tiny@-1": {"blocks": "torch"}}
    with local_api(settings, redis_url, engine) as client:
        compare(client, **BODY, max_new_tokens=16, repeats=4)
        assert MeasuredSpeedups(data_dir).of_model("tiny") == {}
        engine.scripted = {}
        bench = MeasuredSpeedup(1.1, 1.0, 1.2, "served", time.time(), num_pairs=2)
        MeasuredSpeedups(data_dir).record("tiny", {Measurand(1): bench})
        compare(client, **BODY, max_new_tokens=16, repeats=4)
    assert MeasuredSpeedups(data_dir).of("tiny", 1) == bench


def test_a_noisy_comparison_goes_on_until_its_intervals_are_narrow(
    settings: ServeSettings, redis_url: str, data_dir: Path
) -> None:
    engine = Uneven()
    engine.is_control_noisy, engine.noise_ticks, engine.num_noisy = True, 100, 4
    body = {**BODY, "max_new_tokens": 16, "repeats": 3}
    with local_api(settings, redis_url, engine) as client:
        short = compare(client, **body, max_seconds=1e-9)
        control, [result] = short["control"]["tpot"], short["results"]
        assert control["low"] < 1
        assert control["high"] > 1.1
        first = advised(client)["speedup"]
        assert first["value"] == result["tpot"]["ratio"]
        assert first["low"] == pytest.approx(result["tpot"]["low"] / control["high"])
        assert first["high"] == pytest.approx(result["tpot"]["high"] / control["low"])
        engine.num_dense = 0
        found = compare(client, **body, max_seconds=600)
        last = advised(client)["speedup"]
        assert first["low"] < last["low"] < last["high"] < first["high"]
    assert len(short["prompts"][0]["outputs"][0]["timings"]) == 3
    assert found["control"]["tpot"]["high"] <= 1.03 * found["control"]["tpot"]["ratio"]
    kept = MeasuredSpeedups(data_dir).of("tiny", 1)
    assert kept is not None
    assert kept.num_pairs is not None
    assert 4 < kept.num_pairs < 40, "its intervals ended it"


@pytest.mark.slow
def test_the_time_of_a_comparison_begins_behind_the_warm_up(
    settings: ServeSettings, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first warm-up takes longer than the limit, by a clock that nothing else moves."""
    clock, warmed_up = Clock(), AsyncEngine.warmed_up
    warm_s = clock.now + 10_000

    async def slowly(self: AsyncEngine, variants: Collection[Variant], limit_s: float) -> None:
        clock.now = warm_s
        await warmed_up(self, variants, limit_s)

    monkeypatch.setattr(AsyncEngine, "warmed_up", slowly)
    monkeypatch.setattr("app.compare.compare.time", SimpleNamespace(monotonic=clock))
    engine = Uneven()
    engine.is_control_noisy, engine.noise_ticks, engine.num_noisy = True, 100, 4
    with local_api(settings, redis_url, engine) as client:
        found = compare(client, **BODY, max_new_tokens=16, repeats=3, max_seconds=600)
    assert len(found["prompts"][0]["outputs"][0]["timings"]) > 4


def test_the_most_outputs_end_a_comparison_too(
    settings: ServeSettings, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.compare.compare.MAX_OUTPUTS", 8)
    engine = Uneven()
    engine.is_control_noisy = True
    with local_api(settings, redis_url, engine) as client:
        found = compare(client, **BODY, max_new_tokens=2, repeats=1, max_seconds=600)
    assert len(found["prompts"][0]["outputs"][0]["timings"]) == 4
    assert found["control"] is not None
