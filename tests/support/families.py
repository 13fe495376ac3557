"""Configs of tiny models: one for each supported family, and the other values of its switches."""

from collections.abc import Mapping
from typing import Any

from tests.support.config_parts import (
    BIASES,
    BOTH,
    DELTA,
    EOS,
    GPT2_LIKE,
    LATENT,
    LLAMA_LIKE,
    MAMBA,
    MAX_POSITIONS,
    MIXED,
    MULTIPLIERS,
    NUM_BLOCKS,
    SLIDING,
    THETAS,
    VOCAB_SIZE,
    WINDOW,
)
from tests.support.mixtures import MIXTURE_CONFIGS, MIXTURE_SWITCHES

__all__ = ["EOS", "LLAMA_LIKE", "MAX_POSITIONS", "NUM_BLOCKS", "VOCAB_SIZE", "WINDOW"]

# These have settings of other names than llama's, and refuse some of those.
OF_ITS_OWN = {"falcon", "gpt2", "gpt_bigcode"}

_GEMMA4: Mapping[str, Any] = {
    **SLIDING,
    "global_head_dim": 16,
    "num_global_key_value_heads": 1,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
    "enable_moe_block": True,
    "hidden_size_per_layer_input": 0,
}

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    **MIXTURE_CONFIGS,
    "apertus": {},
    "apertus1p5_text": {},
    "arcee": {},
    "biogpt": {},
    "bitnet": {},
    "cohere": {"logit_scale": 0.5},
    "cohere2": {**SLIDING, "logit_scale": 0.5},
    "cohere_compass_text": {
        **SLIDING,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": theta}
            for kind, theta in (("full_attention", 10_000.0), ("sliding_attention", 500.0))
        },
    },
    "cwm": SLIDING,
    "ernie4_5": {},
    "exaone4": SLIDING,
    "falcon": {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "num_hidden_layers": NUM_BLOCKS,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_POSITIONS,
        "bos_token_id": 0,
        "eos_token_id": EOS,
        "pad_token_id": 2,
    },
    "falcon_h1": {
        **MAMBA,
        "mamba_d_ssm": 64,
        "mlp_multipliers": [0.8, 0.6],
        "ssm_multipliers": [0.9, 0.8, 0.7, 1.1, 1.2],
        "lm_head_multiplier": 0.5,
        "ssm_out_multiplier": 0.7,
        "attention_out_multiplier": 0.6,
    },
    "gemma": {},
    "gemma2": {"sliding_window": WINDOW, "layer_types": MIXED},
    "gemma3_text": {"sliding_window": WINDOW, "layer_types": MIXED},
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
    "glm": {},
    "glm4": {},
    "gpt2": GPT2_LIKE,
    "gpt_bigcode": GPT2_LIKE,
    "gpt_neox": {},
    "granite": MULTIPLIERS,
    "granite_swa": {**MULTIPLIERS, **SLIDING, "layer_rope_theta": THETAS},
    "granitemoehybrid": {
        **MULTIPLIERS,
        **MAMBA,
        "num_local_experts": 0,
        "shared_intermediate_size": 48,
        "position_embedding_type": "rope",
        "layer_types": ["linear_attention", "full_attention"] * (NUM_BLOCKS // 2),
    },
    "helium": {},
    "hunyuan_v1_dense": {},
    "hyperclovax": MULTIPLIERS,
    "internlm3": BIASES,  # it has both or none
    "iquestcoder": {},
    "jais2": {},
    "lfm2": {
        "layer_types": ["conv", "conv", "full_attention"] * 2,
        "block_auto_adjust_ff_dim": False,
    },
    "lfm3": {
        "layer_types": ["conv", "sliding_attention", "full_attention"] * 2,
        "sliding_window": WINDOW,
    },
    "llama": {},
    "ministral": SLIDING,
    "ministral3": {},
    "mistral": {"sliding_window": WINDOW},
    "nemotron": {},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "mlp", "full_attention"] * 2,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "norm_topk_prob": True,  # of experts, which are refused
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "olmo": {},
    "olmo2": {},
    "olmo3": SLIDING,
    "olmo_hybrid": {**DELTA, "linear_num_value_heads": 2},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "persimmon": {},
    "phi": {},
    "phi3": {"sliding_window": WINDOW},
    "qwen2": BOTH,
    "qwen3": BOTH,
    "qwen3_5_text": DELTA,
    "seed_oss": {},
    "smollm3": {**BOTH, "no_rope_layers": [1, 1, 0, 1, 1, 0]},
    "stablelm": {},
    "starcoder2": {"sliding_window": WINDOW},
    "vaultgemma": SLIDING,
    "youtu": {**LATENT, "pad_token_id": None},  # transformers zeroes its row when it loads a model
}

# The other value of each setting that changes which parameters a block has, or what it computes.
SWITCHES: Mapping[str, Mapping[str, Any]] = {
    **MIXTURE_SWITCHES,
    "apertus": {"attention_bias": True},
    "apertus1p5_text": {"attention_bias": True},
    "arcee": BIASES,
    "biogpt": {"scale_embedding": False},
    "bitnet": {"attention_bias": True},
    "cohere": {"attention_bias": True, "use_qk_norm": True},
    "cohere2": {"attention_bias": True},
    "cohere_compass_text": {"attention_bias": True, "logit_scale": 0.5},
    "cwm": {"mlp_bias": True},
    "ernie4_5": {"use_bias": True},
    "falcon": {
        "bias": True,
        "multi_query": False,
        "new_decoder_architecture": True,
        "parallel_attn": False,
    },
    "falcon_h1": {
        "attention_bias": True,
        "mamba_conv_bias": False,
        "mamba_norm_before_gate": False,
        "mamba_proj_bias": True,
        "mamba_rms_norm": True,
        "mlp_bias": True,
        "projectors_bias": True,
    },
    "gemma": {"attention_bias": True},
    "gemma2": {"attention_bias": True},
    "gemma3_text": {"attention_bias": True},
    "gemma4_text": {
        "attention_bias": True,
        "attention_k_eq_v": True,
        "enable_moe_block": False,
        "use_bidirectional_attention": "vision",
        "use_double_wide_mlp": True,
    },
    "gemma4_unified_text": {
        "attention_bias": True,
        "attention_k_eq_v": True,
        "use_double_wide_mlp": True,
    },
    "glm": {"attention_bias": False},
    "glm4": {"attention_bias": False},
    "gpt2": {"reorder_and_upcast_attn": True, "scale_attn_weights": False},
    "gpt_bigcode": {
        "attention_softmax_in_fp32": False,
        "multi_query": False,
        "scale_attention_softmax_in_fp32": False,
        "scale_attn_weights": False,
    },
    "gpt_neox": {"attention_bias": False, "use_parallel_residual": False},
    "granite": BIASES,
    "granite_swa": BIASES,
    "granitemoehybrid": {"attention_bias": True, "mamba_conv_bias": False, "mamba_proj_bias": True},
    "helium": BIASES,
    "hunyuan_v1_dense": {"attention_bias": True},
    "hyperclovax": {**BIASES, "use_post_norm": False},
    "iquestcoder": BIASES,
    "jais2": {"attention_bias": False, "mlp_bias": False},
    "lfm2": {"conv_bias": True},
    "lfm3": {
        "attention_bias": True,
        "conv_bias": True,
        "use_attention_gate": False,
        "use_sandwich_norm": False,
    },
    "llama": BIASES,
    "nemotron": BIASES,
    "nemotron_h": {
        **BIASES,
        "mamba_proj_bias": True,
        "use_bias": True,
        "use_conv_bias": False,
    },
    "olmo": {"attention_bias": True, "clip_qkv": 0.5},
    "olmo2": {"attention_bias": True},
    "olmo3": {"attention_bias": True},
    "olmo_hybrid": {"attention_bias": True, "linear_allow_neg_eigval": False},
    "opt": {
        "_remove_final_layer_norm": True,
        "do_layer_norm_before": False,
        "enable_bias": False,
        "layer_norm_elementwise_affine": False,
    },
    "persimmon": {"qk_layernorm": False},
    "phi": {"qk_layernorm": True},
    "qwen3": {"attention_bias": True},
    "qwen3_5_text": {"attention_bias": True},
    "seed_oss": {"attention_bias": False, "attention_out_bias": True, "mlp_bias": True},
    "smollm3": BIASES,
    "stablelm": {"qk_layernorm": True, "use_parallel_residual": True, "use_qkv_bias": True},
    "starcoder2": {"use_bias": False},
    "vaultgemma": {"attention_bias": True},
    "youtu": {"attention_bias": True, "rope_interleave": False},
}
SWITCHED = tuple(f"{family}.{switch}" for family, of in SWITCHES.items() for switch in of)

# Quick tests run these, if there is no such test for most families.
EVERYWHERE = frozenset(
    {"gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "mixtral", "olmo2",
     "olmoe", "opt", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "starcoder2"}
)  # fmt: skip
# They differ in what a block is made of: where its norms and biases are, what is merged, experts.
VARIED = frozenset({"gemma2", "gpt2", "gpt_neox", "llama", "opt", "phi3", "qwen2_moe", "qwen3"})
# Families with a mechanism that none of these has: a factor of logits, blocks that return a tuple,
# two rotations, attention with sinks, a factor of the residual stream, states beside keys and
# values, experts that are stored one by one, norms behind with windows, blocks without rotation.
MECHANISMS = frozenset(
    {
        "cohere2",
        "falcon",
        "gemma3_text",
        "gpt_oss",
        "granite",
        "lfm2",
        "mixtral",
        "olmo3",
        "smollm3",
    }
)


def is_slow(family: str, *, is_contract: bool, is_of_all: bool) -> bool:
    """Whether a test of this family, or of one of ``SWITCHED``, is a slow one.

    ``is_contract``: the test decides whether the family is supported. ``is_of_all``: there is the
    same test for most families.
    """
    name, _, switch = family.partition(".")
    if name in (VARIED if is_of_all else EVERYWHERE):
        return False
    return not (is_contract and name in MECHANISMS and not switch)
