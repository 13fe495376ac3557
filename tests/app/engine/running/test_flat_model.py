"""The flat forward is the model's own: one contract for every family of the table."""

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from app.engine.cache.paged_cache import PagedCache
from app.engine.engine import Engine
from app.engine.running.flat_model import flat_model
from app.engine.running.model_runner import Forwarded, ModelRunner
from app.engine.scheduling.scheduler import Batch, EngineLimits
from app.engine.step import Step
from app.engine.variant import Variant, make_variant
from pruning.models.blocks import block_list
from tests.support.both_ways import Forwards, forwards
from tests.support.engine_requests import PRUNED_BLOCKS, expected, prompt, request, run, variant
from tests.support.repairs import methods_of, repaired_by
from tests.support.tiny import SERVED, tiny_model

FLAT = (
    "arcee", "cwm", "gemma", "gemma3_text", "internlm3", "iquestcoder", "jais2", "llama",
    "ministral", "mistral", "olmo2", "olmo3", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3",
    "starcoder2",
)  # fmt: skip


class BothWays(ModelRunner):
    """Goes flat, and again through the model's own forward, and notes what either gives."""

    def __init__(self, each: Variant, cache: PagedCache, seen: Forwards) -> None:
        super().__init__(each, cache, flat_model(each.model))
        # What both write is the same, or the next step would tell.
        self._oracle = ModelRunner(each, cache)
        self._seen = seen

    def forward(self, batch: Batch, step: Step) -> Forwarded:
        theirs = self._oracle.forward(batch, step)
        ours = super().forward(batch, step)
        self._seen.append((ours.logits, theirs.logits))
        return ours


@cache
def repaired_variants(family: str) -> list[Variant]:
    """A variant for each method of the family."""
    model = tiny_model(family)
    methods = methods_of(model.config)
    repairs = [repaired_by(method, model, PRUNED_BLOCKS) for method in methods]
    return [make_variant("tiny@-2", "tiny", model, PRUNED_BLOCKS, each) for each in repairs]


@pytest.mark.parametrize("family", SERVED)
def test_every_family_is_flat_unless_its_blocks_are_of_another_kind(family: str) -> None:
    assert (flat_model(tiny_model(family)) is not None) == (family in FLAT)


@settings(max_examples=10)
@given(
    family=st.sampled_from(FLAT),
    sizes=st.lists(
        st.tuples(st.sampled_from([1, 2, 9, 33, 60, 100]), st.integers(1, 12)),
        min_size=1,
        max_size=7,
    ),
    limits=st.builds(
        EngineLimits, max_num_seqs=st.integers(1, 6), max_batch_tokens=st.sampled_from([8, 40, 512])
    ),
)
def test_it_computes_what_the_models_own_forward_computes(
    family: str, sizes: list[tuple[int, int]], limits: EngineLimits
) -> None:
    both = [variant(pruned=False, family=family), variant(pruned=True, family=family)]
    for ours, theirs in forwards([*both, *repaired_variants(family)], sizes, BothWays, limits):
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("family", FLAT)
def test_in_bfloat16_it_is_as_near_to_float32_as_the_models_own_forward(family: str) -> None:
    sizes = [(num_prompt, 2) for num_prompt in (9, 33, 60, 17) * 4]
    exact = forwards([variant(family=family)], sizes, BothWays)
    rounded = make_variant("tiny", "tiny", copy.deepcopy(tiny_model(family)).bfloat16())
    both = forwards([rounded], sizes, BothWays)
    for (ours, theirs), (truth, _) in zip(both, exact, strict=True):
        error, allowed = ((each - truth).pow(2).mean().sqrt() for each in (ours, theirs))
        assert error < 2 * allowed


def eager(model: PreTrainedModel) -> None:
    model.set_attn_implementation("eager")


def with_another_part(model: PreTrainedModel) -> None:
    block_list(model)[3].add_module("sink", nn.Linear(4, 4))


def with_another_part_of_attention(model: PreTrainedModel) -> None:
    block_list(model)[3].get_submodule("self_attn").add_module("gate", nn.Linear(4, 4))


def without_a_part(model: PreTrainedModel) -> None:
    del block_list(model)[3].post_attention_layernorm


def in_training(model: PreTrainedModel) -> None:
    model.train()


@pytest.mark.parametrize(
    "change",
    [eager, with_another_part, with_another_part_of_attention, without_a_part, in_training],
)
def test_what_is_not_written_here_is_left_to_the_models_own_forward(
    change: Callable[[PreTrainedModel], None],
) -> None:
    model = copy.deepcopy(tiny_model("llama"))
    assert flat_model(model)
    change(model)
    assert flat_model(model) is None


def test_heads_that_are_turned_in_part_are_left_to_the_models_own_forward() -> None:
    config = copy.deepcopy(tiny_model("phi3").config)
    config.rope_parameters["partial_rotary_factor"] = 0.5
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    assert flat_model(model) is None
    each = request(prompt(20), make_variant("tiny", "tiny", model))
    assert run(Engine(), each).of(each) == expected(each)
