"""Forwards that fail half way, wherever they do: who is not in them notices nothing."""

import logging
from functools import cache

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from app.engine.engine import Engine
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.scheduling.sequence import FinishReason
from app.engine.variant import Variant, make_variant
from pruning.models.blocks import block_list
from tests.support.engine_requests import (
    PRUNED_BLOCKS,
    cache_bytes,
    prompt,
    request,
    run,
    variant,
)
from tests.support.tiny import generated, tiny_model

LONGEST = 8
Size = tuple[bool, int, int]  # pruned, tokens of the prompt, new tokens


class Fate:
    """Says at every call whether it fails: as listed, and never again after that."""

    def __init__(self, failures: list[bool]) -> None:
        self._failures = iter(failures)

    def strike(self) -> None:
        if next(self._failures, False):
            raise torch.OutOfMemoryError("no room for another tensor")


class Fragile(nn.Module):
    """A part of a block, and the chance that it fails."""

    def __init__(self, part: nn.Module, fate: Fate) -> None:
        super().__init__()
        self.part = part
        self.fate = fate

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.fate.strike()
        found: torch.Tensor = self.part(hidden)
        return found


def fragile_variant(fate: Fate, block: int) -> Variant:
    """Generates as the pruned one does; may fail behind the attention of that block."""
    fragile = make_variant("fragile", "tiny", tiny_model("llama"), PRUNED_BLOCKS)
    each = block_list(fragile.model)[block]
    each.mlp = Fragile(each.get_submodule("mlp"), fate)
    return fragile


@cache
def oracle(is_pruned: bool, num_prompt: int) -> list[int]:
    each = variant(is_pruned)
    return generated(each.model, prompt(num_prompt, seed=num_prompt), LONGEST)


def check(engine: Engine, dense: Variant, pruned: Variant, sizes: list[Size]) -> None:
    """All at once: what survives has all of its tokens, what fails had right ones until then."""
    asked = [
        (request(prompt(length, seed=length), of, max_new_tokens=num_new), size)
        for size in sizes
        for is_pruned, length, num_new in [size]
        for of in [pruned if is_pruned else dense]
    ]
    logging.disable(logging.CRITICAL)  # of a traceback per failure
    try:
        outcome = run(engine, *(each for each, _ in asked))
    finally:
        logging.disable(logging.NOTSET)
    for each, (is_pruned, length, num_new) in asked:
        tokens, whole = outcome.of(each), oracle(is_pruned, length)[:num_new]
        has_failed = outcome.reason(each) is FinishReason.ERROR
        assert tokens == (whole[: len(tokens)] if has_failed else whole)


sizes = st.lists(
    st.tuples(st.booleans(), st.sampled_from([1, 5, 30, 70]), st.integers(1, LONGEST)),
    min_size=1,
    max_size=8,
)
failures = st.lists(st.booleans(), max_size=60)
limits = st.builds(
    EngineLimits, max_num_seqs=st.integers(1, 5), max_batch_tokens=st.sampled_from([8, 40, 512])
)


@settings(max_examples=15)
@given(sizes=sizes, failures=failures, block=st.integers(0, len(PRUNED_BLOCKS) - 1), limits=limits)
def test_a_block_that_fails_ends_its_batch_and_nothing_else(
    sizes: list[Size], failures: list[bool], block: int, limits: EngineLimits
) -> None:
    check(Engine(limits), variant(), fragile_variant(Fate(failures), block), sizes)


@settings(max_examples=15)
@given(
    sizes=sizes,
    failures=failures,
    num_tokens=st.sampled_from([96, 128, 192]),
)
def test_where_pages_are_scarce_a_block_that_fails_ends_nothing_else(
    sizes: list[Size], failures: list[bool], num_tokens: int
) -> None:
    limits = EngineLimits(kv_cache_bytes=cache_bytes(num_tokens))
    check(Engine(limits), variant(), fragile_variant(Fate(failures), 0), sizes)
