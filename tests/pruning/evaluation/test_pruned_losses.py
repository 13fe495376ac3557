"""Losses of many pruned models at once are those of each alone, wherever the weights are."""

from collections.abc import Generator, Iterable, Sequence
from math import ceil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruning.evaluation.pruned_losses import PrunedModel, losses_of_parts, pruned_losses
from pruning.models.blocks import BlockCall, Own, view
from pruning.models.memory import StateBudgetTooSmall
from pruning.models.streaming import ResidentModel
from pruning.removal import Losses, kept
from pruning.search.dense_model import DenseModel, Resources, load_dense_model
from pruning.search.scoring import PlainScorer
from pruning.spec.prune import Resident
from tests.support.quick import slow_but
from tests.support.tiny import CONFIGS, DISTINCT, NUM_BLOCKS, VOCAB_SIZE
from tests.support.tiny_checkpoints import write_checkpoint

SEQLEN = 12
STATE_BYTES = SEQLEN * 32 * 4
ALL = tuple(range(NUM_BLOCKS))


def windows(number: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, VOCAB_SIZE, (number, SEQLEN), generator=generator)


def dense_model(path: Path, resident: Resident, budget: int | None = None) -> DenseModel:
    return load_dense_model(path, resident, Resources("cpu", budget, batch_tokens=2 * SEQLEN))


def alone(dense: DenseModel, pruned: PrunedModel) -> Losses:
    own = view(dense.model, ALL, pruned.own)
    return PlainScorer(own, windows()).losses(pruned.keep)


def changed(dense: DenseModel, block: int) -> Own:
    """One matrix of the block with other values, by the dense model's names."""
    matrices = (
        (name, values)
        for name, values in dense.model.named_parameters()
        if f".{block}." in name and values.ndim > 1
    )
    name, values = list(matrices)[-1]
    return {name: values.detach().flip(-1)}  # no norm undoes that


@pytest.mark.parametrize("resident", Resident)
@pytest.mark.parametrize("family", slow_but(CONFIGS, *DISTINCT))
def test_each_model_is_measured_as_if_it_were_alone(
    family: str, resident: Resident, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path, family)
    whole = dense_model(tmp_path, Resident.MODEL)
    models = [
        PrunedModel(ALL),
        PrunedModel(kept(NUM_BLOCKS, (4,))),
        PrunedModel(kept(NUM_BLOCKS, (4, 2))),
        PrunedModel(kept(NUM_BLOCKS, (4,)), changed(whole, 3)),
        PrunedModel(kept(NUM_BLOCKS, (4, 2)), changed(whole, 3)),
    ]
    found = pruned_losses(dense_model(tmp_path, resident), models, windows())
    for pruned, losses in zip(models, found, strict=True):
        assert losses == pytest.approx(alone(whole, pruned), abs=1e-5)
    assert len({round(sum(losses), 5) for losses in found}) == len(models)


class Counter:
    """Counts calls of blocks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number = 0
        call = BlockCall.__call__

        def counted(this: BlockCall, hidden: torch.Tensor) -> torch.Tensor:
            self.number += 1
            return call(this, hidden)

        monkeypatch.setattr(BlockCall, "__call__", counted)


def test_equal_beginnings_run_once(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = dense_model(tiny_model_dir, Resident.MODEL)
    counter = Counter(monkeypatch)
    whole, without = PrunedModel(ALL), kept(NUM_BLOCKS, (4,))
    models = [
        whole,
        PrunedModel(without),
        PrunedModel(without, changed(dense, 3)),
        PrunedModel(without, changed(dense, 3)),
    ]
    pruned_losses(dense, models, windows(2))
    # the dense model 0 to 5; the raw one 5 behind its cut; the repaired ones together 3 and 5
    assert counter.number == 6 + 1 + 2


@settings(max_examples=8)
@given(
    st.lists(st.permutations(range(1, NUM_BLOCKS)).map(lambda p: p[:3]), min_size=1, max_size=4),
    st.integers(1, 5),
    st.sampled_from(Resident),
)
def test_any_models_in_any_budget(
    tiny_model_dir: Path, removed: Sequence[Sequence[int]], num_windows: int, resident: Resident
) -> None:
    models = [PrunedModel(ALL), *(PrunedModel(kept(NUM_BLOCKS, gone)) for gone in removed)]
    budget = num_windows * (len(models) + 1) * STATE_BYTES
    dense = dense_model(tiny_model_dir, resident, budget)
    whole = dense_model(tiny_model_dir, Resident.MODEL)
    for pruned, losses in zip(models, pruned_losses(dense, models, windows()), strict=True):
        assert losses == pytest.approx(alone(whole, pruned), abs=1e-5)


@pytest.mark.parametrize("num_windows", [1, 2, 5])
def test_parts_are_measured_in_as_few_passes_as_fit(
    tiny_model_dir: Path, num_windows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[list[int]] = []
    blocks = ResidentModel.blocks

    def counted(this: ResidentModel, indices: Iterable[int]) -> Generator[int]:
        passes.append([*indices])
        return blocks(this, passes[-1])

    monkeypatch.setattr(ResidentModel, "blocks", counted)
    dense = dense_model(tiny_model_dir, Resident.MODEL, num_windows * 4 * STATE_BYTES)
    gone: tuple[tuple[int, ...], ...] = ((), (4,), (4, 2))
    models = [PrunedModel(kept(NUM_BLOCKS, each)) for each in gone]
    each = windows()
    parts = [each[:2], each[2:3], each[3:]]
    found = losses_of_parts(dense, models, parts)
    assert len(passes) == ceil(5 / num_windows)
    expected = [alone(dense, model) for model in models]
    for part, losses, begin in zip(parts, found, (0, 2, 3), strict=True):
        for of_model, whole in zip(losses, expected, strict=True):
            assert of_model == pytest.approx(whole[begin : begin + len(part)], abs=1e-5)


def test_a_budget_for_less_than_a_window_is_refused(tiny_model_dir: Path) -> None:
    dense = dense_model(tiny_model_dir, Resident.MODEL, 2 * STATE_BYTES - 1)
    with pytest.raises(StateBudgetTooSmall, match="12 tokens in 1 model"):
        pruned_losses(dense, [PrunedModel(ALL)], windows())


def test_the_model_stays_as_it_was(tiny_model_dir: Path) -> None:
    dense = dense_model(tiny_model_dir, Resident.MODEL)
    before = {name: values.clone() for name, values in dense.model.named_parameters()}
    pruned_losses(dense, [PrunedModel(ALL, changed(dense, 2))], windows())
    after = dict[str, nn.Parameter](dense.model.named_parameters())
    assert all(torch.equal(after[name], before[name]) for name in before)
