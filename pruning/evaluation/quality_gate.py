"""The gate in front of publishing: what the removals have cost, against what they may cost."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from pruning.evaluation.probe import digest, probe_items
from pruning.evaluation.probe_run import answer
from pruning.evaluation.probe_scores import Comparison, compare
from pruning.evaluation.quality import Quality
from pruning.models.blocks import num_blocks
from pruning.removal import kept
from pruning.search.dense_model import DenseModel
from pruning.spec.gate import Gate, GateAction


class QualityGateFailed(RuntimeError):
    """The pruned model is worse than its gate allows; ``param`` names the limit."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


def gated(gate: Gate, quality: Quality, ask: Callable[[], Comparison]) -> Quality:
    """``quality`` with what the gate has found: the probe, if it has to be asked, and warnings.

    Raises ``QualityGateFailed`` where the gate does not only warn.
    """
    if gate.max_probe_drop is not None:
        quality = replace(quality, probe=ask())
    findings = _findings(gate, quality)
    if findings and gate.action is GateAction.REFUSE:
        reasons = "; ".join(findings.values())
        raise QualityGateFailed(
            next(iter(findings)),
            f"not published: {reasons}. Remove fewer blocks, calibrate on more text, or allow more",
        )
    return replace(quality, warnings=tuple(findings.values()))


def ask_both(dense: DenseModel, removed: Sequence[int]) -> Comparison:
    """The probe's scores of the dense model and of the one without these blocks."""
    items, depth = probe_items(), num_blocks(dense.model)
    before, after = (
        answer(dense.forward(kept(depth, gone)), dense.tokenizer, items) for gone in ((), removed)
    )
    return compare(before, after, digest(items))


def _findings(gate: Gate, quality: Quality) -> dict[str, str]:
    """What is beyond a limit, by the name of the limit."""
    found = {}
    limit, probe = gate.max_probe_drop, quality.probe
    if limit is not None and probe is not None and probe.drop > limit:
        found["gate.max_probe_drop"] = (
            f"the probe's score went from {probe.dense.score:.3f} to {probe.pruned.score:.3f}, "
            f"a drop of {probe.drop:.3f} ± {probe.standard_error:.3f} where {limit} is allowed"
        )
    limit, curve = gate.max_perplexity_ratio, quality.perplexities
    if limit is not None and curve and not curve[-1] <= limit * curve[0]:  # NaN is too much
        found["gate.max_perplexity_ratio"] = (
            f"perplexity went from {curve[0]:.4g} to {curve[-1]:.4g} on {quality.evaluated_on}, "
            f"{curve[-1] / curve[0]:.4g} times as much where {limit} is allowed"
        )
    return found
