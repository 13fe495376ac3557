"""Large layers in float32 go through oneDNN, with the same results, and nothing else does."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from pruning.models import products
from pruning.models.blocks import block_calls, finish, num_blocks
from pruning.models.loss import last_hidden, window_divergences, window_losses
from pruning.models.products import MIN_PRODUCTS, MIN_ROWS, float32_products
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX512"), reason="needs AVX-512"
)
ROWS, WIDTH = 64, 1024


def layer(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    assert ROWS * WIDTH * WIDTH >= MIN_PRODUCTS
    shapes = ((ROWS // 4, 4, WIDTH), (WIDTH, WIDTH), (WIDTH,))
    one, two, three = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return one, two, three


class Counter:
    """Counts what goes through oneDNN."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number = 0
        multiply = products._by_onednn()
        assert multiply is not None

        def counted(*args: torch.Tensor) -> torch.Tensor:
            self.number += 1
            return multiply(*args)

        monkeypatch.setattr(products, "_by_onednn", lambda: counted)


@torch.inference_mode()
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_large_layer_gives_what_torch_gives(
    has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, weight, bias = layer()
    args = (inputs, weight, bias if has_bias else None)
    expected, counter = linear(*args), Counter(monkeypatch)
    with float32_products(inputs, ROWS):
        found = linear(*args)
    assert counter.number == 1
    assert found.shape == expected.shape
    exact = linear(*(None if each is None else each.double() for each in args))  # type: ignore[arg-type]  # a bias may be None
    assert (found - exact).abs().max() <= 2 * (expected - exact).abs().max()


def run(inputs: torch.Tensor, weight: torch.Tensor, num_rows: int = ROWS) -> None:
    with float32_products(inputs, num_rows):
        found = linear(inputs, weight)
    assert torch.equal(found, linear(inputs, weight))


def of_another_type() -> None:
    inputs, weight, _ = layer(torch.bfloat16)
    run(inputs, weight)


def small() -> None:
    inputs, weight, _ = layer()
    run(inputs[:4], weight[:128])


def of_few_rows() -> None:
    inputs, weight, _ = layer()
    run(inputs, weight, MIN_ROWS - 1)


def of_a_weight_that_is_not_contiguous() -> None:
    inputs, weight, _ = layer()
    run(inputs, weight.T)


def with_gradients() -> None:
    inputs, weight, _ = layer()
    with torch.inference_mode(mode=False), torch.enable_grad():
        run(inputs.clone(), nn.Parameter(weight.clone()))


@torch.inference_mode()
@pytest.mark.parametrize(
    "other",
    [of_another_type, small, of_few_rows, of_a_weight_that_is_not_contiguous, with_gradients],
)
def test_others_stay_with_torch(other: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter(monkeypatch)
    other()
    assert counter.number == 0


@torch.inference_mode()
def test_torch_without_onednn_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    inputs, weight, _ = layer()
    run(inputs, weight)


@torch.inference_mode()
def test_blocks_and_losses_of_a_model_go_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model: PreTrainedModel = tiny_model("llama")
    token_ids = torch.randint(3, model.config.vocab_size, (4, 8))

    def measured() -> list[torch.Tensor]:
        hidden, calls = block_calls(model, token_ids)
        for call in calls:
            hidden = call(hidden)
        final, whole = finish(model, hidden), last_hidden(model, token_ids)
        losses = window_losses(model, final, token_ids)
        return [final, whole, losses, window_divergences(model, final, whole + 0.1)]

    expected = measured()
    counter = Counter(monkeypatch)
    monkeypatch.setattr(products, "MIN_PRODUCTS", 1)
    for found, wanted in zip(measured(), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert counter.number == 2 * 7 * num_blocks(model) + 3  # both ways, and three heads
