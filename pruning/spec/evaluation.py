"""``Evaluation``: on how much held-out text a pruned model is compared with the dense one."""

import math
from dataclasses import dataclass

from pruning.spec import InvalidSpec

MAX_WINDOWS = 512  # of a domain, where nothing else ends the evaluation
MAX_TOKENS = 2**28  # of a domain


@dataclass(frozen=True)
class Evaluation:
    """The held-out windows of each domain: a number, or as many as it takes.

    Without ``num_samples``, windows are added until the interval of the ratio of each depth as it
    is served reaches at most ``margin`` from it, on every domain, or ``max_seconds`` are spent.
    """

    num_samples: int | None = None  # windows of each domain
    seqlen: int | None = None  # tokens of a window; None: as many as in the calibration
    margin: float = 0.03  # relative: 0.03 is ±3 %
    max_seconds: float = 120.0  # the first windows of each domain are measured in any case

    def __post_init__(self) -> None:
        if self.num_samples is not None and not 1 <= self.num_samples <= 100_000:
            raise _refused("num_samples", self.num_samples, "1 to 100000 windows")
        if self.seqlen is not None and not 2 <= self.seqlen <= 1_000_000:
            raise _refused("seqlen", self.seqlen, "2 to 1000000 tokens")
        if (self.num_samples or 1) * (self.seqlen or 1) > MAX_TOKENS:
            raise _refused("num_samples", self.num_samples, f"at most {MAX_TOKENS} tokens in all")
        if not 0 < self.margin < 1:  # false for NaN
            raise _refused("margin", self.margin, "a share between 0 and 1, as 0.03 for ±3 %")
        if not 0 <= self.max_seconds < math.inf:
            raise _refused("max_seconds", self.max_seconds, "a finite number of seconds")

    @property
    def most_windows(self) -> int:
        """Of a domain."""
        return MAX_WINDOWS if self.num_samples is None else self.num_samples


def _refused(name: str, value: object, expected: str) -> InvalidSpec:
    return InvalidSpec(f"evaluation.{name}", f"evaluation.{name}={value}: expected {expected}")
