"""The search against results of the SLEB authors' code on the demo model, in bfloat16."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pruning.models.store import LoadedModel, load
from pruning.search.scoring import PlainScorer, SharedPrefixScorer
from pruning.sleb import RoundScorer, sleb

REFERENCE = (
    Path(__file__).parents[3] / "shared" / "data" / "sleb-reference-smollm2-16x128-bf16.json"
)


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    if not REFERENCE.is_file():
        pytest.skip("the reference result lies beside the project, not in it")
    found: dict[str, Any] = json.loads(REFERENCE.read_text())
    return found


@pytest.fixture(scope="module")
def loaded(demo_model_dir: Path) -> LoadedModel:
    return load(demo_model_dir, dtype="bfloat16")


def check(scorer: RoundScorer, reference: dict[str, Any], num_remove: int) -> None:
    found = list(sleb(scorer, 30, num_remove))
    assert [removal.block for removal in found] == reference["removal_order"][:num_remove]
    for removal, scores in zip(found, reference["scores"], strict=False):
        expected = {int(block): score for block, score in scores.items()}
        assert dict(removal.scores) == pytest.approx(expected, abs=1e-3)


@pytest.mark.timeout(900)
def test_the_first_round_is_the_references(loaded: LoadedModel, reference: dict[str, Any]) -> None:
    windows = torch.tensor(reference["input_ids"])
    check(PlainScorer(loaded.model, windows), reference, 1)


@pytest.mark.slow
@pytest.mark.parametrize("scorer", [PlainScorer, SharedPrefixScorer])
def test_the_whole_order_is_the_references(
    loaded: LoadedModel, reference: dict[str, Any], scorer: type[PlainScorer | SharedPrefixScorer]
) -> None:
    windows = torch.tensor(reference["input_ids"])
    check(scorer(loaded.model, windows), reference, len(reference["removal_order"]))
