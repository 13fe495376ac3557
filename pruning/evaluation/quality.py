"""What was measured of a pruned model, and of its dense parent on the same questions, as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pruning.evaluation.probe_scores import Comparison
from pruning.evaluation.zero_shot import ZeroShot


@dataclass(frozen=True)
class Quantized:
    """The model without all that went, its blocks' weights in few bits on top of that."""

    weights: Literal["int8", "int4"]
    perplexity: float  # on the held-out windows of the others


@dataclass(frozen=True)
class Quality:
    """What the removals cost, for 0, 1, 2 ... blocks removed; losses in nats per token."""

    losses: tuple[float, ...]  # on the calibration windows, dense first
    perplexities: tuple[float, ...] = ()  # on held-out windows, dense first; empty: not evaluated
    evaluated_on: str = ""  # text, windows and window length behind the perplexities
    probe: Comparison | None = None  # with none and with all of the removals
    warnings: tuple[str, ...] = ()  # of the gate, in words
    quantized: Quantized | None = None
    zero_shot: ZeroShot | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Quality":
        """Of JSON; what came later than the first releases may be missing."""
        return cls(
            losses=tuple(data["losses"]),
            perplexities=tuple(data["perplexities"]),
            evaluated_on=data["evaluated_on"],
            probe=Comparison.from_dict(probe) if (probe := data.get("probe")) else None,
            warnings=tuple(data.get("warnings", ())),
            quantized=Quantized(**given) if (given := data.get("quantized")) else None,
            zero_shot=ZeroShot.from_dict(asked) if (asked := data.get("zero_shot")) else None,
        )
