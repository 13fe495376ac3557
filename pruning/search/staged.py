"""Staged search: candidates race on a growing part of the windows, most never see them all.

A race decides which candidates are worth all windows, never which block goes: that is decided among
those that saw every window. Loss is not monotone in the removed set, so nothing of earlier rounds
bounds a candidate; every round is raced anew.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from math import sqrt
from statistics import NormalDist, fmean

from pruning.removal import Losses, paired_gaps, standard_error
from pruning.search.scoring import WindowScorer
from pruning.sleb import Blocks
from pruning.student_t import quantile

NUM_ERRORS = 3.0  # a candidate this many standard errors behind the leader is clearly worse
_SHARE_AT_START = 16  # a race begins on one window in so many
_FEWEST_WINDOWS = 8  # below, a standard error says little


def stages(num_windows: int) -> tuple[int, ...]:
    """After how many windows candidates are compared: each time about half as many again."""
    first = max(_FEWEST_WINDOWS, -(-num_windows // _SHARE_AT_START))
    ends = [first]
    while ends[-1] < num_windows:
        ends.append(ends[-1] + max(1, ends[-1] // 2 // first) * first)
    return (*ends[:-1], num_windows)


def errors_behind(num_windows: int) -> float:
    """How many standard errors estimated from ``num_windows`` windows are as improbable as
    ``NUM_ERRORS`` of a known standard error, by Student's t.
    """
    return quantile(NormalDist().cdf(NUM_ERRORS), num_windows - 1)


class StagedScorer:
    """Races over a scorer that was told of the ``stages`` of its windows as boundaries."""

    def __init__(self, scorer: WindowScorer) -> None:
        self._scorer = scorer
        self._stages = stages(scorer.num_windows)

    def losses(self, keep: Blocks) -> Losses:
        return self._scorer.losses(keep)

    def score_round(self, keep: Blocks, candidates: Blocks) -> Iterator[tuple[int, Losses]]:
        losses: dict[int, list[float]] = {block: [] for block in candidates}
        *heats, final = [range(begin, end) for begin, end in pairwise((0, *self._stages))]
        racing = candidates
        for heat in heats:
            for block, found in self._scorer.score(keep, racing, heat):
                losses[block] += found
            still = self._not_clearly_worse({block: losses[block] for block in racing})
            yield from ((block, losses[block]) for block in racing if block not in still)
            racing = still
        for block, found in self._scorer.score(keep, racing, final):
            yield block, losses[block] + list(found)

    def _not_clearly_worse(self, losses: Mapping[int, Losses]) -> Blocks:
        """Those whose gap to the leader is within its noise, on the windows seen so far."""
        leader = min(losses, key=lambda block: fmean(losses[block]))
        num_seen = len(losses[leader])
        # windows that were seen already are no longer uncertain: only the share of the others is
        unseen = sqrt(1 - num_seen / self._scorer.num_windows)
        num_errors = errors_behind(num_seen) * unseen
        gaps = {block: paired_gaps(losses[block], losses[leader]) for block in losses}
        return tuple(
            block
            for block, gap in gaps.items()
            if not fmean(gap) > num_errors * standard_error(gap)  # NaN races on, to be refused
        )
