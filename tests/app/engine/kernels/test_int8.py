"""Int8 forms give the tokens of plain models of dequantized weights, whichever product they use."""

import copy
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import PreTrainedModel

from app.engine.autotuning import Autotuner, Choice
from app.engine.engine import Engine
from app.engine.kernels.compiled.integers import INTEGER_PRODUCT, product_of_integers
from app.engine.kernels.compiled.openmp import ParallelFunction
from app.engine.kernels.compiled.product import PRODUCTS_OF_ROWS
from app.engine.kernels.int8 import (
    NUM_SIZES,
    PRODUCTS,
    ChosenProduct,
    _by_shape,
    _key,
    choose_products,
    chosen_names,
    chunked_product,
    int8_model,
    integer_product,
    packed_product,
    product_trials,
)
from app.engine.running.flat_model import flat_model
from app.engine.variant import make_variant
from pruning.models.architectures import ARCHITECTURES, CannotQuantize
from pruning.models.blocks import block_list
from pruning.models.quantize import quantized, quantized_layers
from pruning.models.rounding import (
    MATRICES,
    Product,
    QuantizedLinear,
    are_experts,
    dequantized_product,
    rounded,
)
from pruning.spec.prune import Quantize
from tests.support.compiled import always, load_compiled, torch_threads
from tests.support.engine_requests import prompt, request, run
from tests.support.kernels import Clock, choice_of
from tests.support.logits import logits_of, token_ids
from tests.support.tiny import SERVED, generated, tiny_model


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    for dtype in DTYPES:
        load_compiled(dtype)


def time_products(
    model: PreTrainedModel, tuner: Autotuner, clock: Callable[[], float] = time.perf_counter
) -> None:
    """Time the products of a model, and take the fastest."""
    with torch.inference_mode():
        for trial in product_trials(model, tuner):
            tuner.record(trial.key, choice_of(trial, clock=clock))


QUANTIZED = {name for name, row in ARCHITECTURES.items() if row.is_linear}
KEEP = (0, 1, 3, 5)
DTYPES = (torch.float32, torch.bfloat16)
CASES = [
    (name, dtype)
    for name, product in PRODUCTS.items()
    for dtype in DTYPES
    if product is not product_of_integers or dtype is torch.bfloat16
]


@cache
def dequantized_model(family: str) -> PreTrainedModel:
    """A plain model whose layers and experts in blocks, and head, have the weights that int8
    means."""
    plain = copy.deepcopy(tiny_model(family))
    head = plain.get_output_embeddings()
    for module in (*block_list(plain).modules(), head):
        names = ("weight",) if isinstance(module, nn.Linear) else ()
        for name in MATRICES if are_experts(module) else names:
            weight = as_int8(module.get_parameter(name), family)
            module._parameters[name] = nn.Parameter(weight, requires_grad=False)
    plain.generation_config.eos_token_id = None
    return plain


def as_int8(weight: torch.Tensor, family: str) -> torch.Tensor:
    if weight.ndim == 2:
        return rounded(weight, Quantize.INT8).dequantized()
    # experts of these are [inputs, outputs]
    sides = (1, 2) if family in {"aria_text", "gpt_oss"} else (0, 0)
    each = [rounded(expert, Quantize.INT8).dequantized() for expert in weight.transpose(*sides)]
    return torch.stack(each).transpose(*sides)


@pytest.mark.parametrize("family", sorted(QUANTIZED.intersection(SERVED)))
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


@pytest.mark.parametrize("family", sorted(ARCHITECTURES.keys() - QUANTIZED))
def test_other_families_are_refused(family: str) -> None:
    with pytest.raises(CannotQuantize, match=f"'{family}' cannot be quantized"):
        int8_model(tiny_model(family))


@pytest.mark.parametrize("rows", [1, 2, 3, 17, 300])
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_every_product_is_that_of_dequantized_weights(
    name: str, dtype: torch.dtype, rows: int
) -> None:
    product = PRODUCTS[name]
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


@settings(max_examples=60)
@given(
    rows=st.integers(1, 21),
    width=st.integers(1, 200) | st.sampled_from([2047, 2048, 2049, 4128, 5000]),
    outputs=st.integers(1, 40) | st.sampled_from([300]),
    tops=st.lists(st.sampled_from([0.0, 1e-45, 1e-38, 1e-30, 1.0, 3e4, 1e30]), min_size=1),
    are_extreme=st.booleans(),
    threads=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 2**16),
)
def test_compiled_integers_miss_half_a_step_of_each_activation_at_most(
    rows: int,
    width: int,
    outputs: int,
    tops: list[float],
    are_extreme: bool,
    threads: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    activations, values = (
        torch.rand(rows, width) * 2 - 1,
        torch.randint(-128, 128, (outputs, width)),
    )
    if are_extreme:  # sums as far from zero as they can be
        activations, values = torch.full_like(activations, -1), torch.full_like(values, -128)
    activations *= torch.tensor([tops[row % len(tops)] for row in range(rows)])[:, None]
    activations, scales = activations.bfloat16(), torch.rand(outputs, 1).add(0.5).bfloat16()
    with torch_threads(threads):
        found = product_of_integers(activations, values.to(torch.int8), scales).double()
    weights = values.double() * scales.double()
    expected = activations.double() @ weights.T
    level = min(2**15 - 1, (2**31 - 1) // (128 * min(width, 2048)))
    steps = (activations.double().abs().amax(1) / level).clamp_min(torch.finfo(torch.float32).tiny)
    most = 0.51 * steps[:, None] * weights.abs().sum(1) + expected.abs() / 250
    assert ((found - expected).abs() <= most).all()
    zeros = (activations == 0).all(1)
    assert not found[zeros].any()


@pytest.mark.parametrize(("width", "bits"), [(300, 14), (5000, 12)])
def test_compiled_integers_keep_small_activations_beside_a_large_one(width: int, bits: int) -> None:
    activations = torch.full((3, width), 2.0**-bits, dtype=torch.bfloat16)
    activations[:, 7] = 1
    weights = rounded(torch.ones(4, width).bfloat16(), Quantize.INT8)
    found = product_of_integers(activations, weights.values, weights.scales).float()
    expected = torch.full_like(found, 1 + (width - 1) / 2**bits)
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0)


def test_what_is_no_number_stays_in_its_row() -> None:
    activations = torch.ones(6, 70, dtype=torch.bfloat16)
    activations[1, 3], activations[4, 69] = torch.nan, torch.inf
    weights = rounded(torch.ones(5, 70).bfloat16(), Quantize.INT8)
    found = product_of_integers(activations, weights.values, weights.scales)
    assert found[1].isnan().all()
    assert not found[4].isfinite().any()
    others = found[[0, 2, 3, 5]].float()
    torch.testing.assert_close(others, torch.full_like(others, 70), rtol=0.01, atol=0)


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float32), ("meta", torch.bfloat16)])
def test_compiled_integers_are_not_for_other_types_and_devices(
    device: str, dtype: torch.dtype
) -> None:
    given = torch.ones(2, 8, dtype=dtype, device=device)
    weights = rounded(torch.ones(4, 8), Quantize.INT8)
    with pytest.raises(NotImplementedError, match=device):
        product_of_integers(given, weights.values, weights.scales)


def test_compiled_integers_can_be_chosen_for_bfloat16() -> None:
    model = quantized(copy.deepcopy(tiny_model("llama")).bfloat16(), Quantize.INT8)
    choose_products(model, always("compiled integer", dtype=torch.bfloat16))
    layers = quantized_layers(model)
    names = {name for chosen in chosen_names(layers).values() for name in chosen}
    assert names == {"compiled integer"}


def test_without_openmp_other_products_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engine.kernels.compiled.openmp.has_openmp", lambda: False)
    integers = ParallelFunction(INTEGER_PRODUCT.function)
    monkeypatch.setattr("app.engine.kernels.compiled.integers.INTEGER_PRODUCT", integers)
    floats = ParallelFunction(PRODUCTS_OF_ROWS[torch.bfloat16].function)
    monkeypatch.setitem(PRODUCTS_OF_ROWS, torch.bfloat16, floats)
    model = quantized(copy.deepcopy(tiny_model("llama")).bfloat16(), Quantize.INT8)
    choose_products(model, Autotuner(always=frozenset({"compiled integer"})))
    layers = quantized_layers(model)
    names = {name for chosen in chosen_names(layers).values() for name in chosen}
    assert names <= {"packed", "chunked", "integer"}


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
    clock = Clock()

    def plain(*given: torch.Tensor) -> torch.Tensor:
        clock.take(1.0)
        return dequantized_product(*given)

    def slow(*given: torch.Tensor) -> torch.Tensor:
        clock.take(2.0)
        return dequantized_product(*given)

    def wrong(*given: torch.Tensor) -> torch.Tensor:
        return given[0] @ given[1].to(given[0].dtype).T

    def missing(*_given: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("no such kernel here")

    dense = copy.deepcopy(tiny_model("llama"))
    dense = dense.float() if dtype is torch.float32 else dense.bfloat16()
    model = quantized(dense, Quantize.INT8)
    layers = quantized_layers(model)
    named = {"slow": slow, "wrong": wrong, "missing": missing, "plain": plain}
    monkeypatch.setattr("app.engine.kernels.int8.PRODUCTS", named)
    time_products(model, Autotuner(), clock)
    for layer in layers:
        assert isinstance(layer.product, ChosenProduct)
        assert layer.product.by_size == (plain,) * NUM_SIZES
    monkeypatch.setattr("app.engine.kernels.int8.PRODUCTS", {"missing": missing})
    time_products(model, Autotuner(), clock)
    assert layers[0](torch.ones(2, 32, dtype=dtype)).shape == (2, len(layers[0].values))


def test_a_product_that_is_slow_for_few_rows_is_chosen_for_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()

    def row_by_row(*given: torch.Tensor) -> torch.Tensor:
        clock.take(len(given[0]))
        return dequantized_product(*given)

    def steady(*given: torch.Tensor) -> torch.Tensor:
        clock.take(20.0)
        return dequantized_product(*given)

    model = quantized(tiny_model("llama"), Quantize.INT8)
    monkeypatch.setattr("app.engine.kernels.int8.PRODUCTS", {"rows": row_by_row, "steady": steady})
    time_products(model, Autotuner(), clock)
    for layer in quantized_layers(model):
        assert isinstance(layer.product, ChosenProduct)
        assert (layer.product.by_size[0], layer.product.by_size[-1]) == (row_by_row, steady)


def test_what_was_timed_is_taken_at_the_next_load(tmp_path: Path) -> None:
    file = tmp_path / "tuning.json"
    tuner = Autotuner(file)
    time_products(int8_model(tiny_model("llama"), tuner), tuner)
    tuner.save()
    again = Autotuner(file)
    names = {product: name for name, product in PRODUCTS.items()}
    for layer in quantized_layers(int8_model(tiny_model("llama"), again)):
        assert isinstance(layer.product, ChosenProduct)
        shape = "x".join(map(str, layer.values.shape))
        for size, product in enumerate(layer.product.by_size):
            key = f"int8 product of {2**size}, {shape} float32 cpu"
            assert again.choices[key].kernel == names[product]


def test_merged_layers_take_what_was_timed_as_well() -> None:
    model, tuner = int8_model(tiny_model("llama")), Autotuner()
    flat = flat_model(model, tuner)
    assert flat is not None
    project: Any = flat._blocks[0].project
    before = project.product.by_size
    for layers in _by_shape(model):
        key = _key(layers[0], 1)
        tuner.record(key, Choice("chunked", {"packed": 2.0, "chunked": 1.0}))
    choose_products(model, tuner)
    assert (before[0], project.product.by_size[0]) == (packed_product, chunked_product)


def test_layers_of_one_shape_are_timed_once() -> None:
    layers = quantized_layers(int8_model(tiny_model("llama")))
    chosen = {id(layer.product) for layer in layers}
    assert len(chosen) == len({layer.values.shape for layer in layers})
    assert len(layers) > len(chosen)
    assert all(isinstance(layer, QuantizedLinear) for layer in layers)
