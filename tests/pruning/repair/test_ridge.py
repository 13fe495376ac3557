"""Ridge regression from sums: as from all tokens at once, and right for kinds that took no part."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning.repair.ridge import PENALTIES, Sums, fit

CPU = torch.device("cpu")


def tokens(seed: int, number: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(number, 6, generator=generator)
    matrix = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    errors = inputs @ matrix.T + 0.5 * torch.randn(number, 4, generator=generator)
    return inputs, errors, torch.rand(number, generator=generator)


def sums(*parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> Sums:
    found = Sums(6, 4, CPU)
    for part in parts:
        found.add(*part)
    return found


def test_the_change_is_that_of_weighted_least_squares_with_a_penalty() -> None:
    parts = [tokens(0), tokens(2)]
    inputs, errors, weights = (torch.cat(columns) for columns in zip(*parts, strict=True))
    found = fit({"one": sums(parts[0]), "other": sums(parts[1])}, penalties=[0.1])
    gram = inputs.T @ (inputs * weights.unsqueeze(1))
    rows = torch.cat([inputs * weights.sqrt().unsqueeze(1), torch.eye(6)])
    rows[-6:] *= (0.1 * gram.diagonal().mean()).sqrt()
    wanted = torch.cat([errors * weights.sqrt().unsqueeze(1), torch.zeros(6, 4)])
    expected = torch.linalg.lstsq(rows, wanted).solution.T
    assert torch.allclose(found.change, expected, atol=1e-4)


def test_window_by_window_is_all_at_once() -> None:
    parts = [tokens(seed) for seed in range(3)]
    whole = tuple(torch.cat(columns) for columns in zip(*parts, strict=True))
    one, many = sums((whole[0], whole[1], whole[2])), sums(*parts)
    assert torch.allclose(one.gram, many.gram, atol=1e-4)
    assert torch.allclose(one.cross, many.cross, atol=1e-4)


def test_the_error_that_is_left_is_that_of_the_tokens() -> None:
    inputs, errors, weights = tokens(3)
    change = torch.randn(4, 6) * 0.1
    left = ((errors - inputs @ change.T).square().sum(dim=1) * weights).sum()
    before = (errors.square().sum(dim=1) * weights).sum()
    assert sums((inputs, errors, weights)).error_with(change) == pytest.approx(
        float(left / before), abs=1e-5
    )


@given(seed=st.integers(0, 1000), sign=st.sampled_from([1.0, -1.0]))
def test_a_change_that_harms_a_kind_when_it_is_left_out_is_refused(seed: int, sign: float) -> None:
    inputs, errors, weights = tokens(seed)
    other = sums((inputs, sign * errors, weights))  # what helps the one kind harms the other
    found = fit({"one": sums(tokens(seed + 1)), "other": other})
    assert all(error <= 1.0 for error in found.errors.values())
    assert (found.penalty is None) == (not found.change.any()) == (sign < 0)


@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.2, 1.0, 5.0]))
def test_no_other_penalty_is_better_for_a_fold_that_is_left_out(seed: int, scale: float) -> None:
    folds = {}
    for at in range(3):
        inputs, errors, weights = tokens(seed + at)
        noise = torch.randn(errors.shape, generator=torch.Generator().manual_seed(seed + at))
        folds[f"fold {at}"] = sums((inputs, errors + scale * noise, weights))
    found = fit(folds)
    worst = [max(fit(folds, [penalty]).errors.values()) for penalty in PENALTIES]
    assert max(found.errors.values()) == min(1.0, *worst)


def test_the_error_that_is_told_is_of_a_fit_to_the_other_folds() -> None:
    one, other = sums(tokens(0)), sums(tokens(1))
    found = fit({"one": one, "other": other}, penalties=[0.3])
    alone = fit({"one": one, "the same": one}, penalties=[0.3]).change
    assert found.errors["other"] == pytest.approx(other.error_with(alone), abs=1e-5)
    assert found.errors["other"] != pytest.approx(other.error_with(found.change), abs=1e-5)


def test_sums_without_full_rank_are_fitted() -> None:
    inputs, errors, weights = tokens(0, number=2)
    part = sums((inputs, errors, weights))
    assert max(fit({"one": part, "same": part}).errors.values()) < 1.0
