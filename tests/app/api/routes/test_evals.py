"""``POST /evals``: perplexities of what is served, against those of the evaluation of jobs."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from pruning.data.texts import text_windows
from pruning.evaluation.perplexity import measure_perplexity
from pruning.models.blocks import view
from pruning.models.forward import InMemoryForward
from pruning.models.store import LoadedModel
from tests.support.api_fixtures import publish_pruned

BODY: dict[str, Any] = {
    "model": "tiny@-2",
    "texts": ["prose", "code"],
    "num_windows": 5,
    "seqlen": 24,
}


def test_the_result_is_that_of_plain_forwards_and_is_kept(
    client: TestClient, data_dir: Path, tiny_loaded: LoadedModel
) -> None:
    manifest = publish_pruned(data_dir)
    keep = tuple(block for block in range(6) if block not in manifest.removed_blocks[:2])
    response = client.post("/evals", json=BODY)
    assert response.status_code == 200, response.text
    found = response.json()
    report = found["report"]
    assert report["engine"]["name"] == "own"
    assert (found["kind"], found["model"], report["model"]) == ("eval", "tiny", "tiny@-2")
    for text in report["texts"]:
        windows = text_windows(
            text["text"],
            Path(),
            tiny_loaded.model,
            tiny_loaded.tokenizer,
            seqlen=24,
            num_windows=5,
        )
        dense, pruned = (
            measure_perplexity(InMemoryForward(model), windows)
            for model in (tiny_loaded.model, view(tiny_loaded.model, keep))
        )
        ratio = pruned.against(dense).ratio
        assert ratio is not None
        assert text["perplexity"] == pytest.approx(pruned.perplexity, rel=1e-4)
        assert text["dense_perplexity"] == pytest.approx(dense.perplexity, rel=1e-4)
        assert [text[f"ratio{end}"] for end in ("", "_low", "_high")] == pytest.approx(
            [ratio.value, ratio.low, ratio.high], rel=1e-3
        )
    assert client.get(response.headers["location"]).json() == found
    [listed] = client.get("/results").json()["data"]
    assert listed["headline"].startswith("tiny@-2: prose ")


def test_a_dense_model_has_perplexities_without_ratios(client: TestClient) -> None:
    body = {**BODY, "model": "tiny", "texts": ["code", "code"]}
    [text] = client.post("/evals", json=body).json()["report"]["texts"]
    assert (text["ratio"], text["dense_perplexity"]) == (None, None)
    assert text["perplexity_low"] < text["perplexity"] < text["perplexity_high"]


@pytest.mark.parametrize(
    ("texts", "num_windows", "is_kept"),
    [
        (["prose", "code", "documentation"], 24, True),
        (["prose", "code", "documentation"], 23, False),
        (["prose", "code"], 24, False),
    ],
    ids=["whole", "few windows", "not all texts"],
)
def test_int8_weights_are_compared_with_the_dense_model_and_the_advice_knows_it(
    client: TestClient, texts: list[str], num_windows: int, *, is_kept: bool
) -> None:
    body = {"model": "tiny+int8", "texts": texts, "num_windows": num_windows, "seqlen": 8}
    found = client.post("/evals", json=body).json()["report"]["texts"]
    assert all(text["ratio_low"] <= text["ratio"] <= text["ratio_high"] for text in found)
    advice = client.get("/models/tiny/advice").json()
    [int8] = advice["depths"]
    known = {text["text"]: pytest.approx(text["ratio"]) for text in found} if is_kept else {}
    assert {name: ratio["value"] for name, ratio in int8["ratios"].items()} == known
    missing = "The speed of int8 weights is" if is_kept else "Int8 weights are"
    assert advice["sentence"].endswith(f"{missing} not measured yet.")


def test_a_result_that_cannot_be_written_is_in_the_message(
    client: TestClient, data_dir: Path
) -> None:
    (data_dir / "results").touch()  # in the place of the folder
    response = client.post("/evals", json={**BODY, "model": "tiny"})
    assert (response.status_code, response.json()["type"].rpartition("/")[2]) == (
        507,
        "result-not-kept",
    )
    assert "The result was: tiny: prose " in response.json()["detail"]


@pytest.mark.parametrize(
    ("different", "status", "kind"),
    [
        ({"model": "other"}, 404, "model-not-found"),
        ({"seqlen": 4000}, 422, "text-unusable"),
        ({"texts": ["c4"]}, 422, None),
        ({"num_windows": 0}, 422, None),
    ],
)
def test_what_cannot_be_measured_is_refused(
    client: TestClient, different: dict[str, Any], status: int, kind: str | None
) -> None:
    response = client.post("/evals", json={**BODY, "model": "tiny", **different})
    assert response.status_code == status
    assert kind is None or response.json()["type"].endswith(kind)
    assert client.get("/results").json()["data"] == []
