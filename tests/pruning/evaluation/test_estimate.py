"""A mean with a control: its formula, what it is worth, and how often its interval is right."""

import math
import random
from collections.abc import Callable
from statistics import fmean, linear_regression, variance

import pytest

from pruning.evaluation.estimate import MIN_PAIRS, Estimate, error_of, estimate
from pruning.student_t import quantile


def pairs(number: int) -> tuple[list[float], list[float]]:
    """Values and a control that go together."""
    rng = random.Random(0)
    control = [rng.gauss(1.0, 0.5) for _ in range(number)]
    return [0.4 * each + rng.gauss(0.1, 0.1) for each in control], control


_ALL, CONTROL = pairs(40)
VALUES = tuple(_ALL[:MIN_PAIRS])


def test_the_control_moves_the_mean_along_the_line_of_the_pairs() -> None:
    number, found = len(VALUES), estimate(VALUES, CONTROL)
    slope, intercept = linear_regression(CONTROL[:number], VALUES)
    assert found.mean == pytest.approx(intercept + slope * fmean(CONTROL))
    rests = [y - intercept - slope * x for x, y in zip(CONTROL, VALUES, strict=False)]
    spread = variance(CONTROL[:number]) * (number - 1)
    shift = fmean(CONTROL) - fmean(CONTROL[:number])
    own = sum(rest**2 for rest in rests) / (number - 2) * (1 / number + shift**2 / spread)
    of_control = slope**2 * variance(CONTROL) / len(CONTROL)
    assert found.error == pytest.approx(math.sqrt(own + of_control))
    assert found.control_error == pytest.approx(math.sqrt(of_control))
    below = own**2 / (number - 2) + of_control**2 / (len(CONTROL) - 1)
    assert found.degrees == int((own + of_control) ** 2 / below)
    plain = error_of(VALUES)
    assert found.error is not None
    assert plain is not None
    assert found.error < plain


@pytest.mark.parametrize(
    "control",
    [(), VALUES[:5], VALUES, (1.0,) * 40, (*CONTROL[:-1], math.inf)],
    ids=["none", "of fewer windows", "of as many", "that does not vary", "of a broken model"],
)
def test_a_control_that_is_of_no_help_changes_nothing(control: tuple[float, ...]) -> None:
    assert estimate(VALUES, control) == Estimate(fmean(VALUES), error_of(VALUES))


def test_too_few_pairs_and_a_broken_model_are_taken_as_they_are() -> None:
    few = VALUES[: MIN_PAIRS - 1]
    assert estimate(few, CONTROL) == Estimate(fmean(few), error_of(few))
    assert estimate((*VALUES, math.inf), CONTROL).error is None


def windows(rng: random.Random) -> tuple[float, float]:
    """A shallow model's loss and a deep one's, over those of the dense one, as on prose."""
    common = rng.gauss(0.0, 1.0)
    return 0.1 + 0.08 * common + 0.06 * rng.gauss(0.0, 1.0), 0.45 + 0.29 * common


def skewed(rng: random.Random) -> tuple[float, float]:
    """The same with a long tail, as a few windows lose most."""
    common = rng.gammavariate(2.0, 1 / math.sqrt(2)) - math.sqrt(2)
    return 0.1 + 0.08 * common + 0.06 * rng.gauss(0.0, 1.0), 0.45 + 0.29 * common


@pytest.mark.parametrize("number", [MIN_PAIRS, 50])
@pytest.mark.parametrize("draw", [windows, skewed])
def test_its_interval_holds_the_mean_as_often_as_it_says(
    draw: Callable[[random.Random], tuple[float, float]], number: int
) -> None:
    rng, tries = random.Random(0), 500
    held = narrower = 0
    for _ in range(tries):
        values, control = zip(*(draw(rng) for _ in range(100)), strict=True)
        found, plain = estimate(values[:number], control), estimate(values[:number])
        assert found.error is not None
        assert found.degrees is not None
        assert plain.error is not None
        margin = quantile(0.975, found.degrees) * found.error
        held += abs(found.mean - 0.1) <= margin
        narrower += margin < quantile(0.975, number - 1) * plain.error
    assert held / tries >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / tries)
    assert narrower / tries > 0.7
