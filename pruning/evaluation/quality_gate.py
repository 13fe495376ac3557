"""The quality gate before publishing: the cost of the removals against the limits of the spec."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

from pruning.evaluation.probe import digest, probe_items
from pruning.evaluation.probe_run import answer
from pruning.evaluation.probe_scores import ProbeComparison, compare
from pruning.evaluation.pruned_losses import PrunedModel
from pruning.evaluation.quality import DomainQuality, Interval, Quality
from pruning.models.blocks import num_blocks
from pruning.search.dense_model import DenseModel
from pruning.spec.gate import Gate, GateAction


class QualityGateFailed(RuntimeError):
    """The pruned model exceeds a limit of the gate. ``param`` names the limit."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


def gated(
    gate: Gate,
    quality: Quality,
    ask: Callable[[], ProbeComparison],
    control: float | None = None,
) -> Quality:
    """Add the probe, if the gate needs it, and the warnings of the gate to ``quality``.

    A healed model is compared with its ``control``, a perplexity, where that is better than the
    dense model: what the text alone gives does not make up for removed blocks. Raises
    ``QualityGateFailed`` unless the gate only warns.
    """
    if gate.max_probe_drop is not None:
        quality = replace(quality, probe=ask())
    findings = _findings(gate, quality, control)
    if findings and gate.action is GateAction.REFUSE:
        reasons = "; ".join(findings.values())
        raise QualityGateFailed(
            next(iter(findings)),
            f"not published: {reasons}. Remove fewer blocks, calibrate on more text, or allow more",
        )
    return replace(quality, warnings=tuple(findings.values()))


def ask_both(dense: DenseModel, pruned: PrunedModel) -> ProbeComparison:
    """Run the probe on the dense and on the pruned model."""
    items, whole = probe_items(), PrunedModel(tuple(range(num_blocks(dense.model))))
    before, after = (
        answer(dense.forward(model.keep, own=model.own), dense.tokenizer, items)
        for model in (whole, pruned)
    )
    return compare(before, after, digest(items))


def _findings(gate: Gate, quality: Quality, control: float | None) -> dict[str, str]:
    """Map each exceeded limit to a sentence about it."""
    found = {}
    limit, probe = gate.max_probe_drop, quality.probe
    if limit is not None and probe is not None and probe.drop > limit:
        found["gate.max_probe_drop"] = (
            f"the probe's score went from {probe.dense.score:.3f} to {probe.pruned.score:.3f}, "
            f"a drop of {probe.drop:.3f} ± {probe.standard_error:.3f} where {limit} is allowed"
        )
    limit, curve = gate.max_perplexity_ratio, quality.perplexities
    if limit is not None and curve:
        whole = _Whole.of(curve[0], control)
        if not curve[-1] <= limit * whole.perplexity:  # NaN exceeds any limit
            found["gate.max_perplexity_ratio"] = (
                f"perplexity went from {whole} to {curve[-1]:.4g} on {quality.evaluated_on}, "
                f"{curve[-1] / whole.perplexity:.4g} times as much where {limit} is allowed"
            )
    for domain in quality.domains:
        limit = gate.max_perplexity_ratio_of.get(domain.domain)
        if limit is not None and (finding := _of_domain(domain, limit)) is not None:
            found[f"gate.max_perplexity_ratio_of.{domain.domain}"] = finding
    return found


def _of_domain(domain: DomainQuality, limit: float) -> str | None:
    """A sentence if the model as it is served exceeds the limit."""
    served, control = domain.served_after(len(domain.raw)), domain.control
    whole = _Whole.of(domain.dense.perplexity, control.perplexity if control else None)
    ratio = domain.ratio(served)
    if whole.is_control:
        ratio = Interval(served.perplexity / whole.perplexity, None, None)
    if ratio.value <= limit:
        return None
    return (
        f"perplexity on {domain.domain} went from {whole} to {served.perplexity:.4g} "
        f"({domain.text}), {ratio} times as much where {limit} is allowed"
    )


@dataclass(frozen=True)
class _Whole:
    """The model with all blocks that a pruned one is compared with."""

    perplexity: float
    is_control: bool

    @classmethod
    def of(cls, dense: float, control: float | None) -> Self:
        if control is not None and control < dense:
            return cls(control, is_control=True)
        return cls(dense, is_control=False)

    def __str__(self) -> str:
        return f"{self.perplexity:.4g}" + (" of the control" if self.is_control else "")
