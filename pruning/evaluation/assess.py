"""Assess a pruned model: perplexity, also quantized, zero-shot tasks, and the quality gate."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

from pruning.data.calibration import evaluation_windows
from pruning.data.corpora import CalibrationError
from pruning.data.windows import Windows, mixed
from pruning.evaluation.domains import measure_domains, perplexity_curve, with_healed
from pruning.evaluation.enough import UntilKnown
from pruning.evaluation.perplexity import measure_perplexity
from pruning.evaluation.pruned_losses import PrunedModel
from pruning.evaluation.quality import (
    DomainQuality,
    Quality,
    Quantized,
    Shares,
    overall_ratio,
    perplexity_of,
    text_of,
)
from pruning.evaluation.quality_gate import Judged, Probe, gated, undecided
from pruning.evaluation.samples import sample_texts
from pruning.evaluation.task_comparison import TaskComparison
from pruning.evaluation.task_sources import TaskSources
from pruning.models.architectures import ARCHITECTURES, check_quantizable
from pruning.models.blocks import NO_OWN, Own, num_blocks
from pruning.models.forward import Forward
from pruning.models.store import ModelInfo
from pruning.removal import Removal, kept
from pruning.search.dense_model import DenseModel, Resources
from pruning.spec import InvalidSpec
from pruning.spec.calibration import PACKAGED
from pruning.spec.evaluation import Gate
from pruning.spec.prune import PruneSpec


def check_measures(spec: PruneSpec, info: ModelInfo) -> None:
    """Check what can be told at once of the spec and of what ``assess`` measures.

    Raises ``CannotQuantize``, or ``InvalidSpec``: for a last block that
    must stay, and for a limit on a domain that is not measured, as it would pass in silence.
    """
    _check_last_block(spec, info.model_type)
    if spec.quantize is not None:
        check_quantizable(info.model_type)
    _check_limits(spec.gate, {*(part.domain for part in spec.calibration.parts), *PACKAGED})


def _check_last_block(spec: PruneSpec, model_type: str) -> None:
    if ARCHITECTURES[model_type].keeps_last and not spec.protect_last:
        raise InvalidSpec(
            "protect_last",
            f"the last block of a {model_type} cannot be removed, because transformers "
            "always uses full attention in the last block: set protect_last to 1 or more",
        )


def prepare(spec: PruneSpec, info: ModelInfo, resources: Resources) -> None:
    """Check before the search that all that ``assess`` needs is available.

    Raises as ``check_measures`` and ``prepare_tasks``.
    """
    check_measures(spec, info)
    prepare_tasks(spec, resources)


def prepare_tasks(spec: PruneSpec, resources: Resources) -> None:
    """Raises ``InvalidSpec``, ``TaskUnusable`` or ``ZeroShotUnavailable`` for tasks in vain."""
    TaskSources(resources.task_data_dir, resources.tasks_dir).prepare(spec.tasks)


def assess(
    spec: PruneSpec,
    dense: DenseModel,
    removals: Sequence[Removal],
    windows: Mapping[str, Windows],
    own: Mapping[int, Own],
) -> Quality:
    """Measure what the spec asks for.

    ``windows`` are those of ``evaluation_windows``, unless nothing is evaluated. ``own`` are the
    own tensors of each depth that is repaired, by its number of removed blocks. Raises
    ``QualityGateFailed``, ``InvalidSpec`` for a limit on a domain that is not measured, and what
    ``prepare`` raises. The quality is that of fewer removals if the gate takes fewer.
    """
    removed = tuple(removal.block for removal in removals)
    total = num_blocks(dense.model)
    models = {
        number: PrunedModel(kept(total, removed[:number]), own.get(number, NO_OWN))
        for number in range(1, len(removed) + 1)
    }
    ask_tasks = TaskComparison(spec.tasks, spec.task_questions, dense, models)
    quality = Quality((removals[0].dense_loss, *(removal.loss for removal in removals)))
    if spec.evaluate:
        _check_limits(spec.gate, windows)
        quality = _on_held_out(spec, quality, dense, removed, windows, own)
    if spec.gate is not None:
        ratio = partial(overall_ratio, *_of_text(spec, quality))
        judged = Judged(quality, Probe(dense, models), ratio, ask_tasks=ask_tasks)
        quality = gated(spec.gate, judged, models)
    return _with_measures(spec, dense, quality, models, ask_tasks, windows)


def _with_measures(
    spec: PruneSpec,
    dense: DenseModel,
    quality: Quality,
    models: Mapping[int, PrunedModel],
    ask_tasks: TaskComparison,
    windows: Mapping[str, Windows],
) -> Quality:
    """The ``quality`` with all that is measured of the published model alone."""
    pruned = models[quality.num_removed]
    if windows:
        quality = replace(quality, samples=sample_texts(dense, pruned))
    if windows and spec.quantize is not None:
        forward = dense.forward(pruned.keep, spec.quantize, pruned.own)
        perplexity = _perplexity_of_text(forward, spec, quality, windows)
        quality = replace(quality, quantized=Quantized(spec.quantize.value, perplexity))
    if spec.tasks and not quality.tasks:  # the gate may have asked them
        quality = replace(quality, tasks=ask_tasks(quality.num_removed))
    return quality


def _on_held_out(
    spec: PruneSpec,
    quality: Quality,
    dense: DenseModel,
    removed: Sequence[int],
    windows: Mapping[str, Windows],
    own: Mapping[int, Own],
) -> Quality:
    """The ``quality`` with the losses on held-out text, by domain and on the calibration's text."""

    def open_depth(domains: Sequence[DomainQuality]) -> int | None:
        so_far = replace(quality, domains=tuple(domains))
        ratio = partial(overall_ratio, *_of_text(spec, so_far))
        return None if spec.gate is None else undecided(spec.gate, so_far, ratio)

    until = None if spec.evaluation is None else UntilKnown(spec.evaluation, open_depth)
    domains = measure_domains(dense, windows, tuple(removed), own, until)
    quality = replace(quality, domains=domains, extent=until.extent if until else None)
    of_text, shares = _of_text(spec, quality)
    text = mixed([windows[domain.domain].first(domain.num_windows) for domain in of_text])
    return replace(
        quality,
        perplexities=perplexity_curve(of_text, DomainQuality.served_after, shares),
        raw_perplexities=perplexity_curve(of_text, DomainQuality.raw_after, shares),
        evaluated_on=text_of(text.source, *text.token_ids.shape),
    )


def _of_text(spec: PruneSpec, quality: Quality) -> tuple[list[DomainQuality], Shares]:
    """The domains of the calibration's text, and what each counts in it, however many windows were
    measured."""
    parts = spec.calibration.parts
    domains = [one for one in quality.domains if one.domain in {part.domain for part in parts}]
    if spec.evaluation is None:
        return domains, {one.domain: one.num_windows for one in domains}
    shares: Counter[str] = Counter()
    for part in parts:
        shares[part.domain] += part.num_samples
    return domains, shares


def _perplexity_of_text(
    forward: Forward, spec: PruneSpec, quality: Quality, windows: Mapping[str, Windows]
) -> float:
    """The perplexity on the windows of the calibration's text that were measured."""
    of_text, shares = _of_text(spec, quality)
    losses = {
        domain.domain: measure_perplexity(
            forward, windows[domain.domain].first(domain.num_windows)
        ).loss
        for domain in of_text
    }
    total = sum(shares[name] for name in losses)
    return perplexity_of(sum(shares[name] * loss for name, loss in losses.items()) / total)


def assess_healed(
    spec: PruneSpec,
    dense: DenseModel,
    earlier: Quality,
    healed: Mapping[int, PrunedModel],
    control: PrunedModel | None,
    observe: Callable[[int, int], object] = lambda _done, _total: None,
) -> Quality:
    """The quality of healed models: ``earlier``, that of the models before, with what is new.

    They are by number of removed blocks, and the gate judges the deepest, or takes one of them.
    ``observe(done, total)`` is called while text is measured. Raises ``QualityGateFailed``, and
    ``CalibrationError`` as ``held_out_for``.
    """
    quality = replace(earlier, probe=None, warnings=(), quantized=None, tasks=(), samples=())
    windows = held_out_for(spec, dense, earlier) if earlier.domains else {}
    of_control = None
    ask_tasks = TaskComparison(spec.tasks, spec.task_questions, dense, healed)
    if windows:
        domains = with_healed(dense, windows, earlier.domains, healed, control, observe)
        quality = replace(quality, domains=domains)
        of_text, shares = _of_text(spec, quality)
        curve = perplexity_curve(of_text, DomainQuality.served_after, shares)
        quality = replace(quality, perplexities=curve)
        if control is not None:
            of_control, *_ = perplexity_curve(
                of_text, lambda domain, _: domain.control or domain.dense, shares
            )
    if spec.gate is not None:
        ratio = partial(overall_ratio, *_of_text(spec, quality))
        judged = Judged(quality, Probe(dense, healed), ratio, of_control, ask_tasks)
        quality = gated(spec.gate, judged, healed)
    return _with_measures(spec, dense, quality, healed, ask_tasks, windows)


def held_out_for(spec: PruneSpec, dense: DenseModel, earlier: Quality) -> Mapping[str, Windows]:
    """The windows that ``earlier`` was measured on. Raises ``CalibrationError`` if they differ."""
    text = (spec.calibration, dense.model, dense.tokenizer)
    evaluation = spec.evaluation and spec.evaluation.as_measured(earlier.seqlen)
    windows = evaluation_windows(*text, evaluation=evaluation)
    used = {}
    for domain in earlier.domains:
        held_out = windows.get(domain.domain)
        if held_out is not None and spec.evaluation is not None:
            held_out = held_out.first(domain.num_windows)
        if held_out is None or held_out.digest != domain.digest:
            raise CalibrationError(
                "text_changed",
                f"the text of domain {domain.domain!r} has changed since the checkpoint was "
                "measured: restore it, or prune the model again",
            )
        used[domain.domain] = held_out
    return used


def _check_limits(gate: Gate | None, domains: Collection[str]) -> None:
    """Raises ``InvalidSpec`` for a limit on a domain that is not measured."""
    known = ", ".join(sorted(domains))
    for domain in gate.max_perplexity_ratio_of if gate else ():
        if domain not in domains:
            raise InvalidSpec(
                f"gate.max_perplexity_ratio_of.{domain}",
                f"no text of domain {domain!r} is evaluated: expected one of {known}, or a "
                "calibration with such a text",
            )
