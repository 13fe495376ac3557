"""What other programs make of a pruned tiny model of each family: vLLM, and GGUF files.

``python -m tests.support.portability VLLM_PYTHON FOLDER [FAMILY...]`` measures the outcomes that
docs/portability.md shows, and keeps those of other families. It goes on from what FOLDER has.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from pruning.checkpoints.gguf import FAMILIES, check_gguf, write_gguf
from pruning.checkpoints.llama_cpp import GgufUnsupported
from pruning.checkpoints.verify import compare_gguf
from pruning.checkpoints.verify_expected import expectation
from pruning.models.architectures import ARCHITECTURES
from pruning.models.blocks import pruned_config, view
from pruning.models.store import copy_companions
from pruning.models.towers import TOWERS
from pruning.search.dense_model import DenseModel, Resources, load_dense_model
from pruning.spec.prune import Resident
from tests.support import towers, vllm_families
from tests.support.families import CONFIGS, LLAMA_LIKE, NUM_BLOCKS, OF_ITS_OWN
from tests.support.tiny import random_model
from tests.support.tiny_directory import edit_config, tiny_tokenizer, write_tiny_model
from tools.docs.portability import EQUAL, OUTCOMES, Outcome, outcomes

KEEP = (0, 2, 3, 5)
# vLLM's kernels on CPUs know no other type
IN_BFLOAT16 = frozenset(
    {"qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"}
)
UNKNOWN = "not measured"
_DENSE, _PRUNED = "dense", "pruned"
_LOADS = "loads, but"
_NUM_TOKENS = 8
_TOLERANCE = 2e-3  # of log-probabilities, in nats
_PROMPTS = [[(7 * place + 11 * row) % 90 + 3 for place in range(9 + row)] for row in range(4)]
# vLLM's attention on CPUs knows no heads below 32.
_WIDE: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}
_AXES = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]}
# Published configs have these beside those that transformers reads, and vLLM reads no others.
_LFM2 = {
    "block_dim": 64,
    "block_ffn_dim_multiplier": 1.0,
    "block_multiple_of": 32,
    "conv_dim": 64,
}
# Its kernels on CPUs know no smaller heads.
_WIDE_STATES = {"linear_key_head_dim": 32, "linear_value_head_dim": 32}
_NO_WINDOWS = {"use_sliding_window": False, "layer_types": ["full_attention"] * NUM_BLOCKS}
# Keys of all heads are made of one vector, and a part of them is rotated.
_LATENT = {
    "num_key_value_heads": 2,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
}
# Where a family's own settings depend on the width, or have other names.
_WIDE_OWN: Mapping[str, Mapping[str, Any]] = {
    "axk1": _LATENT,
    "cohere": {"tie_word_embeddings": True},  # vLLM knows no head of its own
    "cohere2": {"tie_word_embeddings": True},
    "cohere2_moe": {"tie_word_embeddings": True},
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "falcon": {"hidden_size": 64, "num_attention_heads": 2},
    "gemma2": {"tie_word_embeddings": True},
    "gemma4": {"global_head_dim": 64},
    "gemma4_text": {"global_head_dim": 64},
    "gemma4_unified": {"global_head_dim": 64},
    "gemma4_unified_text": {"global_head_dim": 64},
    "glm4_moe_lite": _LATENT,
    "gpt2": {"n_embd": 64, "n_head": 2},
    "gpt_bigcode": {"n_embd": 64, "n_head": 2},
    # vLLM believes a number of key heads, which transformers does not read for these
    "gpt_neox": {"num_key_value_heads": 2},
    "granitemoehybrid": {"mamba_d_head": 32},
    "kimi_linear": _LATENT,
    "laguna": {"num_attention_heads_per_layer": [2, 1, 2, 2, 1, 2]},
    "lfm2": _LFM2,
    "lfm2_vl": {**_LFM2, "block_auto_adjust_ff_dim": False},
    "mellum": {"num_mtp_layers": 0},  # by default null, which vLLM takes for a number
    "mimo_v2_flash": {"v_head_dim": 32},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "persimmon": {"num_key_value_heads": 2},
    "qwen2_5_vl": {"rope_parameters": _AXES},
    "qwen2_vl": {"rope_parameters": _AXES},
    "qwen3_5": _WIDE_STATES,
    "qwen3_5_moe": _WIDE_STATES,
    "qwen3_5_moe_text": _WIDE_STATES,
    "qwen3_5_text": _WIDE_STATES,
    "qwen3_next": _WIDE_STATES,
    "qwen3_vl": {"rope_parameters": _AXES},
    # As they are published: vLLM refuses windows in some of the blocks, or passes over them.
    "qwen2": _NO_WINDOWS,
    "qwen2_moe": _NO_WINDOWS,
    "qwen3": _NO_WINDOWS,
    "sarvam_mla": _LATENT,
    "youtu": _LATENT,
}
_ENVIRONMENT: Mapping[str, str] = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # a process for each model would take half a minute
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}


def measured(families: Sequence[str], folder: Path, python: Path) -> dict[str, Outcome]:
    """The outcomes of these families. What ``folder`` has of an earlier run is not made again."""
    known = {family: published(folder / family, family) for family in families}

    def outcomes_of(which: Sequence[str], part: str) -> dict[str, str]:
        answers = _vllm([f"{family}/{part}" for family in which], folder, python)
        return {
            family: _compared(answers[f"{family}/{part}"], known[family][part]) for family in which
        }

    pruned = outcomes_of(families, _PRUNED)
    others = [family for family, outcome in pruned.items() if outcome.startswith(_LOADS)]
    dense = outcomes_of(others, _DENSE)  # the control
    for family in others:
        is_equal = dense[family] == EQUAL
        pruned[family] += "; the dense model is equal" if is_equal else "; so does the dense model"
    return {
        family: Outcome(vllm=pruned[family], gguf=each["gguf"]) for family, each in known.items()
    }


def published(folder: Path, family: str) -> dict[str, Any]:
    """Write a dense and a pruned model, and return what becomes of a GGUF file, and what vLLM
    should answer for each."""
    notes = folder / "notes.json"
    if not notes.exists():
        dense = _publish(folder, family)
        gguf = None if family in TOWERS else _gguf(folder, family, dense)
        found: dict[str, Any] = {"gguf": gguf}
        found[_PRUNED] = _continuations(view(dense.model, KEEP))
        found[_DENSE] = _continuations(dense.model)
        notes.write_text(json.dumps(found))
    known: dict[str, Any] = json.loads(notes.read_text())
    return known


def _publish(folder: Path, family: str) -> DenseModel:
    """Write a dense model, and without two blocks as it is published; return the dense one."""
    tokenizer = tiny_tokenizer()
    wide = {**_WIDE, "vocab_size": len(tokenizer)}
    if family in TOWERS:
        whole = towers.whole_model(family, {**wide, **_WIDE_OWN.get(family, {})})
    else:
        whole = random_model(_config(family, wide))
    whole.to(getattr(torch, _dtype(family))).save_pretrained(folder / _DENSE)
    tokenizer.save_pretrained(folder / _DENSE)
    dense = load_dense_model(folder / _DENSE, Resident.MODEL, Resources("cpu"))
    dense.save(KEEP, folder / _PRUNED)
    copy_companions(folder / _DENSE, folder / _PRUNED)
    return dense


def _dtype(family: str) -> str:
    return "bfloat16" if family in IN_BFLOAT16 else "float32"


def _config(family: str, wide: Mapping[str, Any]) -> Any:
    shape = {"vocab_size": wide["vocab_size"]}
    if family not in OF_ITS_OWN:
        shape = {**LLAMA_LIKE, **wide}
    settings = {"tie_word_embeddings": False, **CONFIGS[family], **shape}
    return AutoConfig.for_model(family, **{**settings, **_WIDE_OWN.get(family, {})})


def _gguf(folder: Path, family: str, dense: DenseModel) -> str:
    """Whether the file computes the same to transformers, or why there is none."""
    plain = dense
    if family in FAMILIES:
        write_tiny_model(folder / "plain", family=family)
        if family == "mistral":  # the later ones have no windows, which are refused
            edit_config(folder / "plain", sliding_window=None)
        plain = load_dense_model(folder / "plain", Resident.MODEL, Resources("cpu"))
    try:
        check_gguf(pruned_config(plain.model.config, KEEP))
    except GgufUnsupported:
        return "refused: not one of the families that this project writes"
    write_gguf(folder / "pruned.gguf", plain, KEEP, "pruned")
    compare_gguf(folder / "pruned.gguf", expectation(plain, KEEP))
    return EQUAL


@torch.inference_mode()
def _continuations(model: PreTrainedModel) -> list[tuple[list[int], list[float]]]:
    """Of each prompt, the next tokens and their log-probabilities, without a cache."""
    found = []
    for prompt in _PROMPTS:
        ids, logprobs = list(prompt), []
        for _ in range(_NUM_TOKENS):
            last = model(torch.tensor([ids]), use_cache=False).logits[0, -1].float()
            ids.append(int(last.argmax()))
            logprobs.append(float(last.log_softmax(-1).max()))
        found.append((ids[len(prompt) :], logprobs))
    return found


def _vllm(names: Sequence[str], folder: Path, python: Path) -> dict[str, Any]:
    """Answers by the name of a model, ``FAMILY/PART``. A process that dies is replaced by one for
    the models after it."""
    results = folder / "results.jsonl"
    results.touch()
    while left := [name for name in names if name not in _answers(results)]:
        (folder / "jobs.json").write_text(json.dumps([_job(each, folder) for each in left]))
        with (folder / "vllm.log").open("a") as log:
            code = subprocess.run(
                [python, "-P", vllm_families.__file__, folder / "jobs.json", results],
                env={**os.environ, **_ENVIRONMENT},  # noqa: TID251 - of a child process
                stdout=log,
                stderr=log,
                check=False,
            ).returncode
        if code and (left := [name for name in left if name not in _answers(results)]):
            refused = {"name": left[0], "refused": f"the process ended with {code}"}
            with results.open("a") as file:
                file.write(f"{json.dumps(refused)}\n")
    return _answers(results)


def _answers(results: Path) -> dict[str, Any]:
    lines = results.read_text().splitlines()
    return {answer["name"]: answer for answer in map(json.loads, lines)}


def _job(name: str, folder: Path) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if name.partition("/")[0] in TOWERS:
        options = {"limit_mm_per_prompt": {"image": 0, "video": 0}}
    return {
        "name": name,
        "path": str(folder / name),
        "dtype": _dtype(name.partition("/")[0]),
        "options": options,
        "num_tokens": _NUM_TOKENS,
        "prompts": _PROMPTS,
    }


def _compared(answer: Mapping[str, Any], expected: Sequence[tuple[list[int], list[float]]]) -> str:
    if "refused" in answer:
        reason = " ".join(answer["refused"].split())
        reason = re.sub(r"/\S*/", "", reason).replace("|", "/")
        return f"refused: {reason[:160]}"
    gap = 0.0
    for (tokens, logprobs), (ids, wanted) in zip(answer["outputs"], expected, strict=True):
        gap = max(gap, *(abs(a - b) for a, b in zip(logprobs, wanted, strict=True)))
        if tokens != ids:
            return f"{_LOADS} other tokens (log-probabilities differ by {gap:.2g})"
    return EQUAL if gap < _TOLERANCE else f"{_LOADS} log-probabilities differ by {gap:.2g}"


def main(python: Path, folder: Path, families: Sequence[str]) -> None:
    found = measured(families, folder, python)
    earlier = outcomes() if OUTCOMES.exists() else {}
    together = {family: asdict(each) for family, each in sorted({**earlier, **found}.items())}
    OUTCOMES.write_text(json.dumps(together, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        sys.argv[3:] or [*sorted(ARCHITECTURES), *sorted(TOWERS)],
    )
