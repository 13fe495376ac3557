"""Quantiles of Student's t against published ones, and against the normal distribution."""

from statistics import NormalDist

import pytest

from pruning.student_t import cumulative, quantile

# As textbooks print them, to three decimals, in the order of ``PROBABILITIES``.
TABLE = {
    1: (3.078, 6.314, 12.706, 31.821, 63.657, 318.309),
    2: (1.886, 2.920, 4.303, 6.965, 9.925, 22.327),
    3: (1.638, 2.353, 3.182, 4.541, 5.841, 10.215),
    4: (1.533, 2.132, 2.776, 3.747, 4.604, 7.173),
    7: (1.415, 1.895, 2.365, 2.998, 3.499, 4.785),
    10: (1.372, 1.812, 2.228, 2.764, 3.169, 4.144),
    15: (1.341, 1.753, 2.131, 2.602, 2.947, 3.733),
    30: (1.310, 1.697, 2.042, 2.457, 2.750, 3.385),
    100: (1.290, 1.660, 1.984, 2.364, 2.626, 3.174),
}
PROBABILITIES = (0.90, 0.95, 0.975, 0.99, 0.995, 0.999)


@pytest.mark.parametrize("degrees", TABLE)
def test_quantiles_are_those_of_the_published_table(degrees: int) -> None:
    found = [quantile(probability, degrees) for probability in PROBABILITIES]
    assert found == pytest.approx(TABLE[degrees], abs=5.1e-4, rel=0)


@pytest.mark.parametrize("degrees", [1, 2, 3, 8, 61, 1000, 1001])
@pytest.mark.parametrize("probability", [0.5, 0.6, 0.975, 0.99865, 0.999999])
def test_a_quantile_is_where_the_distribution_reaches_its_probability(
    degrees: int, probability: float
) -> None:
    assert cumulative(quantile(probability, degrees), degrees) == pytest.approx(
        probability, abs=1e-10
    )


def test_many_degrees_of_freedom_are_a_normal_distribution() -> None:
    """However many: a record from elsewhere may name any number of windows."""
    for degrees in (10**6, 2**63, 10**400):
        assert quantile(0.975, degrees) == pytest.approx(NormalDist().inv_cdf(0.975), rel=1e-5)


@pytest.mark.parametrize(("probability", "degrees"), [(0.4, 3), (1.0, 3), (0.9, 0)])
def test_other_arguments_are_refused(probability: float, degrees: int) -> None:
    with pytest.raises(ValueError, match="one degree of freedom"):
        quantile(probability, degrees)
