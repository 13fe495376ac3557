"""The rows of mixtures: a router chooses a few experts of a block for each token."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from pruning.models.dense_rows import LLAMA_LIKE
from pruning.models.layout import Architecture, Fitted, StreamWrites, weight_and_bias

# Experts see few tokens each, so what is fitted is what all tokens pass.
_ATTENTION = Fitted("self_attn.o_proj", is_last=False)
# The router chooses the experts of each token independently of the rest of the batch.
_WITH_EXPERTS = replace(
    LLAMA_LIKE,
    depth_dependent=(("mlp_only_layers", []), ("decoder_sparse_step", 1)),
    parts=None,
    has_experts=True,
    loads_quantized=False,
    writes=StreamWrites(
        scaled=(*weight_and_bias("self_attn.o_proj"), "mlp.experts.down_proj"), refit=(_ATTENTION,)
    ),
)

MIXTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "flex_olmo": replace(
            _WITH_EXPERTS,
            writes=StreamWrites(
                scaled=(), refit=(replace(_ATTENTION, norm="post_attention_layernorm"),)
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
        "mellum": _WITH_EXPERTS,
        "mixtral": _WITH_EXPERTS,
        "olmoe": _WITH_EXPERTS,
        "qwen2_moe": replace(
            _WITH_EXPERTS,
            boundaries=("max_window_layers",),
            writes=StreamWrites(
                scaled=(*_WITH_EXPERTS.writes.scaled, "mlp.shared_expert.down_proj.weight"),
                refit=(
                    _ATTENTION,
                    Fitted("mlp.shared_expert.down_proj", gate="mlp.shared_expert_gate"),
                ),
            ),
        ),
        "qwen3_moe": _WITH_EXPERTS,
    }
)
