"""A mean over windows: its error by documents and kinds, and how often its interval is right."""

import math
import random
from collections.abc import Sequence
from statistics import fmean

import pytest

from pruning.confidence import reach
from pruning.evaluation.estimate import MIN_OF_KIND, Estimate, Strata, estimate
from pruning.removal import standard_error


def same(found: Estimate, values: Sequence[float]) -> None:
    """The plain mean with its error."""
    assert (found.mean, found.degrees) == (fmean(values), len(values) - 1)
    assert found.error == pytest.approx(standard_error(values))


def test_windows_of_unknown_documents_are_documents() -> None:
    values = (1.0, 1.5, 3.0, 0.5)
    same(estimate(values), values)
    same(estimate(values, Strata(documents=tuple("abcd"))), values)


def test_a_single_document_and_a_broken_model_have_no_error() -> None:
    assert estimate((1.0, 2.0), Strata(documents=("a", "a"))) == Estimate(1.5, None, 0)
    assert estimate((1.0,)) == Estimate(1.0, None, 0)
    assert estimate((1.0, math.inf, 2.0)).error is None


def test_the_error_is_that_of_documents() -> None:
    """Windows twice, each in the document of its double, say as much as one of them."""
    values = (1.0, 1.5, 3.0, 0.5)
    twice = [value for value in values for _ in range(2)]
    found = estimate(twice, Strata(documents=tuple("aabbccdd")))
    assert (found.mean, found.degrees) == (fmean(values), 3)
    assert found.error == pytest.approx(standard_error(values))


def test_what_varies_between_kinds_is_not_uncertain() -> None:
    values, kinds = (1.0, 5.0, 1.2, 5.6, 0.8, 5.3), ("fiction", "news") * 3
    found = estimate(values, Strata(kinds))
    # 0.08 and 0.18 are the summed squares within the kinds
    assert found.mean == pytest.approx(3.15)
    assert found.degrees == 4
    assert found.error == pytest.approx(math.sqrt((0.08 + 0.18) / 4 / 6))
    same(estimate(values[:5], Strata(kinds)), values[:5])  # fewer than three of each
    assert MIN_OF_KIND == 3


def test_kinds_count_by_their_documents() -> None:
    values, kinds = (1.0, 5.0, 1.2, 5.6, 0.8, 5.3), ("fiction", "news") * 3
    few = Strata(kinds, ("a", "b", "a", "b", "c", "d"))
    assert estimate(values, few) == estimate(values, Strata(documents=few.documents))


KINDS = ("fiction", "news", "manuals", "fiction")  # in turns, so that each has its share
OF_KIND = {"fiction": 0.1, "news": 0.5, "manuals": -0.2}


@pytest.mark.parametrize("number", [12, 48])
def test_intervals_of_windows_by_kind_hold_the_mean(number: int) -> None:
    rng, tries = random.Random(0), 500
    truth = fmean(OF_KIND[kind] for kind in KINDS)
    kinds, held, narrower = KINDS * (number // len(KINDS)), 0, 0
    for _ in range(tries):
        values = [OF_KIND[kind] + rng.gauss(0.0, 0.2) for kind in kinds]
        found, plain = estimate(values, Strata(kinds)), estimate(values)
        assert found.error is not None
        assert plain.error is not None
        held += abs(found.mean - truth) <= reach(found.degrees) * found.error
        narrower += found.error < plain.error
    assert held / tries >= 0.95
    assert narrower / tries > 0.9
