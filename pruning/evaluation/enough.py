"""How many held-out windows an evaluation takes: until ratios are known, or time is spent.

The sizes follow from the intervals so far, as in sequential estimation of a mean to a fixed width
(Chow and Robbins, 1965). All depths have the same windows, so the rows of a table compare.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence

from pruning.evaluation.quality import DomainQuality
from pruning.evaluation.results import Ended, Extent
from pruning.spec.evaluation import Evaluation

_MOST_GROWTH = 2  # a standard error of few windows is itself uncertain
_SPARE = 1.05  # more windows than expected, so that a round more is seldom needed


class UntilKnown:
    """Takes windows until ``evaluation`` ends and the gate is decided, and keeps how it ended.

    ``undecided`` gives the number of removals of which more windows may change what the gate says.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        undecided: Callable[[Sequence[DomainQuality]], int | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._evaluation = evaluation
        self._undecided = undecided
        self._clock = clock
        self._started = clock()
        self.extent: Extent | None = None  # None before the end

    def at_first(self, available: int) -> int:
        """How many windows of a domain are measured first."""
        return min(available, self._evaluation.first_windows)

    def next_sizes(
        self, domains: Sequence[DomainQuality], available: Mapping[str, int]
    ) -> Mapping[str, int]:
        """How many windows each domain that lacks some is to have. Empty: it is enough."""
        spent_s = self._clock() - self._started
        if self._evaluation.num_samples is not None:
            return self._end(Ended.NUMBER)
        undecided = self._undecided(domains)
        wanted = {domain.domain: self._size(domain, undecided) for domain in domains}
        if not any(wanted.values()):
            return self._end(Ended.MARGIN)
        measured = {domain.domain: domain.num_windows for domain in domains}
        more = {name: min(size, available[name]) - measured[name] for name, size in wanted.items()}
        more = {name: number for name, number in more.items() if number > 0}
        if not more:
            return self._end(Ended.TEXT)
        share = self._affordable(sum(measured.values()), sum(more.values()), spent_s)
        sizes = {
            name: measured[name] + math.floor(share * number)
            for name, number in more.items()
            if share * number >= 1
        }
        return sizes or self._end(Ended.TIME)

    def _size(self, domain: DomainQuality, undecided: int | None) -> int:
        """How many windows the domain is to have; 0 if it has enough."""
        factor = max(self._need(domain, depth) for depth in range(1, len(domain.raw) + 1))
        if undecided is not None and math.isfinite(domain.served_after(undecided).loss):
            factor = _MOST_GROWTH
        return math.ceil(domain.num_windows * min(_SPARE * factor, _MOST_GROWTH)) if factor else 0

    def _need(self, domain: DomainQuality, depth: int) -> float:
        """By which factor the windows have to be more for this depth.

        0 if the interval is narrow, or if a broken model stays so.
        """
        margin, wanted = domain.margin_after(depth), math.log1p(self._evaluation.margin)
        if margin is None:
            return _MOST_GROWTH
        return 0.0 if margin <= wanted or margin == math.inf else (margin / wanted) ** 2

    def _affordable(self, measured: int, more: int, spent_s: float) -> float:
        """The share of ``more`` windows that the rest of the time allows, by the pace so far."""
        needed_s = more * spent_s / measured
        left_s = self._evaluation.max_seconds - spent_s
        return 1.0 if needed_s <= left_s else max(0.0, left_s) / needed_s

    def _end(self, ended: Ended) -> Mapping[str, int]:
        self.extent = Extent(ended, self._evaluation.margin, self._evaluation.max_seconds)
        return {}
