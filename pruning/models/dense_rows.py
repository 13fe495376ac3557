"""The rows of dense families: every block has attention and one feed-forward part."""

from collections.abc import Mapping
from dataclasses import replace

from pruning.models.layout import Architecture, Parts, StreamWrites, normed_writes, plain_writes

LLAMA_LIKE = Architecture(blocks="model.layers", tail=("model.norm",), parts=Parts())
_QWEN_LIKE = replace(LLAMA_LIKE, boundaries=("max_window_layers",))
_GEMMA_LIKE = replace(LLAMA_LIKE, logit_softcap="final_logit_softcapping")
OWN_FORWARD = replace(LLAMA_LIKE, parts=None)
GRANITE_LIKE = replace(
    OWN_FORWARD,
    logit_divisor="logits_scaling",
    writes=StreamWrites(multiplier="residual_multiplier"),
)
# One rotation for each block, beside the kind of its attention
WITH_ROTATIONS = ("layer_types", "mlp_layer_types", "layer_rope_theta")
_COHERE_LIKE = replace(OWN_FORWARD, logit_multiplier="logit_scale")
_C_PROJ = plain_writes("attn.c_proj", "mlp.c_proj")
_BEHIND_NORMS = normed_writes(
    "post_attention_layernorm", "post_feedforward_layernorm", layer="mlp.down_proj"
)
_FROM_ONE = replace(_BEHIND_NORMS, offset=1.0)
_GEMMA4_LIKE = replace(
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
    writes=_BEHIND_NORMS,
)
# A factor of the stream changes what a block computes that reads it without a norm.
READS_WITHOUT_NORM = replace(_BEHIND_NORMS, scaled=())
_OLMO_LIKE = replace(LLAMA_LIKE, writes=READS_WITHOUT_NORM)
_HEAD_NORMS = ("q_norm", "k_norm")
_NORMS_AFTER = ("", "post_attention_layernorm", "", "post_feedforward_layernorm")
_FOUR_NORMS = ("input_layernorm", "post_attention_layernorm",
               "pre_feedforward_layernorm", "post_feedforward_layernorm")  # fmt: skip

DENSE: Mapping[str, Architecture] = {
    "apertus": OWN_FORWARD,
    "apertus1p5_text": OWN_FORWARD,
    "arcee": LLAMA_LIKE,
    "biogpt": Architecture(
        blocks="biogpt.layers",
        tail=("biogpt.layer_norm",),
        writes=plain_writes("self_attn.out_proj", "fc2"),
    ),
    "bitnet": OWN_FORWARD,
    "cohere": _COHERE_LIKE,
    "cohere2": _COHERE_LIKE,
    "cohere_compass_text": _COHERE_LIKE,
    "cwm": LLAMA_LIKE,
    "ernie4_5": OWN_FORWARD,
    "exaone4": replace(OWN_FORWARD, periods=("sliding_window_pattern",), writes=READS_WITHOUT_NORM),
    "falcon": Architecture(
        blocks="transformer.h",
        tail=("transformer.ln_f",),
        returns_tuple=True,
        loads_quantized=False,
        only=(("alibi", False),),
        writes=plain_writes("self_attention.dense", "mlp.dense_4h_to_h"),
    ),
    "gemma": LLAMA_LIKE,
    "gemma2": replace(  # with a softcap of attention scores
        _GEMMA_LIKE, parts=None, writes=_FROM_ONE
    ),
    "gemma3_text": replace(
        _GEMMA_LIKE,
        periods=("sliding_window_pattern", "_sliding_window_pattern"),
        parts=Parts(norms=_FOUR_NORMS, head_norms=_HEAD_NORMS, rotates_by_kind=True),
        writes=_FROM_ONE,
    ),
    "gemma4_text": _GEMMA4_LIKE,
    "gemma4_unified_text": _GEMMA4_LIKE,
    "glm": OWN_FORWARD,
    "glm4": replace(
        OWN_FORWARD,
        writes=normed_writes(
            "post_self_attn_layernorm", "post_mlp_layernorm", layer="mlp.down_proj"
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
        writes=plain_writes("attention.dense", "mlp.dense_4h_to_h"),
    ),
    "granite": GRANITE_LIKE,
    "granite_swa": replace(GRANITE_LIKE, per_block=WITH_ROTATIONS),
    "helium": OWN_FORWARD,
    "hunyuan_v1_dense": OWN_FORWARD,
    "hyperclovax": replace(
        OWN_FORWARD,
        logit_multiplier="logits_scaling",
        writes=replace(
            normed_writes("post_norm1", "post_norm2", layer="mlp.down_proj"),
            multiplier="residual_multiplier",
        ),
    ),
    "internlm3": LLAMA_LIKE,
    "iquestcoder": LLAMA_LIKE,
    "jais2": LLAMA_LIKE,
    "llama": LLAMA_LIKE,
    "ministral": LLAMA_LIKE,
    "ministral3": OWN_FORWARD,
    "mistral": LLAMA_LIKE,
    "nemotron": LLAMA_LIKE,
    "olmo": OWN_FORWARD,
    "olmo2": replace(_OLMO_LIKE, parts=Parts(norms=_NORMS_AFTER, head_norms=_HEAD_NORMS)),
    "olmo3": replace(
        _OLMO_LIKE,
        parts=Parts(norms=_NORMS_AFTER, head_norms=_HEAD_NORMS, rotates_by_kind=True),
    ),
    "opt": Architecture(
        blocks="model.decoder.layers",
        tail=("model.decoder.final_layer_norm", "model.decoder.project_out"),
        writes=replace(
            plain_writes("self_attn.out_proj", "fc2"),
            requires=(("do_layer_norm_before", True),),  # OPT-350m has its norms behind
        ),
    ),
    "persimmon": replace(
        OWN_FORWARD,
        tail=("model.final_layernorm",),
        writes=plain_writes("self_attn.dense", "mlp.dense_4h_to_h"),
    ),
    "phi": replace(
        OWN_FORWARD,
        tail=("model.final_layernorm",),
        writes=plain_writes("self_attn.dense", "mlp.fc2"),
    ),
    "phi3": replace(LLAMA_LIKE, parts=Parts(projections=("qkv_proj",))),
    "qwen2": _QWEN_LIKE,
    "qwen3": replace(_QWEN_LIKE, parts=Parts(head_norms=_HEAD_NORMS)),
    "seed_oss": LLAMA_LIKE,
    "smollm3": replace(
        LLAMA_LIKE,
        per_block=("layer_types", "no_rope_layers"),
        periods=("no_rope_layer_interval",),
    ),
    "stablelm": OWN_FORWARD,
    "starcoder2": replace(LLAMA_LIKE, writes=plain_writes("self_attn.o_proj", "mlp.c_proj")),
    "vaultgemma": replace(OWN_FORWARD, logit_softcap="final_logit_softcapping"),
    "youtu": replace(OWN_FORWARD, has_unlike_keys=True),
}
