"""Confidence sequences: intervals of a mean that hold at every look at a growing sample.

An interval by Student's t holds for one look. Each further look at more samples is another chance
to miss the mean, so a limit that is tested until it is decided would be passed too often.
"""

from functools import cache
from math import exp, inf, log, sqrt

CONFIDENCE = 0.95
MIN_DEGREES = 4  # of freedom for the ends of an interval of 95 %


@cache
def reach(degrees: int, confidence: float = CONFIDENCE) -> float:
    """How many standard errors the interval of a mean extends to each side.

    With this ``confidence`` the mean is in the intervals of all sample sizes at once, for normal
    samples of unknown variance. The test martingale mixes over a normal prior of the mean in units
    of the standard deviation that is worth one sample (Wang and Ramdas, arXiv 2310.03722).
    ``inf`` for too few degrees of freedom: with 95 %, below ``MIN_DEGREES``.
    """
    num_samples = degrees + 1
    share = 1 / (1 + num_samples)  # of the prior in the posterior of the mean
    bound = exp(2 / num_samples * (-log(1 - confidence) - log(share) / 2))
    if bound * share >= 1:  # few samples exclude nothing
        return inf
    # The martingale is below 1 / (1 - confidence) for squares of the t statistic below this.
    return sqrt(degrees * (bound - 1) / (1 - bound * share))
