"""The staged search over random losses and over a model: dropped candidates and their cost."""

from collections.abc import Iterator
from itertools import pairwise
from random import Random
from statistics import fmean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.removal import Losses
from pruning.search.scoring import SharedPrefixScorer
from pruning.search.staged import NUM_ERRORS, StagedScorer, errors_behind, stages
from pruning.sleb import Blocks, sleb
from tests.support.tiny import NUM_BLOCKS, VOCAB_SIZE, tiny_model


class DrawnScorer:
    """A difficulty per window, a damage per block, and noise for each pair of them."""

    def __init__(self, seed: int, num_windows: int, noise: float) -> None:
        self.num_windows = num_windows
        self.num_evaluations = 0  # of one window each
        self._seed = seed
        self._noise = noise

    def losses(self, keep: Blocks) -> Losses:
        return self._drawn(keep, range(self.num_windows))

    def score_round(self, keep: Blocks, candidates: Blocks) -> Iterator[tuple[int, Losses]]:
        return self.score(keep, candidates, range(self.num_windows))

    def score(
        self, keep: Blocks, candidates: Blocks, windows: range
    ) -> Iterator[tuple[int, Losses]]:
        for block in candidates:
            self.num_evaluations += len(windows)
            yield block, self._drawn(tuple(b for b in keep if b != block), windows)

    def _drawn(self, keep: Blocks, windows: range) -> Losses:
        damage = Random(f"{self._seed}{keep}").random()
        drawn = [Random(f"{self._seed}{keep}{window}").gauss(0, 1) for window in windows]
        hard = [Random(f"{self._seed}{window}").gauss(3, 1) for window in windows]
        return [h + damage + self._noise * d for h, d in zip(hard, drawn, strict=True)]


@pytest.mark.parametrize(
    ("num_windows", "expected"),
    [
        (1, (1,)),
        (8, (8,)),
        (9, (8, 9)),
        (32, (8, 16, 24, 32)),
        (128, (8, 16, 24, 32, 48, 72, 104, 128)),
    ],
)
def test_stages_grow_by_half_up_to_all_windows(num_windows: int, expected: tuple[int, ...]) -> None:
    assert stages(num_windows) == expected


def test_a_race_over_many_windows_begins_on_a_sixteenth_of_them() -> None:
    assert stages(1000)[:4] == (63, 126, 189, 252)


@pytest.mark.parametrize(("num_windows", "expected"), [(8, 4.530), (16, 3.586), (31, 3.270)])
def test_few_windows_take_more_errors(num_windows: int, expected: float) -> None:
    """Quantiles of Student's t at the probability of three normal standard errors."""
    assert errors_behind(num_windows) == pytest.approx(expected, abs=6e-4)
    assert errors_behind(10**6) == pytest.approx(NUM_ERRORS, rel=1e-5)


# Derandomised, as the best candidate may be dropped by chance.
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.05, 0.2]))
@settings(max_examples=25, derandomize=True, database=None)
def test_the_order_is_the_exact_one_at_a_fraction_of_the_evaluations(
    seed: int, noise: float
) -> None:
    exact, inner = DrawnScorer(seed, 64, noise), DrawnScorer(seed, 64, noise)
    expected = [removal.block for removal in sleb(exact, 12, 4)]
    found = list(sleb(StagedScorer(inner), 12, 4))
    assert [removal.block for removal in found] == expected
    assert inner.num_evaluations < 0.75 * exact.num_evaluations
    for removal in found:
        assert removal.num_windows[removal.block] == 64
        assert set(removal.num_windows.values()) <= set(stages(64))


def test_what_cannot_be_told_apart_is_evaluated_in_full() -> None:
    """Equal candidates are not dropped on a part of the windows."""

    class Equal(DrawnScorer):
        def _drawn(self, keep: Blocks, windows: range) -> Losses:
            del keep
            return super()._drawn((), windows)

    [removal] = sleb(StagedScorer(Equal(0, 32, 0.3)), 6, 1)
    assert set(removal.num_windows.values()) == {32}
    assert removal.block == 1
    assert removal.margin == 0


def test_the_margin_to_a_dropped_runner_up_is_on_the_windows_of_both() -> None:
    scorer = DrawnScorer(4, 64, 0.05)
    [removal] = sleb(StagedScorer(scorer), 12, 1)
    assert removal.runner_up is not None
    seen = range(removal.num_windows[removal.runner_up])
    keep = tuple(range(12))
    pair = (removal.block, removal.runner_up)
    losses = dict(DrawnScorer(4, 64, 0.05).score(keep, pair, seen))
    gap = fmean(losses[removal.runner_up]) - fmean(losses[removal.block])
    assert removal.margin == pytest.approx(gap)
    assert removal.margin_error is not None


def test_every_candidate_is_reported_once_with_the_windows_it_has_seen() -> None:
    keep = tuple(range(12))
    yielded = list(StagedScorer(DrawnScorer(7, 64, 0.1)).score_round(keep, keep[1:-1]))
    assert sorted(block for block, _ in yielded) == list(keep[1:-1])
    for block, losses in yielded:
        alone = DrawnScorer(7, 64, 0.1).score(keep, (block,), range(len(losses)))
        assert list(dict(alone)[block]) == list(losses)


def test_a_race_on_a_real_model_finds_what_the_whole_search_finds() -> None:
    model = tiny_model("llama")
    windows = torch.randint(3, VOCAB_SIZE, (40, 8), generator=torch.Generator().manual_seed(2))
    scorer = SharedPrefixScorer(model, windows, boundaries=stages(40))
    exact = list(sleb(SharedPrefixScorer(model, windows), NUM_BLOCKS, 3))
    found = list(sleb(StagedScorer(scorer), NUM_BLOCKS, 3))
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.block == theirs.block
        assert ours.loss == pytest.approx(theirs.loss, abs=1e-5)


def test_windows_that_do_not_end_at_a_boundary_are_refused() -> None:
    windows = torch.zeros((8, 4), dtype=torch.long)
    scorer = SharedPrefixScorer(tiny_model("llama"), windows, boundaries=(2, 6))
    for begin, end in pairwise((0, 2, 6, 8)):
        assert len(dict(scorer.score((0, 1, 2), (1,), range(begin, end)))[1]) == end - begin
    with pytest.raises(ValueError, match="boundaries"):
        next(scorer.score((0, 1, 2), (1,), range(1, 6)))
    with pytest.raises(ValueError, match="boundaries"):
        next(scorer.score((0, 1, 2), (1,), range(7)))
