"""Published shapes of models, as config keys."""

from collections.abc import Mapping
from typing import Any

from pruning.models.random_models import SHAPES

GIB = 2**30
LLAMA_3_8B: Mapping[str, Any] = {
    **SHAPES["llama-2-7b"],
    "vocab_size": 128256, "intermediate_size": 14336, "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}  # fmt: skip
LLAMA_2_13B: Mapping[str, Any] = {
    **SHAPES["llama-2-7b"],
    "num_hidden_layers": 40, "hidden_size": 5120, "intermediate_size": 13824,
    "num_attention_heads": 40, "num_key_value_heads": 40,
}  # fmt: skip
