"""Which repair a depth gets: the best one on its worst domain, or none that harms any domain.

A fit on one kind of text can win there and lose elsewhere, so the choice is made on windows that no
fit has seen, and no domain pays for another.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Self

from pruning.repair.names import Method

if TYPE_CHECKING:
    from pruning.repair.repair import Repaired, RepairedDepth


@dataclass(frozen=True)
class Gain:
    """How much a repair lowers the loss of a domain, in nats per token, window by window.

    ``standard_error`` is that of the mean of paired differences; 0 for a single window.
    """

    mean: float
    standard_error: float


@dataclass(frozen=True)
class DepthRepair:
    """The repair of the model after ``num_removed`` removals, as the manifest records it.

    ``gains`` are those of each method that was tried, over no repair, by domain of the selection
    windows; a method without finite losses has none. ``num_bytes`` are those of the chosen
    method's own tensors.
    """

    num_removed: int
    method: Method
    num_bytes: int
    gains: Mapping[Method, Mapping[str, Gain]]

    @classmethod
    def of(cls, num_removed: int, depth: "RepairedDepth", chosen: "Repaired") -> Self:
        found = {method: gains(depth, method) for method in depth.tried if method != Method.NONE}
        return cls(
            num_removed,
            chosen.method,
            sum(tensor.nbytes for tensor in chosen.tensors.values()),
            {method: of if _are_finite(of) else {} for method, of in found.items()},
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Parse JSON of ``asdict``."""
        found = {
            Method(method): {domain: Gain(**gain) for domain, gain in of.items()}
            for method, of in data["gains"].items()
        }
        return cls(data["num_removed"], Method(data["method"]), data["num_bytes"], found)


def gains(depth: "RepairedDepth", method: Method) -> Mapping[str, Gain]:
    """The gain of a method over no repair, for each domain of the selection windows."""
    found = {}
    for domain, raw in depth.tried[Method.NONE].losses.items():
        repaired = depth.tried[method].losses[domain]
        differences = [before - after for before, after in zip(raw, repaired, strict=True)]
        spread = stdev(differences) if len(differences) > 1 else 0.0
        found[domain] = Gain(fmean(differences), spread / sqrt(len(differences)))
    return found


def choose(depth: "RepairedDepth") -> "Repaired":
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
