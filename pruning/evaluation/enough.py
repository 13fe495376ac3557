"""How many held-out windows an evaluation takes: until ratios are known, or time is spent.

The sizes follow from the intervals so far, as in sequential estimation of a mean to a fixed width
(Chow and Robbins, 1965). Differences of paired windows make intervals narrow with few of them.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from pruning.evaluation.extent import Ended, Extent
from pruning.evaluation.quality import DomainQuality
from pruning.spec.evaluation import Evaluation

FIRST_WINDOWS = 8  # of each domain, before anything is known
_MOST_GROWTH = 4  # a standard error of few windows is itself uncertain
_SPARE = 1.1  # more windows than expected, so that a round more is seldom needed


class Enough(Protocol):
    """Decides after each pass whether more windows are measured."""

    def at_first(self, available: int) -> int:
        """How many windows of a domain are measured first."""

    def next_sizes(
        self, domains: Sequence[DomainQuality], available: Mapping[str, int]
    ) -> Mapping[str, int]:
        """How many windows in all each domain that lacks some is to have. Empty: it is enough."""

    def lacks(self, domain: DomainQuality, num_removed: int) -> bool:
        """Whether this depth is one of those that need them."""


class EveryWindow:
    """Takes every window at once."""

    def at_first(self, available: int) -> int:
        return available

    def next_sizes(
        self, _domains: Sequence[DomainQuality], _available: Mapping[str, int]
    ) -> Mapping[str, int]:
        return {}

    def lacks(self, _domain: DomainQuality, _num_removed: int) -> bool:
        return False


EVERY_WINDOW = EveryWindow()


class UntilKnown:
    """Takes windows until ``evaluation`` ends and the gate is decided, and keeps how it ended."""

    def __init__(
        self,
        evaluation: Evaluation,
        is_decided: Callable[[Sequence[DomainQuality]], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._evaluation = evaluation
        self._is_decided = is_decided
        self._clock = clock
        self._started = clock()
        self._lacks_decision = False
        self.extent: Extent | None = None  # None before the end

    def at_first(self, available: int) -> int:
        wanted = self._evaluation.num_samples
        return min(available, FIRST_WINDOWS if wanted is None else wanted)

    def next_sizes(
        self, domains: Sequence[DomainQuality], available: Mapping[str, int]
    ) -> Mapping[str, int]:
        spent_s = self._clock() - self._started
        if self._evaluation.num_samples is not None:
            return self._end(Ended.NUMBER)
        self._lacks_decision = not self._is_decided(domains)
        lacking = {domain.domain: size for domain in domains if (size := self._size(domain))}
        if not lacking:
            return self._end(Ended.MARGIN)
        sizes = {name: min(size, available[name]) for name, size in lacking.items()}
        measured = {domain.domain: domain.num_windows for domain in domains}
        more = {name: size - measured[name] for name, size in sizes.items()}
        if not any(more.values()):
            return self._end(Ended.TEXT)
        share = self._affordable(sum(measured.values()), sum(more.values()), spent_s)
        sizes = {
            name: measured[name] + took
            for name, number in more.items()
            if (took := math.floor(share * number)) > 0
        }
        return sizes or self._end(Ended.TIME)

    def lacks(self, domain: DomainQuality, num_removed: int) -> bool:
        margin = domain.margin_after(num_removed)
        if margin == math.inf:  # a broken model stays so
            return False
        is_wide = margin is None or margin > self._wanted
        return is_wide or (self._lacks_decision and num_removed == len(domain.raw))

    @property
    def _wanted(self) -> float:
        return math.log1p(self._evaluation.margin)

    def _size(self, domain: DomainQuality) -> int:
        """How many windows the domain is to have, by its widest interval; 0 for no more."""
        depths = [at for at in range(1, len(domain.raw) + 1) if self.lacks(domain, at)]
        if not depths:
            return 0
        margins = [domain.margin_after(depth) for depth in depths]
        most = domain.num_windows * _MOST_GROWTH
        widest = max(margin or math.inf for margin in margins)
        if widest <= self._wanted:  # only the gate is undecided
            return 2 * domain.num_windows
        needed = domain.num_windows * (widest / self._wanted) ** 2 * _SPARE
        return math.ceil(min(needed, most)) + 1

    def _affordable(self, measured: int, more: int, spent_s: float) -> float:
        """The share of ``more`` windows that the rest of the time allows, by the pace so far."""
        needed_s = more * spent_s / measured
        left_s = self._evaluation.max_seconds - spent_s
        return 1.0 if needed_s <= left_s else max(0.0, left_s) / needed_s

    def _end(self, ended: Ended) -> Mapping[str, int]:
        self.extent = Extent(ended, self._evaluation.margin, self._evaluation.max_seconds)
        return {}
