"""``PruneSpec``: what to prune, on which text, and how far."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, get_args

from pruning.plural import counted
from pruning.sleb import TooManyRemovals
from pruning.spec import InvalidSpec, TargetUnreachable, refused
from pruning.spec.calibration import (
    Calibration,
    Dataset,
    calibration_from,
    default_calibration,
)
from pruning.spec.evaluation import Evaluation, Gate
from pruning.spec.heal import Heal
from pruning.spec.tasks import PAPER_TASKS, check_tasks


class Metric(StrEnum):
    """What decides which block is removed next: metrics 1, 2 and 3 of the paper (arXiv 2402.09025,
    section 3), for windows of tokens w. The block with the lowest value is removed.
    """

    COSINE = "cosine"  # 1: 1 - cos(input, output of block j), mean over tokens, of the dense model
    ONE_SHOT = "one_shot"  # 2: mean of -log p(w_k | w_<k), of the dense model without block j alone
    SLEB = "sleb"  # 3: the same of the model as pruned so far without block j, in every round
    KL = "kl"  # not in the paper: mean of KL(p of the dense model || p of the model of metric 3)

    @property
    def has_rounds(self) -> bool:
        """Whether candidates are measured again after each removal."""
        return self in {Metric.SLEB, Metric.KL}


class Search(StrEnum):
    EXACT = "exact"  # every candidate on every window: the order of exhaustive greedy search
    STAGED = "staged"  # clearly worse candidates are dropped after a few windows


class Quantize(StrEnum):
    """Bits of quantized block weights, with which perplexity is measured as well."""

    INT8 = "int8"
    INT4 = "int4"
    W8A8 = "w8a8"  # int8, and the inputs of each product rounded to 8 bits by token

    @property
    def num_bits(self) -> int:
        return 4 if self is Quantize.INT4 else 8


class Resident(StrEnum):
    MODEL = "model"  # all weights on the device
    STREAM = "stream"  # blocks are loaded from disk one at a time


class Repair(StrEnum):
    """How the blocks that stay are corrected after the search, in closed form, at every depth."""

    AUTO = "auto"  # ridge, or none where that does harm to a domain
    RIDGE = "ridge"  # matrices in front of and behind missing blocks, fitted by least squares
    SCALE = "scale"  # of earlier releases: one factor of the hidden states behind each gap
    NONE = "none"


# Settings that are younger than published checkpoints, with the value that specs without them imply
_LATER: Mapping[str, object] = {
    "metric": Metric.SLEB,
    "gate": None,
    "quantize": None,
    "tasks": (),
    "task_questions": 200,
    "repair": Repair.NONE,
    "heal": None,
    "evaluation": None,
    "save_dtype": None,
    "target_bytes": None,
}
# Settings that no longer exist, with the reason. Older checkpoints and jobs may have used them.
REMOVED: Mapping[str, str] = {
    "refine": "exchanges after the search found blocks that were no better on other text",
    "score_repaired": "orders chosen for repaired models were no better on other text",
}
# The settings of what follows the search: they may change without a candidate being scored again
BEHIND_SEARCH = (
    *("evaluate", "evaluation", "gate", "quantize", "tasks", "task_questions", "repair", "heal"),
    *("resident", "save_dtype"),
)
# The settings that say how far to prune, with the open interval that their value must lie in
TARGETS: Mapping[str, tuple[float, float]] = {
    "num_remove": (0, math.inf),
    "sparsity": (0, 1),
    "max_perplexity_ratio": (1, math.inf),
    "target_speedup": (1, math.inf),
    "target_bytes": (0, math.inf),
}
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class PruneSpec:
    """One pruning run. Exactly one of ``TARGETS`` says how far to prune.

    The HTTP body and the command line take their defaults from here.
    """

    model: str
    num_remove: int | None = None
    sparsity: float | None = None  # removed / all blocks, rounded up: 0.2 of 32 blocks is 7
    max_perplexity_ratio: float | None = None  # pruned / dense, on the calibration windows
    target_speedup: float | None = None  # dense / pruned time of a decode step, on this device
    target_bytes: int | None = None  # of the published weights
    calibration: Calibration = field(default_factory=default_calibration)
    protect_first: int = 1
    protect_last: int = 1
    dtype: str = "auto"  # "auto" keeps the checkpoint's
    evaluate: bool = True  # perplexity of every prefix on held-out text
    metric: Metric = Metric.SLEB
    search: Search = Search.EXACT
    resident: Resident = Resident.MODEL
    gate: Gate | None = None  # limits for the published model
    quantize: Quantize | None = None  # measure perplexity with such weights too
    tasks: tuple[str, ...] = ()  # zero-shot tasks and generated ones, of dense and pruned
    task_questions: int | None = 200  # of each task, the first ones; None: all
    repair: Repair = Repair.AUTO  # of every depth
    heal: Heal | None = None  # train the pruned model in the end, and publish that as well
    evaluation: Evaluation | None = field(default_factory=Evaluation)  # None: as many as calibrate
    save_dtype: str | None = "auto"  # of the published weights: the checkpoint's; None: ``dtype``
    removed: Mapping[str, Any] = field(default_factory=dict)  # of ``REMOVED``, as an older run had

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise InvalidSpec(
                "model", "model is empty: expected the name of a model or a model directory"
            )
        self._check_target()
        if min(self.protect_first, self.protect_last) < 0:
            raise InvalidSpec("protect_first", "protect_first and protect_last must be 0 or more")
        for name in ("dtype", "save_dtype"):
            value = getattr(self, name)
            if value not in get_args(Dtype) and (name, value) != ("save_dtype", None):
                expected = "expected auto, float32, bfloat16 or float16"
                raise InvalidSpec(name, f"{name}={value!r}: {expected}")
        self._check_search()
        self._check_text()
        self._check_measures()
        check_tasks(self.tasks, self.task_questions, self.gate)

    def check_runnable(self) -> None:
        """Raises ``InvalidSpec`` if this release lacks a setting that an older one had."""
        for name in self.removed:
            raise InvalidSpec(
                name,
                f"{name} was removed, because {REMOVED[name]}: submit the job again without it",
            )

    def _check_search(self) -> None:
        if self.search is Search.STAGED and not self.metric.has_rounds:
            raise InvalidSpec(
                "search",
                f"search=staged is not supported with metric={self.metric}, which ranks all "
                "candidates only once: use search=exact, or metric=sleb or kl",
            )

    def _check_text(self) -> None:
        datasets = {source.dataset for source in self.calibration.parts}
        if self.resident is Resident.STREAM and Dataset.SELF in datasets:
            raise InvalidSpec(
                "calibration.dataset",
                "calibration on self is not supported with resident=stream, because sampling "
                "text needs the whole model in memory: choose another calibration text, e.g. "
                "the default",
            )

    def _check_measures(self) -> None:
        needs_text = {
            "gate.max_perplexity_ratio": self.gate and self.gate.max_perplexity_ratio is not None,
            "gate.max_perplexity_ratio_of": self.gate and bool(self.gate.max_perplexity_ratio_of),
            "quantize": self.quantize is not None,
        }
        needs_model = {
            "quantize": self.quantize is not None,
            "tasks": bool(self.tasks),
            "heal": self.heal is not None,
        }
        for name, is_asked in needs_text.items():
            if is_asked and not self.evaluate:
                raise InvalidSpec(name, f"{name} requires evaluate: leave evaluate on")
        for name, is_asked in needs_model.items():
            if is_asked and self.resident is Resident.STREAM:
                raise InvalidSpec(
                    name, f"{name} requires the whole model in memory: use resident=model"
                )

    def _check_target(self) -> None:
        targets = {name: value for name in TARGETS if (value := getattr(self, name)) is not None}
        if len(targets) != 1:
            raise InvalidSpec(
                next(reversed(targets), "num_remove"),
                "expected exactly one of num_remove, sparsity, max_perplexity_ratio, "
                f"target_speedup and target_bytes, got {' and '.join(targets) or 'none'}",
            )
        [(name, value)] = targets.items()
        low, high = TARGETS[name]
        if low < value < high:  # false for NaN
            return
        expected = "1 or more" if name == "num_remove" else f"a finite number above {low}"
        expected = f"between {low} and {high}" if high < math.inf else expected
        raise refused(name, value, expected)

    @property
    def _target(self) -> str:
        """The name of the setting that says how far to prune."""
        return next(name for name in TARGETS if getattr(self, name) is not None)

    def most_removals(self, num_blocks: int) -> int:
        """The number of blocks to remove, or an upper bound where it depends on the search."""
        if self.num_remove is not None:
            return self.num_remove
        if self.sparsity is not None:  # 0.1 * 30 is 3.0000000000000004
            return max(1, math.ceil(round(self.sparsity * num_blocks, 9)))
        return self._free(num_blocks)

    def exceeds(self, loss: float, dense_loss: float) -> bool:
        """Whether a removal with this calibration loss exceeds ``max_perplexity_ratio``.

        Losses are in nats per token. False for a spec with another target.
        """
        ratio = self.max_perplexity_ratio
        return ratio is not None and loss - dense_loss > math.log(ratio)

    def num_evaluations(self, num_blocks: int, num_removed: int = 0) -> int:
        """How many candidate evaluations the search still needs after ``num_removed`` removals:
        189 to remove 7 of 32 blocks, 2 of them protected.

        Metrics 1 and 2 need one for each candidate of the dense model, and one after each removal.
        Exact for ``num_remove`` and ``sparsity``, and otherwise an upper bound.
        Raises ``TooManyRemovals`` or ``TargetUnreachable`` for a search that cannot succeed.
        """
        num_remove, free = self.most_removals(num_blocks), self._free(num_blocks)
        if not 1 <= num_remove <= free:
            raise TooManyRemovals(
                self._target,
                f"cannot remove {max(1, num_remove)} of {num_blocks} blocks: with the first "
                f"{self.protect_first} and the last {self.protect_last} protected, only {free} "
                "can be removed",
            )
        self._check_reachable(num_blocks, free)
        candidates = max(0, num_blocks - self.protect_first - self.protect_last)  # of round 1
        if not self.metric.has_rounds:
            return (0 if num_removed else candidates) + num_remove - num_removed
        return sum(candidates - step for step in range(num_removed, num_remove))

    @property
    def is_depth_open(self) -> bool:
        """Whether the search decides how many blocks are removed."""
        return self.num_remove is None and self.sparsity is None

    @property
    def is_depth_planned(self) -> bool:
        """Whether the number of blocks is decided once the model is loaded, before the search."""
        return self.target_speedup is not None or self.target_bytes is not None

    def _free(self, num_blocks: int) -> int:
        return max(0, num_blocks - max(1, self.protect_first + self.protect_last))

    def _check_reachable(self, num_blocks: int, free: int) -> None:
        most = num_blocks / (num_blocks - free)  # if embeddings and head took no time
        if self.target_speedup is not None and self.target_speedup > most:
            raise TargetUnreachable(
                "target_speedup",
                f"target_speedup={self.target_speedup} cannot be reached: removing all "
                f"{counted(free, 'removable block')} of {num_blocks} gives at most {most:.4g}; "
                "reduce the target, or protect fewer blocks",
            )

    @property
    def published_dtype(self) -> str:
        """The type of the published weights; ``auto`` is that of the dense model's files."""
        return self.dtype if self.save_dtype is None else self.save_dtype

    def digest(self) -> str:
        """Hex sha256 of every setting: equal for equal specs, on any machine.

        Settings of ``_LATER`` count only if they differ from what older specs imply, so that the
        digests of those stay valid.
        """
        return self._digest_without()

    def search_digest(self) -> str:
        """The same of those settings that the search depends on: with it, losses compare."""
        return self._digest_without(*BEHIND_SEARCH)

    def _digest_without(self, *names: str) -> str:
        implied = (name for name in _LATER if getattr(self, name) == _LATER[name])
        left_out = {*names, *implied}
        settings = {name: value for name, value in self.to_dict().items() if name not in left_out}
        if self.heal is not None and "heal" in settings:
            settings["heal"] = self.heal.digested()
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def resolved(self, locate: Callable[[str], Path]) -> "PruneSpec":
        """The same spec with ``locate(path)`` in place of every path of a calibration text.

        What ``locate`` raises as ``InvalidSpec`` names the source.
        """
        calibration = self.calibration.resolved(lambda path: str(locate(path)))
        return replace(self, calibration=calibration)

    def to_dict(self) -> dict[str, Any]:
        settings = asdict(self)
        settings["tasks"] = [*self.tasks]
        settings["gate"] = None if self.gate is None else self.gate.to_wire()
        settings["heal"] = None if self.heal is None else self.heal.to_dict()
        settings["calibration"] = self.calibration.to_wire()
        del settings["removed"]
        return {**settings, **self.removed}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "PruneSpec":
        """Inverse of ``to_dict``, also after JSON.

        Missing fields take their defaults, and those of ``_LATER`` what older specs imply: a job
        that an earlier release has queued runs as it was submitted. Those of ``REMOVED`` are kept,
        so that its digests differ from those of runs without them. Raises ``InvalidSpec``.
        """
        removed = {name: value for name in REMOVED if (value := data.get(name))}
        data = _renamed({name: data[name] for name in data if name not in REMOVED})
        data = {**_LATER, **data, "tasks": tuple(data.get("tasks", ()))}
        kinds = {
            "metric": Metric,
            "search": Search,
            "resident": Resident,
            "quantize": Quantize,
            "repair": Repair,
        }
        named = {name: data[name] for name in kinds if data.get(name) is not None}
        enums = {name: kinds[name](value) for name, value in named.items()}
        gate = Gate.from_dict(limits) if (limits := data.get("gate")) else None
        calibration = calibration_from(data.get("calibration", {}))
        heal = Heal.from_dict(settings) if (settings := data.get("heal")) is not None else None
        measured = data.get("evaluation")
        evaluation = None if measured is None else Evaluation(**measured)
        parts = {"calibration": calibration, "gate": gate, "heal": heal, "evaluation": evaluation}
        return cls(**{**data, **enums, **parts, "removed": removed})


def _renamed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Specs of before ``tasks`` had ``zero_shot`` for the paper's, with all their questions."""
    left = {name: value for name, value in data.items() if name != "zero_shot"}
    return {**left, "tasks": PAPER_TASKS, "task_questions": None} if data.get("zero_shot") else left
