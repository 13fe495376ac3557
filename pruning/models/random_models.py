"""Models of published shapes with random weights, which measure speed without a checkpoint."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from pruning.models.store import pick_device

_LLAMA_2: Mapping[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}

# Config keys of each shape, from the configs published with the checkpoints.
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "tinyllama-1.1b": {
        **_LLAMA_2,
        "max_position_embeddings": 2048,
        "num_hidden_layers": 22,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "llama-2-7b": {
        **_LLAMA_2,
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "llama-2-70b": {
        **_LLAMA_2,
        "num_hidden_layers": 80,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "opt-6.7b": {
        "model_type": "opt",
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "word_embed_proj_dim": 4096,
        "ffn_dim": 16384,
        "num_attention_heads": 32,
    },
}


class UnknownShape(ValueError):
    """``SHAPES`` has no shape of this name."""


def random_model(
    shape: str | Mapping[str, Any], dtype: str, *, seed: int = 0, device: str = "auto"
) -> PreTrainedModel:
    """Make a model in evaluation mode from a name in ``SHAPES`` or from config keys.

    ``dtype`` is a torch name, and ``device`` is as for ``store.load``. Raises ``UnknownShape``.
    """
    if isinstance(shape, str):
        if shape not in SHAPES:
            known = ", ".join(SHAPES)
            raise UnknownShape(f"unknown shape {shape!r}: expected one of {known}")
        shape = SHAPES[shape]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(**shape)
    with torch.device(pick_device(device)):
        made = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model: PreTrainedModel = made.eval()
    return model


def random_tokens(model: PreTrainedModel, num_windows: int, seqlen: int, seed: int) -> torch.Tensor:
    """Random token ids ``[num_windows, seqlen]``, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    vocab_size = model.config.vocab_size
    return torch.randint(vocab_size, (num_windows, seqlen), generator=generator)
