"""Agreement of removal orders found on different samples: is the order within the noise?

Plain arithmetic without torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from statistics import fmean, median

from pruning.removal import Removal
from pruning.sleb import Blocks

NUM_ERRORS = 2.0  # a runner-up within so many standard errors is as good as the block that went


@dataclass(frozen=True)
class SearchRun:
    """One search. ``perplexities`` are by text, on what no run was calibrated on, for 0, 1, 2 ...
    blocks removed; ``windows`` are digests of those that it was calibrated on.
    """

    text: str
    seed: int
    removals: tuple[Removal, ...]
    perplexities: Mapping[str, tuple[float, ...]]
    windows: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.text}, seed {self.seed}"

    @property
    def order(self) -> Blocks:
        return tuple(removal.block for removal in self.removals)


@dataclass(frozen=True)
class Picked:
    """A block that went in some runs, and as which of their removals."""

    block: int
    num_runs: int
    steps: tuple[int, ...]  # ascending, one for each of these runs


@dataclass(frozen=True)
class Spread:
    lowest: float
    median: float
    highest: float


@dataclass(frozen=True)
class Depth:
    """After so many removals. Overlap of two sets is that of Jaccard: shared blocks by all blocks;
    None where there are no two such runs.
    """

    num_removed: int
    shared_by_all: Blocks
    num_sets: int  # that are different
    num_orders: int
    overlap: float | None  # mean over pairs of runs
    lowest_overlap: float | None
    overlap_within_text: float | None  # of runs that differ in the seed alone
    overlap_across_texts: float | None
    overlap_by_chance: float  # of two random sets of free blocks
    num_close: int  # runs whose last removal was within the noise of its runner-up
    num_margins: int  # runs that know how close it was
    perplexities: Mapping[str, Spread]


@dataclass(frozen=True)
class Stability:
    """The whole report. A choice is in the noise if two runs remove different blocks; an order also
    if a runner-up was as good as the block that went.
    """

    model: str
    num_blocks: int
    dense_perplexities: Mapping[str, float]
    picked: tuple[Picked, ...]  # the most frequent first
    depths: tuple[Depth, ...]
    window_overlap: float | None  # share of windows that two samples of a text have in common
    is_choice_in_noise: bool
    is_order_in_noise: bool
    runs: tuple[SearchRun, ...]


def stability(model: str, num_blocks: int, num_free: int, runs: Sequence[SearchRun]) -> Stability:
    """Of one run or more to the same depth; ``num_free`` blocks were candidates."""
    num_removed = len(runs[0].order)
    depths = tuple(_depth(runs, number, num_free) for number in range(1, num_removed + 1))
    within = [pair for pair in combinations(runs, 2) if pair[0].text == pair[1].text]
    overlap = _mean(_shared_windows(one, other) for one, other in within)
    return Stability(
        model=model,
        num_blocks=num_blocks,
        dense_perplexities={text: values[0] for text, values in runs[0].perplexities.items()},
        picked=_picked(runs),
        depths=depths,
        window_overlap=overlap,
        is_choice_in_noise=depths[-1].num_sets > 1,
        is_order_in_noise=depths[-1].num_orders > 1 or any(depth.num_close for depth in depths),
        runs=tuple(runs),
    )


def jaccard(one: Iterable[int], other: Iterable[int]) -> float:
    """Shared elements by all elements, of two sets that are not both empty."""
    ours, theirs = set(one), set(other)
    return len(ours & theirs) / len(ours | theirs)


def jaccard_by_chance(size: int, num_free: int) -> float:
    """Expected of two sets of ``size`` out of ``num_free`` that know nothing of each other."""
    ways = [comb(size, both) * comb(num_free - size, size - both) for both in range(size + 1)]
    shares = [both / (2 * size - both) for both in range(size + 1)]
    return sum(way * share for way, share in zip(ways, shares, strict=True)) / sum(ways)


def _shared_windows(one: SearchRun, other: SearchRun) -> float:
    ours, theirs = set(one.windows), set(other.windows)
    return len(ours & theirs) / min(len(ours), len(theirs))


def _picked(runs: Sequence[SearchRun]) -> tuple[Picked, ...]:
    steps: dict[int, list[int]] = {}
    for run in runs:
        for step, block in enumerate(run.order, start=1):
            steps.setdefault(block, []).append(step)
    found = [Picked(block, len(at), tuple(sorted(at))) for block, at in steps.items()]
    return tuple(sorted(found, key=lambda one: (-one.num_runs, fmean(one.steps), one.block)))


def _depth(runs: Sequence[SearchRun], number: int, num_free: int) -> Depth:
    sets = [frozenset(run.order[:number]) for run in runs]
    overlaps = {
        (one, other): jaccard(sets[one], sets[other])
        for one, other in combinations(range(len(runs)), 2)
    }
    same_text = {pair for pair in overlaps if runs[pair[0]].text == runs[pair[1]].text}
    last = [run.removals[number - 1] for run in runs]
    return Depth(
        num_removed=number,
        shared_by_all=tuple(sorted(frozenset.intersection(*sets))),
        num_sets=len(set(sets)),
        num_orders=len({run.order[:number] for run in runs}),
        overlap=_mean(overlaps.values()),
        lowest_overlap=min(overlaps.values(), default=None),
        overlap_within_text=_mean(overlaps[pair] for pair in overlaps if pair in same_text),
        overlap_across_texts=_mean(overlaps[pair] for pair in overlaps if pair not in same_text),
        overlap_by_chance=jaccard_by_chance(number, num_free),
        num_close=sum(is_close(removal) for removal in last),
        num_margins=sum(removal.margin_error is not None for removal in last),
        perplexities={
            text: _spread([run.perplexities[text][number] for run in runs])
            for text in runs[0].perplexities
        },
    )


def is_close(removal: Removal) -> bool:
    """Whether its runner-up was within the noise."""
    if removal.margin is None or removal.margin_error is None:
        return False
    return removal.margin < NUM_ERRORS * removal.margin_error


def _spread(values: Sequence[float]) -> Spread:
    return Spread(min(values), median(values), max(values))


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return fmean(known) if known else None
