"""What is said of llama.cpp's own converter, for every family, dense and pruned."""

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from pruning.checkpoints.llama_cpp import (
    CYCLES,
    READ,
    UNKNOWN,
    WITHOUT_WINDOWS,
    conversion_advice,
)
from pruning.models.architectures import ARCHITECTURES
from pruning.models.blocks import pruned_config

ROOT = Path(__file__).parents[3]
PLAIN: dict[str, dict[str, Any]] = {
    "gemma4_text": {"hidden_size_per_layer_input": 0},
    "granitemoehybrid": {"num_local_experts": 0},
    "mistral": {"sliding_window": None},
    "nemotron_h": {"layers_block_type": ["mlp"] * 12},
}
WITHOUT_THE_FIRST, WITHOUT_THE_LAST = range(1, 12), range(11)


def advice(family: str, keep: range = range(12), /, **settings: Any) -> str:
    shape = {"num_hidden_layers": 12, **PLAIN.get(family, {}), **settings}
    return conversion_advice(pruned_config(AutoConfig.for_model(family, **shape), keep))


def test_no_family_is_called_safe_that_was_not_read() -> None:
    assert ARCHITECTURES.keys() > READ
    for family in ARCHITECTURES.keys() - READ:
        assert f"correct for a pruned {family}" in advice(family)


@pytest.mark.parametrize("family", sorted(READ))
def test_blocks_that_take_turns_by_their_position_are_safe_only_in_turn(family: str) -> None:
    if family in UNKNOWN:
        assert advice(family) == f"llama.cpp does not support {family} either"
        return
    safe = "export a directory, and convert it with convert_hf_to_gguf.py of llama.cpp"
    assert advice(family) == advice(family, WITHOUT_THE_LAST) == safe
    pruned = advice(family, WITHOUT_THE_FIRST)
    if family in CYCLES:
        assert re.search(r"do not use .* different results: llama.cpp assumes a? ?\w+ in", pruned)
    else:
        assert pruned == safe


@pytest.mark.parametrize("family", sorted(WITHOUT_WINDOWS - {"smollm3"}))
def test_windows_that_llama_cpp_does_not_have_are_named(family: str) -> None:
    window: dict[str, Any] = {
        "sliding_window": 64,
        "use_sliding_window": True,
        "max_window_layers": 0,
    }
    if family == "qwen2_moe":  # its windows are in front of the boundary
        window["max_window_layers"] = 12
    assert "has no sliding window, unlike this model (64 tokens)" in advice(family, **window)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_a_scale_that_depends_on_the_number_of_blocks_is_named(family: str) -> None:
    scaled: dict[str, Any] = {"query_pre_attn_scalar": 144, "head_dim": 128}
    assert "derives the attention scale" in advice(family, WITHOUT_THE_LAST, **scaled)


def test_another_activation_is_named() -> None:
    assert "uses silu, but this model has gelu" in advice("llama", hidden_act="gelu")
    assert "silu" not in advice("gemma")


def test_the_page_lists_the_families_of_each_kind() -> None:
    page = (ROOT / "docs" / "portability.md").read_text(encoding="utf-8")
    section = page.partition("convert_hf_to_gguf.py` of llama.cpp")[2].partition("## ")[0]
    table = [line.split("|") for line in section.splitlines() if line.startswith("| `")]
    listed = [re.findall(r"`(\w+)`", cells[1]) for cells in table]
    safe = READ - CYCLES.keys() - UNKNOWN - WITHOUT_WINDOWS
    kinds = [safe, WITHOUT_WINDOWS - CYCLES.keys(), CYCLES.keys(), UNKNOWN]
    assert listed == [sorted(families) for families in kinds]
    assert "other families" in section
