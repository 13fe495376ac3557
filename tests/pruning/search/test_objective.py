"""Divergence from the dense model: the scorers against obvious formulas."""

import copy
import math
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.models import loss
from pruning.models.architectures import ARCHITECTURES
from pruning.models.blocks import block_list, view
from pruning.models.memory import StateBudgetTooSmall
from pruning.models.store import load
from pruning.models.streaming import StreamedModel
from pruning.removal import NonFiniteLoss
from pruning.search.scoring import PlainScorer, SharedPrefixScorer
from pruning.sleb import sleb
from tests.support.scoring import HIDDEN_SIZE, assert_equal, windows
from tests.support.tiny import NUM_BLOCKS, VOCAB_SIZE, tiny_model
from tests.support.tiny_directory import write_tiny_model

DENSE = tuple(range(NUM_BLOCKS))
STATE = HIDDEN_SIZE * 4  # bytes of a token


def test_the_divergence_is_the_mean_over_predicted_tokens() -> None:
    model, keep = tiny_model("llama"), (0, 1, 3, 4, 5)
    found = dict(PlainScorer(model, windows(), by_divergence=True).score_round(keep, (3, 4)))
    for block in (3, 4):
        pruned = view(model, [alive for alive in keep if alive != block])
        for window, nats in zip(windows(), found[block], strict=True):
            with torch.inference_mode():
                p = model(window[None]).logits[0, :-1].double().softmax(dim=-1)
                q = pruned(window[None]).logits[0, :-1].double().softmax(dim=-1)
            assert nats == pytest.approx(float((p * (p / q).log()).sum(dim=-1).mean()), abs=1e-5)


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_every_family_is_searched_as_the_plain_scorer_would(family: str) -> None:
    """In batches, with and without room for the states of all of them."""
    model, token_ids = tiny_model(family), windows(5, 12)
    expected = list(sleb(PlainScorer(model, token_ids, by_divergence=True), NUM_BLOCKS, 3))
    trunk = 12 * STATE * (NUM_BLOCKS + 1)
    for budget in (trunk + 12 * STATE, 100 * trunk):
        scorer = SharedPrefixScorer(
            model, token_ids, state_budget=budget, boundaries=(2,), by_divergence=True
        )
        assert_equal(list(sleb(scorer, NUM_BLOCKS, 3)), expected)


@settings(max_examples=12)
@given(st.data())
def test_no_call_leaves_a_wrong_state_behind(data: st.DataObject) -> None:
    """Arbitrary rounds, also unfinished, and changing budgets give the scores of plain."""
    model, token_ids = tiny_model("llama"), windows(3, 6)
    scorer = SharedPrefixScorer(model, token_ids, by_divergence=True)
    plain = PlainScorer(model, token_ids, by_divergence=True)
    keeps = st.sets(st.sampled_from(DENSE), min_size=2).map(lambda keep: tuple(sorted(keep)))
    for _ in range(data.draw(st.integers(1, 5))):
        if data.draw(st.booleans()):
            budget = data.draw(st.floats(1, 12)) * 6 * STATE * (NUM_BLOCKS + 2)
            scorer.set_state_budget(int(budget))
        keep = data.draw(keeps)
        candidates = tuple(data.draw(st.permutations(keep)))
        taken = data.draw(st.integers(0, len(candidates)))
        found = dict(islice(scorer.score_round(keep, candidates), taken))
        for block, scores in plain.score_round(keep, candidates[:taken]):
            assert found[block] == pytest.approx(scores, abs=1e-5)
        assert scorer.losses(keep) == pytest.approx(plain.losses(keep), abs=1e-5)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> StreamedModel:
    path = tmp_path_factory.mktemp("models") / "tiny"
    return StreamedModel(write_tiny_model(path))


@pytest.mark.parametrize("num_windows_in_budget", [1, 3, 100])
def test_a_streamed_model_has_the_same_scores(
    streamed: StreamedModel, num_windows_in_budget: int
) -> None:
    token_ids = windows(4, 7)
    sweep = 7 * STATE * (2 * NUM_BLOCKS + 2)
    scorer = SharedPrefixScorer(
        streamed,
        token_ids,
        state_budget=num_windows_in_budget * sweep,
        boundaries=(1,),
        by_divergence=True,
    )
    model = load(streamed.path).model
    expected = list(sleb(PlainScorer(model, token_ids, by_divergence=True), NUM_BLOCKS, 3))
    assert_equal(list(sleb(scorer, NUM_BLOCKS, 3)), expected)


def test_the_logits_of_a_chunk_of_both_models_fit_into_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama")
    expected = dict(
        SharedPrefixScorer(model, windows(), by_divergence=True).score_round(DENSE, (2,))
    )
    monkeypatch.setattr(loss, "LOGITS_BYTES", 6 * 4 * VOCAB_SIZE)  # three rows of each
    rows: list[int] = []
    head = model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _head, args, _logits: rows.append(args[0].shape[0]))
    found = dict(SharedPrefixScorer(model, windows(), by_divergence=True).score_round(DENSE, (2,)))
    hook.remove()
    assert max(rows) == 3
    assert found[2] == pytest.approx(expected[2], abs=1e-6)


def test_a_model_does_not_diverge_from_itself() -> None:
    model = tiny_model("llama")
    hidden = model.base_model(windows()).last_hidden_state
    assert loss.window_divergences(model, hidden, hidden).tolist() == [0.0] * 5


def test_the_dense_output_is_kept_where_it_fits_and_counts_as_state() -> None:
    model, token_ids = tiny_model("llama"), windows(4, 6)
    trunk, of_dense = 6 * STATE * (NUM_BLOCKS + 1), 6 * STATE
    ran: list[int] = []
    hook = block_list(model)[-1].register_forward_hook(lambda *_: ran.append(1))
    for budget, passes, kept_bytes in (
        (trunk + of_dense, 1 + 2, 0),  # the dense model again, and two branches
        (trunk + 4 * of_dense, 2, 4 * of_dense),
    ):
        scorer = SharedPrefixScorer(model, token_ids, state_budget=budget, by_divergence=True)
        dict(scorer.score_round(DENSE, (1, 2)))
        ran.clear()
        dict(scorer.score_round(DENSE, (1, 2)))
        assert len(ran) == 4 * passes
        assert scorer.state_bytes == kept_bytes
    hook.remove()
    with pytest.raises(StateBudgetTooSmall, match=str(trunk + of_dense)):
        SharedPrefixScorer(model, token_ids, state_budget=trunk + of_dense - 1, by_divergence=True)


def test_a_block_that_gives_no_number_leaves_nothing_behind() -> None:
    model, token_ids = copy.deepcopy(tiny_model("llama")), windows(3, 6)
    scorer = SharedPrefixScorer(model, token_ids, by_divergence=True)
    block = block_list(model)[3]
    good = copy.deepcopy(block.state_dict())
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.fill_(math.nan)
    with pytest.raises(NonFiniteLoss, match="step 1"):
        next(sleb(scorer, NUM_BLOCKS, 1))
    block.load_state_dict(good)
    plain = list(sleb(PlainScorer(model, token_ids, by_divergence=True), NUM_BLOCKS, 3))
    assert_equal(list(sleb(scorer, NUM_BLOCKS, 3)), plain)
