"""Parts of the configs of tiny models, which several families share."""

from collections.abc import Mapping
from typing import Any

NUM_BLOCKS = 6
VOCAB_SIZE = 96
MAX_POSITIONS = 128
EOS = 1
WINDOW = 5  # shorter than the prompts, so that sliding windows slide

LLAMA_LIKE: Mapping[str, Any] = {
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
MIXED = ["sliding_attention", "full_attention"] * (NUM_BLOCKS // 2)
BOTH = {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": MIXED}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

BIASES = {"attention_bias": True, "mlp_bias": True}
SLIDING = {"sliding_window": WINDOW, "layer_types": MIXED}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
}
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.0,
    "residual_multiplier": 0.6,
    "attention_multiplier": 0.3,
}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"] * 2,
}
MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
GPT2_LIKE = {
    "n_embd": 32,
    "n_layer": NUM_BLOCKS,
    "n_head": 4,
    "n_positions": MAX_POSITIONS,
    "vocab_size": VOCAB_SIZE,
    "bos_token_id": 0,
    "eos_token_id": EOS,
    "pad_token_id": 2,
}
THETAS = [10000.0, 0, 500.0, 0, 10000.0, 500.0]  # of rotations, block by block; 0: none
DENSE_FIRST = ["dense", *["sparse"] * (NUM_BLOCKS - 1)]
