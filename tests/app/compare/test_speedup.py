"""A speed-up is a claim: it is made when the times allow it, and only then."""

import random
from random import Random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.compare.speedup import Speedup, Verdict, alternate, beyond_noise, speedup, widened


def times(mean_s: float, noise: float, number: int, seed: int) -> list[float]:
    draw = random.Random(seed)
    return [mean_s * draw.lognormvariate(0, noise) for _ in range(number)]


def test_the_ratio_is_that_of_the_means() -> None:
    assert speedup([1.0, 3.0], [1.0, 1.0]).ratio == 2.0  # the mean of the ratios is another


def test_a_side_against_itself_is_no_difference() -> None:
    found = speedup([1.0, 1.2, 1.1], [1.0, 1.2, 1.1])
    assert (found.ratio, found.low, found.high) == (1.0, 1.0, 1.0)
    assert found.verdict is Verdict.NO_DIFFERENCE


@pytest.mark.parametrize(
    ("baseline_s", "variant_s", "verdict", "why"),
    [
        ([1.25, 1.26, 1.24], [1.0, 1.0, 1.0], Verdict.FASTER, "above 1"),
        ([1.0, 1.0, 1.0], [1.25, 1.26, 1.24], Verdict.SLOWER, "below 1"),
        ([1.0, 1.01, 1.0], [1.0, 1.0, 1.01], Verdict.NO_DIFFERENCE, "within 3% of 1"),
        ([1.0, 1.4, 1.2], [1.3, 1.0, 1.1], Verdict.UNDECIDED, "contains 1"),
        ([1.05, 1.15, 1.1, 1.1], [1.0] * 4, Verdict.UNDECIDED, "wider than the effect"),
        ([1.25], [1.0], Verdict.UNDECIDED, "a single repeat"),
    ],
)
def test_verdicts(
    baseline_s: list[float], variant_s: list[float], verdict: Verdict, why: str
) -> None:
    found = speedup(baseline_s, variant_s)
    assert found.verdict is verdict, found
    assert why in found.reason


def test_an_objection_leaves_the_numbers_and_no_verdict() -> None:
    found = speedup([1.25, 1.26, 1.24], [1.0, 1.0, 1.0], "unequal lengths")
    assert (found.verdict, found.reason) == (Verdict.UNDECIDED, "unequal lengths")
    assert found.ratio == pytest.approx(1.25)


def reads(low: float, high: float, verdict: Verdict = Verdict.UNDECIDED) -> Speedup:
    return Speedup((low + high) / 2, low, high, 60, verdict, "its own reason")


@pytest.mark.parametrize(
    ("found", "control", "why"),
    [
        (reads(1.15, 1.17, Verdict.FASTER), reads(0.99, 1.01), None),
        (reads(1.15, 1.17, Verdict.FASTER), reads(0.90, 1.16), "overlaps the noise floor 0.900"),
        (reads(1.02, 1.03, Verdict.FASTER), reads(1.04, 1.06), "noise floor 1.000 to 1.060"),
        (reads(0.95, 0.96, Verdict.SLOWER), reads(1.04, 1.06), None),
        (reads(0.95, 0.96, Verdict.SLOWER), reads(0.93, 0.94), "noise floor 0.930 to 1.000"),
        (reads(0.99, 1.01, Verdict.NO_DIFFERENCE), reads(0.98, 1.02), None),
        (reads(0.99, 1.01, Verdict.NO_DIFFERENCE), reads(0.96, 1.02), "is wider than 3%"),
        (reads(1.15, 1.17, Verdict.FASTER), None, "no control yet"),
        (reads(1.15, 1.17, Verdict.FASTER), speedup([1.0], [1.0]), "no control yet"),
        (reads(0.90, 1.17), reads(0.99, 1.01), "its own reason"),
    ],
)
def test_a_verdict_has_to_lie_beyond_what_equal_models_read(
    found: Speedup, control: Speedup | None, why: str | None
) -> None:
    judged = beyond_noise(found, control)
    assert (judged.ratio, judged.low, judged.high) == (found.ratio, found.low, found.high)
    if why is None:
        assert judged == found
    else:
        assert judged.verdict is Verdict.UNDECIDED
        assert why in judged.reason


@pytest.mark.parametrize("number", [3, 5, 10, 40])
def test_intervals_hold_the_truth_as_often_as_they_say(number: int) -> None:
    """Noise that troubles both sides of a pair, and noise of each side."""
    true, hits = 1.25, 0
    for seed in range(600):
        common = times(1.0, 0.1, number, seed)
        own = times(true, 0.05, number, 1000 + seed), times(1.0, 0.05, number, 2000 + seed)
        sides = [[a * b for a, b in zip(common, side, strict=True)] for side in own]
        found = speedup(sides[0], sides[1])
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= true <= found.high
    assert 0.92 <= hits / 600 <= 0.98


def test_equal_sides_are_hardly_ever_told_apart() -> None:
    found = [
        speedup(times(1.0, 0.1, 5, seed), times(1.0, 0.1, 5, 5000 + seed)) for seed in range(500)
    ]
    wrong = [each for each in found if each.verdict in {Verdict.FASTER, Verdict.SLOWER}]
    assert len(wrong) / len(found) < 0.03
    assert fmean(each.ratio for each in found) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(("one", "other"), [([1.0], [1.0, 1.0]), ([0.0, 1.0], [1.0, 1.0])])
def test_what_are_no_pairs_of_times_is_refused(one: list[float], other: list[float]) -> None:
    with pytest.raises(ValueError, match="equally many positive times"):
        speedup(one, other)


def test_every_subject_comes_first_equally_often() -> None:
    for number in (2, 3, 5):
        turns = list(alternate(range(number), number))
        orders = [[subject for at, subject in turns if at == repeat] for repeat in range(number)]
        assert all(sorted(order) == list(range(number)) for order in orders)
        for place in range(number):
            assert {order[place] for order in orders} == set(range(number))


@pytest.mark.parametrize(
    ("variant_s", "again_s", "expected"),
    [
        ([1.0, 1.01, 1.0], [1.2, 1.21, 1.19], True),
        ([1.3, 1.31, 1.29], [1.2, 1.21, 1.19], True),  # it is slower
        ([0.70, 0.71, 0.70], [1.2, 1.35, 1.15], True),
        ([1.0, 1.6, 1.1], [1.2, 1.21, 1.19], False),
        ([1.0, 1.01, 1.0], [1.2, 2.0, 1.1], False),
        ([1.0], [1.2], False),
    ],
    ids=["faster", "slower", "far beyond noise", "vague", "a noisy control", "a single repeat"],
)
def test_a_speedup_is_kept_by_the_widths_of_intervals_alone(
    variant_s: list[float], again_s: list[float], expected: bool
) -> None:
    baseline_s = [1.2, 1.2, 1.21][: len(variant_s)]
    measured, control = speedup(baseline_s, variant_s), speedup(baseline_s, again_s)
    assert (widened(measured, control) is not None) is expected
    assert widened(measured, None) is None


@given(
    st.lists(st.floats(0.9, 1.1), min_size=3, max_size=8),
    st.floats(0.5, 3.0),
    st.randoms(use_true_random=False),
)
def test_a_kept_speedup_contains_what_noise_could_have_made_of_it(
    baseline_s: list[float], true: float, random: Random
) -> None:
    variant_s = [each / true * random.uniform(0.97, 1.03) for each in baseline_s]
    measured = speedup(baseline_s, variant_s)
    control = speedup(baseline_s, [each * random.uniform(0.97, 1.03) for each in baseline_s])
    kept = widened(measured, control)
    if kept is None:
        return
    assert (kept.ratio, kept.num_pairs) == (measured.ratio, measured.num_pairs)
    low, high = _ends(kept)
    for noise in (*_ends(control), 1.0):
        for end in _ends(measured):
            assert low * (1 - 1e-9) <= end / noise <= high * (1 + 1e-9)


def _ends(found: Speedup) -> tuple[float, float]:
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high
