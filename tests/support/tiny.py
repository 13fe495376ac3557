"""Tiny random models of every supported family, and what ``generate`` says they continue with."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)

from pruning.models.architectures import ARCHITECTURES
from pruning.models.stored_buffers import as_parameters
from tests.support.families import (
    CONFIGS,
    EOS,
    LLAMA_LIKE,
    MAX_POSITIONS,
    NUM_BLOCKS,
    OF_ITS_OWN,
    SWITCHED,
    SWITCHES,
    VOCAB_SIZE,
)
from tests.support.quick import slow_but

__all__ = [
    "CONFIGS", "DISTINCT", "EOS", "MAX_POSITIONS", "NUM_BLOCKS", "SERVED", "SWITCHED", "SWITCHES",
    "TINY_SHAPE", "VOCAB_SIZE", "every_family", "generated",
    "random_model", "tiny_config", "tiny_model",
]  # fmt: skip

SERVED = tuple(sorted(name for name, row in ARCHITECTURES.items() if row.is_served))

# They differ in what a run does with them: grouped heads and norms behind, biases and transposed
# matrices, experts.
DISTINCT = ("gemma2", "gpt2", "qwen2_moe")

# For a whole run of each family, of which the other families' are slow tests.
every_family = pytest.mark.parametrize("family", slow_but(sorted(ARCHITECTURES), *DISTINCT))


TINY_SHAPE: Mapping[str, Any] = {"model_type": "llama", **LLAMA_LIKE}


@cache
@torch.inference_mode(mode=False)  # the first caller may be in that mode, and tests need gradients
def tiny_model(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A float32 model of that family, or of one of ``SWITCHED``.

    It has large, untied weights, or it would repeat its last token.
    """
    return random_model(tiny_config(model_type), seed)


def tiny_config(model_type: str) -> PreTrainedConfig:
    """That of ``tiny_model``."""
    model_type, _, switch = model_type.partition(".")
    shape = {} if model_type in OF_ITS_OWN else LLAMA_LIKE
    switched = {switch: SWITCHES[model_type][switch]} if switch else {}
    settings = {**shape, **CONFIGS[model_type], **switched, "tie_word_embeddings": False}
    return AutoConfig.for_model(model_type, **settings)


def random_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A float32 model of this config with large weights."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    as_parameters(model)  # as a model that is loaded has them
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
        for parameter in model.parameters():
            if parameter.ndim == 1:  # zero biases and norms of one would hide that they are lost
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def generated(model: PreTrainedModel, prompt: Sequence[int], max_new_tokens: int) -> list[int]:
    """Greedy continuation by ``generate``, an end-of-sequence token included: the oracle."""
    assert isinstance(model, GenerationMixin)
    ids = torch.tensor([list(prompt)])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_new_tokens,
    )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens
