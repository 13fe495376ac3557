"""What llama.cpp's own converter makes of a pruned model: the same, or something else unnoticed.

For some families llama.cpp derives what a block does from its position or from the number of
blocks. A config that says otherwise is not read, so a converted file computes something else
without an error.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from transformers import PreTrainedConfig

_CONVERTER = "convert_hf_to_gguf.py of llama.cpp"


class GgufUnsupported(ValueError):
    """The model or its tokenizer is not supported by llama.cpp, or not known to be."""


@dataclass(frozen=True)
class _Cycle:
    """Kinds of blocks that repeat from the first block on, and the list of a config with kinds."""

    key: str
    kinds: tuple[object, ...]
    text: str

    def is_of(self, config: PreTrainedConfig) -> bool:
        kinds = getattr(config, self.key)
        return all(
            kind == self.kinds[position % len(self.kinds)] for position, kind in enumerate(kinds)
        )


_SLIDING, _FULL = "sliding_attention", "full_attention"
CYCLES: Mapping[str, _Cycle] = {
    "gemma2": _Cycle("layer_types", (_SLIDING, _FULL), "a window in every other block"),
    "gemma3_text": _Cycle(
        "layer_types", (*[_SLIDING] * 5, _FULL), "a window in five of six blocks"
    ),
    "smollm3": _Cycle("no_rope_layers", (1, 1, 1, 0), "rotations in three of four blocks"),
}
SCALED_BY_DEPTH: Mapping[str, int] = {"gemma2": 46, "gemma3_text": 62}
WITHOUT_WINDOWS = frozenset(
    {"mistral", "mixtral", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3",
     "starcoder2"}
)  # fmt: skip
WITH_SILU = frozenset(
    {"llama", "mistral", "mixtral", "olmo2", "olmoe", "phi3", "qwen2", "qwen2_moe", "qwen3",
     "qwen3_moe", "smollm3"}
)  # fmt: skip
UNKNOWN = frozenset({"opt"})  # to llama.cpp, whose converter refuses them
# What llama.cpp does with other families was not read.
READ = WITHOUT_WINDOWS | WITH_SILU | UNKNOWN | CYCLES.keys() | {"gemma", "gpt2", "gpt_neox"}


def conversion_advice(config: PreTrainedConfig) -> str:
    """Whether to convert a model with this config by llama.cpp's converter, and why not."""
    if config.model_type not in READ:
        return (
            f"it is unknown whether {_CONVERTER} is correct for a pruned "
            f"{config.model_type}: before using its file, compare its outputs with those of "
            "the directory"
        )
    if config.model_type in UNKNOWN:
        return f"llama.cpp does not support {config.model_type} either"
    if differences := list(_differences(config)):
        return (
            f"do not use {_CONVERTER} either, because its file would silently give "
            f"different results: llama.cpp {', and it '.join(differences)}"
        )
    return f"export a directory, and convert it with {_CONVERTER}"


def slides(config: PreTrainedConfig) -> bool:
    """Whether a block attends to a window only."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return any(kind != _FULL for kind in kinds)
    return getattr(config, "sliding_window", None) is not None


def _differences(config: PreTrainedConfig) -> Iterator[str]:
    """What llama.cpp would do that the model does not."""
    family = config.model_type
    cycle = CYCLES.get(family)
    if cycle is not None and not cycle.is_of(config):
        yield f"assumes {cycle.text}, unlike this model"
    if (depth := SCALED_BY_DEPTH.get(family)) is not None:
        is_assumed = config.query_pre_attn_scalar == config.head_dim
        if not is_assumed and config.num_hidden_layers != depth:
            yield "derives the attention scale from the dense model's number of blocks"
    if family in WITHOUT_WINDOWS and slides(config):
        yield f"has no sliding window, unlike this model ({config.sliding_window} tokens)"
    if family in WITH_SILU and config.hidden_act != "silu":
        yield f"uses silu, but this model has {config.hidden_act}"
