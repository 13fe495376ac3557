"""The kernels of two sides: where they differ, a ratio of times compares kernels, not models."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

Kernels = Mapping[str, frozenset[str]]  # by what they compute; several where the choice changed


def all_kernels(each: Iterable[Mapping[str, str]]) -> Kernels:
    """The kernels of several runs of one side."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for kernels in each:
        for what, kernel in kernels.items():
            found[what].add(kernel)
    return {what: frozenset(found[what]) for what in sorted(found)}


def different_kernels(baseline: Kernels, variant: Kernels) -> str | None:
    """What the sides compute by different kernels, or one of them by several; None if nothing.

    What only one side computes is no difference: int8 weights have kernels of their own.
    """
    differing = [
        f"{what} ({_names(baseline[what])} against {_names(variant[what])})"
        for what in baseline.keys() & variant.keys()
        if len(baseline[what] | variant[what]) > 1
    ]
    return f"different kernels: {'; '.join(sorted(differing))}" if differing else None


def kernel_names(kernels: Kernels) -> dict[str, str]:
    """For a report."""
    return {what: _names(of_what) for what, of_what in kernels.items()}


def _names(kernels: frozenset[str]) -> str:
    return " and ".join(sorted(kernels))
