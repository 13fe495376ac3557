"""The search against results of the SLEB authors' code on the demo model, in bfloat16."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pruning.models.store import LoadedModel, load
from pruning.search.scoring import PlainScorer, SharedPrefixScorer
from pruning.sleb import sleb

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


TOLERANCE = 2**-8  # of a score, as of bfloat16: processors sum in different orders


@pytest.mark.slow
@pytest.mark.parametrize("scorer", [PlainScorer, SharedPrefixScorer])
def test_the_order_is_the_references(
    reference: dict[str, Any], loaded: LoadedModel, scorer: type[PlainScorer | SharedPrefixScorer]
) -> None:
    """Each round goes on from the blocks that the reference has removed before it.

    Blocks may change places if this processor's scores differ by more than they are apart: in the
    first round, blocks 13 and 14 differ by 0.0001 nats.
    """
    windows = torch.tensor(reference["input_ids"])
    order, rounds = reference["removal_order"], scorer(loaded.model, windows)
    for step, scores in enumerate(reference["scores"]):
        expected = {int(block): score for block, score in scores.items()}
        removal = next(sleb(rounds, 30, step + 1, removed=order[:step]))
        assert dict(removal.scores) == pytest.approx(expected, rel=TOLERANCE)
        deviation = max(abs(removal.scores[block] - expected[block]) for block in expected)
        assert expected[removal.block] <= expected[order[step]] + 2 * deviation
