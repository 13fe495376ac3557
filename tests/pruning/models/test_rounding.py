"""Activations in 8 bits: no number moves by more than half a step, and products are exact."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pruning.models.rounding import QuantizedLinear, rounded, rounded_product, rounded_rows
from pruning.spec.prune import Quantize


@given(
    st.lists(
        st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=5, max_size=5),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_no_activation_moves_by_more_than_half_a_step(
    rows: list[list[float]], dtype: torch.dtype
) -> None:
    activations = torch.tensor(rows).to(dtype)
    values, steps = rounded_rows(activations)
    assert (values.dtype, steps.dtype) == (torch.int8, torch.float32)
    assert values.abs().max() <= 127
    moved = (values.double() * steps.double() - activations.double()).abs()
    tiny = torch.finfo(torch.float32).tiny
    assert (moved <= steps.double() * 0.50001 + tiny).all()
    tops = activations.float().abs().amax(dim=-1, keepdim=True)
    torch.testing.assert_close(steps, (tops / 127).clamp_min(tiny))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_rows", "outputs", "inputs"), [(1, 5, 7), (3, 64, 4096), (40, 8, 96)])
def test_the_product_has_the_exact_sums_of_the_integers(
    num_rows: int, outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    weights = rounded(torch.randn(outputs, inputs).to(dtype), Quantize.W8A8)
    activations = torch.randn(num_rows, inputs).to(dtype)
    values, steps = rounded_rows(activations)
    sums = values.long() @ weights.values.long().t()
    expected = (sums.float() * steps * weights.scales[:, 0].float()).to(dtype)
    found = rounded_product(activations, weights.values, weights.scales)
    assert found.dtype is dtype
    assert torch.equal(found, expected)
    plain = activations.double() @ weights.dequantized().double().t()
    assert (found.double() - plain).norm() < 0.03 * plain.norm()


def test_a_row_of_zeros_gives_zeros_and_a_row_depends_on_no_other() -> None:
    torch.manual_seed(0)
    weights = rounded(torch.randn(8, 16), Quantize.W8A8)
    rows = torch.randn(5, 16)
    rows[2] = 0
    found = rounded_product(rows, weights.values, weights.scales)
    assert not found[2].any()
    for row, out in zip(rows.split(1), found, strict=True):
        assert torch.equal(rounded_product(row, weights.values, weights.scales)[0], out)


def test_a_layer_of_w8a8_has_the_weights_of_int8_and_rounds_its_inputs() -> None:
    torch.manual_seed(0)
    plain, rows = nn.Linear(16, 8), torch.randn(2, 3, 16)
    both, int8 = (
        QuantizedLinear(plain.weight, plain.bias, weights)
        for weights in (Quantize.W8A8, Quantize.INT8)
    )
    assert torch.equal(both.values, int8.values)
    assert torch.equal(both.scales, int8.scales)
    expected = rounded_product(rows.reshape(-1, 16), both.values, both.scales) + plain.bias
    assert torch.equal(both(rows).reshape(-1, 8), expected)
    assert not torch.equal(both(rows), int8(rows))
