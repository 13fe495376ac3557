"""``POST /evals``: perplexities of what is served, against those of the evaluation of jobs."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.config import ServeSettings
from app.terminal import json_text
from pruning.data.texts import text_windows
from pruning.evaluation.perplexity import measure_perplexity
from pruning.evaluation.task_shares import TaskShares
from pruning.evaluation.task_sources import TaskSources
from pruning.models.blocks import view
from pruning.models.forward import InMemoryForward
from pruning.models.store import LoadedModel
from tests.support.api_fixtures import publish_pruned
from tests.support.task_files import write_task_files

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


@pytest.fixture
def settings(settings: ServeSettings, tmp_path: Path) -> ServeSettings:
    """With the questions of an operator."""
    files = write_task_files(tmp_path / "files", "lambada_openai")
    return settings.model_copy(update={"task_data_dir": files})


def test_tasks_are_answered_beside_the_dense_model_and_the_advice_takes_them(
    client: TestClient, data_dir: Path, tiny_loaded: LoadedModel, settings: ServeSettings
) -> None:
    manifest = publish_pruned(data_dir)
    names = ("gen_key", "lambada_openai")
    body = {"model": "tiny@-2", "texts": [], "tasks": names, "task_questions": 10}
    response = client.post("/evals", json=body)
    assert response.status_code == 200, response.text
    found = response.json()
    keep = tuple(block for block in range(6) if block not in manifest.removed_blocks[:2])
    of_dense, of_pruned = (
        TaskSources(settings.task_data_dir).answers(
            InMemoryForward(model), tiny_loaded.tokenizer, names, 10
        )
        for model in (tiny_loaded.model, view(tiny_loaded.model, keep))
    )
    pairs = [own.against(whole) for own, whole in zip(of_pruned, of_dense, strict=True)]
    by_task = found["report"]["task_shares"]["by_task"]
    assert by_task == json.loads(json_text(TaskShares.of(pairs)))["by_task"]
    [key, words] = found["report"]["tasks"]
    assert (key["task"], key["num_samples"], key["value"]) == ("gen_key", 10, pairs[0].accuracy)
    assert (words["standard_error"], words["num_samples"]) == (pytest.approx(0.0), 3)
    assert found["report"]["texts"] == []
    assert found["headline"].startswith("tiny@-2: gen_key 0.")
    assert client.get(response.headers["location"]).json() == found
    models = {model["id"]: model for model in client.get("/models").json()["data"]}
    assert models["tiny@-2"]["tasks"]["by_task"] == by_task


@pytest.mark.parametrize(
    ("different", "status", "kind"),
    [
        ({"texts": []}, 422, "invalid-spec"),
        ({"tasks": ["gen_key", "gen_key"]}, 422, "invalid-spec"),
        ({"tasks": ["piqa"]}, 422, "invalid-spec"),  # would be downloaded
        ({"tasks": ["../lambada_openai"]}, 422, "invalid-spec"),
        ({"tasks": ["gen_key"], "task_questions": 1}, 422, None),
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
