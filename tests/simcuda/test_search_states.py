"""Hidden states of a search on a simulated GPU, where they do not fit on the card."""

import pytest
from transformers import PreTrainedModel

from pruning.models.blocks import block_list
from pruning.models.random_models import random_tokens
from pruning.removal import Losses
from pruning.search.scoring import SharedPrefixScorer
from tests.support.simcuda.device import SimulatedCuda
from tests.support.simcuda.models import on_device
from tests.support.tiny import tiny_model

ROUNDS = (tuple(range(6)), (0, 1, 2, 4, 5), (0, 1, 4, 5), (0, 1, 2, 4, 5))  # the last restores one


def scored(
    model: PreTrainedModel, by_divergence: bool, state_budget: int | None = None
) -> tuple[list[dict[int, Losses]], int, SharedPrefixScorer]:
    """The scores of some rounds, and how often a block ran for them."""
    windows = random_tokens(model, 8, 32, seed=1)
    passes: list[object] = []
    hooks = [
        block.register_forward_pre_hook(lambda _block, args: passes.append(args))
        for block in block_list(model)
    ]
    scorer = SharedPrefixScorer(
        model, windows, batch_tokens=64, by_divergence=by_divergence, state_budget=state_budget
    )
    found = [dict(scorer.score_round(keep, keep[1:-1])) for keep in ROUNDS]
    for hook in hooks:
        hook.remove()
    return found, len(passes), scorer


def check(found: list[dict[int, Losses]], expected: list[dict[int, Losses]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for block, losses in theirs.items():
            assert ours[block] == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("by_divergence", [False, True])
def test_states_that_do_not_fit_the_card_are_kept_on_the_host(
    cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch, by_divergence: bool
) -> None:
    model = tiny_model("llama")
    expected, fewest, _ = scored(model, by_divergence)
    gpu = on_device(model, "cuda:1")
    state_bytes = 4 * 32 * model.config.hidden_size
    budget = (50 + 8 * by_divergence) * state_bytes  # six states of each window
    monkeypatch.setattr("pruning.search.scoring.state_budget", lambda *_args, **_: budget)
    cuda.log.clear()
    found, with_host, scorer = scored(gpu, by_divergence)
    check(found, expected)
    places = [batch._place.is_on_host for batch in scorer._batches.values()]
    assert places == sorted(places)
    assert {*places} == {False, True}
    assert with_host == fewest
    assert cuda.log.count("download") > 0
    assert not [place for place in cuda.log.by_place("wait") if "prefixes.py" in place]
    monkeypatch.setattr("pruning.search.scoring.host_budget", lambda *_args: 0)
    found, without, scorer = scored(gpu, by_divergence)
    check(found, expected)
    assert without > with_host


@pytest.mark.usefixtures("cuda")
def test_a_budget_that_is_given_is_that_of_all_states() -> None:
    _, _, scorer = scored(on_device(tiny_model("llama")), False, state_budget=300_000)
    assert not any(batch._place.is_on_host for batch in scorer._batches.values())
