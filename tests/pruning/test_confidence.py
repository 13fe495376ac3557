"""Confidence sequences: their reach, and the martingale that it inverts."""

import math
import random
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.confidence import MIN_DEGREES, reach
from pruning.student_t import quantile


def martingale(t: float, num_samples: int) -> float:
    """The likelihood ratio of a normal mean with a prior of one sample's worth against 0."""
    degrees = num_samples - 1
    share = 1 / (1 + num_samples)
    ratio = (1 + t**2 / degrees) / (1 + share * t**2 / degrees)
    return math.sqrt(share) * math.pow(ratio, num_samples / 2)


@given(st.integers(MIN_DEGREES + 2, 5_000), st.sampled_from([0.8, 0.95, 0.99]))
def test_at_its_ends_the_martingale_is_one_over_the_error(degrees: int, confidence: float) -> None:
    limit = 1 / (1 - confidence)
    assert martingale(reach(degrees, confidence), degrees + 1) == pytest.approx(limit)


@given(st.integers(MIN_DEGREES, 5_000))
def test_it_reaches_further_than_an_interval_for_one_look(degrees: int) -> None:
    assert quantile(0.975, degrees) < reach(degrees) < math.inf


def test_with_too_few_degrees_it_has_no_ends() -> None:
    assert reach(MIN_DEGREES - 1) == math.inf
    assert reach(MIN_DEGREES, 0.99) == math.inf


def test_the_mean_is_in_the_intervals_of_all_sizes_at_once() -> None:
    rng, tries, most = random.Random(0), 400, 150
    missed = 0
    for _ in range(tries):
        values = [rng.gauss(0.0, 1.0) for _ in range(most)]
        missed += any(
            abs(fmean(values[:number])) > reach(number - 1) * stdev(values[:number]) / number**0.5
            for number in range(MIN_DEGREES + 1, most)
        )
    assert missed / tries <= 0.05
