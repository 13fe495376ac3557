"""Prompts that a GPU reads in groups of like lengths: what attention gives, and how many groups."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.attention import Attention, prefill_attention
from app.engine.autotuning import OFF
from app.engine.cache.paged_cache import AttentionMetadata, PagedCache, UnitShape, tables_of
from app.engine.cache.pages import pages_of
from app.engine.running.prompt_attention import alike, padded_attention

HEADS, KEY_HEADS, DIM = 6, 2, 8
CPU = torch.device("cpu")
SHAPE = UnitShape(KEY_HEADS, DIM, torch.float32, CPU)
WINDOWS = {"far": None, "near": 20}
places_of_prompts = st.lists(
    st.tuples(st.integers(0, 90), st.integers(1, 90)), min_size=1, max_size=6
).map(lambda parts: [range(start, start + num) for start, num in parts])


def opened(places: list[range], groups: tuple[tuple[int, ...], ...]) -> PagedCache:
    """A cache with numbers in all pages of these prompts, but behind their ends."""
    units, first = [], 1
    for each in places:
        num_pages = pages_of(each.stop)
        units.append(torch.arange(first, first + num_pages)[:, None])
        first += num_pages
    cache = PagedCache(SHAPE, first)
    torch.manual_seed(first)
    for tensor in (cache.keys, cache.values):
        tensor[:, 1:] = torch.randn_like(tensor[:, 1:])
    longest = max(each.stop for each in places)
    metadata = AttentionMetadata(
        tables_of(units, pages_of(longest)),
        torch.tensor([owner for owner, each in enumerate(places) for _ in each]),
        torch.tensor([place for each in places for place in each]),
        tuple(each.stop for each in places),
        longest,
        groups,
    )
    cache.metadata = metadata
    return cache


def attended(cache: PagedCache, attention: Attention, kind: str, num_tokens: int) -> torch.Tensor:
    torch.manual_seed(num_tokens)
    queries = torch.randn(num_tokens, HEADS, DIM)
    new = torch.randn(2, num_tokens, KEY_HEADS, DIM)
    keys, values = cache.write(new[0], new[1], 0)
    return attention(kind, queries, keys, values, 0.3)


@settings(max_examples=60)
@given(places=places_of_prompts, kind=st.sampled_from(sorted(WINDOWS)))
def test_a_group_gives_what_each_prompt_gives_alone(places: list[range], kind: str) -> None:
    num_tokens = sum(map(len, places))
    cache = opened(places, ())
    alone = prefill_attention(WINDOWS, places, cache.metadata.num_stored, cache.keys, OFF)
    expected = attended(cache, alone, kind, num_tokens)
    cache = opened(places, alike(places))
    padded = padded_attention(WINDOWS, places, cache.metadata, torch.float32)
    torch.testing.assert_close(attended(cache, padded, kind, num_tokens), expected)


def test_prompts_of_like_lengths_are_one_group_however_many_there_are() -> None:
    assert alike([range(num, num + 50) for num in range(1, 60)]) == (tuple(range(59)),)
    assert alike([range(3 + num) for num in range(60)]) == (tuple(range(60)),)
    # beginnings, short and long ones, and what follows a long context
    mixed = [range(9), range(5, 9), range(300), range(4000, 4009), range(260), range(64)]
    assert alike(mixed) == ((0, 5), (1,), (2, 4), (3,))


@pytest.mark.parametrize("num_prompts", [10, 1000])
def test_the_number_of_groups_is_that_of_their_sizes(num_prompts: int) -> None:
    places = [range(7 * num % 4096, 7 * num % 4096 + 1 + num % 512) for num in range(num_prompts)]
    assert len(alike(places)) <= 4 * (1 + 4)
