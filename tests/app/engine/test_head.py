"""The head gives the logits of the model, whichever product it uses."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from app.engine.head import COMPILED_HEAD, TORCH, Head
from app.engine.tuning import OFF, Tuner
from pruning.models.architectures import ARCHITECTURES
from pruning.models.blocks import final_logits
from tests.support.compiled import always
from tests.support.tiny import tiny_model


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_family_has_the_logits_of_its_own_head(family: str, rows: int) -> None:
    torch.manual_seed(rows)
    model = tiny_model(family)
    hidden = torch.randn(rows, model.get_output_embeddings().in_features)
    expected = final_logits(model, hidden)
    for way in (TORCH, COMPILED_HEAD):
        logits = Head(model, always(way))(hidden)
        assert logits.dtype is torch.float32
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_the_faster_one_is_chosen_for_each_number_of_rows_with_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_rows = 8 * torch.get_num_threads() * tiny_model("llama").config.hidden_size
    monkeypatch.setattr("app.engine.compiled.product.MAX_ROOM_BYTES", 64 * of_rows)
    tuner, model = Tuner(), tiny_model("llama")
    head = Head(model, tuner)
    for rows in (1, 2, 3, 4, 65):
        head(torch.randn(rows, model.config.hidden_size))
    names = ["head 1x96x32 float32", "head 2x96x32 float32", "head 4x96x32 float32"]
    assert list(tuner.choices) == names


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
    model, tuner = copy.deepcopy(tiny_model("llama")), Tuner()
    if change is not None:
        change(model)
    hidden = torch.randn(2, model.config.hidden_size)
    logits = Head(model, OFF if change is None else tuner)(hidden)
    assert torch.equal(logits, final_logits(model, hidden))
    assert not tuner.choices
