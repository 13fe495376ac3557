"""Windows to score, and rounds compared with each other."""

from collections.abc import Sequence

import pytest
import torch

from pruning.removal import Removal
from tests.support.tiny import VOCAB_SIZE

HIDDEN_SIZE = 32


def windows(num_windows: int = 5, seqlen: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, VOCAB_SIZE, (num_windows, seqlen), generator=generator)


def assert_equal(found: Sequence[Removal], expected: Sequence[Removal]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.block == theirs.block
        assert ours.scores == pytest.approx(dict(theirs.scores), abs=1e-5)
        assert ours.num_windows == theirs.num_windows
