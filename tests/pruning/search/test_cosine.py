"""Cosine similarity of blocks against the hidden states that transformers returns."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pruning.models.architectures import ARCHITECTURES
from pruning.models.blocks import view
from pruning.models.streaming import ResidentModel, StreamedModel
from pruning.search.cosine import cosines
from tests.support.scoring import windows
from tests.support.tiny import NUM_BLOCKS, tiny_model
from tests.support.tiny_checkpoints import write_checkpoint

ALL = tuple(range(NUM_BLOCKS))
FREE = ALL[:-1]  # transformers returns the output of the last block only after the norm


def by_hand(family: str, token_ids: torch.Tensor) -> dict[int, list[float]]:
    model = copy.deepcopy(tiny_model(family))  # which gets hooks
    with torch.no_grad():
        states = model(token_ids, output_hidden_states=True).hidden_states
    return {
        block: [
            1 - F.cosine_similarity(before.double(), after.double(), dim=-1).mean().item()
            for before, after in zip(states[block], states[block + 1], strict=True)
        ]
        for block in FREE
    }


@settings(max_examples=4)
@given(shape=st.tuples(st.integers(1, 5), st.integers(2, 9)), batch_tokens=st.integers(1, 40))
@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_scores_are_those_of_hidden_states_in_every_family(
    family: str, shape: tuple[int, int], batch_tokens: int
) -> None:
    token_ids = windows(*shape)
    dense = ResidentModel(tiny_model(family))
    found = dict(cosines(dense, token_ids, ALL, FREE, batch_tokens=batch_tokens))
    expected = by_hand(family, token_ids)
    assert found.keys() == expected.keys()
    for block in FREE:
        assert found[block] == pytest.approx(expected[block], abs=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("state_budget", [1, 3 * 7 * 32 * 4 * 2, None])
def test_streamed_blocks_give_the_same_scores_whatever_fits(
    tmp_path: Path, family: str, state_budget: int | None
) -> None:
    write_checkpoint(tmp_path, family)
    token_ids = windows(5, 7)
    streamed = StreamedModel(tmp_path)
    some = cosines(streamed, token_ids, ALL, FREE, batch_tokens=14, state_budget=state_budget)
    found = dict(some)
    whole = dict(cosines(ResidentModel(tiny_model(family)), token_ids, ALL, FREE))
    for block in FREE:
        assert found[block] == pytest.approx(whole[block], abs=1e-6)
    assert all(parameter.is_meta for parameter in streamed.model.parameters())


def test_of_a_pruned_model_it_is_the_pruned_models_states() -> None:
    keep = (0, 2, 3, 5)
    token_ids = windows(2, 6)
    found = dict(cosines(ResidentModel(tiny_model("llama")), token_ids, keep, (2, 3)))
    pruned = view(tiny_model("llama"), keep)
    expected = dict(cosines(ResidentModel(pruned), token_ids, (0, 1, 2, 3), (1, 2)))
    assert list(found.values()) == list(expected.values())


def test_no_candidates_have_no_scores() -> None:
    assert dict(cosines(ResidentModel(tiny_model("llama")), windows(1, 4), ALL, ())) == {}
