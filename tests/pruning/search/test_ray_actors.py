"""The evaluator of an actor, in this process: same losses as the scorer, for every family."""

from pathlib import Path

import pytest
import torch

from pruning.models.memory import StateBudgetTooSmall
from pruning.models.store import load
from pruning.search.prefixes import NO_BLOCK
from pruning.search.ray_actors import ActorConfig, Evaluator, ScoringTask
from pruning.search.scoring import SharedPrefixScorer
from tests.support.tiny import NUM_BLOCKS, VOCAB_SIZE, tiny_model
from tests.support.tiny_directory import tiny_tokenizer

KEEP = tuple(range(NUM_BLOCKS))
WINDOWS = torch.randint(3, VOCAB_SIZE, (4, 9), generator=torch.Generator().manual_seed(1))


def config(path: Path, state_budget: int | None = None) -> ActorConfig:
    return ActorConfig(
        path=path,
        dtype="auto",
        device="cpu",
        threads=1,
        num_gpus=0,
        num_sharing=2,
        state_budget=state_budget,
        batch_tokens=4096,
    )


@pytest.mark.parametrize("by_divergence", [False, True])
@pytest.mark.parametrize("family", ["gemma2", "gpt2", "llama"])
def test_answers_are_those_of_the_scorer_one_at_a_time(
    family: str, by_divergence: bool, tmp_path: Path
) -> None:
    tiny_model(family).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    evaluator = Evaluator()
    assert (
        evaluator.load(config(tmp_path), ScoringTask(WINDOWS, (2,), by_divergence))
        == "torch.float32"
    )
    scorer = SharedPrefixScorer(
        load(tmp_path).model, WINDOWS, boundaries=(2,), by_divergence=by_divergence
    )
    assert evaluator.begin(KEEP, (NO_BLOCK,), range(4), {}) == (NO_BLOCK, scorer.losses(KEEP))
    assert evaluator.more() is None
    first, second = scorer.score(KEEP, (3, 1), range(2, 4))
    assert evaluator.begin(KEEP, (2, 4), range(4), {}) is not None  # not finished
    assert evaluator.begin(KEEP, (3, 1), range(2, 4), {}) == first
    assert evaluator.more() == second
    assert evaluator.more() is None


def test_a_budget_is_the_scorers(tiny_model_dir: Path) -> None:
    with pytest.raises(StateBudgetTooSmall, match="the state budget of 1 bytes"):
        Evaluator().load(config(tiny_model_dir, state_budget=1), ScoringTask(WINDOWS))
