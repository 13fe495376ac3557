"""The quality gate: how much worse than the dense model a published model may be."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from types import MappingProxyType
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
    max_perplexity_ratio_of: Mapping[str, float] = field(default_factory=dict)  # by domain of text

    def __post_init__(self) -> None:
        drop = self.max_probe_drop
        if drop is None and self.max_perplexity_ratio is None and not self.max_perplexity_ratio_of:
            raise InvalidSpec(
                "gate",
                "gate: give at least one of max_probe_drop, max_perplexity_ratio and "
                "max_perplexity_ratio_of",
            )
        if drop is not None and not 0 <= drop < 1:
            raise InvalidSpec(
                "gate.max_probe_drop", f"max_probe_drop={drop}: expected 0 or more, below 1"
            )
        ratios = {"max_perplexity_ratio": self.max_perplexity_ratio} | {
            f"max_perplexity_ratio_of.{domain}": ratio
            for domain, ratio in self.max_perplexity_ratio_of.items()
        }
        for name, ratio in ratios.items():
            if ratio is not None and not 1 <= ratio < math.inf:
                raise InvalidSpec(
                    f"gate.{name}", f"{name}={ratio}: expected a finite number, 1 or more"
                )

    def to_wire(self) -> dict[str, Any]:
        """Without limits by domain if there are none, as in gates that are older than these."""
        data = asdict(self)
        if not self.max_perplexity_ratio_of:
            del data["max_perplexity_ratio_of"]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Gate":
        return cls(**{**data, "action": GateAction(data.get("action", GateAction.WARN))})


def gate_of(
    max_probe_drop: float | None = None,
    max_perplexity_ratio: float | None = None,
    action: GateAction = Gate.action,
    max_perplexity_ratio_of: Mapping[str, float] = MappingProxyType({}),
) -> Gate | None:
    """The gate with these limits, or None if there are none."""
    if max_probe_drop is None and max_perplexity_ratio is None and not max_perplexity_ratio_of:
        return None
    return Gate(max_probe_drop, max_perplexity_ratio, action, dict(max_perplexity_ratio_of))
