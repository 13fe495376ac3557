"""Losses against the cross entropy of the model's logits."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import PreTrainedModel

from pruning.models import loss
from pruning.models.architectures import ARCHITECTURES
from pruning.models.blocks import block_list, view
from pruning.models.memory import StateBudgetTooSmall
from pruning.removal import NonFiniteLoss
from pruning.search.scoring import PlainScorer, SharedPrefixScorer
from pruning.sleb import sleb
from tests.support.losses import mean_loss
from tests.support.scoring import HIDDEN_SIZE, assert_equal, windows
from tests.support.tiny import NUM_BLOCKS, SWITCHED, VOCAB_SIZE, tiny_model


def obvious_loss(model: torch.nn.Module, token_ids: torch.Tensor) -> float:
    with torch.inference_mode():
        losses = [
            F.cross_entropy(model(row.unsqueeze(0)).logits[0, :-1].double(), row[1:])
            for row in token_ids
        ]
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_loss_is_the_mean_cross_entropy_of_next_tokens(family: str) -> None:
    model = tiny_model(family)
    assert mean_loss(model, windows()) == pytest.approx(obvious_loss(model, windows()), abs=1e-5)


@pytest.mark.parametrize(("batch_size", "rows_per_chunk"), [(1, 1), (2, 3), (5, 1000), (99, 7)])
def test_batches_and_chunks_do_not_change_the_loss(
    batch_size: int, rows_per_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "LOGITS_BYTES", rows_per_chunk * 4 * VOCAB_SIZE)
    model = tiny_model("llama")
    found = mean_loss(model, windows(), batch_size)
    assert found == pytest.approx(obvious_loss(model, windows()), abs=1e-5)


def test_half_precision_losses_are_not_quantized() -> None:
    model = copy.deepcopy(tiny_model("llama")).bfloat16()
    losses = {mean_loss(model, windows(1, 6 + extra)) for extra in range(8)}
    as_bfloat16 = {float(torch.tensor(value).bfloat16()) for value in losses}
    assert not losses & as_bfloat16


def test_plain_scorer_gives_every_candidate_the_loss_of_its_view() -> None:
    model, keep = tiny_model("llama"), (0, 1, 3, 4, 5)
    scores = dict(PlainScorer(model, windows()).score_round(keep, (1, 3, 4)))
    for block in (1, 3, 4):
        pruned = view(model, [b for b in keep if b != block])
        alone = [obvious_loss(pruned, window.unsqueeze(0)) for window in windows()]
        assert scores[block] == pytest.approx(alone, abs=1e-5)


def one_trunk_bytes(seqlen: int) -> int:
    return seqlen * HIDDEN_SIZE * 4 * (NUM_BLOCKS + 1)


@pytest.mark.parametrize(
    "num_trunks",  # room for states; the property below has little of it as well
    [100, pytest.param(1, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("family", [*sorted(ARCHITECTURES), *SWITCHED])
@pytest.mark.contract
def test_every_family_is_searched_as_the_plain_scorer_would(family: str, num_trunks: int) -> None:
    """Windows longer than the sliding window, in batches."""
    model, token_ids = tiny_model(family), windows(5, 12)
    expected = list(sleb(PlainScorer(model, token_ids), NUM_BLOCKS, 4))
    budget = num_trunks * one_trunk_bytes(12)
    scorer = SharedPrefixScorer(model, token_ids, state_budget=budget, boundaries=(2,))
    assert_equal(list(sleb(scorer, NUM_BLOCKS, 4)), expected)


@settings(max_examples=15)
@given(
    family=st.sampled_from(sorted(ARCHITECTURES)),
    shape=st.tuples(st.integers(1, 4), st.integers(2, 9)),
    batch_tokens=st.integers(1, 40),
    barriers=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    resume_after=st.integers(0, 5),
    budget=st.floats(1, 12),
)
def test_shared_prefixes_give_the_plain_losses_and_order(
    family: str,
    shape: tuple[int, int],
    batch_tokens: int,
    barriers: tuple[int, int],
    resume_after: int,
    budget: float,
) -> None:
    """For any family, protected blocks, resume point, batch size and byte budget."""
    model, token_ids = tiny_model(family), windows(*shape)
    num_remove = NUM_BLOCKS - max(1, sum(barriers))
    search = partial(sleb, protect_first=barriers[0], protect_last=barriers[1])
    plain = list(search(PlainScorer(model, token_ids), NUM_BLOCKS, num_remove))
    removed = [removal.block for removal in plain[:resume_after]]
    state_budget = int(budget * one_trunk_bytes(shape[1]))
    scorer = SharedPrefixScorer(
        model, token_ids, state_budget=state_budget, batch_tokens=batch_tokens
    )
    found = list(search(scorer, NUM_BLOCKS, num_remove, removed=removed))
    assert_equal(found, plain[len(removed) :])


@settings(max_examples=12)
@given(st.data())
def test_no_call_leaves_a_wrong_state_behind(data: st.DataObject) -> None:
    """Arbitrary rounds, also unfinished, and changing budgets give the losses of plain."""
    model, token_ids = tiny_model("llama"), windows(3, 6)
    scorer, plain = SharedPrefixScorer(model, token_ids), PlainScorer(model, token_ids)
    keeps = st.sets(st.integers(0, NUM_BLOCKS - 1), min_size=2).map(
        lambda keep: tuple(sorted(keep))
    )
    for _ in range(data.draw(st.integers(1, 5))):
        if data.draw(st.booleans()):
            budget = data.draw(st.floats(1, 12)) * one_trunk_bytes(6)
            scorer.set_state_budget(int(budget))
        keep = data.draw(keeps)
        candidates = tuple(data.draw(st.permutations(keep)))
        taken = data.draw(st.integers(0, len(candidates)))
        found = dict(islice(scorer.score_round(keep, candidates), taken))
        for block, losses in plain.score_round(keep, candidates[:taken]):
            assert found[block] == pytest.approx(losses, abs=1e-5)
        assert scorer.losses(keep) == pytest.approx(plain.losses(keep), abs=1e-5)


@pytest.mark.parametrize("budget", [1, 100])
def test_a_block_that_gives_no_number_ends_the_search_and_leaves_nothing_behind(
    budget: int,
) -> None:
    model, token_ids = copy.deepcopy(tiny_model("llama")), windows(3, 6)
    scorer = SharedPrefixScorer(model, token_ids, state_budget=budget * one_trunk_bytes(6))
    block = block_list(model)[3]
    good = copy.deepcopy(block.state_dict())
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.fill_(math.nan)
    with pytest.raises(NonFiniteLoss, match="step 1"):
        next(sleb(scorer, NUM_BLOCKS, 1))
    block.load_state_dict(good)
    plain = list(sleb(PlainScorer(model, token_ids), NUM_BLOCKS, 3))
    assert_equal(list(sleb(scorer, NUM_BLOCKS, 3)), plain)


def test_a_budget_below_one_window_is_refused() -> None:
    too_small = one_trunk_bytes(9) - 1
    with pytest.raises(StateBudgetTooSmall, match=f"one window of 9 tokens need {too_small + 1}"):
        SharedPrefixScorer(tiny_model("llama"), windows(), state_budget=too_small)


@contextmanager
def counted_passes(model: PreTrainedModel) -> Iterator[list[int]]:
    """The blocks that run, in order."""
    ran: list[int] = []
    hooks = [
        block.register_forward_hook(lambda *_, at=at: ran.append(at))
        for at, block in enumerate(block_list(model))
    ]
    yield ran
    for hook in hooks:
        hook.remove()


def test_blocks_run_much_less_often_than_in_the_plain_search() -> None:
    model = tiny_model("llama")
    counts = []
    for scorer in (PlainScorer(model, windows()), SharedPrefixScorer(model, windows())):
        with counted_passes(model) as ran:
            list(sleb(scorer, NUM_BLOCKS, 3))
        counts.append(len(ran))
    plain, shared = counts
    assert plain == 6 + 4 * 5 + 3 * 4 + 2 * 3
    assert shared < 0.7 * plain
