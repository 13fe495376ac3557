"""What to prune, on which text, how far: the whole input of one pruning run, as plain data."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from pruning.sleb import TooManyRemovals

MAX_CALIBRATION_TOKENS = 2**28  # a thousand times the paper's


class InvalidSpec(ValueError):
    """A setting is out of range; ``param`` is its dotted name in the request."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class TargetUnreachable(ValueError):
    """No number of removals gives what the setting ``param`` asks for."""

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


class Search(StrEnum):
    EXACT = "exact"  # every candidate on every window: the order of exhaustive greedy search
    STAGED = "staged"  # candidates race, and those clearly worse leave after a few windows


class Resident(StrEnum):
    MODEL = "model"  # all weights on the device
    STREAM = "stream"  # block weights stay on disk and visit the device one block at a time


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


# how far to go, each with the range that a number of it must lie in, both ends excluded
_TARGETS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "num_remove": (0, math.inf),
        "sparsity": (0, 1),
        "max_perplexity_ratio": (1, math.inf),
        "target_speedup": (1, math.inf),
    }
)
_DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class PruneSpec:
    """One pruning run. Exactly one of the first four numbers says how far to go."""

    model: str
    num_remove: int | None = None
    sparsity: float | None = None  # removed / all blocks, rounded up: 0.2 of 32 blocks is 7
    max_perplexity_ratio: float | None = None  # pruned / dense, on the calibration windows
    target_speedup: float | None = None  # dense / pruned time of a decode step, on this device
    calibration: CalibrationSpec = field(default_factory=CalibrationSpec)
    protect_first: int = 1
    protect_last: int = 1
    dtype: str = "auto"  # "auto" keeps the checkpoint's
    evaluate: bool = True  # perplexity of every prefix on held-out text
    search: Search = Search.EXACT
    resident: Resident = Resident.MODEL

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise InvalidSpec("model", "model is empty: name a model or a model directory")
        self._check_target()
        if min(self.protect_first, self.protect_last) < 0:
            raise InvalidSpec("protect_first", "protect_first and protect_last must be 0 or more")
        if self.dtype not in _DTYPES:
            raise InvalidSpec(
                "dtype", f"dtype={self.dtype!r}: expected auto, float32, bfloat16 or float16"
            )
        if self.resident is Resident.STREAM and self.calibration.dataset is Dataset.SELF:
            raise InvalidSpec(
                "calibration.dataset",
                "text sampled from the model needs the whole model in memory: with "
                "resident=stream calibrate on a file, wikitext2 or c4",
            )

    def _check_target(self) -> None:
        given = {name: value for name in _TARGETS if (value := getattr(self, name)) is not None}
        if len(given) != 1:
            raise InvalidSpec(
                next(reversed(given), "num_remove"),
                "give exactly one of num_remove, sparsity, max_perplexity_ratio and "
                f"target_speedup, not {' and '.join(given) or 'none'}",
            )
        [(name, value)] = given.items()
        low, high = _TARGETS[name]
        if low < value < high:  # false for NaN
            return
        expected = "1 or more" if name == "num_remove" else f"a finite number above {low}"
        expected = f"between {low} and {high}" if high < math.inf else expected
        raise InvalidSpec(name, f"{name}={value}: expected {expected}")

    def most_removals(self, num_blocks: int) -> int:
        """How many of ``num_blocks`` blocks to remove; all that are free where only the search
        shows how far it may go.
        """
        if self.num_remove is not None:
            return self.num_remove
        if self.sparsity is not None:  # 0.1 * 30 is 3.0000000000000004
            return max(1, math.ceil(round(self.sparsity * num_blocks, 9)))
        return self._free(num_blocks)

    def passes(self, loss: float, dense_loss: float) -> bool:
        """Whether a removal with this calibration loss goes beyond ``max_perplexity_ratio``.

        Losses are nats per token; False for a spec with another target.
        """
        ratio = self.max_perplexity_ratio
        return ratio is not None and loss - dense_loss > math.log(ratio)

    def num_evaluations(self, num_blocks: int, num_removed: int = 0) -> int:
        """Candidate losses that the search still needs: 189 for 7 of 32 blocks, 2 protected.

        Exact for ``num_remove`` and ``sparsity``, an upper bound for the other two. Raises
        ``TooManyRemovals`` or ``TargetUnreachable`` for a search that could not be finished.
        """
        num_remove, free = self.most_removals(num_blocks), self._free(num_blocks)
        if not 1 <= num_remove <= free:
            raise TooManyRemovals(
                f"cannot remove {max(1, num_remove)} of {num_blocks} blocks: with the first "
                f"{self.protect_first} and last {self.protect_last} protected, {free} can go"
            )
        self._check_reachable(num_blocks, free)
        return sum(free - step for step in range(num_removed, num_remove))

    def _free(self, num_blocks: int) -> int:
        return max(0, num_blocks - max(1, self.protect_first + self.protect_last))

    def _check_reachable(self, num_blocks: int, free: int) -> None:
        most = num_blocks / (num_blocks - free)  # were embeddings and head to cost nothing
        if self.target_speedup is not None and self.target_speedup > most:
            raise TargetUnreachable(
                "target_speedup",
                f"target_speedup={self.target_speedup} is out of reach: without all {free} free "
                f"blocks of {num_blocks} it cannot be more than {most:.4g}; ask for less or "
                "protect fewer blocks",
            )

    def digest(self) -> str:
        """Hex sha256 of every setting: equal specs, equal digests, on any machine."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "PruneSpec":
        """Inverse of ``to_dict``, through JSON as well; what is missing takes its default."""
        calibration = _typed(data.get("calibration", {}), dataset=Dataset, sampling=Sampling)
        values = _typed(data, search=Search, resident=Resident)
        return cls(**{**values, "calibration": CalibrationSpec(**calibration)})


def _typed(data: Mapping[str, Any], **kinds: type[StrEnum]) -> dict[str, Any]:
    enums = {name: kind(data[name]) for name, kind in kinds.items() if name in data}
    return {**data, **enums}
