"""The rows of hybrids: blocks that keep other states of a sequence than keys and values."""

from collections.abc import Mapping
from dataclasses import replace

from pruning.models.dense_rows import GRANITE_LIKE, OWN_FORWARD, READS_WITHOUT_NORM
from pruning.models.layout import (
    ATTENTION,
    Architecture,
    Fitted,
    StreamWrites,
    normed_writes,
    plain_writes,
    weight_and_bias,
)

# Convolutions and states take the place of attention in some blocks, or stand beside it.
_WITH_STATES = replace(OWN_FORWARD, has_states=True, is_linear=False)
_MIXERS_END = ("mixer.o_proj", "mixer.out_proj", "mixer.down_proj")  # a block has one of them

_DELTA_EXPERTS = replace(
    _WITH_STATES,
    has_experts=True,
    periods=("full_attention_interval",),
    writes=StreamWrites(
        scaled=(
            *weight_and_bias("self_attn.o_proj", "linear_attn.out_proj"),
            "mlp.experts.down_proj",
            "mlp.shared_expert.down_proj.weight",
        ),
        refit=(
            ATTENTION,
            replace(ATTENTION, layer="linear_attn.out_proj"),
            Fitted("mlp.shared_expert.down_proj", gate="mlp.shared_expert_gate"),
        ),
    ),
)

HYBRIDS: Mapping[str, Architecture] = {
    "falcon_h1": replace(
        _WITH_STATES,
        tail=("model.final_layernorm",),
        returns_tuple=True,
        per_block=(),  # all blocks mix both ways
        logit_multiplier="lm_head_multiplier",
        writes=StreamWrites(
            scaled=weight_and_bias("self_attn.o_proj", "mamba.out_proj", "feed_forward.down_proj"),
            refit=(Fitted("feed_forward.down_proj"),),  # the others have factors of their own
            multiplier="mlp_multipliers.1",
        ),
    ),
    "granitemoehybrid": replace(
        _WITH_STATES,
        logit_divisor=GRANITE_LIKE.logit_divisor,
        only=(("num_local_experts", 0),),
        writes=replace(
            plain_writes("self_attn.o_proj", "mamba.out_proj", "shared_mlp.output_linear"),
            multiplier="residual_multiplier",
        ),
    ),
    "kimi_linear": replace(
        _WITH_STATES,
        has_experts=True,
        has_unlike_keys=True,
        writes=StreamWrites(
            scaled=(
                *weight_and_bias("self_attn.o_proj"),
                "mlp.experts.down_proj",
                "mlp.down_proj.weight",
                "mlp.shared_experts.down_proj.weight",
            ),
            refit=(ATTENTION,),
        ),
    ),
    "lfm2": replace(
        _WITH_STATES,
        tail=("model.embedding_norm",),
        periods=("full_attn_idxs",),
        writes=plain_writes("self_attn.out_proj", "conv.out_proj", "feed_forward.w2"),
    ),
    "lfm3": replace(
        _WITH_STATES,
        tail=("model.embedding_norm",),
        writes=replace(
            normed_writes("post_operator_norm", "post_ffn_norm", layer="feed_forward.w2"),
            requires=(("use_sandwich_norm", True),),
        ),
    ),
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
    "olmo_hybrid": replace(_WITH_STATES, writes=READS_WITHOUT_NORM),
    "qwen3_5_moe_text": _DELTA_EXPERTS,
    "qwen3_5_text": replace(
        _WITH_STATES,
        periods=("full_attention_interval",),
        writes=plain_writes("self_attn.o_proj", "linear_attn.out_proj", "mlp.down_proj"),
    ),
    "qwen3_next": replace(
        _DELTA_EXPERTS,
        depth_dependent=(("mlp_only_layers", []), ("decoder_sparse_step", 1)),
    ),
}
