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
        weighted = inputs * weights.unsqueeze(1)
        self.gram.addmm_(weighted.T, inputs)
        self.cross.addmm_(errors.T, weighted)
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
        explained = 2 * (change * self.cross).sum() - ((change @ self.gram) * change).sum()
        return 1.0 - float(explained.double() / self.squared)


@dataclass(frozen=True)
class Fit:
    """A change of a matrix [width_out, width_in] that is fitted to all folds, and the error that is
    left on each fold by a change fitted to the others, as a share of the error without.

    ``penalty`` is None where no change is the best one.
    """

    change: torch.Tensor
    penalty: float | None
    errors: Mapping[str, float]

    @property
    def worst(self) -> float:
        """The largest share of error that is left on a fold."""
        return max(self.errors.values())


def fit(folds: Mapping[str, Sums], penalties: Sequence[float] = PENALTIES) -> Fit:
    """The change with the penalty that is best on the worst fold when that fold is left out.

    A fold has the tokens of kinds of text that no other fold has. So the penalty is right for kinds
    that took no part, and not for more text of the same kinds, which a weaker one fits better. No
    change at all is one of the choices. With a rising penalty, the error on a fold falls and then
    rises, and so does the worst one. So the penalties are tried downhill from the middle one: a
    Cholesky factorisation for each fold takes less time than an eigendecomposition that would serve
    all penalties.
    """

    def tried(penalty: float) -> tuple[float, float, Mapping[str, float]]:
        errors = {name: _error_without(name, folds, penalty) for name in folds}
        return max(errors.values()), penalty, errors

    start = len(penalties) // 2
    middle = best = tried(penalties[start])
    for neighbours in (penalties[start + 1 :], penalties[:start][::-1]):
        for each in neighbours:
            found = tried(each)
            if not found[0] < best[0]:  # true for NaN
                break
            best = found
        if best is not middle:
            break
    worst, penalty, errors = best
    change = _solved([*folds.values()], penalty) if worst < 1.0 else None
    if change is None:
        unchanged = torch.zeros_like(next(iter(folds.values())).cross)
        return Fit(unchanged, None, dict.fromkeys(folds, 1.0))
    return Fit(change, penalty, errors)


def _error_without(fold: str, folds: Mapping[str, Sums], penalty: float) -> float:
    """The error that is left on this fold by a change that is fitted to the others."""
    change = _solved([sums for name, sums in folds.items() if name != fold], penalty)
    return inf if change is None else folds[fold].error_with(change)


def _solved(parts: Sequence[Sums], penalty: float) -> torch.Tensor | None:
    """The change that is fitted to these parts; None if the penalty is too small for a matrix
    without full rank."""
    first = parts[0]
    ridge, cross = first.gram.double(), first.cross.T.double()
    for each in parts[1:]:
        ridge += each.gram
        cross += each.cross.T
    ridge.diagonal().add_(penalty * float(ridge.diagonal().mean()))
    factor = ridge  # in place: of a wide layer it takes gigabytes
    _, failed = torch.linalg.cholesky_ex(ridge, out=(factor, _no_info(ridge)))
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


def _no_info(matrix: torch.Tensor) -> torch.Tensor:
    return torch.empty((), dtype=torch.int32, device=matrix.device)
