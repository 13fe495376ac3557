"""The measured quality of a pruned model and of its dense parent, as data.

``assess.py`` measures it, and the manifest of the checkpoint records it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pruning.evaluation.probe_scores import ProbeComparison
from pruning.evaluation.zero_shot import ZeroShot


@dataclass(frozen=True)
class Quantized:
    """The pruned model with quantized weights of its blocks."""

    weights: Literal["int8", "int4"]
    perplexity: float  # on the same held-out windows as the other perplexities


@dataclass(frozen=True)
class Quality:
    """The cost of the removals. Sequences are for 0, 1, 2 ... removed blocks, dense first."""

    losses: tuple[float, ...]  # nats per token on the calibration windows
    perplexities: tuple[float, ...] = ()  # on held-out windows; empty if not evaluated
    evaluated_on: str = ""  # text, windows and window length of the perplexities
    probe: ProbeComparison | None = None  # of the dense model and of all removals
    warnings: tuple[str, ...] = ()  # of the quality gate
    quantized: Quantized | None = None
    zero_shot: ZeroShot | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Quality":
        """Parse JSON. Fields that older releases did not write may be missing."""
        return cls(
            losses=tuple(data["losses"]),
            perplexities=tuple(data["perplexities"]),
            evaluated_on=data["evaluated_on"],
            probe=ProbeComparison.from_dict(probe) if (probe := data.get("probe")) else None,
            warnings=tuple(data.get("warnings", ())),
            quantized=Quantized(**given) if (given := data.get("quantized")) else None,
            zero_shot=ZeroShot.from_dict(asked) if (asked := data.get("zero_shot")) else None,
        )
