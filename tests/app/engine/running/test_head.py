"""The head gives the logits of the model, whichever product it uses."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from app.compare.speedup import all_kernels, different_kernels
from app.engine.autotuning import OFF, Autotuner, Choice
from app.engine.running.head import COMPILED_HEAD, TORCH, Head
from app.engine.step import Step
from pruning.models.blocks import final_logits
from pruning.models.quantize import int8_form
from tests.support.compiled import always, load_compiled
from tests.support.tiny import SERVED, tiny_model


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("family", SERVED)
def test_every_family_has_the_logits_of_its_own_head(family: str, rows: int) -> None:
    torch.manual_seed(rows)
    model = tiny_model(family)
    hidden = torch.randn(rows, model.get_output_embeddings().in_features)
    expected = final_logits(model, hidden)
    for way in (TORCH, COMPILED_HEAD):
        logits = Head(model, always(way))(hidden, Step())
        assert logits.dtype is torch.float32
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_the_faster_one_is_taken_for_each_number_of_rows_with_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_rows = 8 * torch.get_num_threads() * tiny_model("llama").config.hidden_size
    monkeypatch.setattr("app.engine.kernels.compiled.product.MAX_ROOM_BYTES", 64 * of_rows)
    tuner, model = Autotuner(), tiny_model("llama")
    load_compiled()
    head = Head(model, tuner)
    keys = [trial.key for trial in head.trials(128)]
    assert keys == [f"head of {size}, 96x32 float32 cpu" for size in (1, 2, 4, 8, 16, 32, 64)]
    tuner.record(keys[2], Choice(COMPILED_HEAD, {TORCH: 2.0, COMPILED_HEAD: 1.0}))
    for rows, kernel in ((2, TORCH), (3, COMPILED_HEAD), (4, COMPILED_HEAD), (65, TORCH)):
        head(torch.randn(rows, model.config.hidden_size), step := Step())
        assert [*step.kernels.values()] == [kernel]
    for trial in head.trials(4):
        expected, found = (run() for run in trial.prepare().values())
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_kernel_of_a_quantized_head_is_no_other_kernel_of_a_plain_one() -> None:
    """Otherwise no comparison of int8 weights with plain ones would have a verdict."""
    load_compiled()
    model, steps = tiny_model("llama"), (Step(), Step())
    hidden = torch.randn(2, model.config.hidden_size)
    for each, step in zip((model, int8_form(model)), steps, strict=True):
        Head(each, always(COMPILED_HEAD))(hidden, step)
    plain, quantized = (all_kernels([step.kernels]) for step in steps)
    assert [*plain.values()] != [*quantized.values()]
    assert different_kernels(plain, quantized) is None


def with_a_bias(model: PreTrainedModel) -> None:
    head = model.get_output_embeddings()
    head.bias = nn.Parameter(torch.ones(head.out_features))


def with_a_hook(model: PreTrainedModel) -> None:
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _module, _args, output: output + 1)


@pytest.mark.parametrize("change", [with_a_bias, with_a_hook, None])
def test_another_head_or_no_tuning_leaves_it_to_torch(
    change: Callable[[PreTrainedModel], None] | None,
) -> None:
    model, tuner = copy.deepcopy(tiny_model("llama")), Autotuner()
    if change is not None:
        change(model)
    hidden = torch.randn(2, model.config.hidden_size)
    head = Head(model, OFF if change is None else tuner)
    assert torch.equal(head(hidden, Step()), final_logits(model, hidden))
    assert not [*head.trials(8)]
