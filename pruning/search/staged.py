"""Staged search: most candidates are scored on a part of the windows only.

Clearly worse candidates drop out after each stage. The block to remove is chosen from those that
were scored on all windows. Loss is not monotone in the set of removed blocks, so earlier rounds
give no bound on a candidate, and every round starts with all of them.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from math import sqrt
from statistics import NormalDist, fmean
from typing import Protocol

from pruning.removal import Losses, paired_gaps, standard_error
from pruning.sleb import Blocks, RoundScorer
from pruning.student_t import quantile

NUM_ERRORS = 3.0  # a candidate is clearly worse if it is this many standard errors behind
_FIRST_STAGE_DIVISOR = 16  # the first stage has 1 / 16 of the windows
_MIN_WINDOWS = 8  # a standard error of fewer is unreliable


class WindowScorer(RoundScorer, Protocol):
    """Scores candidates on all windows or on some of them."""

    @property
    def num_windows(self) -> int: ...

    def score(
        self, keep: Blocks, candidates: Blocks, windows: range
    ) -> Iterator[tuple[int, Losses]]:
        """Yield ``(block, losses of keep without it)`` on these windows only.

        ``windows`` must begin and end at 0, ``num_windows`` or a boundary of the scorer.
        """


class GrowingScorer(WindowScorer, Protocol):
    """Tells of candidates while they are scored."""

    def growing(
        self, keep: Blocks, candidates: Blocks, windows: range, known: Mapping[int, Losses]
    ) -> Iterator[tuple[int, Losses]]:
        """As ``score``, but a candidate comes whenever it is scored on more of the windows.

        Losses are those of the first windows of the range. Those in ``known`` are not computed
        again, but for windows that are only scored together with others.
        """


def stages(num_windows: int) -> tuple[int, ...]:
    """The numbers of windows at which candidates are compared, each about 1.5 times the last."""
    first = max(_MIN_WINDOWS, -(-num_windows // _FIRST_STAGE_DIVISOR))
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
    """Scores in stages with ``scorer``, whose boundaries must be the ``stages`` of its windows."""

    def __init__(self, scorer: WindowScorer) -> None:
        self._scorer = scorer
        self._stages = stages(scorer.num_windows)

    def losses(self, keep: Blocks) -> Losses:
        return self._scorer.losses(keep)

    def score_round(self, keep: Blocks, candidates: Blocks) -> Iterator[tuple[int, Losses]]:
        losses: dict[int, list[float]] = {block: [] for block in candidates}
        *stages_before, last = [range(begin, end) for begin, end in pairwise((0, *self._stages))]
        remaining = candidates
        for windows in stages_before:
            for block, more in self._scorer.score(keep, remaining, windows):
                losses[block] += more
            close = self._not_clearly_worse({block: losses[block] for block in remaining})
            yield from ((block, losses[block]) for block in remaining if block not in close)
            remaining = close
        for block, more in self._scorer.score(keep, remaining, last):
            yield block, losses[block] + list(more)

    def _not_clearly_worse(self, losses: Mapping[int, Losses]) -> Blocks:
        """The blocks that may still be better than the leader of the windows scored so far."""
        leader = min(losses, key=lambda block: fmean(losses[block]))
        num_scored = len(losses[leader])
        # Finite population correction: only the windows that are not scored yet are uncertain.
        correction = sqrt(1 - num_scored / self._scorer.num_windows)
        num_errors = errors_behind(num_scored) * correction
        gaps = {block: paired_gaps(losses[block], losses[leader]) for block in losses}
        return tuple(
            block
            for block, gap in gaps.items()
            if not fmean(gap) > num_errors * standard_error(gap)  # keeps NaN: ``decide`` raises
        )
