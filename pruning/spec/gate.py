"""The quality gate: how much worse than the dense model a published model may be."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pruning.spec import InvalidSpec


class GateAction(StrEnum):
    WARN = "warn"  # publish, with a warning in the manifest and the job's events
    REFUSE = "refuse"  # fail, and publish nothing


@dataclass(frozen=True)
class Gate:
    """Limits for the model after all removals, against the dense model. At least one is given."""

    max_probe_drop: float | None = None  # dense - pruned score of the probe, 0 to 1
    max_perplexity_ratio: float | None = None  # pruned / dense, on held-out windows
    action: GateAction = GateAction.WARN

    def __post_init__(self) -> None:
        drop, ratio = self.max_probe_drop, self.max_perplexity_ratio
        if drop is None and ratio is None:
            raise InvalidSpec("gate", "gate: give max_probe_drop, max_perplexity_ratio or both")
        if drop is not None and not 0 <= drop < 1:
            raise InvalidSpec(
                "gate.max_probe_drop", f"max_probe_drop={drop}: expected 0 or more, below 1"
            )
        if ratio is not None and not 1 <= ratio < math.inf:
            raise InvalidSpec(
                "gate.max_perplexity_ratio",
                f"max_perplexity_ratio={ratio}: expected a finite number, 1 or more",
            )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Gate":
        return cls(**{**data, "action": GateAction(data.get("action", GateAction.WARN))})


def gate_of(
    max_probe_drop: float | None, max_perplexity_ratio: float | None, action: GateAction
) -> Gate | None:
    """The gate with these limits, or None if there are none."""
    if max_probe_drop is None and max_perplexity_ratio is None:
        return None
    return Gate(max_probe_drop, max_perplexity_ratio, action)
