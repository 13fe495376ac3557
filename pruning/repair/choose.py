"""Which repair a depth gets: the best one on its worst domain, or none that harms any domain.

A fit on one kind of text can win there and lose elsewhere, so the choice is made on windows that no
fit has seen, and no domain pays for another.
"""

from collections.abc import Mapping
from math import isfinite, sqrt
from statistics import fmean, stdev

from pruning.repair.record import DepthRepair, Gain, Method
from pruning.repair.repair import Repaired, RepairedDepth


def gains(depth: RepairedDepth, method: Method) -> Mapping[str, Gain]:
    """The gain of a method over no repair, for each domain of the selection windows."""
    found = {}
    for domain, raw in depth.tried[Method.NONE].losses.items():
        repaired = depth.tried[method].losses[domain]
        differences = [before - after for before, after in zip(raw, repaired, strict=True)]
        spread = stdev(differences) if len(differences) > 1 else 0.0
        found[domain] = Gain(fmean(differences), spread / sqrt(len(differences)))
    return found


def record_of(num_removed: int, depth: RepairedDepth, chosen: Repaired) -> DepthRepair:
    """The entry of the manifest for the repair that was chosen at this depth."""
    found = {method: gains(depth, method) for method in depth.tried if method != Method.NONE}
    return DepthRepair(
        num_removed,
        chosen.method,
        sum(tensor.nbytes for tensor in chosen.tensors.values()),
        {method: of if _are_finite(of) else {} for method, of in found.items()},
    )


def choose(depth: RepairedDepth) -> Repaired:
    """The method with the largest gain on its worst domain, and no repair if that is below zero.

    Losses that are not finite are never chosen.
    """
    best, best_gain = depth.tried[Method.NONE], 0.0
    for method, repaired in depth.tried.items():
        worst = min(gain.mean for gain in gains(depth, method).values())
        if worst > best_gain:  # false for NaN
            best, best_gain = repaired, worst
    return best


def _are_finite(found: Mapping[str, Gain]) -> bool:
    return all(isfinite(gain.mean) for gain in found.values())
