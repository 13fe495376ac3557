"""The mean of something per window, with its standard error; also with the help of a control.

A control is something like it that is known on more windows. Where the two go together, a few
windows say how, and the many say what the control is on average: the regression estimator of double
sampling (Cochran, Sampling Techniques, 3rd edition, 1977, section 12.6).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from pruning.removal import standard_error

MIN_PAIRS = 24  # with fewer windows, intervals would hold the mean too seldom


@dataclass(frozen=True)
class Estimate:
    """A mean over windows. The error is None if it is unknown.

    ``control_error`` is the part of the error that only more windows of the control make smaller,
    and ``degrees`` are those of freedom, None for one less than the windows.
    """

    mean: float
    error: float | None
    degrees: int | None = None
    control_error: float | None = None


def estimate(values: Sequence[float], control: Sequence[float] = ()) -> Estimate:
    """The mean of ``values``; ``control`` begins with the same windows and may have more of them.

    A control without more windows, or that does not vary, is of no help.
    """
    helps = len(control) > len(values) >= MIN_PAIRS
    if helps and all(map(math.isfinite, (*values, *control))):
        return _controlled(values, control)
    return Estimate(fmean(values), error_of(values))


def error_of(values: Sequence[float]) -> float | None:
    """The standard error of the mean; None with a single value, or if one is not finite."""
    is_known = len(values) > 1 and all(map(math.isfinite, values))
    return standard_error(values) if is_known else None


def _controlled(values: Sequence[float], control: Sequence[float]) -> Estimate:
    """By the line through the pairs, at the mean of the whole control.

    What the line does not explain counts as in a prediction at that point, with two degrees of
    freedom less than there are pairs. The degrees of the sum are those of Welch and Satterthwaite.
    """
    number, mean, of_pairs = len(values), fmean(values), fmean(control[: len(values)])
    beside = [each - of_pairs for each in control[:number]]
    spread = sum(each**2 for each in beside)
    if not spread:
        return Estimate(mean, error_of(values))
    slope = sum(x * (y - mean) for x, y in zip(beside, values, strict=True)) / spread
    shift = fmean(control) - of_pairs
    rests = [y - mean - slope * x for x, y in zip(beside, values, strict=True)]
    rest = sum(each**2 for each in rests) / (number - 2) * (1 / number + shift**2 / spread)
    of_control = slope**2 * variance(control) / len(control)
    below = rest**2 / (number - 2) + of_control**2 / (len(control) - 1)
    degrees = int((rest + of_control) ** 2 / below) if below else len(control) - 1
    found = mean + slope * shift
    return Estimate(found, math.sqrt(rest + of_control), degrees, math.sqrt(of_control))
