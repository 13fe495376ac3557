"""Repairs of every family: the folded model is the formula, and every depth is that depth alone."""

from pathlib import Path

import pytest
import torch

from pruning.models.blocks import view
from pruning.models.loss import last_hidden, window_losses
from pruning.models.store import load
from pruning.models.streaming import StreamedModel
from pruning.repair.repair import (
    Method,
    RepairText,
    ResidentModel,
    folded,
    possible_methods,
    repair_depths,
)
from tests.support.tiny import CONFIGS, VOCAB_SIZE, tiny_model

KEEPS = [(0, 1, 2, 4, 5), (0, 2, 4, 5), (0, 2, 5)]


def text(seed: int = 0) -> RepairText:
    generator = torch.Generator().manual_seed(seed)
    domains = ("prose", "code")

    def windows(number: int) -> dict[str, torch.Tensor]:
        shape = (number, 12)
        return {d: torch.randint(3, VOCAB_SIZE, shape, generator=generator) for d in domains}

    return RepairText(windows(6), windows(3))


@pytest.mark.parametrize("family", CONFIGS)
def test_the_folded_model_is_the_formula(family: str) -> None:
    model = tiny_model(family)
    before = {name: values.clone() for name, values in model.named_parameters()}
    windows = text()
    depths = repair_depths(ResidentModel(model), KEEPS, windows, batch_tokens=24)
    assert [depth.keep for depth in depths] == KEEPS
    for depth in depths:
        assert set(depth.tried) == {Method.NONE, *possible_methods(model.config)}
        for repaired in depth.tried.values():
            pruned = view(model, depth.keep, folded(model, depth.keep, repaired))
            for domain, token_ids in windows.selection.items():
                with torch.no_grad():
                    hidden = last_hidden(pruned, token_ids)
                losses = window_losses(pruned, hidden, token_ids)
                assert losses.tolist() == pytest.approx(repaired.losses[domain], abs=2e-4)
    for name, values in model.named_parameters():
        assert torch.equal(values, before[name])


def test_a_streamed_model_is_repaired_like_a_resident_one(tiny_model_dir: Path) -> None:
    resident = load(tiny_model_dir, device="cpu").model
    windows = text()
    one = repair_depths(ResidentModel(resident), KEEPS[:2], windows, batch_tokens=24)
    streamed = StreamedModel(tiny_model_dir, device="cpu")
    other = repair_depths(streamed, KEEPS[:2], windows, batch_tokens=24)
    for depth, same in zip(one, other, strict=True):
        for method, repaired in depth.tried.items():
            assert repaired.scales == pytest.approx(same.tried[method].scales)
            for domain, losses in repaired.losses.items():
                assert losses == pytest.approx(same.tried[method].losses[domain], abs=1e-5)
            for name, values in repaired.tensors.items():
                assert torch.allclose(values, same.tried[method].tensors[name], atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_depth_is_repaired_as_if_it_were_alone(family: str) -> None:
    model = tiny_model(family)
    together = repair_depths(ResidentModel(model), KEEPS, text(), batch_tokens=24)
    for keep, depth in zip(KEEPS, together, strict=True):
        [alone] = repair_depths(ResidentModel(model), [keep], text(), batch_tokens=24)
        for method, repaired in alone.tried.items():
            same = depth.tried[method]
            assert repaired.scales == pytest.approx(same.scales)
            assert repaired.tensors.keys() == same.tensors.keys()
            for name, values in repaired.tensors.items():
                assert torch.allclose(values, same.tensors[name], atol=1e-5)
