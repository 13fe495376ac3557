"""Assess a pruned model: perplexity, also quantized, zero-shot tasks, and the quality gate."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

from pruning.data.calibration import evaluation_windows
from pruning.data.corpora import CalibrationError
from pruning.data.windows import Windows, mixed
from pruning.evaluation.domains import measure_domains, perplexity_curve, with_healed
from pruning.evaluation.perplexity import measure_perplexity
from pruning.evaluation.pruned_losses import PrunedModel
from pruning.evaluation.quality import DomainQuality, Measured, Quality, Quantized, text_of
from pruning.evaluation.quality_gate import ask_both, gated
from pruning.evaluation.zero_shot import fetch_tasks, require_lm_eval, score_tasks
from pruning.evaluation.zero_shot_scores import PAPER_TASKS, ZeroShot
from pruning.models.architectures import check_quantizable
from pruning.models.blocks import NO_OWN, Own, num_blocks, view
from pruning.models.store import ModelInfo
from pruning.removal import Removal, kept
from pruning.search.dense_model import DenseModel
from pruning.spec import InvalidSpec
from pruning.spec.calibration import PACKAGED
from pruning.spec.gate import Gate
from pruning.spec.prune import PruneSpec


def check_measures(spec: PruneSpec, info: ModelInfo) -> None:
    """Check what can be told at once of what ``assess`` measures.

    Raises ``CannotQuantize``, ``ZeroShotUnavailable``, or ``InvalidSpec`` for a limit on a domain
    that is not measured: it would pass in silence.
    """
    if spec.quantize is not None:
        check_quantizable(info.model_type)
    if spec.zero_shot:
        require_lm_eval()
    _check_limits(spec.gate, {*(part.domain for part in spec.calibration.parts), *PACKAGED})


def prepare(spec: PruneSpec, info: ModelInfo, tasks_dir: Path | None) -> None:
    """Check before the search that all that ``assess`` needs is available.

    Raises as ``check_measures``, or ``TaskUnusable``.
    """
    check_measures(spec, info)
    if spec.zero_shot:
        fetch_tasks(PAPER_TASKS, tasks_dir)


def assess(
    spec: PruneSpec,
    dense: DenseModel,
    removals: Sequence[Removal],
    windows: Mapping[str, Windows],
    own: Mapping[int, Own] = MappingProxyType({}),
    tasks_dir: Path | None = None,
) -> Quality:
    """Measure what the spec asks for. Tasks in ``tasks_dir`` precede those of lm-eval.

    ``windows`` are those of ``evaluation_windows``, unless nothing is evaluated. ``own`` are the
    own tensors of each depth that is repaired, by its number of removed blocks. Raises
    ``QualityGateFailed``, ``InvalidSpec`` for a limit on a domain that is not measured, and what
    ``prepare`` raises.
    """
    removed = tuple(removal.block for removal in removals)
    pruned = PrunedModel(kept(num_blocks(dense.model), removed), own.get(len(removed), NO_OWN))
    quality = Quality((removals[0].dense_loss, *(removal.loss for removal in removals)))
    if spec.evaluate:
        _check_limits(spec.gate, windows)
        domains = measure_domains(dense, windows, removed, own)
        calibrated = {part.domain for part in spec.calibration.parts}
        text = mixed([found for name, found in windows.items() if name in calibrated])
        of_text = [one for one in domains if one.domain in calibrated]
        quality = replace(
            quality,
            domains=domains,
            perplexities=perplexity_curve(of_text, DomainQuality.served_after),
            raw_perplexities=perplexity_curve(of_text, DomainQuality.raw_after),
            evaluated_on=text_of(text.source, *text.token_ids.shape),
        )
        if spec.quantize is not None:
            forward = dense.forward(pruned.keep, spec.quantize, pruned.own)
            found = measure_perplexity(forward, text).perplexity
            quality = replace(quality, quantized=Quantized(spec.quantize.value, found))
    if spec.gate is not None:
        quality = gated(spec.gate, quality, partial(ask_both, dense, pruned))
    if spec.zero_shot:
        quality = replace(quality, zero_shot=_zero_shot(dense, pruned, tasks_dir))
    return quality


def assess_healed(
    spec: PruneSpec,
    dense: DenseModel,
    earlier: Quality,
    healed: PrunedModel,
    control: PrunedModel | None,
) -> Quality:
    """The quality of a healed model: ``earlier``, that of the model before, with what is new.

    Raises ``QualityGateFailed``, and ``CalibrationError`` as ``held_out_for``.
    """
    quality = replace(earlier, probe=None, warnings=(), quantized=None, zero_shot=None)
    of_control = None
    if earlier.domains:
        windows = held_out_for(spec, dense, earlier)
        domains = with_healed(dense, windows, earlier.domains, healed, control)
        calibrated = {part.domain for part in spec.calibration.parts}
        of_text = [one for one in domains if one.domain in calibrated]
        curve = perplexity_curve(of_text, DomainQuality.served_after)
        quality = replace(quality, domains=domains, perplexities=curve)
        if control is not None:
            of_control, *_ = perplexity_curve(of_text, _control_or_dense)
    if spec.gate is not None:
        quality = gated(spec.gate, quality, partial(ask_both, dense, healed), of_control)
    return quality


def _control_or_dense(domain: DomainQuality, _num_removed: int) -> Measured:
    return domain.control or domain.dense


def held_out_for(spec: PruneSpec, dense: DenseModel, earlier: Quality) -> Mapping[str, Windows]:
    """The windows that ``earlier`` was measured on. Raises ``CalibrationError`` if they differ."""
    windows = evaluation_windows(spec.calibration, dense.model, dense.tokenizer)
    for domain in earlier.domains:
        found = windows.get(domain.domain)
        if found is None or found.digest != domain.digest:
            raise CalibrationError(
                "text_changed",
                f"the text of the domain {domain.domain!r} is not the one that the checkpoint was "
                "measured on: restore it, or prune the model again",
            )
    return windows


def _check_limits(gate: Gate | None, domains: Collection[str]) -> None:
    """Raises ``InvalidSpec`` for a limit on a domain that is not measured."""
    known = ", ".join(sorted(domains))
    for domain in gate.max_perplexity_ratio_of if gate else ():
        if domain not in domains:
            raise InvalidSpec(
                f"gate.max_perplexity_ratio_of.{domain}",
                f"no text of the domain {domain!r} is measured: name one of {known}, or "
                "add such a text to the calibration",
            )


def _zero_shot(dense: DenseModel, pruned: PrunedModel, tasks_dir: Path | None) -> ZeroShot:
    whole, after = (
        tuple(score_tasks(model, dense.tokenizer, PAPER_TASKS, tasks_dir=tasks_dir))
        for model in (dense.model, view(dense.model, pruned.keep, pruned.own))
    )
    return ZeroShot(whole, after)
