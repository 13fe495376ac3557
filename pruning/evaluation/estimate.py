"""The mean of a value per window, with its standard error.

Windows of one document are alike, so the error is that of documents (Cochran, Sampling Techniques,
3rd edition, 1977, section 9.4). Where kinds of text have fixed shares of the windows, only what
varies within a kind is uncertain (ibid., section 5.6).
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

MIN_OF_KIND = 3  # documents on average, before the mean of a kind is subtracted


@dataclass(frozen=True)
class Strata:
    """The kind and the document of each window. A sequence is empty where they are unknown: then
    all windows are of one kind, or each is a document of its own.
    """

    kinds: Sequence[str] = ()
    documents: Sequence[str] = ()


UNKNOWN_STRATA = Strata()


@dataclass(frozen=True)
class Estimate:
    """A mean over windows. The error is None if it is unknown.

    ``degrees`` are its degrees of freedom.
    """

    mean: float
    error: float | None
    degrees: int


def estimate(values: Sequence[float], strata: Strata = UNKNOWN_STRATA) -> Estimate:
    """The mean of ``values``, which are of the first windows of ``strata``."""
    mean, number = fmean(values), len(values)
    documents = strata.documents[:number] or range(number)
    kinds = _kinds(strata.kinds[:number], documents)
    degrees = len(set(documents)) - len(set(kinds))
    if degrees < 1 or not all(map(math.isfinite, values)):
        return Estimate(mean, None, max(0, degrees))
    sums: defaultdict[object, float] = defaultdict(float)
    for document, difference in zip(documents, _differences(values, kinds), strict=True):
        sums[document] += difference
    squares = math.fsum(each**2 for each in sums.values())
    return Estimate(mean, math.sqrt(squares * len(sums) / degrees) / number, degrees)


def _kinds(kinds: Sequence[str], documents: Sequence[object]) -> Sequence[str]:
    """The kinds, or one kind for all windows where a kind has too few documents."""
    num_documents = len(set(documents))
    if len(kinds) < len(documents) or num_documents < MIN_OF_KIND * len(set(kinds)):
        return [""] * len(documents)
    return kinds


def _differences(values: Sequence[float], kinds: Sequence[str]) -> list[float]:
    """Each value less the mean of its kind."""
    by_kind: defaultdict[str, list[float]] = defaultdict(list)
    for kind, value in zip(kinds, values, strict=True):
        by_kind[kind].append(value)
    means = {kind: fmean(of_kind) for kind, of_kind in by_kind.items()}
    return [value - means[kind] for kind, value in zip(kinds, values, strict=True)]
