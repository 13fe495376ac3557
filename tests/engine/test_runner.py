import copy

import pytest
import torch

from app.engine.engine import Engine
from app.engine.runner import UnsupportedAttention, attention_windows, causal_mask
from app.engine.variants import make_variant
from tests.engine.requests import prompt, request, run
from tests.tiny import WINDOW, generated, tiny_model


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


@pytest.mark.parametrize("keep", [(0, 2, 4), (1, 3, 5)], ids=["sliding only", "full only"])
def test_a_view_may_keep_one_kind_of_block_only(keep: tuple[int, ...]) -> None:
    pruned = make_variant("tiny@-3", "tiny", tiny_model("gemma2"), keep)
    its = request(prompt(20), pruned, max_new_tokens=8)
    assert run(Engine(), its).of(its) == generated(pruned.model, its.prompt_ids, 8)
