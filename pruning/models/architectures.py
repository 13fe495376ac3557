"""The supported families of models, one row of ``ARCHITECTURES`` each.

No other code depends on the family of a model.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class UnknownArchitecture(ValueError):
    """``ARCHITECTURES`` has no row for this type of model."""


class UnsupportedConfig(ValueError):
    """A model of a supported family whose configuration does not allow the removal of blocks."""


class CannotQuantize(UnsupportedConfig):
    """The blocks of the model have weights that cannot be quantized."""

    param = "quantize"


def _both(*layers: str) -> tuple[str, ...]:
    """The weight and the bias of each of these layers."""
    return tuple(f"{layer}.{name}" for layer in layers for name in ("weight", "bias"))


@dataclass(frozen=True)
class Parts:
    """Names of the parts of a standard block: attention and a feed-forward part, each residual.

    Each part has a norm before and after it, whose name is empty if the family has none.
    """

    norms: tuple[str, str, str, str] = ("input_layernorm", "", "post_attention_layernorm", "")
    attention: str = "self_attn"
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")  # or one fused projection
    head_norms: tuple[str, ...] = ()  # norms of queries and of keys
    output: str = "o_proj"
    feed_forward: str = "mlp"
    rotation: str = "model.rotary_emb"  # a path from the causal language model
    rotates_by_kind: bool = False  # whether each kind of attention has its own frequencies


@dataclass(frozen=True)
class StreamWrites:
    """The parameters that write into the residual stream, which a repair can change.

    Multiplying the ``scaled`` parameters multiplies what a block adds to the stream by the same
    factor. A model may lack some of them, such as biases that its config turns off. There are none
    if the block reads its input without a norm, as no factor has this effect then. ``refit`` is the
    last linear layer, if it writes into the stream directly.
    """

    scaled: tuple[str, ...] = _both("self_attn.o_proj", "mlp.down_proj")
    offset: float = 0.0  # of norms that multiply by their weight plus this offset
    refit: str | None = "mlp.down_proj"
    is_transposed: bool = False  # whether the matrix of ``refit`` is [width_in, width_out]
    requires: tuple[
        tuple[str, object], ...
    ] = ()  # config keys, and the values without which none of this is true


@dataclass(frozen=True)
class Architecture:
    """The layout of a family. Paths are dotted and start at the causal language model."""

    blocks: str
    tail: tuple[str, ...]  # modules between the last block and the head; some may be None
    per_block: tuple[str, ...] = ("layer_types",)  # config lists with one entry per block
    # Config keys that describe such a list by a period: views have none, as it may not be true
    periods: tuple[str, ...] = ()
    boundaries: tuple[str, ...] = ()  # config keys that count the blocks up to one
    logit_softcap: str | None = None  # config key: logits become cap * tanh(logits / cap)
    # Config keys that make blocks depend on their depth, and the values with which they do not
    depth_dependent: tuple[tuple[str, object], ...] = ()
    parts: Parts | None = None  # None if blocks are not standard
    is_linear: bool = True  # whether every matrix of a block belongs to an nn.Linear
    writes: StreamWrites = StreamWrites()


_LLAMA_LIKE = Architecture(blocks="model.layers", tail=("model.norm",), parts=Parts())
_QWEN_LIKE = replace(_LLAMA_LIKE, boundaries=("max_window_layers",))
_GEMMA_LIKE = replace(_LLAMA_LIKE, logit_softcap="final_logit_softcapping")
# The router chooses the experts of each token independently of the rest of the batch.
_WITH_EXPERTS = replace(
    _LLAMA_LIKE,
    depth_dependent=(("mlp_only_layers", []), ("decoder_sparse_step", 1)),
    parts=None,
    is_linear=False,
    writes=StreamWrites(scaled=(*_both("self_attn.o_proj"), "mlp.experts.down_proj"), refit=None),
)
_BEHIND_NORMS = StreamWrites(
    scaled=("post_attention_layernorm.weight", "post_feedforward_layernorm.weight"),
    offset=1.0,
    refit=None,
)
_HEAD_NORMS = ("q_norm", "k_norm")
_NORMS_AFTER = ("", "post_attention_layernorm", "", "post_feedforward_layernorm")
_FOUR_NORMS = ("input_layernorm", "post_attention_layernorm",
               "pre_feedforward_layernorm", "post_feedforward_layernorm")  # fmt: skip

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "gemma": _LLAMA_LIKE,
        "gemma2": replace(
            _GEMMA_LIKE, parts=None, writes=_BEHIND_NORMS
        ),  # softcap of attention scores
        "gemma3_text": replace(
            _GEMMA_LIKE,
            periods=("sliding_window_pattern", "_sliding_window_pattern"),
            parts=Parts(norms=_FOUR_NORMS, head_norms=_HEAD_NORMS, rotates_by_kind=True),
            writes=_BEHIND_NORMS,
        ),
        "gpt2": Architecture(
            blocks="transformer.h",
            tail=("transformer.ln_f",),
            depth_dependent=(("scale_attn_by_inverse_layer_idx", False),),
            is_linear=False,
            writes=StreamWrites(
                scaled=_both("attn.c_proj", "mlp.c_proj"), refit="mlp.c_proj", is_transposed=True
            ),
        ),
        "gpt_neox": Architecture(
            blocks="gpt_neox.layers",
            tail=("gpt_neox.final_layer_norm",),
            writes=StreamWrites(
                scaled=_both("attention.dense", "mlp.dense_4h_to_h"), refit="mlp.dense_4h_to_h"
            ),
        ),
        "llama": _LLAMA_LIKE,
        "mistral": _LLAMA_LIKE,
        "mixtral": _WITH_EXPERTS,
        "olmo2": replace(
            _LLAMA_LIKE,
            parts=Parts(norms=_NORMS_AFTER, head_norms=_HEAD_NORMS),
            writes=StreamWrites(scaled=(), refit=None),
        ),
        "olmoe": _WITH_EXPERTS,
        "opt": Architecture(
            blocks="model.decoder.layers",
            tail=("model.decoder.final_layer_norm", "model.decoder.project_out"),
            writes=StreamWrites(
                scaled=_both("self_attn.out_proj", "fc2"),
                refit="fc2",
                # OPT-350m has its norms behind; without the last norm, a scale is in the logits
                requires=(("do_layer_norm_before", True), ("_remove_final_layer_norm", False)),
            ),
        ),
        "phi3": replace(_LLAMA_LIKE, parts=Parts(projections=("qkv_proj",))),
        "qwen2": _QWEN_LIKE,
        "qwen2_moe": replace(
            _WITH_EXPERTS,
            boundaries=_QWEN_LIKE.boundaries,
            writes=StreamWrites(
                scaled=(*_WITH_EXPERTS.writes.scaled, "mlp.shared_expert.down_proj.weight"),
                refit=None,
            ),
        ),
        "qwen3": replace(_QWEN_LIKE, parts=Parts(head_norms=_HEAD_NORMS)),
        "qwen3_moe": _WITH_EXPERTS,
        "smollm3": replace(
            _LLAMA_LIKE,
            per_block=("layer_types", "no_rope_layers"),
            periods=("no_rope_layer_interval",),
        ),
        "starcoder2": replace(
            _LLAMA_LIKE,
            writes=StreamWrites(scaled=_both("self_attn.o_proj", "mlp.c_proj"), refit="mlp.c_proj"),
        ),
    }
)


def architecture(config: "PreTrainedConfig") -> Architecture:
    """The row of this model. Raises ``UnknownArchitecture`` or ``UnsupportedConfig``."""
    row = ARCHITECTURES.get(config.model_type)
    if row is None:
        raise unknown_architecture(config.model_type)
    if (method := _quantized_by(config)) is not None:
        raise UnsupportedConfig(
            f"the weights of this model are quantized ({method}), and only plain weights can be "
            f"scored, served and published: give the unquantized model that it was made from"
        )
    for switch, harmless in row.depth_dependent:
        if (value := getattr(config, switch, harmless)) != harmless:
            raise UnsupportedConfig(
                f"{config.model_type} with {switch}={json.dumps(value)} cannot be pruned: its "
                f"blocks depend on their depth, so a pruned checkpoint would compute something "
                f"else; only {switch}={json.dumps(harmless)} is supported"
            )
    return row


def check_quantizable(model_type: str) -> None:
    """Raise ``CannotQuantize`` for a family whose blocks have other matrices than linear layers."""
    if not ARCHITECTURES[model_type].is_linear:
        linear = ", ".join(sorted(name for name, row in ARCHITECTURES.items() if row.is_linear))
        raise CannotQuantize(
            f"models of type {model_type!r} cannot be quantized, as not all of their weights "
            f"belong to linear layers: leave quantize out, or choose one of {linear}"
        )


def unknown_architecture(model_type: str) -> UnknownArchitecture:
    """The error for models of a type that has no row. It lists the supported types."""
    return UnknownArchitecture(
        f"models of type {model_type!r} are not supported: blocks can be removed from decoder-only "
        f"language models of the types {', '.join(sorted(ARCHITECTURES))}, but not from models "
        f"with an encoder, with recurrent states instead of attention, or for images"
    )


def _quantized_by(config: "PreTrainedConfig") -> str | None:
    """The name of the quantization method in the config, or None for plain weights."""
    given = getattr(config, "quantization_config", None)
    if given is None:
        given = getattr(config, "compression_config", None)  # older llm-compressor
    if given is None:
        return None
    fields = given if isinstance(given, dict) else given.to_dict()
    return str(fields.get("quant_method", "an unnamed method"))
