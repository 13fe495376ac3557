"""Alternates the sides of a comparison within one process, so that noise affects all of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median

from benchmarks.latencies import Pass
from benchmarks.workload import SampleRequest

_NUM_WARM_UP = 8  # requests

SideRunner = Callable[[Sequence[SampleRequest]], Pass]


def alternate(
    sides: Mapping[str, SideRunner], requests: Sequence[SampleRequest], repeats: int
) -> dict[str, list[Pass]]:
    """Run all sides in turn, ``repeats`` times, after a short warm-up of each."""
    few = requests[:_NUM_WARM_UP]
    short = [replace(request, num_new_tokens=min(request.num_new_tokens, 2)) for request in few]
    for side in sides.values():
        side(short)
    passes: dict[str, list[Pass]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            passes[name].append(side(requests))
    return passes


def ratio(passes: Mapping[str, Sequence[Pass]], ours: str, theirs: str) -> float | None:
    """Ratio of tokens per second. None unless both sides were run.

    It is the median over pairs of passes, since a slow phase of the machine affects both of a pair.
    """
    if ours not in passes or theirs not in passes:
        return None
    pairs = zip(passes[ours], passes[theirs], strict=True)
    return median(our.tokens_per_s / their.tokens_per_s for our, their in pairs)
