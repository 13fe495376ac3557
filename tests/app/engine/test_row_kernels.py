"""Products of few rows: which kernels run them, and that either is right."""

import copy

import pytest
import torch
from torch import nn

from app.engine.engine import Engine
from app.engine.int8 import int8_model
from app.engine.row_kernels import NATIVE, ONE_DNN, RowKernels, vector_kernels
from app.engine.tuning import Tuner
from app.engine.variant import make_variant
from tests.support.engine_requests import prompt, request, run
from tests.support.tiny import tiny_model


@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("way", [NATIVE, ONE_DNN])
def test_a_few_rows_run_with_the_chosen_kernels(way: str, is_int8: bool) -> None:
    seen: list[tuple[int, bool]] = []
    model = copy.deepcopy(tiny_model("llama")).bfloat16()
    model = int8_model(model) if is_int8 else model
    model.lm_head.register_forward_hook(
        lambda _module, args, _output: seen.append(
            (len(args[0]), bool(torch.backends.mkldnn.enabled))
        )
    )
    alone = make_variant("tiny", "tiny", model)
    some = [request(prompt(5), alone, max_new_tokens=num, ignore_eos=True) for num in (2, 4)]
    run(Engine(tuner=Tuner(always=frozenset({way}))), *some)
    is_one_dnn = way == ONE_DNN
    assert seen == [(2, True), (2, is_one_dnn), (1, is_one_dnn), (1, is_one_dnn)]
    assert torch.backends.mkldnn.enabled


def test_quantized_and_plain_layers_of_one_shape_are_chosen_for_apart() -> None:
    tuner, plain = Tuner(), copy.deepcopy(tiny_model("llama"))
    for model in (plain, int8_model(plain, tuner)):
        with RowKernels(model, tuner).for_rows(1):
            pass
    assert sum("products of rows" in key for key in tuner.choices) == 2


def test_kernels_of_one_row_differ_from_those_of_several_by_rounding_alone() -> None:
    torch.manual_seed(0)
    weight, row = torch.randn(300, 500), torch.randn(1, 500)
    exact = nn.functional.linear(row.bfloat16().float(), weight.bfloat16().float())
    with torch.inference_mode(), vector_kernels():
        found = nn.functional.linear(row.bfloat16(), weight.bfloat16())
    torch.testing.assert_close(found.float(), exact, rtol=2**-7, atol=2**-7)


def test_the_kernels_are_put_back_after_a_failure_and_stay_off_where_they_were() -> None:
    with pytest.raises(KeyError), vector_kernels():
        raise KeyError
    assert torch.backends.mkldnn.enabled
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        with vector_kernels():
            pass
        assert not torch.backends.mkldnn.enabled
