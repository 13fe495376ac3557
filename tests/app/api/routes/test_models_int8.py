"""Int8 forms over HTTP: generated with, compared, listed with their bytes, and refused."""

from pathlib import Path

from fastapi.testclient import TestClient

from pruning.models.store import LoadedModel
from tests.support.api_fixtures import publish_pruned
from tests.support.generate_requests import generate
from tests.support.model_requests import load, model, num_bytes, unload
from tests.support.tiny_checkpoints import write_checkpoint


def test_an_int8_form_is_a_model_like_any_other(
    client: TestClient, data_dir: Path, tiny_loaded: LoadedModel
) -> None:
    publish_pruned(data_dir)
    listed = {found["id"]: found for found in client.get("/models").json()["data"]}
    assert listed["tiny"]["int8"]["id"] == "tiny+int8"
    assert listed["tiny@-2"]["int8"]["id"] == "tiny@-2+int8"
    known = [listed[name]["int8"]["weight_bytes"] for name in ("tiny", "tiny@-2")]
    assert num_bytes(tiny_loaded) > known[0] > known[1] > 0
    assert not model(client, "tiny+int8")["is_loaded"]
    for name in ("tiny+int8", "tiny@-2+int8"):
        answer = generate(client, model=name, max_new_tokens=4, ignore_eos=True)
        assert answer["model"] == name
        assert answer["outputs"][0]["completion_tokens"] == 4
    found = model(client, "tiny+int8")
    assert (found["is_loaded"], found["int8"], found["perplexity"]) == (True, None, None)
    assert 0 < found["weight_bytes"] < known[0]  # it shares the rest with the dense model
    metrics = client.get("/metrics").text
    assert 'sleb_num_requests_running{model_name="tiny+int8",variant="dense"}' in metrics
    assert 'sleb_num_requests_running{model_name="tiny@-2+int8",variant="pruned"}' in metrics
    assert 'sleb_model_weight_bytes{model_name="tiny+int8"}' in metrics
    assert unload(client, "tiny+int8").status_code == 204
    assert not model(client, "tiny@-2+int8")["is_loaded"]
    assert model(client, "tiny")["is_loaded"]


def test_plain_and_int8_are_compared(client: TestClient) -> None:
    names = ["tiny", "tiny+int8"]
    body = {"models": names, "prompt": "the dog", "max_new_tokens": 4, "repeats": 1}
    answer = client.post("/compare", json=body)
    assert answer.status_code == 200, answer.text
    outputs = answer.json()["prompts"][0]["outputs"]
    assert [found["model"] for found in outputs] == names


def test_a_name_that_has_no_int8_form_is_not_found(client: TestClient, data_dir: Path) -> None:
    write_checkpoint(data_dir / "models" / "other", "gpt2")
    assert model(client, "other")["int8"] is None
    for answer in (
        load(client, "other+int8"),
        client.get("/models/other+int8"),
        client.post("/generate", json={"model": "other+int8", "prompt": "the dog"}),
    ):
        assert answer.status_code == 404
        assert "'gpt2' cannot be quantized" in answer.json()["detail"]


def test_experts_are_served_with_int8_weights(client: TestClient, data_dir: Path) -> None:
    write_checkpoint(data_dir / "models" / "experts", "mixtral")
    known = model(client, "experts")["int8"]["weight_bytes"]
    body = {"model": "experts+int8", "max_new_tokens": 4, "ignore_eos": True}
    assert generate(client, **body)["outputs"][0]["completion_tokens"] == 4
    found = model(client, "experts+int8")
    assert (found["is_loaded"], found["weight_bytes"]) == (True, known)
    assert load(client, "experts").status_code == 200
    assert known < 0.6 * model(client, "experts")["weight_bytes"]
