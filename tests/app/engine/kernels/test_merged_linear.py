"""Merged layers: the outputs of each, on one tensor that all views of a model share."""

import copy

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from app.engine.kernels.merged_linear import (
    GatedFeedForward,
    MergedLinear,
    MergedQuantized,
    feed_forward,
    side_by_side,
)
from app.engine.running.flat_model import flat_model
from pruning.models.blocks import block_list, view
from pruning.models.quantize import quantized
from pruning.models.rounding import QuantizedLinear
from pruning.spec.prune import Quantize
from tests.support.tiny import tiny_model


def storages(model: PreTrainedModel) -> int:
    """Bytes of all tensors that hold parameters; each counts once."""
    found = {p.untyped_storage().data_ptr(): p.untyped_storage() for p in model.parameters()}
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("weights", [None, *Quantize])
def test_its_outputs_are_those_of_the_layers_in_the_memory_that_they_have(
    has_bias: bool, weights: Quantize | None
) -> None:
    plain = [nn.Linear(32, outputs, bias=has_bias) for outputs in (6, 2, 4)]
    layers = [
        each if weights is None else QuantizedLinear(each.weight, each.bias, weights)
        for each in plain
    ]
    rows = torch.randn(3, 32)
    with torch.no_grad():
        expected = torch.cat([layer(rows) for layer in layers], dim=-1)
        merged = side_by_side(layers)
        assert isinstance(merged, MergedLinear if weights is None else MergedQuantized)
        torch.testing.assert_close(merged(rows), expected)
        for layer in layers:
            for parameter in (each for each in layer.parameters() if each.ndim == 2):
                parameter.mul_(2)
        torch.testing.assert_close(merged(rows), torch.cat([each(rows) for each in layers], -1))
        assert not torch.allclose(merged(rows), expected)


def test_layers_that_are_not_plain_run_one_by_one() -> None:
    rows = torch.randn(3, 8)
    for second in (nn.Linear(8, 4, dtype=torch.float64), nn.Linear(8, 4), nn.Sequential()):
        first = nn.Linear(8, 4)
        first.register_forward_hook(lambda _module, _args, output: output + 1)
        assert not isinstance(side_by_side([first, second]), MergedLinear)
    assert feed_forward(first) is first
    torch.testing.assert_close(side_by_side([first])(rows), first(rows))


def test_a_model_takes_no_more_memory_and_its_views_share_it() -> None:
    dense = copy.deepcopy(tiny_model("qwen2"))
    pruned, before = view(dense, (0, 2, 4)), storages(dense)
    assert flat_model(pruned) is not None
    assert flat_model(dense) is not None
    assert storages(dense) == before
    block, same = block_list(dense)[2], block_list(pruned)[1]
    gate, shared = (each.get_submodule("mlp.gate_proj") for each in (block, same))
    again = side_by_side([gate, block.get_submodule("mlp.up_proj")])
    assert isinstance(again, MergedLinear)
    pointers = {each.get_parameter("weight").data_ptr() for each in (gate, shared)}
    assert pointers == {again.weight.data_ptr()}


def test_the_feed_forward_part_of_quantized_layers_is_merged() -> None:
    model = quantized(tiny_model("llama"), Quantize.INT8)
    before = storages(model)
    module = block_list(model)[0].get_submodule("mlp")
    rows = torch.randn(3, model.config.hidden_size)
    with torch.no_grad():
        expected = module(rows)
        part = feed_forward(module)
        assert isinstance(part, GatedFeedForward)
        torch.testing.assert_close(part(rows), expected)
    assert storages(model) == before
