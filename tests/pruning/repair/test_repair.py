"""Repairs of every family: the folded model is the formula, and every depth is that depth alone."""

from collections.abc import Generator, Iterable
from contextlib import nullcontext

import pytest
import torch
from transformers import PreTrainedModel

from pruning.models.blocks import view
from pruning.models.loss import last_hidden, window_losses
from pruning.repair.repair import Method, RepairText, possible_methods, repair_depths
from tests.support.tiny import CONFIGS, VOCAB_SIZE, tiny_model

KEEPS = [(0, 1, 2, 4, 5), (0, 2, 4, 5), (0, 2, 5)]


class Resident:
    """A model that is in memory as a whole."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = model.device

    def embeddings(self) -> nullcontext[None]:
        return nullcontext()

    head = embeddings

    def blocks(self, indices: Iterable[int]) -> Generator[int]:
        yield from indices


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
    depths = repair_depths(Resident(model), KEEPS, windows, batch_tokens=24)
    assert [depth.keep for depth in depths] == KEEPS
    for depth in depths:
        assert set(depth.tried) == {Method.NONE, *possible_methods(model.config)}
        for repaired in depth.tried.values():
            pruned = view(model, depth.keep, repaired.tensors)
            for domain, token_ids in windows.selection.items():
                with torch.no_grad():
                    hidden = last_hidden(pruned, token_ids)
                losses = window_losses(pruned, hidden, token_ids)
                assert losses.tolist() == pytest.approx(repaired.losses[domain], abs=2e-4)
    for name, values in model.named_parameters():
        assert torch.equal(values, before[name])


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_depth_is_repaired_as_if_it_were_alone(family: str) -> None:
    model = tiny_model(family)
    together = repair_depths(Resident(model), KEEPS, text(), batch_tokens=24)
    for keep, depth in zip(KEEPS, together, strict=True):
        [alone] = repair_depths(Resident(model), [keep], text(), batch_tokens=24)
        for method, repaired in alone.tried.items():
            same = depth.tried[method]
            assert repaired.tensors.keys() == same.tensors.keys()
            for name, values in repaired.tensors.items():
                assert torch.allclose(values, same.tensors[name], atol=1e-5)
