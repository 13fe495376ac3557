"""The supported families of models, one row of ``ARCHITECTURES`` each.

No other code depends on the family of a model.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from pruning.models.layout import Architecture, Fitted, Parts, StreamWrites, weight_and_bias
from pruning.models.nearest_family import nearest
from pruning.models.towers import TOWERS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class UnknownArchitecture(ValueError):
    """``ARCHITECTURES`` has no row for this type of model."""


class UnsupportedConfig(ValueError):
    """A model of a supported family whose configuration does not allow the removal of blocks."""


class CannotQuantize(UnsupportedConfig):
    """The blocks of the model have weights that cannot be quantized."""

    param = "quantize"


_LLAMA_LIKE = Architecture(blocks="model.layers", tail=("model.norm",), parts=Parts())
_QWEN_LIKE = replace(_LLAMA_LIKE, boundaries=("max_window_layers",))
_GEMMA_LIKE = replace(_LLAMA_LIKE, logit_softcap="final_logit_softcapping")
# Experts see few tokens each, so what is fitted is what all tokens pass.
_ATTENTION = Fitted("self_attn.o_proj", is_last=False)
# The router chooses the experts of each token independently of the rest of the batch.
_WITH_EXPERTS = replace(
    _LLAMA_LIKE,
    depth_dependent=(("mlp_only_layers", []), ("decoder_sparse_step", 1)),
    parts=None,
    has_experts=True,
    loads_quantized=False,
    writes=StreamWrites(
        scaled=(*weight_and_bias("self_attn.o_proj"), "mlp.experts.down_proj"), refit=(_ATTENTION,)
    ),
)
_OWN_FORWARD = replace(_LLAMA_LIKE, parts=None)
# Convolutions and states take the place of attention in some blocks, or stand beside it.
_WITH_STATES = replace(_OWN_FORWARD, has_states=True, is_linear=False)
_GRANITE_LIKE = replace(
    _OWN_FORWARD,
    logit_divisor="logits_scaling",
    writes=StreamWrites(multiplier="residual_multiplier"),
)
_COHERE_LIKE = replace(_OWN_FORWARD, logit_multiplier="logit_scale")
_MIXERS_END = ("mixer.o_proj", "mixer.out_proj", "mixer.down_proj")  # a block has one of them
_C_PROJ = StreamWrites(
    scaled=weight_and_bias("attn.c_proj", "mlp.c_proj"), refit=(Fitted("mlp.c_proj"),)
)
_FFN_DOWN = "feed_forward.down_proj"
_IN_FRONT_OF_NORMS = (Fitted("mlp.down_proj", norm="post_feedforward_layernorm"),)
_BEHIND_NORMS = StreamWrites(
    scaled=("post_attention_layernorm.weight", "post_feedforward_layernorm.weight"),
    offset=1.0,
    refit=_IN_FRONT_OF_NORMS,
)
# A factor of the stream changes what a block computes that reads it without a norm.
_READS_WITHOUT_NORM = StreamWrites(scaled=(), refit=_IN_FRONT_OF_NORMS)
_OLMO_LIKE = replace(_LLAMA_LIKE, writes=_READS_WITHOUT_NORM)
_HEAD_NORMS = ("q_norm", "k_norm")
_NORMS_AFTER = ("", "post_attention_layernorm", "", "post_feedforward_layernorm")
_FOUR_NORMS = ("input_layernorm", "post_attention_layernorm",
               "pre_feedforward_layernorm", "post_feedforward_layernorm")  # fmt: skip

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "arcee": _LLAMA_LIKE,
        "cohere": _COHERE_LIKE,
        "cohere2": _COHERE_LIKE,
        "cwm": _LLAMA_LIKE,
        "ernie4_5": _OWN_FORWARD,
        "exaone4": replace(
            _OWN_FORWARD, periods=("sliding_window_pattern",), writes=_READS_WITHOUT_NORM
        ),
        "falcon": Architecture(
            blocks="transformer.h",
            tail=("transformer.ln_f",),
            returns_tuple=True,
            loads_quantized=False,
            only=(("alibi", False),),
            writes=StreamWrites(
                scaled=weight_and_bias("self_attention.dense", "mlp.dense_4h_to_h"),
                refit=(Fitted("mlp.dense_4h_to_h"),),
            ),
        ),
        "falcon_h1": replace(
            _WITH_STATES,
            tail=("model.final_layernorm",),
            returns_tuple=True,
            per_block=(),  # all blocks mix both ways
            logit_multiplier="lm_head_multiplier",
            writes=StreamWrites(
                scaled=weight_and_bias("self_attn.o_proj", "mamba.out_proj", _FFN_DOWN),
                refit=(Fitted(_FFN_DOWN),),
                multiplier="mlp_multipliers.1",
            ),
        ),
        "flex_olmo": replace(
            _WITH_EXPERTS,
            writes=StreamWrites(
                scaled=(), refit=(replace(_ATTENTION, norm="post_attention_layernorm"),)
            ),
        ),
        "gemma": _LLAMA_LIKE,
        "gemma2": replace(  # with a softcap of attention scores
            _GEMMA_LIKE, parts=None, writes=_BEHIND_NORMS
        ),
        "gemma3_text": replace(
            _GEMMA_LIKE,
            periods=("sliding_window_pattern", "_sliding_window_pattern"),
            parts=Parts(norms=_FOUR_NORMS, head_norms=_HEAD_NORMS, rotates_by_kind=True),
            writes=_BEHIND_NORMS,
        ),
        "gemma4_text": replace(
            _GEMMA_LIKE,
            parts=None,
            has_unlike_keys=True,
            keeps_last=True,
            loads_quantized=False,
            only=(
                ("hidden_size_per_layer_input", 0),
                ("num_kv_shared_layers", 0),
                ("is_causal", True),
            ),
            writes=replace(_BEHIND_NORMS, offset=0.0),
        ),
        "glm": _OWN_FORWARD,
        "glm4": replace(
            _OWN_FORWARD,
            writes=StreamWrites(
                scaled=("post_self_attn_layernorm.weight", "post_mlp_layernorm.weight"),
                refit=(Fitted("mlp.down_proj", norm="post_mlp_layernorm"),),
            ),
        ),
        "gpt2": Architecture(
            blocks="transformer.h",
            tail=("transformer.ln_f",),
            depth_dependent=(("scale_attn_by_inverse_layer_idx", False),),
            is_linear=False,
            writes=replace(_C_PROJ, is_transposed=True),
        ),
        "gpt_bigcode": Architecture(
            blocks="transformer.h",
            tail=("transformer.ln_f",),
            loads_quantized=False,
            writes=_C_PROJ,
        ),
        "gpt_neox": Architecture(
            blocks="gpt_neox.layers",
            tail=("gpt_neox.final_layer_norm",),
            writes=StreamWrites(
                scaled=weight_and_bias("attention.dense", "mlp.dense_4h_to_h"),
                refit=(Fitted("mlp.dense_4h_to_h"),),
            ),
        ),
        "gpt_oss": replace(
            _WITH_EXPERTS,
            is_by_position_in_vllm=True,
            writes=StreamWrites(
                scaled=(*_WITH_EXPERTS.writes.scaled, "mlp.experts.down_proj_bias"),
                refit=(_ATTENTION,),
            ),
        ),
        "granite": _GRANITE_LIKE,
        "granitemoehybrid": replace(
            _WITH_STATES,
            logit_divisor=_GRANITE_LIKE.logit_divisor,
            only=(("num_local_experts", 0),),
            writes=StreamWrites(
                scaled=weight_and_bias(
                    "self_attn.o_proj", "mamba.out_proj", "shared_mlp.output_linear"
                ),
                refit=(Fitted("shared_mlp.output_linear"),),
                multiplier="residual_multiplier",
            ),
        ),
        "helium": _OWN_FORWARD,
        "hunyuan_v1_dense": _OWN_FORWARD,
        "hyperclovax": replace(
            _OWN_FORWARD,
            logit_multiplier="logits_scaling",
            writes=StreamWrites(
                scaled=("post_norm1.weight", "post_norm2.weight"),
                refit=(Fitted("mlp.down_proj", norm="post_norm2"),),
                multiplier="residual_multiplier",
                scale_requires=(("use_post_norm", True),),
            ),
        ),
        "internlm3": _LLAMA_LIKE,
        "iquestcoder": _LLAMA_LIKE,
        "jais2": _LLAMA_LIKE,
        "lfm2": replace(
            _WITH_STATES,
            tail=("model.embedding_norm",),
            periods=("full_attn_idxs",),
            writes=StreamWrites(
                scaled=weight_and_bias("self_attn.out_proj", "conv.out_proj", "feed_forward.w2"),
                refit=(Fitted("feed_forward.w2"),),
            ),
        ),
        "llama": _LLAMA_LIKE,
        "mellum": _WITH_EXPERTS,
        "ministral": _LLAMA_LIKE,
        "ministral3": _OWN_FORWARD,
        "mistral": _LLAMA_LIKE,
        "mixtral": _WITH_EXPERTS,
        "nemotron": _LLAMA_LIKE,
        "nemotron_h": replace(
            _WITH_STATES,
            tail=("model.norm_f",),
            per_block=("layers_block_type",),
            block_kinds=frozenset({"full_attention", "linear_attention", "mlp"}),
            writes=StreamWrites(
                scaled=weight_and_bias(*_MIXERS_END),
                refit=tuple(map(Fitted, _MIXERS_END)),
            ),
        ),
        "olmo": _OWN_FORWARD,
        "olmo2": replace(_OLMO_LIKE, parts=Parts(norms=_NORMS_AFTER, head_norms=_HEAD_NORMS)),
        "olmo3": replace(
            _OLMO_LIKE,
            parts=Parts(norms=_NORMS_AFTER, head_norms=_HEAD_NORMS, rotates_by_kind=True),
        ),
        "olmo_hybrid": replace(_WITH_STATES, writes=_READS_WITHOUT_NORM),
        "olmoe": _WITH_EXPERTS,
        "opt": Architecture(
            blocks="model.decoder.layers",
            tail=("model.decoder.final_layer_norm", "model.decoder.project_out"),
            writes=StreamWrites(
                scaled=weight_and_bias("self_attn.out_proj", "fc2"),
                refit=(Fitted("fc2"),),
                requires=(("do_layer_norm_before", True),),  # OPT-350m has its norms behind
                # Without the last norm, a scale is in the logits
                scale_requires=(("_remove_final_layer_norm", False),),
            ),
        ),
        "persimmon": replace(
            _OWN_FORWARD,
            tail=("model.final_layernorm",),
            writes=StreamWrites(
                scaled=weight_and_bias("self_attn.dense", "mlp.dense_4h_to_h"),
                refit=(Fitted("mlp.dense_4h_to_h"),),
            ),
        ),
        "phi": replace(
            _OWN_FORWARD,
            tail=("model.final_layernorm",),
            writes=StreamWrites(
                scaled=weight_and_bias("self_attn.dense", "mlp.fc2"), refit=(Fitted("mlp.fc2"),)
            ),
        ),
        "phi3": replace(_LLAMA_LIKE, parts=Parts(projections=("qkv_proj",))),
        "qwen2": _QWEN_LIKE,
        "qwen2_moe": replace(
            _WITH_EXPERTS,
            boundaries=_QWEN_LIKE.boundaries,
            writes=StreamWrites(
                scaled=(*_WITH_EXPERTS.writes.scaled, "mlp.shared_expert.down_proj.weight"),
                refit=(
                    _ATTENTION,
                    Fitted("mlp.shared_expert.down_proj", gate="mlp.shared_expert_gate"),
                ),
            ),
        ),
        "qwen3": replace(_QWEN_LIKE, parts=Parts(head_norms=_HEAD_NORMS)),
        "qwen3_moe": _WITH_EXPERTS,
        "qwen3_5_text": replace(
            _WITH_STATES,
            periods=("full_attention_interval",),
            writes=StreamWrites(
                scaled=weight_and_bias("self_attn.o_proj", "linear_attn.out_proj", "mlp.down_proj"),
            ),
        ),
        "seed_oss": _LLAMA_LIKE,
        "smollm3": replace(
            _LLAMA_LIKE,
            per_block=("layer_types", "no_rope_layers"),
            periods=("no_rope_layer_interval",),
        ),
        "stablelm": _OWN_FORWARD,
        "starcoder2": replace(
            _LLAMA_LIKE,
            writes=StreamWrites(
                scaled=weight_and_bias("self_attn.o_proj", "mlp.c_proj"),
                refit=(Fitted("mlp.c_proj"),),
            ),
        ),
        "vaultgemma": replace(_OWN_FORWARD, logit_softcap="final_logit_softcapping"),
    }
)


def architecture(config: "PreTrainedConfig") -> Architecture:
    """The row of this model. Raises ``UnknownArchitecture`` or ``UnsupportedConfig``."""
    row = ARCHITECTURES.get(config.model_type)
    if row is None:
        raise unknown_architecture(config.model_type, config.to_dict())
    if (method := _quantized_by(config)) is not None:
        raise UnsupportedConfig(
            f"the weights of this model are quantized ({method}), and only plain weights can be "
            f"scored, served and published: give the unquantized model that it was made from, or "
            f"let `sleb models add` write plain weights, if it is compressed-tensors, fp8 or mxfp4"
        )
    for switch, expected in row.only:
        if (value := getattr(config, switch, expected)) != expected:
            raise UnsupportedConfig(
                f"{config.model_type} with {switch}={json.dumps(value)} cannot be pruned and "
                f"served: only {switch}={json.dumps(expected)} is supported"
            )
    kinds = {kind for key in row.per_block for kind in getattr(config, key, None) or ()}
    if row.block_kinds and (unknown := kinds - row.block_kinds):
        raise UnsupportedConfig(
            f"{config.model_type} with blocks of the kind {', '.join(sorted(unknown))} cannot be "
            f"pruned and served: only {', '.join(sorted(row.block_kinds))} are supported"
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
    """Raise ``CannotQuantize`` for a family with other matrices than linear layers and experts."""
    if not ARCHITECTURES[model_type].is_linear:
        linear = ", ".join(sorted(name for name, row in ARCHITECTURES.items() if row.is_linear))
        raise CannotQuantize(
            f"models of type {model_type!r} cannot be quantized, as not all of their "
            f"matrices are linear layers or experts: leave quantize out, or choose one of {linear}"
        )


def engine_refusal(model_type: str) -> str | None:
    """Why the engine of this project does not serve a supported family; None if it does."""
    row = ARCHITECTURES[model_type]
    if row.is_served:
        return None
    what = "other states of a sequence than keys and values"
    if row.has_unlike_keys:
        what = "keys and values of several shapes"
    return (
        f"blocks of a {model_type} keep {what}, for which the engine of this service has no room; "
        "vLLM may serve it, if SLEB_VLLM names its program"
    )


def unknown_architecture(model_type: str, keys: Collection[str] = ()) -> UnknownArchitecture:
    """The error for models of a type that has no row. It lists the supported types.

    ``keys`` are those of the config, if they are known.
    """
    nearest_to = nearest(model_type, keys, ARCHITECTURES)
    return UnknownArchitecture(
        f"models of type {model_type!r} are not supported{nearest_to}: blocks can "
        f"be removed from decoder-only language models of the types "
        f"{', '.join(sorted(ARCHITECTURES))}, and from the language towers of "
        f"{', '.join(sorted(TOWERS))}, but not from models with an encoder"
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
