"""How many held-out windows an evaluation takes: until ratios are known, or time is spent.

The sizes follow from the intervals so far, as in sequential estimation of a mean to a fixed width
(Chow and Robbins, 1965). Differences of paired windows make intervals narrow with few of them. The
deepest model comes first: it takes the most windows, and is the control of the other depths, which
need windows only for what it does not explain.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence

from pruning.evaluation.estimate import MIN_PAIRS
from pruning.evaluation.quality import DomainQuality
from pruning.evaluation.results import Ended, Extent
from pruning.spec.evaluation import Evaluation

FIRST_WINDOWS = 8  # of each domain, before anything is known
_MOST_GROWTH = 2  # a standard error of few windows is itself uncertain
_SPARE = 1.05  # more windows than expected, so that a round more is seldom needed
_MOST_OF_CONTROL = 0.9  # of an error squared; beyond it the control gets more windows as well


Sizes = Mapping[str, Mapping[int, int]]  # windows in all, by domain and number of removed blocks


class UntilKnown:
    """Takes windows until ``evaluation`` ends and the gate is decided, and keeps how it ended.

    Each depth has as many as it needs: the differences of a shallow one vary least.
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
        """How many windows of a domain are measured first, at every depth."""
        wanted = self._evaluation.num_samples
        return min(available, FIRST_WINDOWS if wanted is None else wanted)

    def next_sizes(self, domains: Sequence[DomainQuality], available: Mapping[str, int]) -> Sizes:
        """What each depth that lacks windows is to have. Empty: it is enough."""
        spent_s = self._clock() - self._started
        if self._evaluation.num_samples is not None:
            return self._end(Ended.NUMBER)
        undecided = self._undecided(domains)
        lacking = [
            (domain, sizes)
            for domain in domains
            if (sizes := self._lacking(domain, available[domain.domain], undecided))
        ]
        if not lacking:
            return self._end(Ended.MARGIN)
        num_more = sum(_num_more(*each) for each in lacking)
        if not num_more:
            return self._end(Ended.TEXT)
        share = self._affordable(sum(map(_num_measured, domains)), num_more, spent_s)
        wanted = {
            domain.domain: part
            for domain, sizes in lacking
            if (part := _part_of(domain, sizes, share))
        }
        return wanted or self._end(Ended.TIME)

    def _lacking(
        self, domain: DomainQuality, available: int, undecided: int | None
    ) -> Mapping[int, int]:
        """How many windows each depth that lacks some is to have: at first the deepest alone."""
        deepest = len(domain.raw)
        num_deepest = domain.num_windows_after(deepest)
        has_more = num_deepest < available
        needs = {
            depth: self._need(domain, depth, has_more=has_more) for depth in range(1, deepest + 1)
        }
        sizes = {depth: _size(domain, depth, own) for depth, (own, _) in needs.items()}
        if undecided is not None and math.isfinite(domain.served_after(undecided).loss):
            wanted = sizes[undecided] or 2 * domain.num_windows_after(undecided)
            sizes[undecided] = wanted
            if wanted > num_deepest:
                sizes[deepest] = max(sizes[deepest], wanted)
        if sizes[deepest] and has_more:
            return {deepest: min(sizes[deepest], available)}
        of_control = max(control for _, control in needs.values())
        sizes[deepest] = sizes[deepest] or _grown(num_deepest, of_control)
        return {depth: min(size, available) for depth, size in sizes.items() if size}

    def _need(self, domain: DomainQuality, depth: int, *, has_more: bool) -> tuple[float, float]:
        """By which factors the windows of this depth, and those of the control, have to be more.

        Below 1 they are enough: if the interval is narrow, or if a broken model stays so.
        Windows of the control, for which the dense model runs as well, come after own ones, and
        only where it ``has_more``.
        """
        margin, wanted = domain.margin_after(depth), math.log1p(self._evaluation.margin)
        if margin is None:
            return _MOST_GROWTH, 0.0
        if margin <= wanted or margin == math.inf:
            return 0.0, 0.0
        served, most = domain.served_after(depth), (wanted / margin) ** 2
        of_control = 0.0
        if has_more and served.control_error and served.standard_error:
            of_control = (served.control_error / served.standard_error) ** 2
        own = (1 - of_control) / max(most - of_control, (1 - _MOST_OF_CONTROL) * most)
        is_few = 2 * domain.num_windows_after(depth) < domain.num_windows_after(len(domain.raw))
        return max(1.0, own), 0.0 if is_few else of_control / (_MOST_OF_CONTROL * most)

    def _affordable(self, measured: int, more: int, spent_s: float) -> float:
        """The share of ``more`` losses that the rest of the time allows, by the pace so far."""
        needed_s = more * spent_s / measured
        left_s = self._evaluation.max_seconds - spent_s
        return 1.0 if needed_s <= left_s else max(0.0, left_s) / needed_s

    def _end(self, ended: Ended) -> Sizes:
        self.extent = Extent(ended, self._evaluation.margin, self._evaluation.max_seconds)
        return {}


def _size(domain: DomainQuality, depth: int, factor: float) -> int:
    """As ``_grown``, but no further than to where the deepest begins to help."""
    number = domain.num_windows_after(depth)
    is_helped = number < MIN_PAIRS < domain.num_windows_after(len(domain.raw))
    size = _grown(number, factor)
    return min(size, MIN_PAIRS) if is_helped else size


def _grown(number: int, factor: float) -> int:
    """More windows than ``number`` by this factor, 0 if they are enough."""
    return math.ceil(number * min(_SPARE * factor, _MOST_GROWTH)) + 1 if factor >= 1 else 0


def _part_of(domain: DomainQuality, wanted: Mapping[int, int], share: float) -> dict[int, int]:
    """With this ``share`` of what is to be added; without depths that get nothing."""
    measured = {depth: domain.num_windows_after(depth) for depth in wanted}
    sizes = {
        depth: measured[depth] + math.floor(share * (size - measured[depth]))
        for depth, size in wanted.items()
    }
    return {depth: size for depth, size in sizes.items() if size > measured[depth]}


def _num_more(domain: DomainQuality, wanted: Mapping[int, int]) -> int:
    """Losses of windows to be measured, those of the dense model among them."""
    of_dense = max(0, max(wanted.values()) - domain.num_windows)
    more = (max(0, size - domain.num_windows_after(depth)) for depth, size in wanted.items())
    return of_dense + sum(more)


def _num_measured(domain: DomainQuality) -> int:
    """Losses of windows that were measured, of all models."""
    measured = (domain.dense, *domain.raw, *domain.repaired)
    return sum(one.num_windows or domain.num_windows for one in measured if one is not None)
