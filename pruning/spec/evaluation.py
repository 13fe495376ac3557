"""How a pruned model is judged: ``Evaluation`` on held-out text, and the limits of a ``Gate``."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from pruning.spec import InvalidSpec, refused

MAX_WINDOWS = 512  # of a domain, where nothing else ends the evaluation
MAX_TOKENS = 2**28  # of a domain
USUAL_TOKENS = 512  # of a window: pruned models lose more on long text than on short
FIRST_WINDOWS = 24  # of each domain: intervals of fewer hold the mean of skewed losses too seldom


@dataclass(frozen=True)
class Evaluation:
    """The held-out windows of each domain: a number, or as many as it takes.

    Without ``num_samples``, windows are added until the interval of the ratio of each depth as it
    is served reaches at most ``margin`` from it, on every domain, or ``max_seconds`` are spent.

    Without ``seqlen``, windows have ``USUAL_TOKENS``, or as many tokens as those of the calibration
    if these are longer, the context of the model is shorter, or a text gives too few such windows.
    """

    num_samples: int | None = None  # windows of each domain
    seqlen: int | None = None  # tokens of a window
    margin: float = 0.03  # relative: 0.03 is ±3 %
    max_seconds: float = 120.0  # the first windows of each domain are measured in any case

    def __post_init__(self) -> None:
        if self.num_samples is not None and not 1 <= self.num_samples <= 100_000:
            raise refused("evaluation.num_samples", self.num_samples, "1 to 100000 windows")
        if self.seqlen is not None and not 2 <= self.seqlen <= 1_000_000:
            raise refused("evaluation.seqlen", self.seqlen, "2 to 1000000 tokens")
        if (self.num_samples or 1) * (self.seqlen or 1) > MAX_TOKENS:
            raise refused(
                "evaluation.num_samples", self.num_samples, f"at most {MAX_TOKENS} tokens in total"
            )
        if not 0 < self.margin < 1:  # false for NaN
            raise refused(
                "evaluation.margin", self.margin, "a fraction between 0 and 1, e.g. 0.03 for ±3 %"
            )
        if not 0 <= self.max_seconds < math.inf:
            raise refused("evaluation.max_seconds", self.max_seconds, "a finite number of seconds")

    @property
    def most_windows(self) -> int:
        """Of a domain."""
        return MAX_WINDOWS if self.num_samples is None else self.num_samples

    @property
    def first_windows(self) -> int:
        """Of a domain, if there are as many."""
        return FIRST_WINDOWS if self.num_samples is None else self.num_samples

    def as_measured(self, seqlen: int | None) -> "Evaluation":
        """The same with windows as long as those of an earlier measurement, if there was one."""
        return self if seqlen is None else replace(self, seqlen=seqlen)


class GateAction(StrEnum):
    WARN = "warn"  # publish, with a warning in the manifest and the job's events
    REFUSE = "refuse"  # fail, and publish nothing
    DEEPEST = "deepest"  # publish the most removals that keep every limit; fail if none do


@dataclass(frozen=True)
class Gate:
    """Limits for the published model, against the dense model. At least one is given."""

    max_probe_drop: float | None = None  # dense - pruned score of the probe, 0 to 1
    max_perplexity_ratio: float | None = None  # pruned / dense, on held-out windows
    action: GateAction = GateAction.WARN
    max_perplexity_ratio_of: Mapping[str, float] = field(default_factory=dict)  # by domain of text
    min_task_share: float | None = None  # of dense accuracy above chance, on the worst task

    def __post_init__(self) -> None:
        drop, share = self.max_probe_drop, self.min_task_share
        limits = (drop, share, self.max_perplexity_ratio, self.max_perplexity_ratio_of or None)
        if all(limit is None for limit in limits):
            raise InvalidSpec(
                "gate",
                "gate: expected at least one of max_probe_drop, max_perplexity_ratio, "
                "max_perplexity_ratio_of and min_task_share",
            )
        if drop is not None and not 0 <= drop < 1:
            raise refused("gate.max_probe_drop", drop, "0 or more, below 1", "max_probe_drop")
        if share is not None and not 0 <= share <= 1:
            raise refused("gate.min_task_share", share, "0 to 1", "min_task_share")
        ratios = {"max_perplexity_ratio": self.max_perplexity_ratio} | {
            f"max_perplexity_ratio_of.{domain}": ratio
            for domain, ratio in self.max_perplexity_ratio_of.items()
        }
        for name, ratio in ratios.items():
            if ratio is not None and not 1 <= ratio < math.inf:
                raise refused(f"gate.{name}", ratio, "a finite number, 1 or more", name)

    def to_wire(self) -> dict[str, Any]:
        """Without limits by domain and of tasks if there are none, as in gates that are older."""
        later = ("max_perplexity_ratio_of", "min_task_share")
        unset = [name for name in later if getattr(self, name) in (None, {})]
        return {name: value for name, value in asdict(self).items() if name not in unset}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Gate":
        return cls(**{**data, "action": GateAction(data.get("action", GateAction.WARN))})


def gate_of(**limits: Any) -> Gate | None:  # noqa: ANN401 - the fields of a gate
    """The gate with these fields, or None if none of them is a limit."""
    named = {name: value for name, value in limits.items() if name != "action"}
    if all(value is None or value == {} for value in named.values()):
        return None
    return Gate(**limits)
