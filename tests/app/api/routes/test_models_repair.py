"""Repaired variants and their raw forms over HTTP."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.models.measured_speedups import Measurand, MeasuredSpeedup, MeasuredSpeedups
from pruning.checkpoints.store import Manifest
from pruning.models.store import LoadedModel
from pruning.repair.record import Method
from pruning.spec.prune import Repair
from tests.support.api_fixtures import publish_pruned
from tests.support.exposition import Scrape
from tests.support.generate_requests import generate
from tests.support.model_requests import load, model, unload
from tests.support.repairs import repair_checkpoint

METHODS = (Method.NONE, Method.SCALE, Method.RIDGE)


@pytest.fixture
def manifest(data_dir: Path, tiny_loaded: LoadedModel) -> Manifest:
    publish_pruned(data_dir, len(METHODS))
    return repair_checkpoint(data_dir / "checkpoints" / "tiny@prn-1", tiny_loaded.model, METHODS)


def text_of(client: TestClient, name: str) -> str:
    answer = generate(client, model=name, max_new_tokens=12, ignore_eos=True)
    text: str = answer["outputs"][0]["text"]
    return text


def test_every_repaired_variant_names_its_raw_form_which_is_not_listed(
    client: TestClient, manifest: Manifest
) -> None:
    assert manifest.repair is not None
    own_bytes = manifest.repair[2].num_bytes
    listed = {each["id"]: each["repair"] for each in client.get("/models").json()["data"]}
    assert listed == {
        "tiny": None,
        "tiny@-1": None,
        "tiny@-2": {
            "method": "scale",
            "bytes": 0,
            "shared_bytes": 0,
            "raw": "tiny@-2+raw",
            "is_healed": False,
        },
        "tiny@-3": {
            "method": "ridge",
            "bytes": own_bytes,
            "raw": "tiny@-3+raw",
            "shared_bytes": 0,
            "is_healed": False,
        },
        "tiny@prn-1": {
            "method": "ridge",
            "bytes": own_bytes,
            "raw": "tiny@prn-1+raw",
            "shared_bytes": 0,
            "is_healed": False,
        },
    }
    names = [each["id"] for each in client.get("/v1/models").json()["data"]]
    assert names == list(listed)
    for name in names[1:]:
        raw = model(client, f"{name}+raw")
        assert (raw["id"], raw["repair"], raw["variant"]) == (f"{name}+raw", None, "pruned")
        assert raw["removed_blocks"] == model(client, name)["removed_blocks"]
        assert client.get(f"/v1/models/{name}+raw").json()["parent"] == "tiny"


def test_a_measured_speed_up_is_that_of_the_depth(client: TestClient, data_dir: Path) -> None:
    publish_pruned(data_dir, 2)
    assert model(client, "tiny@-1")["measured_speedup"] is None
    found = MeasuredSpeedup(1.21, 1.15, 1.27, "served", 1.8e9)
    MeasuredSpeedups(data_dir).record("tiny", {Measurand(1): found})
    assert model(client, "tiny@-1")["measured_speedup"] == {
        "ratio": 1.21,
        "low": 1.15,
        "high": 1.27,
        "scenario": "served",
        "measured_at": 1.8e9,
    }
    assert model(client, "tiny@-2")["measured_speedup"] is None
    assert model(client, "tiny")["measured_speedup"] is None


def test_what_was_measured_of_the_repaired_model_is_not_of_the_raw_one(
    client: TestClient, manifest: Manifest
) -> None:
    assert manifest.quality.perplexities
    raw, repaired = model(client, "tiny@-3+raw"), model(client, "tiny@-3")
    assert repaired["perplexity"] == manifest.quality.perplexities[3]
    assert (raw["probe_score"], raw["warnings"]) == (None, [])
    assert raw["losses"] == repaired["losses"]  # of the search, which repaired nothing
    assert model(client, "tiny@-1+raw")["perplexity"] == manifest.quality.perplexities[1]


def test_a_raw_form_has_the_perplexity_that_the_job_measured_without_repair(
    client: TestClient, data_dir: Path
) -> None:
    manifest = publish_pruned(data_dir, len(METHODS), repair=Repair.RIDGE)
    assert manifest.repair is not None
    raw, repaired = model(client, "tiny@-3+raw"), model(client, "tiny@-3")
    assert (raw["perplexity"], repaired["perplexity"]) == (
        manifest.quality.raw_perplexities[3],
        manifest.quality.perplexities[3],
    )
    assert raw["perplexity"] != repaired["perplexity"]
    assert raw["evaluated_on"] == repaired["evaluated_on"]
    [of_text] = [domain for domain in raw["domains"] if domain["domain"] == "self"]
    assert raw["perplexity"] == pytest.approx(of_text["perplexity"])
    load(client, "tiny@-3+raw")
    scrape = Scrape(client.get("/metrics").text)
    labels = {"model_name": "tiny@-3+raw", "text": raw["evaluated_on"]}
    assert scrape.value("sleb_model_perplexity", **labels) == pytest.approx(raw["perplexity"])


def test_both_are_loaded_counted_and_unloaded_each_alone(
    client: TestClient, manifest: Manifest
) -> None:
    assert manifest.repair is not None
    own_bytes = manifest.repair[2].num_bytes
    for name, num_bytes in (("tiny@-3", own_bytes), ("tiny@-3+raw", 0)):
        loaded = load(client, name).json()
        assert (loaded["id"], loaded["is_loaded"], loaded["weight_bytes"]) == (
            name,
            True,
            num_bytes,
        )
    scrape = Scrape(client.get("/metrics").text)
    assert scrape.value("sleb_model_weight_bytes", model_name="tiny@-3") == own_bytes
    known = {labels["model_name"] for labels in scrape.series("sleb_model_num_blocks")}
    assert known == {"tiny", "tiny@-1", "tiny@-2", "tiny@-3", "tiny@-3+raw", "tiny@prn-1"} | {
        "tiny@prn-1+raw"  # another name of the same
    }
    assert text_of(client, "tiny@-3") != text_of(client, "tiny@-3+raw")
    scrape = Scrape(client.get("/metrics").text)
    for name in ("tiny@-3", "tiny@-3+raw"):
        labels = {"model_name": name, "variant": "pruned", "traffic": "live"}
        assert scrape.value("sleb_generation_tokens_total", **labels) == 12
    assert unload(client, "tiny@-3").status_code == 204
    assert [model(client, name)["is_loaded"] for name in ("tiny@-3", "tiny@-3+raw")] == [0, 1]
    assert unload(client, "tiny@prn-1+raw").status_code == 204
    assert not model(client, "tiny@-3+raw")["is_loaded"]
    assert model(client, "tiny")["is_loaded"]


def test_a_comparison_shows_dense_raw_and_repaired(client: TestClient, manifest: Manifest) -> None:
    names = ["tiny", "tiny@-3", "tiny@-3+raw", f"{manifest.name}+raw"]
    body = {"models": names, "prompt": "the dog", "max_new_tokens": 12, "ignore_eos": True}
    found: dict[str, Any] = client.post("/compare", json=body).json()
    outputs = found["prompts"][0]["outputs"]
    assert [each["model"] for each in outputs] == names
    texts = [each["text"] for each in outputs]
    assert texts == [text_of(client, name) for name in names]
    assert (len(set(texts)), texts[2]) == (3, texts[3])
    assert [each["model"] for each in found["results"]] == names[1:]
    for result in found["results"]:
        assert result["tpot"]["low"] <= result["tpot"]["ratio"] <= result["tpot"]["high"]
    assert found["results"][0]["agreement"] == outputs[1]["agreement"]
    assert found["results"][1]["logprob_gap"] == outputs[2]["logprob_gap"]


@pytest.mark.parametrize("name", ["tiny+raw", "tiny@-4+raw", "none@-1+raw"])
def test_a_name_that_has_no_raw_form_is_not_found(
    client: TestClient, manifest: Manifest, name: str
) -> None:
    assert manifest.repair is not None
    answer = client.post("/generate", json={"model": name, "prompt": "the dog"})
    assert (answer.status_code, answer.json()["type"]) == (404, "model-not-found")
    if name == "tiny+raw":
        assert "'tiny' is a dense model: remove +raw" in answer.json()["detail"]
