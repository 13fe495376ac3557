"""Int8 forms give the tokens of plain models of dequantized weights, whichever product they use."""

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from app.engine.engine import Engine
from app.engine.flat_model import flat_model
from app.engine.int8 import (
    NUM_SIZES,
    PRODUCTS,
    ChosenProduct,
    choose_products,
    int8_model,
    integer_product,
)
from app.engine.tuning import Tuner
from app.engine.variant import make_variant
from pruning.models.architectures import ARCHITECTURES, CannotQuantize
from pruning.models.blocks import block_list
from pruning.models.quantize import quantized, quantized_layers
from pruning.models.rounding import Product, QuantizedLinear, dequantized_product, rounded
from pruning.spec.prune import Quantize
from tests.support.engine_requests import prompt, request, run
from tests.support.logits import logits_of, token_ids
from tests.support.tiny import generated, tiny_model

LINEAR = sorted(name for name, row in ARCHITECTURES.items() if row.is_linear)
KEEP = (0, 1, 3, 5)
DTYPES = (torch.float32, torch.bfloat16)


@cache
def dequantized_model(family: str) -> PreTrainedModel:
    """A plain model whose linear layers in blocks have the weights that int8 means."""
    plain = copy.deepcopy(tiny_model(family))
    for module in block_list(plain).modules():
        if isinstance(module, nn.Linear):
            weight = rounded(module.weight, Quantize.INT8).dequantized()
            module.weight = nn.Parameter(weight, requires_grad=False)
    plain.generation_config.eos_token_id = None
    return plain


@pytest.mark.parametrize("family", LINEAR)
def test_every_family_and_its_pruned_forms_continue_as_dequantized_weights_do(family: str) -> None:
    made, plain = int8_model(tiny_model(family)), dequantized_model(family)
    dense = make_variant("tiny+int8", "tiny", made)
    pruned = make_variant("tiny@-2+int8", "tiny", made, KEEP)
    pruned_plain = make_variant("plain", "plain", plain, KEEP).model
    assert (flat_model(made) is None) == (flat_model(plain) is None)
    asked = [
        request(prompt(num, num), variant, max_new_tokens=8, ignore_eos=True)
        for num in (4, 9)
        for variant in (dense, pruned)
    ]
    outcome = run(Engine(), *asked)
    tokens = [outcome.tokens[each.request_id] for each in asked]
    expected = [
        generated(model, prompt(num, num), 8) for num in (4, 9) for model in (plain, pruned_plain)
    ]
    assert tokens == expected
    of_int8, of_plain, of_dense = (
        logits_of(model, token_ids()) for model in (made, plain, tiny_model(family))
    )
    torch.testing.assert_close(of_int8, of_plain, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(of_dense, of_plain, rtol=1e-3, atol=1e-3)
    assert dense.is_dense
    assert dense.own_bytes == pruned.own_bytes == 0


@pytest.mark.parametrize("family", sorted(ARCHITECTURES.keys() - set(LINEAR)))
def test_other_families_are_refused(family: str) -> None:
    with pytest.raises(CannotQuantize, match=f"'{family}' cannot be quantized"):
        int8_model(tiny_model(family))


@pytest.mark.parametrize("rows", [1, 2, 3, 17, 300])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
def test_every_product_is_that_of_dequantized_weights(
    product: Product, dtype: torch.dtype, rows: int
) -> None:
    torch.manual_seed(rows)
    weights = rounded(torch.randn(80, 96).to(dtype), Quantize.INT8)
    activations = torch.randn(rows, 96) * torch.rand(rows, 1) * 100
    activations[0] = 0
    activations = activations.to(dtype)
    found = product(activations, weights.values, weights.scales)
    expected = activations.double() @ (weights.values.double() * weights.scales.double()).T
    # integers keep 15 bits of the largest activation of a row; float32 has 24
    is_exact = dtype is torch.float32 and product is not integer_product
    error = (found.double() - expected).norm() / expected.norm().clamp_min(1e-9)
    assert error < (1e-6 if is_exact else 2e-4 if dtype is torch.float32 else 4e-3)
    assert found.dtype is dtype
    assert not found[0].any()


def test_each_number_of_rows_has_the_product_that_was_chosen_for_it() -> None:
    seen: list[tuple[int, int]] = []

    def noted(size: int) -> Product:
        def product(
            activations: torch.Tensor, values: torch.Tensor, scales: torch.Tensor
        ) -> torch.Tensor:
            seen.append((len(activations), size))
            return dequantized_product(activations, values, scales)

        return product

    chosen = ChosenProduct(tuple(noted(size) for size in range(4)))
    weights = rounded(torch.randn(4, 8), Quantize.INT8)
    for rows in (1, 2, 3, 4, 5, 8, 9, 100):
        chosen(torch.randn(rows, 8), weights.values, weights.scales)
    assert seen == [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 3), (100, 3)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_that_is_slow_wrong_or_missing_is_not_chosen(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    def slow(*given: torch.Tensor) -> torch.Tensor:
        return [dequantized_product(*given) for _ in range(20)][-1]

    def wrong(*given: torch.Tensor) -> torch.Tensor:
        return given[0] @ given[1].to(given[0].dtype).T

    def missing(*_given: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("no such kernel here")

    dense = copy.deepcopy(tiny_model("llama"))
    dense = dense.float() if dtype is torch.float32 else dense.bfloat16()
    layers = quantized_layers(quantized(dense, Quantize.INT8))
    named = {"slow": slow, "wrong": wrong, "missing": missing, "plain": dequantized_product}
    monkeypatch.setattr("app.engine.int8.PRODUCTS", named)
    choose_products(layers, Tuner())
    for layer in layers:
        assert isinstance(layer.product, ChosenProduct)
        assert layer.product.by_size == (dequantized_product,) * NUM_SIZES
    monkeypatch.setattr("app.engine.int8.PRODUCTS", {"missing": missing})
    choose_products(layers, Tuner())
    assert layers[0](torch.ones(2, 32, dtype=dtype)).shape == (2, len(layers[0].values))


def test_a_product_that_is_slow_for_few_rows_is_chosen_for_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def row_by_row(*given: torch.Tensor) -> torch.Tensor:
        return torch.cat([dequantized_product(row, *given[1:]) for row in given[0].split(1)])

    def steady(*given: torch.Tensor) -> torch.Tensor:
        return [dequantized_product(*given) for _ in range(20)][-1]

    layers = quantized_layers(quantized(tiny_model("llama"), Quantize.INT8))
    monkeypatch.setattr("app.engine.int8.PRODUCTS", {"rows": row_by_row, "steady": steady})
    choose_products(layers, Tuner())
    for layer in layers:
        assert isinstance(layer.product, ChosenProduct)
        assert (layer.product.by_size[0], layer.product.by_size[-1]) == (row_by_row, steady)


def test_choices_are_kept_for_the_next_load_beside_those_of_other_kernels(tmp_path: Path) -> None:
    file = tmp_path / "tuning.json"
    other = Tuner(file)
    int8_model(tiny_model("llama"), Tuner(file))
    first = Tuner(file).choices
    assert {key.split(" 1x")[0] for key in first if " 1x" in key} == {"int8 products"}
    ways = {"one": lambda: torch.ones(1)}
    other.fastest("other", (1,), torch.float32, ways)  # it has read the file before
    again = Tuner(file)
    assert again.choices.keys() == first.keys() | {"other 1 float32"}
    layers = quantized_layers(int8_model(tiny_model("llama"), again))
    assert again.choices.keys() == first.keys() | {"other 1 float32"}  # nothing was timed
    names = {product: name for name, product in PRODUCTS.items()}
    for layer in layers:
        assert isinstance(layer.product, ChosenProduct)
        for size, product in enumerate(layer.product.by_size):
            shape = "x".join(map(str, (2**size, *layer.values.shape)))
            assert first[f"int8 products {shape} float32"].way == names[product]


def test_layers_of_one_shape_are_timed_once() -> None:
    layers = quantized_layers(int8_model(tiny_model("llama")))
    chosen = {id(layer.product) for layer in layers}
    assert len(chosen) == len({layer.values.shape for layer in layers})
    assert len(layers) > len(chosen)
    assert all(isinstance(layer, QuantizedLinear) for layer in layers)
