"""Models in the API process: loaded and unloaded on demand, counted, and kept apart."""

import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
import torch
from fastapi.testclient import TestClient

from app.config import ServeSettings
from pruning.models.store import LoadedModel, ModelStore
from tests.support.api_fixtures import publish_pruned
from tests.support.engines import gated
from tests.support.generate_requests import generate
from tests.support.model_requests import load, model, num_bytes, unload
from tests.support.serving import local_api
from tests.support.tiny_directory import write_tiny_model
from tests.support.waiting import wait_until

BODY = {"model": "tiny", "prompt": "the dog", "max_new_tokens": 8, "ignore_eos": True}


def text_of(answer: dict[str, Any]) -> str:
    text: str = answer["outputs"][0]["text"]
    return text


def test_a_model_is_loaded_and_unloaded_as_often_as_you_like(
    client: TestClient, tiny_loaded: LoadedModel
) -> None:
    text = text_of(generate(client))
    for _ in range(2):
        assert unload(client, "tiny").status_code == 204
        assert not model(client, "tiny")["is_loaded"]
        assert model(client, "tiny")["weight_bytes"] == 0
        assert 'sleb_model_weight_bytes{model_name="tiny"}' not in client.get("/metrics").text
    for _ in range(2):
        loaded = load(client, "tiny")
        assert loaded.status_code == 200
        assert loaded.json() == model(client, "tiny")
        assert loaded.json()["is_loaded"]
        assert loaded.json()["weight_bytes"] == num_bytes(tiny_loaded)
    metric = f'sleb_model_weight_bytes{{model_name="tiny"}} {float(num_bytes(tiny_loaded))}'
    assert metric in client.get("/metrics").text
    assert unload(client, "tiny").status_code == 204
    assert text_of(generate(client)) == text
    assert model(client, "tiny")["is_loaded"]


@pytest.mark.parametrize("name", ["tiny@-2", "tiny@prn-1", "tiny@prn-1-1"])
def test_a_view_has_no_weights_and_goes_alone(
    client: TestClient, data_dir: Path, name: str
) -> None:
    publish_pruned(data_dir)
    before = client.app_state["services"].generation.registry.weight_bytes()
    loaded = load(client, name).json()
    assert (loaded["id"], loaded["is_loaded"], loaded["weight_bytes"]) == (name, True, 0)
    assert client.app_state["services"].generation.registry.weight_bytes() == before
    assert unload(client, name).status_code == unload(client, name).status_code == 204
    assert not model(client, name)["is_loaded"]
    assert model(client, "tiny")["is_loaded"]
    assert load(client, name).json()["is_loaded"]


def test_loading_a_view_loads_its_dense_parent(client: TestClient, data_dir: Path) -> None:
    publish_pruned(data_dir)
    unload(client, "tiny")
    assert not load(client, "tiny@-1").json()["weight_bytes"]
    assert model(client, "tiny")["weight_bytes"] > 0
    assert unload(client, "tiny").status_code == 204
    assert not model(client, "tiny@-1")["is_loaded"]


def test_a_checkpoint_with_weights_of_its_own_lets_go_of_them(
    client: TestClient, data_dir: Path
) -> None:
    manifest = publish_pruned(data_dir)
    unload(client, "tiny")
    (data_dir / "models" / "tiny").rename(data_dir / "models" / ".gone")
    loaded = load(client, manifest.name).json()
    assert loaded["weight_bytes"] == 4 * manifest.num_parameters == manifest.weight_bytes
    assert unload(client, manifest.name).status_code == 204
    assert model(client, manifest.name)["weight_bytes"] == 0
    assert client.app_state["services"].generation.registry.weight_bytes() == {}


def test_what_is_loaded_can_be_unloaded_though_its_directory_is_gone(
    client: TestClient, data_dir: Path
) -> None:
    shutil.rmtree(data_dir / "models" / "tiny")
    assert load(client, "tiny").status_code == 404
    assert unload(client, "tiny").status_code == 204
    assert unload(client, "tiny").status_code == 404


@pytest.mark.parametrize("verb", ["load", "unload"])
@pytest.mark.parametrize(
    "name", ["none", "tiny@-1", "tiny@none", "tiny@none-1", "a" * 300, "%00", "org%2Ftiny"]
)
def test_an_unknown_name_is_not_found(client: TestClient, verb: str, name: str) -> None:
    answer = client.post(f"/models/{name}/{verb}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_what_cannot_be_loaded_says_why_and_can_be_mended(
    client: TestClient, data_dir: Path
) -> None:
    file = data_dir / "models" / "tiny" / "model.safetensors"
    whole = file.read_bytes()
    unload(client, "tiny")
    file.write_bytes(b"junk")
    for _ in range(2):
        answer = load(client, "tiny")
        assert answer.status_code == 422
        assert "model.safetensors" in answer.json()["detail"]
    assert unload(client, "tiny").status_code == 204
    file.write_bytes(whole)
    assert load(client, "tiny").status_code == 200


def test_unloading_frees_the_memory(client: TestClient, data_dir: Path) -> None:
    publish_pruned(data_dir)
    for name in ("tiny", "tiny@-1", "tiny@-2"):
        generate(client, model=name)
    registry = client.app_state["services"].generation.registry
    weights = registry.get("tiny").variant.model.parameters()
    watched = [weakref.ref(parameter) for parameter in weights]
    del weights
    assert all(watch() is not None for watch in watched)
    assert unload(client, "tiny").status_code == 204
    assert not any(watch() is not None for watch in watched)


def test_a_model_is_not_taken_away_from_running_requests(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis, data_dir: Path
) -> None:
    redis_client.ping()
    publish_pruned(data_dir)
    with (
        ThreadPoolExecutor() as pool,
        gated() as engine,
        local_api(settings, redis_url, engine) as client,
    ):
        running = [
            pool.submit(client.post, "/generate", json={**BODY, "model": name})
            for name in ("tiny", "tiny@-1", "tiny@-1")
        ]
        registry = client.app_state["services"].generation.registry
        wait_until(lambda: num_open(client) == 3, "all are in the engine")
        for name, number in (("tiny", 3), ("tiny@-1", 2)):
            answer = unload(client, name)
            assert (answer.status_code, answer.json()["type"]) == (409, "model-in-use")
            assert f"requests ({number})" in answer.json()["detail"]
        assert unload(client, "tiny@-2").status_code == 204  # which no request uses
        before = registry.weight_bytes()
        engine.gate.set()
        assert [future.result().status_code for future in running] == [200] * 3
        assert registry.weight_bytes() == before
        assert unload(client, "tiny@-1").status_code == unload(client, "tiny").status_code == 204
        assert registry.weight_bytes() == {}


def num_open(client: TestClient) -> int:
    engine = client.app_state["services"].generation.engine
    registry = client.app_state["services"].generation.registry
    found: int = engine.num_open(registry.variants(registry.catalog.resolve("tiny")))
    return found


def test_unloading_meanwhile_changes_no_response(client: TestClient, data_dir: Path) -> None:
    publish_pruned(data_dir)
    names = ("tiny", "tiny@-1", "tiny@-2")
    expected = {name: text_of(generate(client, **{**BODY, "model": name})) for name in names}

    def ask(number: int) -> tuple[str, httpx2.Response]:
        name = names[number % len(names)]
        return name, client.post("/generate", json={**BODY, "model": name})

    def take(number: int) -> int:
        return unload(client, names[number % 2]).status_code

    with ThreadPoolExecutor(8) as pool:
        answers, taken = pool.map(ask, range(60)), pool.map(take, range(60))
        for name, answer in answers:
            assert answer.status_code in (200, 429), answer.text
            if answer.status_code == 200:
                assert text_of(answer.json()) == expected[name]
        assert set(taken) <= {204, 409}
    assert unload(client, "tiny").status_code == 204


@pytest.fixture
def other(data_dir: Path) -> Path:
    return write_tiny_model(data_dir / "models" / "other", seed=1)


def test_what_would_not_fit_is_refused_before_it_is_read(
    settings: ServeSettings,
    redis_url: str,
    redis_client: redis.Redis,
    other: Path,
    tiny_loaded: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    redis_client.ping()
    size = num_bytes(tiny_loaded)
    with local_api(settings, redis_url, preload=("tiny",), max_weight_bytes=2 * size - 1) as client:
        with monkeypatch.context() as patch:
            patch.setattr(ModelStore, "load", lambda *_, **__: pytest.fail("read"))
            answer = load(client, other.name)
            assert (answer.status_code, answer.json()["type"]) == (507, "no-room-for-weights")
            for text in (f"need {size} bytes", f"only {size - 1} are free", f"tiny ({size} bytes)"):
                assert text in answer.json()["detail"]
            asked = client.post("/generate", json={"model": other.name, "prompt": "a"})
            assert asked.status_code == 507
            asked = client.post("/v1/completions", json={"model": other.name, "prompt": "a"})
            assert asked.status_code == 507
            assert asked.json()["error"]["code"] == "no_room_for_weights"
        generate(client)
        assert unload(client, "tiny").status_code == 204
        assert load(client, other.name).status_code == 200
        assert load(client, "tiny").status_code == 507
        assert client.get("/health/live").status_code == 200


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("spare", [0, -1])
def test_what_weights_will_take_is_known_to_the_byte(
    settings: ServeSettings,
    redis_url: str,
    redis_client: redis.Redis,
    tiny_loaded: LoadedModel,
    data_dir: Path,
    dtype: str,
    spare: int,
) -> None:
    """Of a file in float32, whatever the config makes of it."""
    redis_client.ping()
    config = data_dir / "models" / "tiny" / "config.json"
    config.write_text(config.read_text().replace('"float32"', f'"{dtype}"'))
    size = num_bytes(tiny_loaded) * getattr(torch, dtype).itemsize // 4
    with local_api(settings, redis_url, preload=(), max_weight_bytes=size + spare) as client:
        assert load(client, "tiny").status_code == (507 if spare else 200)
        assert model(client, "tiny")["weight_bytes"] == (0 if spare else size)


def test_the_memory_of_the_device_is_a_limit_too(
    client: TestClient, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.models.weights.free_bytes", lambda _device: 1000)
    answer = load(client, other.name)
    assert answer.status_code == 507
    assert "1000 are free in the memory of cpu" in answer.json()["detail"]


def test_memory_that_runs_out_while_a_model_is_read_kills_nothing(
    client: TestClient, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(*_: object, **__: object) -> LoadedModel:
        torch.empty(2**60, dtype=torch.uint8)
        raise AssertionError("a machine with that much memory")

    with monkeypatch.context() as patch:
        patch.setattr(ModelStore, "load", greedy)
        answer = load(client, other.name)
    assert answer.status_code == 507
    assert "tried to allocate" in answer.json()["detail"]
    generate(client)
    assert load(client, other.name).status_code == 200


def test_the_cache_of_running_requests_is_told_and_goes_with_them(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis, data_dir: Path
) -> None:
    redis_client.ping()
    publish_pruned(data_dir)
    with (
        ThreadPoolExecutor() as pool,
        gated() as engine,
        local_api(settings, redis_url, engine) as client,
    ):
        names = ("tiny", "tiny@-1")
        bodies = [{**BODY, "model": name, "max_new_tokens": 64} for name in names]
        running = [pool.submit(client.post, "/generate", json=body) for body in bodies]
        wait_until(lambda: num_open(client) == 2, "both are in the engine")
        engine.gate.set()
        engine.close_after(8)
        wait_until(lambda: all(model(client, name)["kv_cache_bytes"] for name in names), "caches")
        dense, pruned = (model(client, name)["kv_cache_bytes"] for name in names)
        assert dense * 5 == pruned * 6
        metric = f'sleb_kv_cache_bytes{{model_name="tiny"}} {float(dense)}'
        assert metric in client.get("/metrics").text
        engine.gate.set()
        assert all(future.result().status_code == 200 for future in running)
        assert not any(model(client, name)["kv_cache_bytes"] for name in names)
        assert 'sleb_kv_cache_bytes{model_name="tiny"} 0.0' in client.get("/metrics").text
