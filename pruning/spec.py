"""What to prune, on which text, how far: the whole input of one pruning run, as plain data."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from pruning.sleb import TooManyRemovals

MAX_CALIBRATION_TOKENS = 2**28  # a thousand times the paper's


class InvalidSpec(ValueError):
    """A setting is out of range; ``param`` is its dotted name in the request."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class Dataset(StrEnum):
    WIKITEXT2 = "wikitext2"
    C4 = "c4"
    FILE = "file"
    SELF = "self"  # text sampled from the dense model: needs no network and no licence


class Sampling(StrEnum):
    ROWS = "rows"  # num_samples raw rows joined, however few windows that gives: the reference code
    WINDOWS = "windows"  # num_samples windows of seqlen tokens: what the paper says


@dataclass(frozen=True)
class CalibrationSpec:
    """Calibration text: ``num_samples`` rows or windows, cut into windows of ``seqlen`` tokens."""

    dataset: Dataset = Dataset.SELF
    sampling: Sampling = Sampling.WINDOWS
    num_samples: int = 16
    seqlen: int = 128
    seed: int = 0
    path: str | None = None  # of the text or jsonl file, for dataset "file"

    def __post_init__(self) -> None:
        if not 1 <= self.num_samples <= 100_000:
            raise InvalidSpec(
                "calibration.num_samples", f"num_samples={self.num_samples}: expected 1 to 100000"
            )
        if not 2 <= self.seqlen <= 1_000_000:
            raise InvalidSpec(
                "calibration.seqlen", f"seqlen={self.seqlen}: expected 2 to 1000000 tokens"
            )
        if (num_tokens := self.num_samples * self.seqlen) > MAX_CALIBRATION_TOKENS:
            raise InvalidSpec(
                "calibration.num_samples",
                f"num_samples x seqlen is {num_tokens} tokens, the limit is "
                f"{MAX_CALIBRATION_TOKENS}; the paper uses 128 x 2048",
            )
        if not 0 <= self.seed < 2**32:
            raise InvalidSpec("calibration.seed", f"seed={self.seed}: expected 0 to 2**32 - 1")
        if (self.dataset is Dataset.FILE) != (self.path is not None):
            raise InvalidSpec(
                "calibration.path", "a path belongs to dataset 'file', and to no other"
            )


@dataclass(frozen=True)
class PruneSpec:
    """One pruning run. Exactly one of ``num_remove`` and ``sparsity`` says how far to go."""

    model: str
    num_remove: int | None = None
    sparsity: float | None = None  # removed / all blocks, rounded up: 0.2 of 32 blocks is 7
    calibration: CalibrationSpec = field(default_factory=CalibrationSpec)
    protect_first: int = 1
    protect_last: int = 1
    dtype: str = "auto"  # "auto" keeps the checkpoint's
    evaluate: bool = True  # perplexity of every prefix on held-out text

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise InvalidSpec("model", "model is empty: name a model or a model directory")
        if (self.num_remove is None) == (self.sparsity is None):
            raise InvalidSpec("num_remove", "give exactly one of num_remove and sparsity")
        if self.num_remove is not None and self.num_remove < 1:
            raise InvalidSpec("num_remove", f"num_remove={self.num_remove}: expected 1 or more")
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            raise InvalidSpec("sparsity", f"sparsity={self.sparsity}: expected between 0 and 1")
        if min(self.protect_first, self.protect_last) < 0:
            raise InvalidSpec("protect_first", "protect_first and protect_last must be 0 or more")
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise InvalidSpec(
                "dtype", f"dtype={self.dtype!r}: expected auto, float32, bfloat16 or float16"
            )

    def target(self, num_blocks: int) -> int:
        """How many of ``num_blocks`` blocks to remove."""
        if self.num_remove is not None:
            return self.num_remove
        assert self.sparsity is not None
        return math.ceil(round(self.sparsity * num_blocks, 9))  # 0.1 * 30 is 3.0000000000000004

    def num_evaluations(self, num_blocks: int, num_removed: int = 0) -> int:
        """Candidate losses that the search still needs: 189 for 7 of 32 blocks, 2 protected.

        Raises ``TooManyRemovals`` for a search that could not be finished.
        """
        num_remove = self.target(num_blocks)
        free = max(0, num_blocks - max(1, self.protect_first + self.protect_last))
        if num_remove > free:
            raise TooManyRemovals(
                f"cannot remove {num_remove} of {num_blocks} blocks: with the first "
                f"{self.protect_first} and last {self.protect_last} protected, {free} can go"
            )
        return sum(free - step for step in range(num_removed, num_remove))

    def digest(self) -> str:
        """Hex sha256 of every setting: equal specs, equal digests, on any machine."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "PruneSpec":
        """Inverse of ``to_dict``, through JSON as well."""
        calibration = dict(data["calibration"])
        calibration["dataset"] = Dataset(calibration["dataset"])
        calibration["sampling"] = Sampling(calibration["sampling"])
        return cls(**{**data, "calibration": CalibrationSpec(**calibration)})
