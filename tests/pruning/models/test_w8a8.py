"""w8a8: products of rounded weights and of activations that are rounded row by row, exactly."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import PreTrainedModel

from pruning.models.architectures import ARCHITECTURES
from pruning.models.blocks import block_list
from pruning.models.quantize import int8_form, quantized_layers, w8a8_form
from pruning.models.rounding import QuantizedLinear, exact_sums, rounded, rounded_rows
from pruning.spec.prune import Quantize
from tests.support.tiny import VOCAB_SIZE, tiny_model

MIXTURES = sorted(name for name, row in ARCHITECTURES.items() if row.has_experts and row.is_linear)
FLOATS = st.floats(-1e4, 1e4, width=16)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def logits_of(model: PreTrainedModel) -> torch.Tensor:
    token_ids = torch.arange(3, 27).remainder(VOCAB_SIZE).view(2, 12)
    with torch.inference_mode():
        logits: torch.Tensor = model(token_ids, use_cache=False).logits
    return logits


@given(st.lists(st.lists(FLOATS, min_size=4, max_size=4), min_size=1, max_size=5))
def test_a_row_is_rounded_to_127ths_of_its_largest_magnitude(drawn: list[list[float]]) -> None:
    rows = torch.tensor(drawn)
    values, steps = rounded_rows(rows)
    tops = rows.abs().amax(dim=1)
    torch.testing.assert_close(values.abs().amax(dim=1) * steps[:, 0], tops)
    torch.testing.assert_close(steps[tops > 0, 0], tops[tops > 0] / 127)
    assert ((values * steps - rows).abs() <= 0.5001 * steps).all()


@given(st.integers(0, 2**16), st.booleans())
def test_a_layer_multiplies_rounded_rows_by_rounded_weights(seed: int, has_bias: bool) -> None:
    weight, bias = drawn(3, 40, seed=seed), nn.Parameter(drawn(3, seed=seed + 1))
    layer = QuantizedLinear(weight, bias if has_bias else None, Quantize.W8A8)
    rows = drawn(2, 5, 40, seed=seed + 2)
    values, steps = rounded_rows(rows.view(10, 40))
    matrix = rounded(weight, Quantize.INT8).dequantized().double()
    expected = (values * steps.double()) @ matrix.T + (bias if has_bias else 0)
    torch.testing.assert_close(layer(rows), expected.float().view(2, 5, 3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [1, 1024, 1025, 5001])
def test_sums_are_exact_however_many_inputs_there_are(width: int) -> None:
    rows = torch.full((2, width), 127, dtype=torch.int8)
    rows[1] = torch.randint(-127, 128, (width,), generator=torch.Generator().manual_seed(0))
    values = torch.full((3, width), 127, dtype=torch.int8)
    values[1:] = torch.randint(-128, 128, (2, width), generator=torch.Generator().manual_seed(1))
    assert torch.equal(exact_sums(rows, values).long(), rows.long() @ values.long().T)


@given(st.integers(0, 2**16), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_a_row_does_not_depend_on_the_others(seed: int, dtype: torch.dtype) -> None:
    layer = QuantizedLinear(drawn(6, 2000, seed=seed).to(dtype), None, Quantize.W8A8)
    rows = drawn(9, 2000, seed=seed + 1).to(dtype)
    rows[3] *= 1000
    found = layer(rows)
    assert found.dtype == dtype
    assert torch.equal(found, torch.cat([layer(row[None]) for row in rows]))


def test_a_row_of_zeros_stays_zero_and_one_that_is_not_finite_is_not_hidden() -> None:
    layer = QuantizedLinear(drawn(5, 8), None, Quantize.W8A8)
    rows = drawn(4, 8)
    expected = layer(rows)
    rows[0], rows[1, 3], rows[2, 0] = 0, torch.inf, torch.nan
    found = layer(rows)
    assert not found[0].any()
    assert not found[1:3].isfinite().any()
    assert torch.equal(found[3], expected[3])


def test_the_form_rounds_the_inputs_of_every_linear_layer_and_of_the_head() -> None:
    dense = tiny_model("qwen2")
    by_hand = copy.deepcopy(dense)
    head = by_hand.get_output_embeddings()
    for layer in [*block_list(by_hand).modules(), head]:
        if isinstance(layer, nn.Linear):
            weight = rounded(layer.weight, Quantize.INT8).dequantized()
            layer.weight = nn.Parameter(weight, requires_grad=False)
            layer.register_forward_pre_hook(round_input)
    before = logits_of(dense)
    found = logits_of(w8a8_form(dense))
    torch.testing.assert_close(found, logits_of(by_hand), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, logits_of(int8_form(dense)), rtol=1e-3, atol=1e-3)
    assert torch.equal(logits_of(dense), before)


def round_input(_layer: nn.Module, args: tuple[torch.Tensor]) -> torch.Tensor:
    values, steps = rounded_rows(args[0].flatten(0, -2))
    return (values * steps).view_as(args[0])


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_round_their_inputs_too(family: str) -> None:
    dense = tiny_model(family)
    form, int8 = w8a8_form(dense), int8_form(dense)
    layers = quantized_layers(form)
    assert {layer.weights for layer in layers} == {Quantize.W8A8}
    assert len(layers) == len(quantized_layers(int8))
    for found, like in zip(layers, quantized_layers(int8), strict=True):
        assert torch.equal(found.values, like.values)
        assert found.product is not like.product
    assert logits_of(form).isfinite().all()
