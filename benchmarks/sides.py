"""Sides of a comparison that take turns within one process, so that noise troubles all alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median

from benchmarks.latencies import Pass
from benchmarks.workload import Ask

_NUM_WARM_UP = 8  # requests

Side = Callable[[Sequence[Ask]], Pass]


def alternate(
    sides: Mapping[str, Side], asks: Sequence[Ask], repeats: int
) -> dict[str, list[Pass]]:
    """All sides in turn, so often, after a short turn that does not count."""
    few = asks[:_NUM_WARM_UP]
    short = [replace(ask, num_new_tokens=min(ask.num_new_tokens, 2)) for ask in few]
    for side in sides.values():
        side(short)
    passes: dict[str, list[Pass]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            passes[name].append(side(asks))
    return passes


def ratio(passes: Mapping[str, Sequence[Pass]], ours: str, theirs: str) -> float | None:
    """How many times as many tokens per second; None unless both were run.

    The median of the ratios of single turns: whatever slows the machine for some turns slows both.
    """
    if ours not in passes or theirs not in passes:
        return None
    pairs = zip(passes[ours], passes[theirs], strict=True)
    return median(our.tokens_per_s / their.tokens_per_s for our, their in pairs)
