"""Tokens with recorded decode steps against those without, for each family of models."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from app.bench.plan import without
from app.engine.engine import Engine
from app.engine.running.cuda_graphs import Recorder, Step, no_recorder, recorder_on
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.scheduling.sequence import Request, SamplingParams
from app.engine.variant import Variant, make_variant
from benchmarks.gpu.plan import GpuPlan
from pruning.models.random_models import random_model

_NUM_BLOCKS = 4
_CACHE_BYTES = 2**26
_DTYPES = ("float32", "bfloat16")
_USUAL: Mapping[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": _NUM_BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}
_SLIDING = {"sliding_window": 16}  # shorter than the prompts, so that windows slide
_MIXED = {**_SLIDING, "layer_types": ["sliding_attention", "full_attention"] * 2}
_QWEN = {**_MIXED, "use_sliding_window": True}
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
_GPT2 = {"n_embd": 256, "n_layer": _NUM_BLOCKS, "n_head": 4, "n_positions": 512, "vocab_size": 512}

# What each family's config needs beside the usual keys.
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "gemma": {},
    "gemma2": _MIXED,
    "gemma3_text": _MIXED,
    "gpt2": {**_GPT2, "bos_token_id": 0, "eos_token_id": 1},
    "gpt_neox": {},
    "llama": {},
    "mistral": _SLIDING,
    "mixtral": {**_SLIDING, "num_local_experts": 8, "num_experts_per_tok": 2},
    "olmo2": {},
    "olmoe": _EXPERTS,
    "opt": {"ffn_dim": 512, "word_embed_proj_dim": 256},
    "phi3": _SLIDING,
    "qwen2": _QWEN,
    "qwen2_moe": {**_EXPERTS, **_QWEN, "shared_expert_intermediate_size": 128},
    "qwen3": _QWEN,
    "qwen3_moe": {**_EXPERTS, **_SLIDING, "use_sliding_window": True},
    "smollm3": {**_QWEN, "no_rope_layers": [1, 1, 0, 1]},
    "starcoder2": _SLIDING,
}


def families(plan: GpuPlan) -> dict[str, Any]:
    """By family and type: how many requests got the same tokens, and how many steps were replayed.

    On a device without CUDA graphs a replay calls the step again, which tests the rest.
    """
    return {
        family: {dtype: compared(plan, family, dtype) for dtype in _DTYPES} for family in FAMILIES
    }


def compared(plan: GpuPlan, family: str, dtype: str) -> dict[str, int]:
    keys = {} if family == "gpt2" else _USUAL
    shape = {"model_type": family, **keys, **FAMILIES[family]}
    model = random_model(shape, dtype, seed=plan.seed, device=plan.device)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # large, or the model repeats its last token
                parameter.normal_(std=0.1)
    dense = make_variant(family, family, model)
    same, counts = 0, _Counts(recorder_on(model.device) or _again)
    for variant in (dense, without(dense, (1,))):
        plain = _tokens(variant, plan, no_recorder)
        recorded = _tokens(variant, plan, lambda _device: counts)
        same += sum(plain[name] == recorded[name] for name in plain)
    return {
        "requests": 2 * len(plan.family_prompt_lens),
        "same": same,
        "recorded": counts.num_recorded,
        "replayed": counts.num_replayed,
    }


def _tokens(
    variant: Variant, plan: GpuPlan, recorder: Callable[[torch.device], Recorder | None]
) -> Mapping[str, tuple[int, ...]]:
    """Greedy continuations of prompts of different lengths in one batch."""
    lengths, num_tokens = plan.family_prompt_lens, plan.family_output_len
    limits = EngineLimits(
        max_num_seqs=len(lengths),
        max_model_len=max(lengths) + num_tokens,
        kv_cache_bytes=_CACHE_BYTES,
    )
    engine = Engine(limits, recorder=recorder)
    engine.kernels.finish(variant)
    for length in lengths:
        [one] = plan.requests(variant.vocab_size, 1, length, num_tokens)
        params = SamplingParams(max_new_tokens=num_tokens, ignore_eos=True)
        engine.add(Request(str(length), variant, one.prompt_ids, params))
    tokens_of: dict[str, list[int]] = {}
    while engine.has_work:
        for event in engine.step():
            if event.token_id is not None:
                tokens_of.setdefault(event.request_id, []).append(event.token_id)
    return {name: tuple(tokens) for name, tokens in tokens_of.items()}


@dataclass
class _Counts:
    """A recorder that counts what it has recorded, and how often that was replayed."""

    record: Recorder
    num_recorded: int = 0
    num_replayed: int = 0

    def __call__(self, step: Step) -> Step:
        replay = self.record(step)
        self.num_recorded += 1

        def counted() -> torch.Tensor:
            self.num_replayed += 1
            return replay()

        return counted


def _again(step: Step) -> Step:
    return step
