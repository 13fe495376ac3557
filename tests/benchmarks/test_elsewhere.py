"""The loop in plain transformers sees the models that are served, and changes none for good."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.elsewhere import came_back, losses, main, pruned, spread
from pruning.models.blocks import view
from pruning.models.store import LoadedModel
from pruning.removal import kept
from pruning.repair.folding import repaired_view
from pruning.repair.record import Method
from pruning.repair.stored import write_repair
from tests.support.repairs import repaired_by

REMOVED = (1,)


@pytest.mark.parametrize("method", [Method.SCALE, Method.RIDGE])
def test_it_measures_what_is_served(
    tiny_loaded: LoadedModel, tiny_model_dir: Path, tmp_path: Path, method: Method
) -> None:
    served, keep = tiny_loaded.model, kept(len(tiny_loaded.model.model.layers), REMOVED)
    repaired = repaired_by(method, served, keep)
    write_repair(tmp_path, len(REMOVED), repaired)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype="auto")
    ids = torch.arange(3, 27).view(2, 12)
    dense = losses(model, ids)
    with pruned(model, REMOVED, None):
        assert losses(model, ids) == pytest.approx(losses(view(served, keep), ids), rel=1e-4)
    with pruned(model, REMOVED, tmp_path / "repair" / "depth-1.safetensors"):
        found = losses(model, ids)
    assert found == pytest.approx(losses(repaired_view(served, keep, repaired), ids), rel=1e-4)
    assert found != pytest.approx(dense, rel=1e-4)
    assert losses(model, ids) == dense


def test_windows_are_spread_over_the_text_and_begin_as_the_tokenizer_begins(
    tiny_loaded: LoadedModel,
) -> None:
    tokenizer = tiny_loaded.tokenizer
    text = " ".join(f"{number} lazy dogs" for number in range(400))
    first = tokenizer("").input_ids[:1]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    windows = spread(text, 3, 16, tokenizer)
    assert windows.shape == (3, 16)
    size = 16 - len(first)
    assert windows[0].tolist() == [*first, *ids[:size]]
    assert windows[-1].tolist() == [*first, *ids[-size:]]


def test_the_share_is_of_what_was_lost() -> None:
    found = came_back([1.0, 1.0], [3.0, 5.0], [2.0, 4.0])
    assert found["came_back"] == pytest.approx(1 / 3)
    assert came_back([1.0], [3.0], [4.0])["came_back"] == -0.5


def test_every_depth_is_told_for_every_text(
    tiny_loaded: LoadedModel, tiny_model_dir: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "manifest.json").write_text(json.dumps({"removed_blocks": [1, 2]}))
    total = len(tiny_loaded.model.model.layers)
    for number in (1, 2):
        repaired = repaired_by(Method.RIDGE, tiny_loaded.model, kept(total, [1, 2][:number]))
        write_repair(checkpoint, number, repaired)
    text = " ".join(f"{number} lazy dogs" for number in range(400))
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": text}) + "\n")
    texts = [f"{name}={tmp_path / file}" for name, file in (("a", "a.txt"), ("b", "b.jsonl"))]
    out = tmp_path / "out" / "elsewhere.json"
    main(checkpoint, tiny_model_dir, texts, out, num_windows=2, seqlen=12)
    report = json.loads(out.read_text())
    assert [depth["num_removed"] for depth in report["depths"]] == [1, 2]
    for depth in report["depths"]:
        assert depth["texts"]["a"] == depth["texts"]["b"]
    assert out.with_suffix(".md").read_text().count("| b |") == 2
