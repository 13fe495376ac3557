"""Stability of the result: how far removal orders from different calibration samples agree.

Needs no torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from statistics import fmean, median

from pruning.removal import Removal, is_tie
from pruning.sleb import Blocks


@dataclass(frozen=True)
class SearchRun:
    """One search on one sample.

    ``perplexities`` are by text, on windows of no sample, for 0, 1, 2 ... removed blocks.
    ``windows`` are digests of the calibration windows.
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
    """A block that some runs removed."""

    block: int
    num_runs: int
    steps: tuple[int, ...]  # its positions in the removal orders, from 1, ascending


@dataclass(frozen=True)
class Spread:
    lowest: float
    median: float
    highest: float


@dataclass(frozen=True)
class Depth:
    """The agreement of runs after ``num_removed`` removals.

    Overlap is the Jaccard index of two sets: the size of the intersection divided by that of the
    union. It is None without two runs of the kind.
    """

    num_removed: int
    shared_by_all: Blocks
    num_sets: int  # distinct sets of removed blocks
    num_orders: int  # distinct removal orders
    overlap: float | None  # mean over pairs of runs
    lowest_overlap: float | None
    overlap_within_text: float | None  # of runs that differ only in the seed
    overlap_across_texts: float | None
    overlap_by_chance: float  # expected of two random sets of candidates
    num_close: int  # runs whose last margin is within the noise
    num_margins: int  # runs whose last margin is known
    perplexities: Mapping[str, Spread]


@dataclass(frozen=True)
class Stability:
    """The whole report.

    The choice is within the noise if two runs remove different blocks, and the order if two orders
    differ or a margin is within the noise.
    """

    model: str
    num_blocks: int
    dense_perplexities: Mapping[str, float]
    picked: tuple[Picked, ...]  # the most frequent first
    depths: tuple[Depth, ...]
    window_overlap: float | None  # share of windows common to two samples of a text
    is_choice_in_noise: bool
    is_order_in_noise: bool
    runs: tuple[SearchRun, ...]


def stability(model: str, num_blocks: int, num_free: int, runs: Sequence[SearchRun]) -> Stability:
    """Compare runs, at least one, to the same depth; ``num_free`` is the number of candidates."""
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
    """Return the size of the intersection divided by that of the union, which is not empty."""
    ours, theirs = set(one), set(other)
    return len(ours & theirs) / len(ours | theirs)


def jaccard_by_chance(size: int, num_free: int) -> float:
    """Return the expected Jaccard index of two random sets of ``size`` out of ``num_free``."""
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
    all_picked = [Picked(block, len(at), tuple(sorted(at))) for block, at in steps.items()]
    return tuple(
        sorted(all_picked, key=lambda picked: (-picked.num_runs, fmean(picked.steps), picked.block))
    )


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
        num_close=sum(is_tie(each.margin, each.margin_error) for each in last),
        num_margins=sum(removal.margin_error is not None for removal in last),
        perplexities={
            text: _spread([run.perplexities[text][number] for run in runs])
            for text in runs[0].perplexities
        },
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(min(values), median(values), max(values))


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return fmean(known) if known else None
