"""The quality gate before publishing: the cost of the removals against the limits of the spec."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

from pruning.evaluation.paired_tasks import PairedTask
from pruning.evaluation.probe import Item, digest, probe_items
from pruning.evaluation.probe_run import answer
from pruning.evaluation.pruned_losses import PrunedModel
from pruning.evaluation.quality import DomainQuality, Interval, Quality
from pruning.evaluation.results import ItemResult, ProbeComparison, compare
from pruning.evaluation.task_comparison import AskTasks
from pruning.evaluation.task_shares import share_of
from pruning.evaluation.verdict import Verdict
from pruning.plural import counted
from pruning.search.dense_model import DenseModel
from pruning.spec.evaluation import Gate, GateAction

_Z = 1.959964  # of a 95 % interval
_TASK_SHARE = "gate.min_task_share"


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


@dataclass(frozen=True)
class Judged:
    """What a gate looks at. The functions are of a number of removals; ``ask_tasks`` goes on until
    its second argument says that it is enough.

    ``ratio`` is that of the perplexities on the text of the calibration, with its interval where it
    is known. A healed model is compared with its ``control``, a perplexity, where that is better
    than the dense model: what the text alone gives does not make up for removed blocks.
    """

    quality: Quality
    ask: Callable[[int], ProbeComparison]
    ratio: Callable[[int], Interval | None] = lambda _: None
    control: float | None = None
    ask_tasks: AskTasks | None = None


def gated(gate: Gate, judged: Judged, depths: Iterable[int]) -> Quality:
    """The quality of what may be published, with the probe if the gate needs it, and warnings.

    It is that of all removals, and what is undecided is a warning. With ``DEEPEST`` it is that of
    the most removals, of these ``depths``, that are shown to keep every limit, and the warnings say
    why they are not more. Raises ``QualityGateFailed`` for what exceeds a limit, unless the gate
    only warns.
    """
    if gate.action is GateAction.DEEPEST:
        return _deepest(gate, judged, depths)
    quality, findings = _found(gate, judged, judged.quality.num_removed)
    exceeded = {each.param: each.reason for each in findings if each.verdict is Verdict.EXCEEDED}
    if exceeded and gate.action is GateAction.REFUSE:
        raise _failed(next(iter(exceeded)), "; ".join(exceeded.values()))
    return replace(quality, warnings=tuple(each.reason for each in findings))


def _deepest(gate: Gate, judged: Judged, depths: Iterable[int]) -> Quality:
    findings: list[_Finding] = []
    deeper = ""
    for depth in sorted(depths, reverse=True):
        too_many = tuple(f"not deeper: {deeper}, {each.reason}" for each in findings)
        quality, findings = _found(gate, judged, depth)
        if not findings:
            return replace(quality, warnings=too_many)
        deeper = f"without {counted(depth, 'block')}"
    reasons = "; ".join(each.reason for each in findings)
    raise _failed(findings[0].param, f"no depth is shown to meet the limits: {deeper}, {reasons}")


def _failed(param: str, reasons: str) -> QualityGateFailed:
    advice = "Remove fewer blocks, calibrate on more text, or relax the limit"
    return QualityGateFailed(param, f"not published: {reasons}. {advice}")


def undecided(gate: Gate, quality: Quality, ratio: Callable[[int], Interval | None]) -> int | None:
    """The number of removals of which more windows may change what the gate says of perplexities.

    None if they would change nothing.
    """
    depth = quality.num_removed
    found = _verdicts(gate, quality, ratio)
    while gate.action is GateAction.DEEPEST and Verdict.EXCEEDED in found and depth > 1:
        depth -= 1
        found = _verdicts(gate, quality.up_to(depth), ratio)
    return depth if Verdict.UNDECIDED in found else None


def _verdicts(
    gate: Gate, quality: Quality, ratio: Callable[[int], Interval | None]
) -> list[Verdict]:
    depth = quality.num_removed
    ratios = [(gate.max_perplexity_ratio, ratio(depth))]
    for domain in quality.domains:
        limit = gate.max_perplexity_ratio_of.get(domain.domain)
        ratios.append((limit, domain.ratio(domain.served_after(depth))))
    return [
        Verdict.of(interval, limit)
        for limit, interval in ratios
        if limit is not None and interval is not None
    ]


@dataclass(frozen=True)
class Probe:
    """Asks the dense model once, and each of the ``models``, by their number of removals."""

    dense: DenseModel
    models: Mapping[int, PrunedModel]

    def __call__(self, num_removed: int) -> ProbeComparison:
        before, after = self._before, self._answers(self.models[num_removed])
        return compare(before, after, digest(self._items))

    @cached_property
    def _items(self) -> Sequence[Item]:
        return probe_items()

    @cached_property
    def _before(self) -> Sequence[ItemResult]:
        return self._answers(PrunedModel(self.dense.every_block))

    def _answers(self, model: PrunedModel) -> Sequence[ItemResult]:
        forward = self.dense.forward(model.keep, own=model.own)
        return answer(forward, self.dense.tokenizer, self._items)


def _found(gate: Gate, judged: Judged, depth: int) -> tuple[Quality, list[_Finding]]:
    """The limits that are exceeded or undecided at this depth, each with a sentence about it.

    Where one more would change nothing, the probe is not run.
    """
    quality = judged.quality.up_to(depth)
    limit = gate.max_perplexity_ratio
    findings = [_of_text(limit, quality, judged.ratio(depth), judged.control)]
    for domain in quality.domains:
        of_domain = gate.max_perplexity_ratio_of.get(domain.domain)
        findings.append(None if of_domain is None else _of_domain(domain, of_domain))
    is_enough = gate.action is GateAction.DEEPEST and any(findings)
    if gate.max_probe_drop is not None and not is_enough:
        probe = judged.ask(depth)
        quality = replace(quality, probe=probe)
        findings.insert(0, _of_probe(gate.max_probe_drop, probe))
    is_enough = gate.action is GateAction.DEEPEST and any(findings)
    if gate.min_task_share is not None and judged.ask_tasks is not None and not is_enough:
        tasks = judged.ask_tasks(depth, partial(_is_decided, gate.min_task_share))
        quality = replace(quality, tasks=tasks)
        findings.append(_of_tasks(gate.min_task_share, tasks))
    return quality, [each for each in findings if each is not None]


def _is_decided(limit: float, tasks: Sequence[PairedTask]) -> bool:
    found = _of_tasks(limit, tasks)
    return found is None or found.verdict is Verdict.EXCEEDED


def _of_tasks(limit: float, tasks: Sequence[PairedTask]) -> _Finding | None:
    """The worst of the tasks that are surely below the limit, or else of those that may be."""
    shares = {task: share for task in tasks if (share := share_of([task])) is not None}
    verdicts = {task: Verdict.at_least(share, limit) for task, share in shares.items()}
    for verdict in (Verdict.EXCEEDED, Verdict.UNDECIDED):
        failing = [task for task in shares if verdicts[task] is verdict]
        if failing:
            worst = min(failing, key=lambda task: shares[task].value)
            return _finding_of_task(worst, shares[worst], verdict, limit)
    if shares:
        return None
    reason = "on no task the dense model is surely better than guesses"
    return _Finding(_TASK_SHARE, Verdict.UNDECIDED, f"{reason} (limit {limit} of min_task_share)")


def _finding_of_task(task: PairedTask, share: Interval, verdict: Verdict, limit: float) -> _Finding:
    away = f"{abs(share.value - limit):.3g} {'below' if share.value < limit else 'above'}"
    undecided = ", undecided, because the interval contains it"
    return _Finding(
        _TASK_SHARE,
        verdict,
        f"the worst task, {task.task}, keeps {share} of the dense accuracy above chance, "
        f"{away} the limit {limit}{undecided if verdict is Verdict.UNDECIDED else ''} "
        f"(accuracy went from {task.dense_accuracy:.3f} to {task.accuracy:.3f} on "
        f"{counted(task.num_questions, 'question')}, guesses have {task.chance:.3g})",
    )


def _of_probe(limit: float, probe: ProbeComparison) -> _Finding | None:
    reach = _Z * probe.standard_error
    drop = Interval(probe.drop, probe.drop - reach, probe.drop + reach)
    what = (
        f"the probe score went from {probe.dense.score:.3f} to "
        f"{probe.pruned.score:.3f}, a drop of {probe.drop:.3f} ± "
        f"{probe.standard_error:.3f} (limit {limit})"
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
        f"perplexity went from {whole} to {curve[-1]:.4g} on {quality.evaluated_on}, a "
        f"ratio of {ratio}, limit {limit}"
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
        f"({domain.text}), a ratio of {ratio}, limit {limit}"
    )
    return _finding(f"gate.max_perplexity_ratio_of.{domain.domain}", ratio, limit, what)


def _compared(
    dense: float, served: float, control: float | None, ratio: Interval | None
) -> tuple[str, Interval]:
    """The perplexity that a model is compared with, in words, and its ratio to that."""
    if control is not None and control < dense:
        return f"{control:.4g} (control)", Interval(served / control, None, None)
    return f"{dense:.4g}", ratio or Interval(served / dense, None, None)


def _finding(param: str, interval: Interval, limit: float, what: str) -> _Finding | None:
    verdict = Verdict.of(interval, limit)
    if verdict is Verdict.KEPT:
        return None
    if verdict is Verdict.UNDECIDED:
        what += "; undecided, because the interval contains the limit"
    return _Finding(param, verdict, what)
