import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine import attention as attention_module
from app.engine.attention import (
    FUSED,
    PRODUCTS,
    BatchedDecodeAttention,
    UnsupportedAttention,
    VarlenPrefillAttention,
    attention_windows,
    causal_mask,
    packed_mask,
    prefill_attention,
)
from app.engine.autotuning import OFF, Autotuner
from app.engine.flash_attention import chunk_attention
from tests.support.families import WINDOW
from tests.support.tiny import tiny_model

HEADS, KEY_HEADS, DIM = 6, 2, 8
KIND = "any"


def plain(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """The oracle: softmax of scores, a head at a time; ``[batch, heads, tokens, head_dim]``."""
    num_sharing = queries.shape[1] // keys.shape[1]
    keys, values = (each.repeat_interleave(num_sharing, dim=1) for each in (keys, values))
    return ((queries @ keys.transpose(-1, -2)) * 0.3 + mask).softmax(dim=-1) @ values


@pytest.mark.parametrize(
    ("family", "windows"),
    [
        ("llama", {"full_attention": None}),
        ("opt", {"full_attention": None}),
        ("mistral", {"sliding_attention": WINDOW}),
        ("gemma2", {"full_attention": None, "sliding_attention": WINDOW}),
    ],
)
def test_kinds_of_attention_come_from_the_config(
    family: str, windows: dict[str, int | None]
) -> None:
    assert attention_windows(tiny_model(family).config) == windows


def test_a_kind_of_attention_without_a_mask_is_refused() -> None:
    config = copy.deepcopy(tiny_model("gemma2").config)
    config.layer_types = ["full_attention", "chunked_attention"]
    with pytest.raises(UnsupportedAttention, match="chunked_attention"):
        attention_windows(config)


def test_a_mask_lets_each_row_see_its_own_past() -> None:
    mask = causal_mask(torch.tensor([[0, 1], [3, 4]]), 5, None, torch.float32)
    assert mask.shape == (2, 1, 2, 5)
    assert (mask == 0).int()[:, 0].tolist() == [
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]],
        [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
    ]


def test_a_window_counts_the_query_itself() -> None:
    mask = causal_mask(torch.tensor([[3]]), 5, 2, torch.float32)
    assert (mask == 0).int().flatten().tolist() == [0, 0, 1, 1, 0]


def test_parts_of_packed_prompts_see_nothing_of_each_other_nor_what_is_behind_them() -> None:
    mask = packed_mask([range(2), range(1, 4)], [3, 4], 2, torch.zeros(0))
    assert (mask == 0).int()[0, 0].tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]


@settings(max_examples=40)
@given(
    ends=st.lists(st.integers(1, 150), min_size=1, max_size=6),
    window=st.sampled_from([None, 1, 40]),
    way=st.sampled_from([FUSED, PRODUCTS]),
)
def test_a_token_each_over_its_own_tokens(ends: list[int], window: int | None, way: str) -> None:
    torch.manual_seed(len(ends))
    rows, num_tokens = len(ends), -(-max(ends) // 64) * 64
    queries = torch.randn(rows, HEADS, DIM)
    # By heads in memory, as they come.
    keys, values = torch.randn(2, KEY_HEADS, rows, num_tokens, DIM).transpose(1, 2)
    mask = causal_mask(torch.tensor(ends)[:, None] - 1, num_tokens, window, torch.float32)
    attention = BatchedDecodeAttention({KIND: mask}.__getitem__, Autotuner(always=frozenset({way})))
    found = attention(KIND, queries, keys, values, 0.3)
    expected = plain(queries[:, :, None], keys, values, mask)[:, :, 0]
    torch.testing.assert_close(found, expected)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=5),
    window=st.sampled_from([None, 1, 20]),
    max_scores=st.sampled_from([0, 10**6]),
    way=st.sampled_from([FUSED, PRODUCTS]),
    behind=st.integers(0, 3),
)
def test_several_prompts_in_one_row(
    lengths: list[int], window: int | None, max_scores: int, way: str, behind: int
) -> None:
    torch.manual_seed(len(lengths))
    queries = torch.randn(sum(lengths), HEADS, DIM)
    stored = [length + behind for length in lengths]
    keys, values = torch.randn(2, 1, KEY_HEADS, sum(stored), DIM)
    places = [range(length) for length in lengths]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_module, "_MAX_SCORES", max_scores)
        tuner = Autotuner(always=frozenset({way}))
        attention = prefill_attention({KIND: window}, places, stored, queries, tuner)
        found = attention(KIND, queries, keys, values, 0.3)
    mask = packed_mask(places, stored, window, queries)
    expected = plain(queries.transpose(0, 1)[None], keys, values, mask)[0].transpose(0, 1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("window", [None, 4, 30])
def test_a_chunk_of_a_prompt_sees_what_came_before(window: int | None) -> None:
    torch.manual_seed(0)
    queries = torch.randn(10, HEADS, DIM)
    keys, values = torch.randn(2, 1, KEY_HEADS, 25, DIM)
    attention = prefill_attention({KIND: window}, [range(15, 25)], [25], queries, OFF)
    found = attention(KIND, queries, keys, values, 0.3)
    whole = plain(
        torch.cat([torch.zeros(1, HEADS, 15, DIM), queries.transpose(0, 1)[None]], dim=2),
        keys,
        values,
        causal_mask(torch.arange(25)[None], 25, window, torch.float32),
    )
    torch.testing.assert_close(found, whole[0, :, 15:].transpose(0, 1))


@settings(max_examples=60)
@given(
    num=st.integers(1, 90), before=st.integers(0, 300), key_heads=st.sampled_from([1, 2, 3]),
    sharing=st.sampled_from([1, 3]), scale=st.sampled_from([0.3, 4.0]),
)  # fmt: skip
def test_a_chunk_without_a_mask_gives_what_a_mask_gives(
    num: int, before: int, key_heads: int, sharing: int, scale: float
) -> None:
    torch.manual_seed(num + before)
    queries = scale * torch.randn(key_heads * sharing, num, DIM)
    keys, values = torch.randn(2, key_heads, before + num, DIM)
    mask = causal_mask(torch.arange(before, before + num)[None], before + num, None, torch.float32)
    expected = plain(queries[None], keys[None], values[None], mask)[0]
    torch.testing.assert_close(chunk_attention(queries, keys, values, 0.3), expected)


def test_a_window_that_shows_all_tokens_needs_no_mask() -> None:
    queries = torch.randn(4, HEADS, DIM)
    keys, values = torch.randn(2, 1, KEY_HEADS, 20, DIM)
    made: list[tuple[str, int]] = []

    def mask(kind: str, index: int) -> torch.Tensor:
        made.append((kind, index))
        return torch.zeros(4, 20)

    windows = {"all": None, "as many": 20, "one fewer": 19}
    attention = VarlenPrefillAttention([range(16, 20)], [20], windows, mask)
    for kind in windows:
        attention(kind, queries, keys, values, 0.3)
    assert made == [("one fewer", 0)]


def test_products_in_bfloat16_are_nearer_to_the_truth_than_eager_attention() -> None:
    torch.manual_seed(0)
    queries = torch.randn(9, HEADS, DIM).bfloat16()
    keys, values = torch.randn(2, 9, KEY_HEADS, 64, DIM).bfloat16()
    mask = causal_mask(torch.arange(50, 59)[:, None], 64, None, torch.bfloat16)
    true = plain(queries[:, :, None].float(), keys.float(), values.float(), mask.float())[:, :, 0]
    eager = plain(queries[:, :, None], keys, values, mask)[:, :, 0]
    attention = BatchedDecodeAttention(
        {KIND: mask}.__getitem__, Autotuner(always=frozenset({PRODUCTS}))
    )
    ours = attention(KIND, queries, keys, values, 0.3)
    assert (ours - true).pow(2).mean() < (eager - true).pow(2).mean()
