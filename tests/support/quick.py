"""Less work than for users, where that changes nothing that a tiny model can show."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet

from pruning.spec.evaluation import FIRST_WINDOWS

LIMITS: Mapping[str, int] = {
    # of a domain: random models are never told apart, however many are measured
    "pruning.spec.evaluation.MAX_WINDOWS": FIRST_WINDOWS,
    # that a repair is fitted on: tiny models have 48 columns at most
    "pruning.data.sources.REPAIR_TOKENS": 2**11,
    # of each sample text: whole ones are a fifth of a pruning run
    "pruning.evaluation.samples.MAX_NEW_TOKENS": 3,
    # with which a checkpoint is verified, and the times of blocks are measured: a sixth together
    "pruning.checkpoints.verify_expected.NEW_TOKENS": 3,
    "pruning.models.timing.NUM_REPEATS": 3,
}


def slow_but(cases: Iterable[Any], *quick: object) -> list[ParameterSet]:
    """The cases of a test, which are slow tests except these."""
    return [pytest.param(case, marks=() if case in quick else pytest.mark.slow) for case in cases]
