"""A reason against a row is a fact of a model's source, which a model without weights shows."""

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from pruning.models.rounding import are_experts
from tools.docs.unsupported_families import REASONS

_HANDED_ON = {"prev_topk_indices", "prev_router_hidden_states", "block_states"}
_LOOPS = ("n_recurrent_loops", "H_cycles", "patcher_config")
_STREAMS = ("HyperConnection", "AltUp", "GatedResidual")
# Without these, transformers makes no model of the type.
_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "dbrx": {"attn_config": {"rope_theta": 10_000.0}},
    "hunyuan_v1_moe": {"head_dim": 16, "moe_topk": 2, "num_experts": 4},
}


@cache
def source(family: str) -> str:
    """Of the module that has the model."""
    made = AutoModelForCausalLM._model_mapping[CONFIG_MAPPING[family]]
    return inspect.getsource(sys.modules[made.__module__])


def has_a_class(family: str, *endings: str) -> bool:
    names = re.findall(r"^class (\w+)", source(family), re.MULTILINE)
    return any(name.endswith(endings) for name in names)


@cache
def model_of(family: str, num_blocks: int = 4) -> PreTrainedModel:
    """A model of this type without weights, with so many blocks."""
    config = AutoConfig.for_model(family, num_hidden_layers=num_blocks, **_SETTINGS.get(family, {}))
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def blocks_of(family: str, num_blocks: int = 4) -> nn.ModuleList:
    """The longest list of modules, the first of those of one length."""
    modules = model_of(family, num_blocks).modules()
    return max((each for each in modules if isinstance(each, nn.ModuleList)), key=len)


def constants(block: nn.Module) -> dict[str, object]:
    """The numbers in the modules of a block, but not those that tell its place in a cache."""
    return {
        f"{name}.{key}": value
        for name, module in block.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, int | float) and key != "layer_idx"
    }


def has_constants_of_its_number(family: str) -> bool:
    blocks, longer = (list(map(constants, blocks_of(family, number))) for number in (4, 5))
    pairs = [(blocks[0], blocks[1]), (blocks[0], longer[0]), (blocks[1], longer[1])]
    return any(other.get(key, value) != value for one, other in pairs for key, value in one.items())


def hands_on(family: str) -> bool:
    forward = type(blocks_of(family)[0]).forward
    return bool(_HANDED_ON & inspect.signature(forward).parameters.keys())


def has_two_attentions(family: str) -> bool:
    return bool(model_of(family).config.num_hidden_layers == 2 * len(blocks_of(family)))


def has_a_linear_router(family: str) -> bool:
    modules = model_of(family).modules()
    routers = [each for each in modules if type(each).__name__.endswith(("Router", "Gate"))]
    return any(isinstance(part, nn.Linear) for router in routers for part in router.modules())


def has_other_experts(family: str) -> bool:
    return not any(map(are_experts, model_of(family).modules()))


def has_other_names_in_files(family: str) -> bool:
    model = model_of(family)
    parameters: dict[str, torch.Tensor] = {
        name: each for name, each in model.named_parameters() if ".experts." not in name
    }
    return set(revert_weight_conversion(model, parameters)) != set(parameters)


def has_numbers_for_names(family: str) -> bool:
    layers = blocks_of(family)[0].named_modules()
    return any(
        name.rpartition(".")[2].isdigit() for name, each in layers if isinstance(each, nn.Linear)
    )


def has_no_usual_head(family: str) -> bool:
    return not isinstance(model_of(family).get_submodule("lm_head"), nn.Linear)


def has_settings(family: str, *names: str) -> bool:
    return any(hasattr(AutoConfig.for_model(family), name) for name in names)


FACTS: Mapping[str, Callable[[str], bool]] = {
    "a constant of each block": has_constants_of_its_number,
    "blocks that read what an earlier one hands on": hands_on,
    "several hidden states": lambda family: has_a_class(family, *_STREAMS),
    "blocks that run several times": lambda family: has_settings(family, *_LOOPS),
    "two attentions": has_two_attentions,
    "an indexer": lambda family: has_a_class(family, "Indexer"),
    "biases of attention": lambda family: "alibi" in source(family),
    "attention by code of its own": lambda family: "ALL_ATTENTION_FUNCTIONS" not in source(family),
    "attention in chunks": lambda family: has_settings(family, "attention_chunk_size"),
    "a mask of attention": lambda family: "prepare_dynamic_mask" in source(family),
    "a router with a linear layer": has_a_linear_router,
    "experts under names": has_other_experts,
    "the index of the last block": lambda family: has_settings(family, "moe_layer_end_index"),
    "files with other names": has_other_names_in_files,
    "a tower that transformers does not load": lambda family: (
        family not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    ),
    "linear layers with numbers": has_numbers_for_names,
    "a table of positions": lambda family: "create_sinusoidal_positions" in source(family),
    "a divisor of hidden states": lambda family: "/ self.config.logits_mup" in source(family),
    "a layer between": has_no_usual_head,
    "a part that reads": lambda family: "backbone_hidden_size" in source(family),
    "no files of its own": lambda family: AutoConfig.for_model(family).model_type == "gpt2",
}
CASES = [
    pytest.param(fact, family, id=family)
    for begin, fact in FACTS.items()
    for reason, families in REASONS.items()
    if reason.startswith(begin)
    for family in families
]


@pytest.mark.slow  # half a minute: many a model is made, without weights
@pytest.mark.parametrize(("fact", "kind"), CASES)
def test_the_reason_is_seen_in_the_source(fact: Callable[[str], bool], kind: str) -> None:
    assert fact(kind)


def test_every_fact_belongs_to_one_reason() -> None:
    for begin in FACTS:
        assert sum(reason.startswith(begin) for reason in REASONS) == 1, begin


@pytest.mark.parametrize(
    "begin", sorted(FACTS.keys() - {"a tower that transformers does not load"})
)
def test_a_supported_family_shows_no_such_fact(begin: str) -> None:
    """What is true of every model would be no reason."""
    assert not FACTS[begin]("qwen3_moe"), begin
