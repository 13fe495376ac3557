"""A mean with a control: its formula, what it is worth, and how often its interval is right."""

import math
import random
from collections.abc import Callable, Sequence
from statistics import fmean, linear_regression, variance

import pytest

from pruning.evaluation.estimate import MIN_OF_KIND, MIN_PAIRS, Estimate, estimate
from pruning.removal import standard_error
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
    plain = standard_error(VALUES)
    assert found.error is not None
    assert found.error < plain


def same(found: Estimate, values: Sequence[float]) -> None:
    """The plain mean with its error."""
    assert (found.mean, found.degrees) == (fmean(values), len(values) - 1)
    assert found.error == pytest.approx(standard_error(values))
    assert found.control_error is None


@pytest.mark.parametrize(
    "control",
    [(), VALUES[:5], VALUES, (1.0,) * 40, (*CONTROL[:-1], math.inf)],
    ids=["none", "of fewer windows", "of as many", "that does not vary", "of a broken model"],
)
def test_a_control_that_is_of_no_help_changes_nothing(control: tuple[float, ...]) -> None:
    same(estimate(VALUES, control), VALUES)


def test_too_few_pairs_and_a_broken_model_are_taken_as_they_are() -> None:
    few = VALUES[: MIN_PAIRS - 1]
    same(estimate(few, CONTROL), few)
    assert estimate((*VALUES, math.inf), CONTROL).error is None


def test_what_varies_between_kinds_is_not_uncertain() -> None:
    values, kinds = (1.0, 5.0, 1.2, 5.6, 0.8, 5.3), ("fiction", "news") * 3
    found = estimate(values, kinds=kinds)
    # 0.08 and 0.18 are the summed squares within the kinds
    assert found.mean == pytest.approx(3.15)
    assert found.degrees == 4
    assert found.error == pytest.approx(math.sqrt((0.08 + 0.18) / 4 / 6))
    same(estimate(values[:5], kinds=kinds), values[:5])  # fewer than three of each
    assert MIN_OF_KIND == 3


def test_a_control_goes_along_within_kinds() -> None:
    kinds = ("fiction", "news") * (len(CONTROL) // 2)
    shifted = [value + 3.0 * (kind == "news") for value, kind in zip(VALUES, kinds, strict=False)]
    moved = [value - 7.0 * (kind == "news") for value, kind in zip(CONTROL, kinds, strict=True)]
    found, expected = estimate(shifted, moved, kinds), estimate(VALUES, CONTROL, kinds)
    assert found.mean == pytest.approx(expected.mean + 1.5)
    assert found.error == pytest.approx(expected.error)
    assert found.degrees == expected.degrees
    plain = estimate(shifted, moved)
    assert plain.error is not None
    assert found.error is not None
    assert found.error < plain.error / 2


KINDS = ("fiction", "news", "manuals", "fiction")  # in turns, so that each has its share
OF_KIND = {"fiction": 0.1, "news": 0.5, "manuals": -0.2}


@pytest.mark.parametrize("number", [12, 48])
@pytest.mark.parametrize("has_control", [False, True])
def test_intervals_of_windows_by_kind_hold_the_mean(number: int, has_control: bool) -> None:
    rng, tries, size = random.Random(0), 500, 100
    truth = fmean(OF_KIND[kind] for kind in KINDS)
    kinds, held, narrower = KINDS * (size // len(KINDS)), 0, 0
    for _ in range(tries):
        common = [OF_KIND[kind] + rng.gauss(0.0, 0.2) for kind in kinds]
        values = [each + rng.gauss(0.0, 0.1) for each in common[:number]]
        control = [2.0 * each for each in common] if has_control else []
        found, plain = estimate(values, control, kinds), estimate(values, control)
        assert found.error is not None
        assert plain.error is not None
        held += abs(found.mean - truth) <= quantile(0.975, found.degrees) * found.error
        narrower += found.error < plain.error
    assert held / tries >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / tries)
    assert narrower / tries > 0.9


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
        assert plain.error is not None
        margin = quantile(0.975, found.degrees) * found.error
        held += abs(found.mean - 0.1) <= margin
        narrower += margin < quantile(0.975, number - 1) * plain.error
    assert held / tries >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / tries)
    assert narrower / tries > 0.7
