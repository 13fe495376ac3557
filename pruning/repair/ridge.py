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
PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


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
    """A change of a matrix [width_out, width_in], and the error on each domain that is left with
    it, as a share of the error without. ``penalty`` is None where no change is the best one.
    """

    change: torch.Tensor
    penalty: float | None
    errors: Mapping[str, float]

    @property
    def worst(self) -> float:
        """The largest share of error that is left on a domain."""
        return max(self.errors.values())


def fit(train: Sums, selection: Mapping[str, Sums], penalties: Sequence[float] = PENALTIES) -> Fit:
    """The change fitted to ``train``, with the penalty that is best on the worst domain.

    ``selection`` has sums over tokens of each domain that are not in ``train``. No change at all is
    one of the choices, so no domain's squared error on ``selection`` grows. With a rising penalty,
    the error on a domain falls and then rises, and so does the worst one. So the penalties are
    tried downhill from the middle one: three or four Cholesky factorisations, which take less time
    than one eigendecomposition that would serve all penalties.
    """
    unit = float(train.gram.diagonal().double().mean())
    cross = train.cross.T.double()

    def tried(penalty: float) -> Fit:
        ridge = train.gram.double()
        ridge.diagonal().add_(penalty * unit)
        factor = ridge  # in place: of a wide layer it takes gigabytes
        _, failed = torch.linalg.cholesky_ex(ridge, out=(factor, _no_info(ridge)))
        if failed:  # too small a penalty for a matrix without full rank
            return _no_change(train, selection, penalty, inf)
        change = torch.cholesky_solve(cross, factor).T.to(train.cross.dtype)
        errors = {domain: sums.error_with(change) for domain, sums in selection.items()}
        return Fit(change, penalty, errors)

    start = len(penalties) // 2
    best = tried(penalties[start])
    for neighbours in (penalties[start + 1 :], penalties[:start][::-1]):
        first = best
        for penalty in neighbours:
            found = tried(penalty)
            if not found.worst < best.worst:  # true for NaN
                break
            best = found
        if best is not first:
            break
    return best if best.worst < 1.0 else _no_change(train, selection, None, 1.0)


def fit_bytes(width_in: int, width_out: int, num_domains: int) -> int:
    """Bytes of the sums of training and of each domain, and of what ``fit`` needs beside them."""
    gram, cross = width_in * width_in, width_out * width_in
    sums = 4 * (1 + num_domains) * (gram + cross)
    return sums + 8 * (gram + 2 * cross) + 4 * 4 * cross  # in float64; changes, and their products


def _no_info(matrix: torch.Tensor) -> torch.Tensor:
    return torch.empty((), dtype=torch.int32, device=matrix.device)


def _no_change(
    train: Sums, selection: Mapping[str, Sums], penalty: float | None, error: float
) -> Fit:
    return Fit(torch.zeros_like(train.cross), penalty, dict.fromkeys(selection, error))
