"""The quality gate before publishing: the cost of the removals against the limits of the spec."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from pruning.evaluation.probe import digest, probe_items
from pruning.evaluation.probe_run import answer
from pruning.evaluation.pruned_losses import PrunedModel
from pruning.evaluation.quality import DomainQuality, Interval, Quality
from pruning.evaluation.results import ProbeComparison, compare
from pruning.evaluation.verdict import Verdict
from pruning.search.dense_model import DenseModel
from pruning.spec.evaluation import Gate, GateAction

_Z = 1.959964  # of a 95 % interval


class QualityGateFailed(RuntimeError):
    """The pruned model exceeds a limit of the gate. ``param`` names the limit."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class _Finding:
    """A limit that is not kept, or not for sure: ``param`` is its name in the spec."""

    param: str
    verdict: Verdict
    reason: str


def gated(
    gate: Gate,
    quality: Quality,
    ask: Callable[[], ProbeComparison],
    ratio: Interval | None = None,
    control: float | None = None,
) -> Quality:
    """Add the probe, if the gate needs it, and the warnings of the gate to ``quality``.

    ``ratio`` is that of the perplexities, with its interval where it is known. A healed model is
    compared with its ``control``, a perplexity, where that is better than the dense model: what the
    text alone gives does not make up for removed blocks. What is undecided is a warning. Raises
    ``QualityGateFailed`` for what exceeds a limit, unless the gate only warns.
    """
    if gate.max_probe_drop is not None:
        quality = replace(quality, probe=ask())
    findings = _findings(gate, quality, ratio, control)
    exceeded = {each.param: each.reason for each in findings if each.verdict is Verdict.EXCEEDED}
    if exceeded and gate.action is GateAction.REFUSE:
        reasons = "; ".join(exceeded.values())
        raise QualityGateFailed(
            next(iter(exceeded)),
            f"not published: {reasons}. Remove fewer blocks, calibrate on more text, or allow more",
        )
    return replace(quality, warnings=tuple(each.reason for each in findings))


def is_known(gate: Gate, quality: Quality, ratio: Interval | None) -> bool:
    """Whether more windows would not change what the gate says of perplexities."""
    ratios = [(gate.max_perplexity_ratio, ratio)]
    for domain in quality.domains:
        limit = gate.max_perplexity_ratio_of.get(domain.domain)
        ratios.append((limit, domain.ratio(domain.served_after(len(domain.raw)))))
    verdicts = [
        Verdict.of(interval, limit)
        for limit, interval in ratios
        if limit is not None and interval is not None
    ]
    return Verdict.UNDECIDED not in verdicts


def ask_both(dense: DenseModel, pruned: PrunedModel) -> ProbeComparison:
    """Run the probe on the dense and on the pruned model."""
    items, whole = probe_items(), PrunedModel(dense.every_block)
    before, after = (
        answer(dense.forward(model.keep, own=model.own), dense.tokenizer, items)
        for model in (whole, pruned)
    )
    return compare(before, after, digest(items))


def _findings(
    gate: Gate, quality: Quality, ratio: Interval | None, control: float | None
) -> list[_Finding]:
    """The limits that are exceeded or undecided, each with a sentence about it."""
    findings = [
        _of_probe(gate.max_probe_drop, quality),
        _of_text(gate.max_perplexity_ratio, quality, ratio, control),
    ]
    for domain in quality.domains:
        limit = gate.max_perplexity_ratio_of.get(domain.domain)
        findings.append(None if limit is None else _of_domain(domain, limit))
    return [each for each in findings if each is not None]


def _of_probe(limit: float | None, quality: Quality) -> _Finding | None:
    probe = quality.probe
    if limit is None or probe is None:
        return None
    reach = _Z * probe.standard_error
    drop = Interval(probe.drop, probe.drop - reach, probe.drop + reach)
    what = (
        f"the probe's score went from {probe.dense.score:.3f} to {probe.pruned.score:.3f}, "
        f"a drop of {probe.drop:.3f} ± {probe.standard_error:.3f} where {limit} is allowed"
    )
    return _finding("gate.max_probe_drop", drop, limit, what)


def _of_text(
    limit: float | None, quality: Quality, ratio: Interval | None, control: float | None
) -> _Finding | None:
    curve = quality.perplexities
    if limit is None or not curve:
        return None
    whole, ratio = _compared(curve[0], curve[-1], control, ratio)
    what = (
        f"perplexity went from {whole} to {curve[-1]:.4g} on {quality.evaluated_on}, "
        f"{ratio} times as much where {limit} is allowed"
    )
    return _finding("gate.max_perplexity_ratio", ratio, limit, what)


def _of_domain(domain: DomainQuality, limit: float) -> _Finding | None:
    served, control = domain.served_after(len(domain.raw)), domain.control
    whole, ratio = _compared(
        domain.dense.perplexity,
        served.perplexity,
        control.perplexity if control else None,
        domain.ratio(served),
    )
    what = (
        f"perplexity on {domain.domain} went from {whole} to {served.perplexity:.4g} "
        f"({domain.text}), {ratio} times as much where {limit} is allowed"
    )
    return _finding(f"gate.max_perplexity_ratio_of.{domain.domain}", ratio, limit, what)


def _compared(
    dense: float, served: float, control: float | None, ratio: Interval | None
) -> tuple[str, Interval]:
    """The perplexity that a model is compared with, in words, and its ratio to that."""
    if control is not None and control < dense:
        return f"{control:.4g} of the control", Interval(served / control, None, None)
    return f"{dense:.4g}", ratio or Interval(served / dense, None, None)


def _finding(param: str, interval: Interval, limit: float, what: str) -> _Finding | None:
    verdict = Verdict.of(interval, limit)
    if verdict is Verdict.KEPT:
        return None
    if verdict is Verdict.UNDECIDED:
        what += "; undecided, because the interval contains the limit"
    return _Finding(param, verdict, what)
