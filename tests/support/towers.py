"""Tiny models with a tower for images, as directories on disk."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from tests.support.families import LLAMA_LIKE, NUM_BLOCKS, WINDOW
from tests.support.tiny_checkpoints import letter_tokenizer

_IMAGES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN_IMAGES = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "patch_size": 14,
    "out_hidden_size": 32,
}
_MIXED = ["sliding_attention", "full_attention"] * (NUM_BLOCKS // 2)
_THREE_AXES = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [2, 1, 1],
    }
}

# Of each type, the settings of the language tower and of the tower for images.
CONFIGS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "gemma3": ({"sliding_window": WINDOW, "layer_types": _MIXED}, _IMAGES),
    "gemma4": (
        {
            "sliding_window": WINDOW,
            "layer_types": _MIXED,
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 0,
            "use_bidirectional_attention": "vision",
        },
        {**_IMAGES, "head_dim": 8, "num_key_value_heads": 4, "position_embedding_size": 16},
    ),
    "gemma4_unified": (
        {
            "sliding_window": WINDOW,
            "layer_types": _MIXED,
            "global_head_dim": 16,
            "use_bidirectional_attention": "vision",
        },
        {"patch_size": 14, "mm_embed_dim": 32, "mm_posemb_size": 16, "output_proj_dims": 32},
    ),
    "idefics3": ({"model_type": "llama"}, _IMAGES),
    "internvl": (
        {"model_type": "qwen3"},
        {**_IMAGES, "image_size": [28, 28], "patch_size": [14, 14]},
    ),
    "lfm2_vl": (
        {"model_type": "lfm2", "layer_types": ["conv", "full_attention"] * (NUM_BLOCKS // 2)},
        _IMAGES,
    ),
    "llava": ({"model_type": "llama"}, _IMAGES),
    "llava_next": ({"model_type": "mistral"}, _IMAGES),
    "llava_onevision": ({"model_type": "qwen2"}, {**_IMAGES, "model_type": "siglip_vision_model"}),
    "mistral3": ({"model_type": "mistral"}, {**_IMAGES, "head_dim": 8}),
    "qwen2_5_vl": (_THREE_AXES, _QWEN_IMAGES),
    "qwen2_vl": (_THREE_AXES, {**_QWEN_IMAGES, "embed_dim": 32}),
    "qwen3_5": (
        {
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"] * (NUM_BLOCKS // 2),
        },
        _QWEN_IMAGES,
    ),
    "qwen3_5_moe": (
        {
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"] * (NUM_BLOCKS // 2),
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 48,
        },
        _QWEN_IMAGES,
    ),
    "qwen3_vl": (_THREE_AXES, {**_QWEN_IMAGES, "deepstack_visual_indexes": [0, 1]}),
    "smolvlm": ({"model_type": "llama"}, _IMAGES),
}


def whole_model(
    model_type: str, shape: Mapping[str, Any] = MappingProxyType({})
) -> PreTrainedModel:
    """A float32 model with large weights, whose language tower has this shape beside its own."""
    torch.manual_seed(0)
    text, images = CONFIGS[model_type]
    config = AutoConfig.for_model(
        model_type,
        text_config={**LLAMA_LIKE, **text, **shape},
        vision_config=dict(images),
        tie_word_embeddings=False,
    )
    made = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model: PreTrainedModel = made.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for name, stored in model.state_dict().items():
            if name.endswith("layer_scalar"):  # a buffer, of ones at first
                stored.add_(torch.randn_like(stored), alpha=0.1)
    return model


def write_tower(path: Path, model_type: str) -> None:
    whole_model(model_type).save_pretrained(path, max_shard_size="60KB")
    letter_tokenizer().save_pretrained(path)
