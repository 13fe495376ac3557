"""Whether two answers to one prompt say the same, and from where on they do not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

_Token = TypeVar("_Token")


@dataclass(frozen=True)
class Agreement:
    """``share`` is that of the longer answer's tokens which stand before the first difference.

    Behind it the two continue different texts, and tokens that are equal there are so by chance. An
    end of sequence is a token too. So it is exactly 1 for equal answers, and for no others.
    """

    share: float
    first_divergence: int | None  # position from 0; of the shorter answer it may be the end


def agreement(baseline: Sequence[_Token], other: Sequence[_Token]) -> Agreement:
    """Of the tokens of two answers; two empty ones are equal."""
    longest = max(len(baseline), len(other))
    pairs = zip(baseline, other, strict=False)
    common = next((at for at, (one, two) in enumerate(pairs) if one != two), None)
    if common is None:
        common = min(len(baseline), len(other))
    if common == longest:
        return Agreement(1.0, None)
    return Agreement(common / longest, common)
