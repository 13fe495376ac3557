"""Tiny random models of every supported family, and what ``generate`` says they continue with."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel

from pruning.models.architectures import ARCHITECTURES

NUM_BLOCKS = 6
VOCAB_SIZE = 96
MAX_POSITIONS = 128
EOS = 1
WINDOW = 5  # shorter than the prompts, so that sliding windows slide

_LLAMA_LIKE: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": MAX_POSITIONS,
    "bos_token_id": 0,
    "eos_token_id": EOS,
    "pad_token_id": 2,
}
_MIXED = ["sliding_attention", "full_attention"] * (NUM_BLOCKS // 2)
_BOTH = {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": _MIXED}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "gemma": {},
    "gemma2": {"sliding_window": WINDOW, "layer_types": _MIXED},
    "gemma3_text": {"sliding_window": WINDOW, "layer_types": _MIXED},
    "gpt2": {
        "n_embd": 32,
        "n_layer": NUM_BLOCKS,
        "n_head": 4,
        "n_positions": MAX_POSITIONS,
        "vocab_size": VOCAB_SIZE,
        "bos_token_id": 0,
        "eos_token_id": EOS,
        "pad_token_id": 2,
    },
    "gpt_neox": {},
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "mixtral": {"sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo2": {},
    "olmoe": _EXPERTS,
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi3": {"sliding_window": WINDOW},
    "qwen2": _BOTH,
    "qwen2_moe": {**_EXPERTS, **_BOTH, "shared_expert_intermediate_size": 24},
    "qwen3": _BOTH,
    "qwen3_moe": {
        **_EXPERTS,
        "num_experts": 12,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
    },
    "smollm3": {**_BOTH, "no_rope_layers": [1, 1, 0, 1, 1, 0]},
    "starcoder2": {"sliding_window": WINDOW},
}

# The other value of each setting that changes which parameters a block has, or what it computes.
_BIASES = {"attention_bias": True, "mlp_bias": True}
SWITCHES: Mapping[str, Mapping[str, Any]] = {
    "gemma": {"attention_bias": True},
    "gemma2": {"attention_bias": True},
    "gemma3_text": {"attention_bias": True},
    "gpt2": {"reorder_and_upcast_attn": True, "scale_attn_weights": False},
    "gpt_neox": {"attention_bias": False, "use_parallel_residual": False},
    "llama": _BIASES,
    "olmo2": {"attention_bias": True},
    "olmoe": {"attention_bias": True, "clip_qkv": 0.5, "norm_topk_prob": True},
    "opt": {
        "_remove_final_layer_norm": True,
        "do_layer_norm_before": False,
        "enable_bias": False,
        "layer_norm_elementwise_affine": False,
    },
    "qwen2_moe": {"norm_topk_prob": True, "qkv_bias": False},
    "qwen3": {"attention_bias": True},
    "qwen3_moe": {"attention_bias": True, "norm_topk_prob": True},
    "smollm3": _BIASES,
    "starcoder2": {"use_bias": False},
}
SWITCHED = tuple(f"{family}-{switch}" for family, of in SWITCHES.items() for switch in of)


# They differ in what a run does with them: grouped heads, norms behind, biases and transposed
# matrices, projections in one, experts.
DISTINCT = frozenset({"llama", "gemma2", "gpt2", "phi3", "qwen2_moe"})

# For a whole run of each family, of which the other families' are slow tests.
every_family = pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if family in DISTINCT else pytest.mark.slow)
        for family in sorted(ARCHITECTURES)
    ],
)


TINY_SHAPE: Mapping[str, Any] = {"model_type": "llama", **_LLAMA_LIKE}


@cache
@torch.inference_mode(mode=False)  # the first caller may be in that mode, and tests need gradients
def tiny_model(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A float32 model of that family, or of one of ``SWITCHED``.

    It has large, untied weights, or it would repeat its last token.
    """
    torch.manual_seed(seed)
    model_type, _, switch = model_type.partition("-")
    shape = {} if model_type == "gpt2" else _LLAMA_LIKE
    switched = {switch: SWITCHES[model_type][switch]} if switch else {}
    settings = {**shape, **CONFIGS[model_type], **switched, "tie_word_embeddings": False}
    config = AutoConfig.for_model(model_type, **settings)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
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
