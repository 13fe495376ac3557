"""Agreement of two answers: all of it for equal ones, and nothing behind the first difference."""

from hypothesis import given
from hypothesis import strategies as st

from app.compare.compare import TokenAgreement, token_agreement

_TOKENS = st.lists(st.integers(0, 3), max_size=12)


def test_what_follows_the_first_difference_does_not_count() -> None:
    assert token_agreement([1, 2, 3, 4], [1, 9, 3, 4]) == TokenAgreement(0.25, 1)


def test_an_answer_that_goes_on_differs_where_the_other_ends() -> None:
    assert token_agreement([1, 2], [1, 2, 3, 4]) == TokenAgreement(0.5, 2)
    assert token_agreement([1, 2, 3, 4], [1, 2]) == TokenAgreement(0.5, 2)


@given(_TOKENS, _TOKENS)
def test_it_is_1_for_equal_answers_only(one: list[int], other: list[int]) -> None:
    found = token_agreement(one, other)
    assert token_agreement(other, one) == found
    assert token_agreement(one, one) == TokenAgreement(1.0, None)
    assert (found.share == 1) == (found.first_divergence is None) == (one == other)
    if found.first_divergence is not None:
        at = found.first_divergence
        assert one[:at] == other[:at]
        assert one[at : at + 1] != other[at : at + 1]
