"""Models that cannot be pruned are refused over HTTP, before anything is queued or loaded."""

from pathlib import Path

import pytest
import redis
from fastapi.testclient import TestClient

from tests.support.prune_requests import JOB
from tests.support.tiny_checkpoints import write_checkpoint
from tests.support.tiny_directory import write_tiny_model
from tests.support.unsupported import QUANTIZED, TYPES, quantize_config, write_unsupported

pytestmark = pytest.mark.usefixtures("nothing_preloaded")


def assert_refused(
    client: TestClient, store: redis.Redis, model: str, problem: str, *words: str
) -> None:
    """By a job, its dry run, and generation, each in the same words; the catalog says them."""
    asked = {"model": model, "prompt": "the fox", "max_new_tokens": 1}
    job = {**JOB, "model": model}
    answers = [
        client.post("/prune-jobs", json=job, headers={"Idempotency-Key": "k"}),
        client.post("/prune-jobs", json={**job, "dry_run": True}),
    ]
    for answer in answers:
        told = answer.json()
        assert (answer.status_code, told["type"]) == (422, problem)
        assert all(word in told["detail"] for word in words), told["detail"]
    assert store.keys("sleb:*") == []
    generated = client.post("/generate", json=asked)
    assert 400 <= generated.status_code < 500
    assert all(word in generated.json()["detail"] for word in words)
    listed = client.get(f"/models/{model}").json()
    assert answers[0].json()["detail"] in listed["error"]
    assert not listed["is_loaded"]


@pytest.mark.parametrize("model_type", TYPES)
def test_models_of_other_kinds_are_refused_with_what_is_supported(
    client: TestClient, data_dir: Path, redis_client: redis.Redis, model_type: str
) -> None:
    write_unsupported(data_dir / "models" / "other", model_type)
    words = (f"'{model_type}'", "decoder-only", "llama", "qwen3_moe")
    assert_refused(client, redis_client, "other", "unknown-architecture", *words)


@pytest.mark.parametrize("method", QUANTIZED)
def test_quantized_models_are_refused_with_what_to_give_instead(
    client: TestClient, data_dir: Path, redis_client: redis.Redis, method: str
) -> None:
    quantize_config(write_tiny_model(data_dir / "models" / "small"), method)
    words = (f"quantized ({method})", "use the original unquantized model")
    assert_refused(client, redis_client, "small", "unsupported-config", *words)


@pytest.mark.parametrize(
    ("family", "repair", "possible"),
    [
        ("exaone4", "scale", "ridge or auto"),
        ("opt.do_layer_norm_before", "ridge", "auto or none"),
    ],
)
def test_a_repair_that_is_not_made_for_the_family_is_refused(
    client: TestClient,
    data_dir: Path,
    redis_client: redis.Redis,
    family: str,
    repair: str,
    possible: str,
) -> None:
    write_checkpoint(data_dir / "models" / "other", family)
    job = {**JOB, "model": "other", "repair": repair}
    for body in (job, {**job, "dry_run": True}):
        answer = client.post("/prune-jobs", json=body)
        told = answer.json()
        assert (answer.status_code, told["type"]) == (422, "invalid-spec")
        assert told["param"] == "repair"
        assert f": use {possible}" in told["detail"]
    assert redis_client.keys("sleb:*") == []
    assert client.post("/prune-jobs", json={**job, "repair": "auto"}).status_code == 202
