"""What ridge fits in each kind of block: plain least squares over inputs that are gathered here."""

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.models.blocks import block_list, view
from pruning.models.streaming import ResidentModel
from pruning.repair.record import Method
from pruning.repair.repair import STEPS, Repaired, repair_depths
from tests.support.repairs import random_text, repaired_by, token_ids_of
from tests.support.tiny import tiny_model

KEEP = (0, 2, 5)
ENDS = {0: 2, 2: 5, 5: 6}  # in front of which dense block the stream behind each block should be
Taken = Mapping[str, torch.Tensor]

# The layers that are fitted, each with the norm behind it.
NORMED = {
    "exaone4": (("mlp.down_proj", "post_feedforward_layernorm"),),
    "flex_olmo": (("self_attn.o_proj", "post_attention_layernorm"),),
    "gemma2": (("mlp.down_proj", "post_feedforward_layernorm"),),
    "gemma3_text": (("mlp.down_proj", "post_feedforward_layernorm"),),
    "glm4": (("mlp.down_proj", "post_mlp_layernorm"),),
    "gpt_oss": (("self_attn.o_proj", ""),),
    "granite": (("self_attn.o_proj", ""), ("mlp.down_proj", "")),
    "hyperclovax": (("mlp.down_proj", "post_norm2"),),
    "llama": (("self_attn.o_proj", ""), ("mlp.down_proj", "")),
    "mixtral": (("self_attn.o_proj", ""),),
    "nemotron_h": (("mixer.o_proj", ""), ("mixer.out_proj", ""), ("mixer.down_proj", "")),
    "olmo2": (("mlp.down_proj", "post_feedforward_layernorm"),),
    "olmo3": (("mlp.down_proj", "post_feedforward_layernorm"),),
    "olmo_hybrid": (("mlp.down_proj", "post_feedforward_layernorm"),),
    "qwen2_moe": (("self_attn.o_proj", ""), ("mlp.shared_expert.down_proj", "")),
}


@pytest.mark.parametrize("family", NORMED)
@pytest.mark.contract
def test_a_fit_is_plain_least_squares_in_float64(family: str) -> None:
    model = tiny_model(family)
    [depth] = repair_depths(ResidentModel(model), [KEEP], random_text(8), batch_tokens=96)
    repaired = depth.tried[Method.RIDGE]
    assert repaired.tensors
    for block, penalty in repaired.penalties.items():
        if penalty is None:
            continue
        layers = [each for each in NORMED[family] if _has(block_list(model)[block], each[0])]
        inputs, errors = _gathered(model, block, repaired, layers)
        change = _least_squares(inputs, errors, penalty)
        multiplier = getattr(model.config, "residual_multiplier", 1.0)
        widths = [_matrix(model, block, layer).shape[1] for layer, _ in layers]
        for (layer, norm), part in zip(layers, change.split(widths, dim=1), strict=True):
            old = _matrix(model, block, layer).double()
            expected = part * _inverse_gain(model, block, norm) / multiplier
            found = repaired.tensors[f"model.layers.{block}.{layer}.weight"].double() - old
            taken = float((found * expected).sum() / expected.square().sum())
            step = min(STEPS, key=lambda each: abs(each - taken))
            expected *= step
            assert (found - expected).norm() < 1e-3 * expected.norm()
            if _has(block_list(model)[block], norm):
                before, behind = (inputs @ matrix.T for matrix in (old, old + expected))
                found = repaired.tensors[f"model.layers.{block}.{norm}.weight"].double()
                offset = _offset(model)
                weight = (_weight(model, block, norm) + offset) * behind.norm() / before.norm()
                assert (found + offset - weight).abs().max() < 1e-4


@pytest.mark.parametrize("family", NORMED)
@pytest.mark.contract
def test_a_fit_brings_the_stream_nearer_to_the_dense_one(family: str) -> None:
    """On its sample, whatever the fit takes for fixed: factors of norms, and experts behind it."""
    model = tiny_model(family)
    [depth] = repair_depths(ResidentModel(model), [KEEP], random_text(8), batch_tokens=96)
    repaired = depth.tried[Method.RIDGE]
    assert repaired.tensors
    for block in ENDS:
        before, behind = (_error(model, block, repaired, last=last) for last in (block, block + 1))
        assert (behind < before) == (repaired.penalties[block] is not None)


def test_no_more_of_a_change_is_taken_than_experts_bear() -> None:
    """Experts behind the fitted attention would make other text worse with the whole change."""
    model = tiny_model("mixtral")
    repaired = repaired_by(Method.RIDGE, model, KEEP)
    own = {name: each for name, each in repaired.tensors.items() if name.split(".")[2] == "0"}
    [token_ids, _] = token_ids_of(random_text(seed=1).selection).values()
    wanted, raw, found = (
        _taken(each, token_ids, [])[""]
        for each in (view(model, range(ENDS[0])), view(model, [0]), view(model, [0], own))
    )
    weight = wanted.norm(dim=1).reciprocal()
    left, before = ((weight * (wanted - each).norm(dim=1)).norm() for each in (found, raw))
    assert left <= before


def _error(model: PreTrainedModel, block: int, repaired: Repaired, *, last: int) -> float:
    """The error of the stream behind a block, with the repairs of blocks in front of ``last``."""
    own = {name: each for name, each in repaired.tensors.items() if int(name.split(".")[2]) < last}
    dense = view(model, range(ENDS[block]))
    pruned = view(model, [each for each in KEEP if each <= block], own)
    total = 0.0
    for token_ids in token_ids_of(random_text(8).train).values():  # all are in the sample
        wanted, found = (_taken(each, token_ids, [])[""] for each in (dense, pruned))
        total += float(((wanted - found).norm(dim=1) / wanted.norm(dim=1)).square().sum())
    return total


def _gathered(
    model: PreTrainedModel, block: int, repaired: Repaired, layers: Sequence[tuple[str, str]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the layers read, and the errors of the stream behind the block, in float64."""
    reads, errors = [], []
    keep = [each for each in KEEP if each <= block]
    earlier = {
        name: tensor for name, tensor in repaired.tensors.items() if int(name.split(".")[2]) < block
    }
    pruned = view(model, keep, earlier)
    dense = view(model, range(ENDS[block]))
    for token_ids in token_ids_of(random_text(8).train).values():
        wanted = _taken(dense, token_ids, [])[""]
        taken = _taken(pruned, token_ids, layers)
        weight = wanted.norm(dim=1, keepdim=True).reciprocal()
        parts = [_scaled(model, block, taken, layer, norm) for layer, norm in layers]
        reads.append(torch.cat(parts, dim=1) * weight)
        errors.append((wanted - taken[""]) * weight)
    return torch.cat(reads), torch.cat(errors)


def _scaled(
    model: PreTrainedModel, block: int, taken: Taken, layer: str, norm: str
) -> torch.Tensor:
    """The input of a layer times what the norm or the gate behind it multiplies a token by."""
    read = taken[layer]
    if layer.startswith("mlp.shared_expert"):
        return read * taken["mlp.shared_expert_gate"].sigmoid()
    if not _has(block_list(model)[block], norm):
        return read
    mean = taken[norm].square().mean(dim=1, keepdim=True)
    return read * (mean + 1e-6).rsqrt()


def _least_squares(inputs: torch.Tensor, errors: torch.Tensor, penalty: float) -> torch.Tensor:
    width = inputs.shape[1]
    share = (penalty * inputs.square().sum() / width).sqrt()
    rows = torch.cat([inputs, share * torch.eye(width, dtype=torch.float64)])
    wanted = torch.cat([errors, torch.zeros(width, errors.shape[1], dtype=torch.float64)])
    solution: torch.Tensor = torch.linalg.lstsq(rows, wanted).solution
    return solution.T


def _taken(
    model: PreTrainedModel, token_ids: torch.Tensor, layers: Sequence[tuple[str, str]]
) -> Taken:
    """What the last block and parts of it read or return, each [tokens, width], in float64.

    Of layers and norms it is the input, of the gate and the block (named "") the output.
    """
    last, taken = block_list(model)[-1], dict[str, torch.Tensor]()

    def flat(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().reshape(-1, tensor.shape[-1]).double()

    def listen(path: str, *, to_output: bool) -> None:
        def hear(_: nn.Module, args: tuple[torch.Tensor, ...], output: object) -> None:
            heard = output if to_output else args[0]
            assert isinstance(heard, torch.Tensor)
            taken[path] = flat(heard)

        last.get_submodule(path).register_forward_hook(hear)

    listen("", to_output=True)
    for path in {path for pair in layers for path in pair} - {""}:
        if _has(last, path):
            listen(path, to_output=False)
    if _has(last, "mlp.shared_expert_gate"):
        listen("mlp.shared_expert_gate", to_output=True)
    with torch.no_grad():
        model.base_model(token_ids, use_cache=False)
    return taken


def _matrix(model: PreTrainedModel, block: int, layer: str) -> torch.Tensor:
    return model.get_parameter(f"model.layers.{block}.{layer}.weight").detach()


def _inverse_gain(model: PreTrainedModel, block: int, norm: str) -> torch.Tensor:
    """The inverse of the weights of a norm, damped where they are small, [width_out, 1]."""
    if not _has(block_list(model)[block], norm):
        return torch.ones(1, 1, dtype=torch.float64)
    gain = _weight(model, block, norm).unsqueeze(1) + _offset(model)
    return gain / (gain.square() + 0.01 * gain.square().mean())


def _weight(model: PreTrainedModel, block: int, norm: str) -> torch.Tensor:
    return model.get_parameter(f"model.layers.{block}.{norm}.weight").detach().double()


def _offset(model: PreTrainedModel) -> float:
    """What gemma's norms add to their weights."""
    return 1.0 if model.config.model_type.startswith("gemma") else 0.0


def _has(block: nn.Module, path: str) -> bool:
    return bool(path) and path in dict(block.named_modules())
