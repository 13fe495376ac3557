"""Ridge regression of a linear layer from sums over tokens, which any number of tokens may enter.

With inputs ``a`` [tokens, width_in], errors ``e`` [tokens, width_out] of what the layer adds, and a
weight ``w`` for each token, the change of the layer's matrix is

    D = argmin sum_t w_t |e_t - D a_t|² + p |D|²  =  C (G + p I)⁻¹,

with ``G = sum w a aᵀ`` and ``C = sum w e aᵀ``. The change shrinks towards zero, so the matrix
shrinks towards its old values. Knows no model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch.nn.functional import linear

from pruning.models.products import float32_products

# penalties that may be tried, as shares of the mean diagonal of G, ascending
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class Sums:
    """``G`` [width_in, width_in], ``C`` [width_out, width_in] and the summed squared errors."""

    def __init__(self, width_in: int, width_out: int, device: torch.device) -> None:
        self.gram = torch.zeros(width_in, width_in, device=device)
        self.cross = torch.zeros(width_out, width_in, device=device)
        self.squared = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, inputs: torch.Tensor, errors: torch.Tensor, weights: torch.Tensor) -> None:
        """Add tokens: ``inputs`` [tokens, width_in], ``errors`` [tokens, width_out], float32, and
        ``weights`` [tokens].
        """
        weighted = (inputs * weights.unsqueeze(1)).T.contiguous()
        with float32_products(inputs, len(inputs)):
            self.gram += linear(inputs.T, weighted)
            self.cross += linear(errors.T, weighted)
        self.squared += (errors.square().sum(dim=1) * weights).double().sum()

    def include(self, other: "Sums") -> None:
        """Add the tokens of other sums, which may be on another device."""
        self.gram += other.gram.to(self.gram.device)
        self.cross += other.cross.to(self.cross.device)
        self.squared += other.squared.to(self.squared.device)

    def to(self, device: torch.device) -> "Sums":
        moved = Sums(0, 0, device)
        moved.gram, moved.cross = self.gram.to(device), self.cross.to(device)
        moved.squared = self.squared.to(device)
        return moved

    def error_with(self, change: torch.Tensor) -> float:
        """The squared error that is left with this change, as a share of that without."""
        with float32_products(change, len(change)):
            applied = linear(change, self.gram)
        explained = 2 * (change * self.cross).sum() - (applied * change).sum()
        return 1.0 - float(explained.double() / self.squared)


Folds = dict[str, Sums]  # over the tokens of each fold of the training windows


@dataclass(frozen=True)
class Fit:
    """A change of a matrix [width_out, width_in] that is fitted to all folds, and the error that is
    left on each fold by a change fitted to the others, as a share of the error without.

    ``penalty`` is None where no change is the best one.
    """

    change: torch.Tensor
    penalty: float | None
    errors: Mapping[str, float]


def fit(folds: Mapping[str, Sums], penalties: Sequence[float] = PENALTIES) -> Fit:
    """The change with the penalty that is best on the worst fold when that fold is left out.

    A fold has the tokens of kinds of text that no other fold has. So the penalty is right for kinds
    that took no part, and not for more text of the same kinds, which a weaker one fits better. No
    change at all is one of the choices. With a rising penalty, the error on a fold falls and then
    rises, and so does the worst one. So the penalties are tried downhill from the middle one: a
    Cholesky factorisation for each fold takes less time than an eigendecomposition that would serve
    all penalties. Trials are in float32, in half the time, and the change is in float64.
    """
    start = len(penalties) // 2
    penalty, errors = penalties[start], dict.fromkeys(folds, inf)
    for neighbours in (penalties[start:], penalties[:start][::-1]):
        for each in neighbours:
            if (smaller := _errors_below(errors, folds, each)) is None:
                break
            penalty, errors = each, smaller
        if penalty != penalties[start]:
            break
    is_better = all(error < 1.0 for error in errors.values())  # not for NaN
    change = _solved([*folds.values()], penalty, torch.float64) if is_better else None
    if change is None:
        unchanged = torch.zeros_like(next(iter(folds.values())).cross)
        return Fit(unchanged, None, dict.fromkeys(folds, 1.0))
    return Fit(change, penalty, errors)


def _errors_below(
    errors: Mapping[str, float], folds: Mapping[str, Sums], penalty: float
) -> dict[str, float] | None:
    """The error that is left on each fold by a change that is fitted to the others; None if the
    worst one is not below that of ``errors``. It is looked for first where these are worst."""
    worst, left = max(errors.values()), {}
    for name in sorted(folds, key=errors.__getitem__, reverse=True):
        left[name] = _error_without(name, folds, penalty)
        if not left[name] < worst:  # true for NaN
            return None
    return left


def _error_without(fold: str, folds: Mapping[str, Sums], penalty: float) -> float:
    """The error that is left on this fold by a change that is fitted to the others."""
    others = [sums for name, sums in folds.items() if name != fold]
    change = _solved(others, penalty, torch.float32)
    return inf if change is None else folds[fold].error_with(change)


def _solved(parts: Sequence[Sums], penalty: float, dtype: torch.dtype) -> torch.Tensor | None:
    """The change that is fitted to these parts; None if the penalty is too small for a matrix
    without full rank."""
    first = parts[0]
    ridge, cross = (each.to(dtype, copy=True) for each in (first.gram, first.cross.T))
    for each in parts[1:]:
        ridge += each.gram
        cross += each.cross.T
    ridge.diagonal().add_(penalty * float(ridge.diagonal().mean()))
    factor, info = ridge, torch.empty((), dtype=torch.int32, device=ridge.device)
    # in place: of a wide layer it takes gigabytes
    _, failed = torch.linalg.cholesky_ex(ridge, out=(factor, info))
    if failed:
        return None
    return torch.cholesky_solve(cross, factor).T.to(first.cross.dtype)


def gram_of(folds: Mapping[str, Sums]) -> torch.Tensor:
    """``G`` of all folds."""
    first, *others = folds.values()
    return sum((each.gram for each in others), first.gram)


def fit_bytes(width_in: int, width_out: int, num_folds: int) -> int:
    """Bytes of the sums of each fold, and of what ``fit`` needs beside them."""
    gram, cross = width_in * width_in, width_out * width_in
    sums = 4 * num_folds * (gram + cross)
    return sums + 8 * (gram + 2 * cross) + 4 * 4 * cross  # in float64; changes, and their products
