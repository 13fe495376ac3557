"""Whether a depth is repaired: only if that harms no domain.

A fit on one kind of text can win there and lose elsewhere, so the choice is made on windows that no
fit has seen, and no domain pays for another.
"""

from collections.abc import Mapping
from math import isfinite
from statistics import fmean

from pruning.removal import paired_gaps, standard_error
from pruning.repair.record import DepthRepair, Gain, Method
from pruning.repair.repair import Repaired, RepairedDepth


def gains(depth: RepairedDepth) -> Mapping[str, Gain]:
    """The gain of ridge over no repair, for each domain of the selection windows."""
    by_domain = {}
    for domain, raw in depth.tried[Method.NONE].losses.items():
        repaired = depth.tried[Method.RIDGE].losses[domain]
        gaps = paired_gaps(raw, repaired)
        by_domain[domain] = Gain(fmean(gaps), standard_error(gaps) if len(gaps) > 1 else 0.0)
    return by_domain


def record_of(num_removed: int, depth: RepairedDepth, chosen: Repaired) -> DepthRepair:
    """The entry of the manifest for the repair that was chosen at this depth."""
    by_domain = gains(depth)
    is_finite = all(isfinite(gain.mean) for gain in by_domain.values())
    return DepthRepair(
        num_removed,
        chosen.method,
        sum(tensor.nbytes for tensor in chosen.tensors.values()),
        {Method.RIDGE: by_domain if is_finite else {}},
    )


def choose(depth: RepairedDepth) -> Repaired:
    """Ridge if every domain gains, else no repair. A loss that is NaN is no gain."""
    is_better = all(gain.mean > 0 for gain in gains(depth).values())
    return depth.tried[Method.RIDGE if is_better else Method.NONE]
