"""Quantiles of Student's t distribution, which judges means of few samples.

Handbook of Mathematical Functions, Abramowitz and Stegun (1964), section 26.7.
"""

from math import atan2, cos, exp, lgamma, log1p, pi, sin, sqrt
from statistics import NormalDist

_PRECISION = 1e-9  # of a quantile, relative
# degrees: the expansion has this precision from some hundred on
_EXPANDED_FROM, _MAX_DEGREES = 1000, 10**9


def quantile(probability: float, degrees: int) -> float:
    """The ``t`` that a variable with so many degrees of freedom exceeds with 1 - ``probability``.

    For many degrees by the expansion 26.7.5, which takes as long for any number of them.

    Raises ``ValueError`` unless ``0.5 <= probability < 1`` and ``degrees >= 1``.
    """
    if not 0.5 <= probability < 1 or degrees < 1:
        raise ValueError("expected 0.5 <= probability < 1 and at least one degree of freedom")
    # Newton's method. Above 0 the distribution function is concave, and this start is below the
    # quantile, so that each step ends below it as well.
    t = NormalDist().inv_cdf(probability)
    if degrees > _EXPANDED_FROM:
        return _expanded(t, min(degrees, _MAX_DEGREES))
    while (step := (probability - cumulative(t, degrees)) / _density(t, degrees)) > _PRECISION * t:
        t += step
    return t


def _expanded(x: float, degrees: int) -> float:
    """The quantile from that of the normal distribution."""
    first = (x**3 + x) / 4
    second = (5 * x**5 + 16 * x**3 + 3 * x) / 96
    third = (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384
    return x + first / degrees + second / degrees**2 + third / degrees**3


def cumulative(t: float, degrees: int) -> float:
    """The probability of at most ``t``, by the finite sums 26.7.3 and 26.7.4."""
    angle = atan2(t, sqrt(degrees))
    is_odd = degrees % 2 == 1
    term = cos(angle) if is_odd else 1.0
    total = 0.0 if degrees == 1 else term
    for k in range(3 if is_odd else 2, degrees - 1, 2):
        term *= cos(angle) ** 2 * (k - 1) / k
        total += term
    # the probability of -t to t
    central = 2 / pi * (angle + sin(angle) * total) if is_odd else sin(angle) * total
    return (1 + central) / 2


def _density(t: float, degrees: int) -> float:
    scale = exp(lgamma((degrees + 1) / 2) - lgamma(degrees / 2)) / sqrt(pi * degrees)
    return scale * exp(-(degrees + 1) / 2 * log1p(t * t / degrees))
