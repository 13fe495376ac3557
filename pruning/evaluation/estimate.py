"""The mean of something per window, with its standard error; also with the help of a control.

A control is something like it that is known on more windows. Where the two go together, a few
windows say how, and the many say what the control is on average: the regression estimator of double
sampling (Cochran, Sampling Techniques, 3rd edition, 1977, section 12.6). Where kinds of text have
fixed shares of the windows, only what varies within a kind is uncertain (ibid., section 5.6).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

MIN_PAIRS = 24  # with fewer windows, intervals would hold the mean too seldom
MIN_OF_KIND = 3  # windows on average, before the mean of a kind is subtracted

Kinds = Sequence[str]  # of the first windows and maybe of more; empty if all are of one


@dataclass(frozen=True)
class Estimate:
    """A mean over windows. The error is None if it is unknown.

    ``control_error`` is the part of the error that only more windows of the control make smaller,
    and ``degrees`` are those of freedom.
    """

    mean: float
    error: float | None
    degrees: int
    control_error: float | None = None


def estimate(values: Sequence[float], control: Sequence[float] = (), kinds: Kinds = ()) -> Estimate:
    """The mean of ``values``; ``control`` begins with the same windows and may have more of them.

    A control without more windows, or that does not vary, is of no help.
    """
    helps = len(control) > len(values) >= MIN_PAIRS
    if helps and all(map(math.isfinite, (*values, *control))):
        pairs = _within(control[: len(values)], kinds)
        if pairs.squares:
            return _controlled(values, control, kinds, pairs)
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return Estimate(fmean(values), None, len(values) - 1)
    within = _within(values, kinds)
    error = math.sqrt(within.squares / within.degrees / len(values))
    return Estimate(fmean(values), error, within.degrees)


@dataclass(frozen=True)
class _Within:
    """How values differ from the mean of their kind."""

    differences: Sequence[float]
    degrees: int

    @property
    def squares(self) -> float:
        return math.fsum(each**2 for each in self.differences)


def _within(values: Sequence[float], kinds: Kinds) -> _Within:
    of_each = list(kinds[: len(values)]) or [""]
    if len(of_each) < len(values) or len(values) < MIN_OF_KIND * len(set(of_each)):
        of_each = [""] * len(values)
    groups: dict[str, list[float]] = {}
    for kind, value in zip(of_each, values, strict=True):
        groups.setdefault(kind, []).append(value)
    means = {kind: fmean(some) for kind, some in groups.items()}
    differences = [value - means[kind] for kind, value in zip(of_each, values, strict=True)]
    return _Within(differences, len(values) - len(groups))


def _controlled(
    values: Sequence[float], control: Sequence[float], kinds: Kinds, pairs: _Within
) -> Estimate:
    """By the line through the ``pairs``, at the mean of the whole control.

    What the line does not explain counts as in a prediction at that point, with a degree of freedom
    less for its slope. The degrees of the sum are those of Welch and Satterthwaite.
    """
    own, whole = _within(values, kinds), _within(control, kinds)
    slope = (
        math.fsum(x * y for x, y in zip(pairs.differences, own.differences, strict=True))
        / pairs.squares
    )
    shift = fmean(control) - fmean(control[: len(values)])
    rests = zip(pairs.differences, own.differences, strict=True)
    squares, degrees = math.fsum((y - slope * x) ** 2 for x, y in rests), own.degrees - 1
    rest = squares / degrees * (1 / len(values) + shift**2 / pairs.squares)
    of_control = slope**2 * whole.squares / whole.degrees / len(control)
    below = rest**2 / degrees + of_control**2 / whole.degrees
    both = int((rest + of_control) ** 2 / below) if below else whole.degrees
    mean = fmean(values) + slope * shift
    return Estimate(mean, math.sqrt(rest + of_control), both, math.sqrt(of_control))
