"""Quantized weights equal those of a loop, in new tensors, and leave the dense model unchanged."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.models.architectures import ARCHITECTURES, CannotQuantize, check_quantizable
from pruning.models.blocks import block_list, num_blocks, view
from pruning.models.quantize import int8_form, plain_weights, quantized
from pruning.models.rounding import QuantizedLinear, are_experts, rounded
from pruning.models.safetensors_headers import weight_sizes
from pruning.spec.prune import Quantize
from tests.support.tiny import NUM_BLOCKS, VOCAB_SIZE, generated, tiny_model

LINEAR = sorted(name for name, row in ARCHITECTURES.items() if row.is_linear)
MIXTURES = sorted(name for name, row in ARCHITECTURES.items() if row.has_experts and row.is_linear)
KEEP = (0, 1, 3, 5)


def token_ids() -> torch.Tensor:
    return torch.randint(3, VOCAB_SIZE, (3, 12), generator=torch.Generator().manual_seed(0))


def kept_matrices(blocks: nn.Module) -> set[int]:
    """Those that choose experts, and the biases of all experts: they are not rounded."""
    return {
        id(parameter)
        for module in blocks.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
        and parameter.ndim > 1
        and (type(module).__name__.endswith("Router") or name.endswith("_proj_bias"))
    }


@torch.inference_mode()
def logits_of(model: PreTrainedModel) -> torch.Tensor:
    logits: torch.Tensor = model(token_ids(), use_cache=False).logits
    return logits


def by_hand(weight: torch.Tensor, group: int, least: int, most: int, steps: float) -> torch.Tensor:
    """``weight [outputs, inputs]`` with a symmetric scale for each ``group`` of inputs."""
    groups = weight.reshape(len(weight), -1, group)
    scale = groups.abs().amax(dim=-1, keepdim=True) / steps
    return ((groups / scale).round().clamp(least, most) * scale).view_as(weight)


BY_HAND: dict[Quantize, Callable[[torch.Tensor], torch.Tensor]] = {
    Quantize.INT8: lambda weight: by_hand(weight, weight.shape[1], -128, 127, 127.5),
    # 32 and 48 inputs: the largest power of two up to 128 that divides them
    Quantize.INT4: lambda weight: by_hand(weight, 32 if weight.shape[1] == 32 else 16, -8, 7, 7.5),
}


@pytest.mark.parametrize("weights", BY_HAND)
def test_it_computes_what_rounded_weights_compute(weights: Quantize) -> None:
    pruned = view(tiny_model("llama"), KEEP)
    expected = copy.deepcopy(pruned)
    for module in block_list(expected).modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(BY_HAND[weights](module.weight), requires_grad=False)
    found = logits_of(quantized(pruned, weights))
    torch.testing.assert_close(found, logits_of(expected), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, logits_of(pruned), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("weights", Quantize)
@pytest.mark.parametrize("family", LINEAR)
def test_in_every_family_all_matrices_of_blocks_and_nothing_else_are_new(
    family: str, weights: Quantize
) -> None:
    dense = tiny_model(family)
    before = {name: values.clone() for name, values in dense.state_dict().items()}
    logits, places = logits_of(dense), [weight.data_ptr() for weight in dense.parameters()]
    made = quantized(view(dense, KEEP), weights)
    plain = {id(p) for p in dense.parameters()}
    kept = kept_matrices(block_list(dense))
    matrices = {id(p) for p in block_list(made).parameters() if p.ndim > 1} - kept
    assert num_blocks(made) == len(KEEP)
    assert matrices
    assert not matrices & plain
    assert {id(p) for p in made.parameters()} - matrices <= plain
    logits_of(made)
    generated(made, token_ids()[0].tolist(), 3)
    after = dense.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [weight.data_ptr() for weight in dense.parameters()] == places
    assert torch.equal(logits_of(dense), logits)
    assert num_blocks(dense) == NUM_BLOCKS


def test_in_bfloat16_it_is_as_near_as_eight_bits_are() -> None:
    dense = copy.deepcopy(tiny_model("llama")).bfloat16()
    made = quantized(dense, Quantize.INT8)
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16, torch.int8}
    logits = logits_of(dense).float()
    assert (logits_of(made).float() - logits).norm() < 0.4 * logits.norm()


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_a_family_is_quantized_if_all_matrices_of_its_blocks_are_of_linear_layers_or_experts(
    family: str,
) -> None:
    blocks = block_list(tiny_model(family))
    linear = {id(m.weight) for m in blocks.modules() if isinstance(m, nn.Linear)}
    of_experts = {id(p) for m in blocks.modules() if are_experts(m) for p in m.parameters()}
    matrices = {id(parameter) for parameter in blocks.parameters() if parameter.ndim > 1}
    is_linear = matrices == linear | of_experts | kept_matrices(blocks)
    assert ARCHITECTURES[family].is_linear == is_linear
    assert not of_experts or ARCHITECTURES[family].has_experts or family == "gemma4_text"
    if not is_linear:
        for refuse in (
            lambda: check_quantizable(family),
            lambda: quantized(tiny_model(family), Quantize.INT8),
        ):
            with pytest.raises(CannotQuantize, match=f"'{family}'.*use a model of type .*llama"):
                refuse()


def test_inputs_that_cannot_be_divided_into_groups_are_refused() -> None:
    odd = copy.deepcopy(tiny_model("llama"))
    block_list(odd)[2].mlp.down_proj = nn.Linear(40, 32)  # type: ignore[union-attr]  # of llama
    with pytest.raises(CannotQuantize, match=r"40 inputs .* use int8"):
        quantized(odd, Quantize.INT4)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "mlp.down_proj.weight"),
        ("qwen3_moe", "mlp.experts.down_proj"),
        ("gpt_oss", "mlp.experts.down_proj"),
    ],
)
def test_a_view_of_a_quantized_model_shares_its_weights_and_rounds_its_own_tensors(
    family: str, name: str
) -> None:
    dense = tiny_model(family)
    whole = quantized(dense, Quantize.INT8)
    own = {f"model.layers.3.{name}": dense.get_parameter(f"model.layers.3.{name}") * 2}
    found = view(whole, KEEP, own)
    expected = quantized(view(dense, KEEP, own), Quantize.INT8)
    assert torch.equal(logits_of(found), logits_of(expected))
    shared = {weight.data_ptr() for weight in whole.parameters()}
    new = {name for name, weight in found.named_parameters() if weight.data_ptr() not in shared}
    place = f"model.layers.2.{name.removesuffix('.weight')}."
    assert new == {
        each for each, _ in found.named_parameters()
        if each.startswith(place) and each.endswith((".values", ".scales"))
    }  # fmt: skip
    assert new
    assert torch.equal(logits_of(whole), logits_of(quantized(dense, Quantize.INT8)))


@pytest.mark.parametrize("weights", Quantize)
def test_weights_of_zeros_stay_zeros(weights: Quantize) -> None:
    found = rounded(torch.zeros(3, 32, dtype=torch.bfloat16), weights)
    assert not found.dequantized().any()
    plain = nn.Linear(32, 3)
    layer = QuantizedLinear(plain.weight, plain.bias, weights)
    layer.set_weight(torch.zeros(3, 32))
    assert torch.equal(layer(torch.ones(2, 2, 32)), plain.bias.expand(2, 2, 3))


@pytest.mark.parametrize("weights", BY_HAND)
@pytest.mark.parametrize("family", MIXTURES)
def test_experts_compute_what_their_rounded_matrices_compute(
    family: str, weights: Quantize
) -> None:
    dense = tiny_model(family)
    made = quantized(dense, weights)
    plain = copy.deepcopy(dense)
    for module in block_list(plain).modules():
        for name, matrix in list(module._parameters.items()):
            if are_experts(module) and name in ("gate_up_proj", "down_proj"):
                sides = (1, 2) if module.is_transposed else (0, 0)  # [experts, inputs, outputs]
                assert matrix is not None
                each = [BY_HAND[weights](expert) for expert in matrix.transpose(*sides)]
                by_hand = torch.stack(each).transpose(*sides)
                module._parameters[name] = nn.Parameter(by_hand, requires_grad=False)
            elif isinstance(module, nn.Linear) and name == "weight":
                module.weight = nn.Parameter(BY_HAND[weights](module.weight), requires_grad=False)
    torch.testing.assert_close(logits_of(made), logits_of(plain), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits_of(plain), logits_of(dense), rtol=1e-3, atol=1e-3)
    again = copy.deepcopy(dense)
    again.load_state_dict(dict(plain_weights(made)), strict=True)
    torch.testing.assert_close(logits_of(again), logits_of(plain), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", *MIXTURES])
def test_the_bytes_of_an_int8_form_are_known_from_its_files(family: str, tmp_path: Path) -> None:
    dense = tiny_model(family)
    dense.save_pretrained(tmp_path)
    found = weight_sizes(tmp_path).int8_bytes(NUM_BLOCKS, 4)
    assert found == num_bytes(int8_form(dense))
    assert found < 0.6 * num_bytes(dense)


def num_bytes(model: PreTrainedModel) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())
