"""The rows of mixtures: a router chooses a few experts of a block for each token."""

from collections.abc import Mapping
from dataclasses import replace

from pruning.models.dense_rows import LLAMA_LIKE, WITH_ROTATIONS
from pruning.models.layout import ATTENTION, Architecture, Fitted, StreamWrites, weight_and_bias

# The router chooses the experts of each token independently of the rest of the batch. Experts see
# few tokens each, so what is fitted is what all tokens pass.
_WITH_EXPERTS = replace(
    LLAMA_LIKE,
    depth_dependent=(("mlp_only_layers", []), ("decoder_sparse_step", 1)),
    parts=None,
    has_experts=True,
    loads_quantized=False,
    writes=StreamWrites(
        scaled=(*weight_and_bias("self_attn.o_proj"), "mlp.experts.down_proj"), refit=(ATTENTION,)
    ),
)

_SHARED = ("mlp.down_proj", "mlp.shared_experts.down_proj")  # a block has one, or none, of them
# What is shared by all tokens is fitted, too, and so is what blocks without experts end in.
_WITH_SHARED = replace(
    _WITH_EXPERTS,
    depth_dependent=(),
    writes=StreamWrites(
        scaled=(*_WITH_EXPERTS.writes.scaled, *weight_and_bias(*_SHARED)),
        refit=(ATTENTION, *map(Fitted, _SHARED)),
    ),
)
_DENSE_FIRST = replace(_WITH_SHARED, boundaries=("first_k_dense_replace",))
# Keys and values are kept as one vector for all heads, and the part of keys that is rotated.
_LATENT = replace(_DENSE_FIRST, has_unlike_keys=True)
_GRANITE_EXPERTS = replace(
    _WITH_EXPERTS,
    depth_dependent=(),
    logit_divisor="logits_scaling",
    writes=StreamWrites(
        scaled=(
            *weight_and_bias("self_attn.o_proj"),
            "block_sparse_moe.experts.down_proj",
            "shared_mlp.output_linear.weight",
        ),
        refit=(ATTENTION, Fitted("shared_mlp.output_linear")),
        multiplier="residual_multiplier",
    ),
)

MIXTURES: Mapping[str, Architecture] = {
    "aria_text": _WITH_SHARED,
    "axk1": replace(
        _LATENT,
        boundaries=(),
        writes=StreamWrites(
            scaled=(
                *weight_and_bias("self_attn.o_proj"),
                "mlp.down_proj.weight",
                "mlp.post_mlp_layernorm.weight",
            ),
        ),
    ),
    "cohere2_moe": replace(
        _WITH_SHARED, logit_multiplier="logit_scale", periods=("sliding_window_pattern",)
    ),
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "dots1": replace(_DENSE_FIRST, boundaries=("first_k_dense_replace", "max_window_layers")),
    "exaone_moe": replace(_DENSE_FIRST, periods=("sliding_window_pattern",)),
    "flex_olmo": replace(
        _WITH_EXPERTS,
        writes=StreamWrites(
            scaled=(), refit=(replace(ATTENTION, norm="post_attention_layernorm"),)
        ),
    ),
    "flint": replace(
        _WITH_EXPERTS,
        listed=("mlp_only_layers",),
        depth_dependent=(("decoder_sparse_step", 1),),
        writes=StreamWrites(
            scaled=(
                *_WITH_EXPERTS.writes.scaled,
                *weight_and_bias("mlp.down_proj", "mlp.shared_expert.down_proj"),
            ),
            refit=(ATTENTION, Fitted("mlp.shared_expert.down_proj"), Fitted("mlp.down_proj")),
        ),
    ),
    "glm4_moe": _DENSE_FIRST,
    "glm4_moe_lite": replace(_LATENT, boundaries=()),
    "gpt_oss": replace(
        _WITH_EXPERTS,
        is_by_position_in_vllm=True,
        writes=StreamWrites(
            scaled=(*_WITH_EXPERTS.writes.scaled, "mlp.experts.down_proj_bias"),
            refit=(ATTENTION,),
        ),
    ),
    "granitemoe": _GRANITE_EXPERTS,
    "granitemoe_swa": replace(_GRANITE_EXPERTS, per_block=WITH_ROTATIONS),
    "granitemoeshared": _GRANITE_EXPERTS,
    "hy_v3": _WITH_SHARED,
    "laguna": replace(
        _WITH_SHARED,
        per_block=("layer_types", "mlp_layer_types", "num_attention_heads_per_layer"),
    ),
    "mellum": _WITH_EXPERTS,
    "mimo_v2_flash": replace(_WITH_SHARED, has_unlike_keys=True),
    "minimax_m2": replace(_WITH_EXPERTS, depth_dependent=()),
    "mixtral": _WITH_EXPERTS,
    "olmoe": _WITH_EXPERTS,
    "qwen2_moe": replace(
        _WITH_EXPERTS,
        boundaries=("max_window_layers",),
        writes=StreamWrites(
            scaled=(*_WITH_EXPERTS.writes.scaled, "mlp.shared_expert.down_proj.weight"),
            refit=(
                ATTENTION,
                Fitted("mlp.shared_expert.down_proj", gate="mlp.shared_expert_gate"),
            ),
        ),
    ),
    "qwen3_moe": _WITH_EXPERTS,
    "sarvam_mla": _LATENT,
    "solar_open": _WITH_SHARED,
}
