"""Assess a pruned model: perplexity, also quantized, zero-shot tasks, and the quality gate."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pruning.data.calibration import held_out
from pruning.data.windows import Windows
from pruning.evaluation.perplexity import measure_perplexity, perplexity_curve
from pruning.evaluation.quality import Quality, Quantized
from pruning.evaluation.quality_gate import ask_both, gated
from pruning.evaluation.zero_shot import PAPER_TASKS, ZeroShot, fetch_tasks, score_tasks
from pruning.models.blocks import num_blocks, view
from pruning.models.quantize import check_quantizable, require_torchao
from pruning.models.store import ModelInfo
from pruning.removal import Removal, kept
from pruning.search.dense_model import DenseModel
from pruning.sleb import Blocks
from pruning.spec.prune import PruneSpec


def prepare(spec: PruneSpec, info: ModelInfo, tasks_dir: Path | None) -> None:
    """Check before the search that all that ``assess`` needs is available.

    Raises ``QuantizeUnavailable``, ``CannotQuantize``, ``ZeroShotUnavailable`` or ``TaskUnusable``.
    """
    if spec.quantize is not None:
        require_torchao()
        check_quantizable(info.model_type)
    if spec.zero_shot:
        fetch_tasks(PAPER_TASKS, tasks_dir)


def assess(
    spec: PruneSpec, dense: DenseModel, removals: Sequence[Removal], tasks_dir: Path | None = None
) -> Quality:
    """Measure what the spec asks for. Tasks in ``tasks_dir`` precede those of lm-eval.

    Raises ``QualityGateFailed``, and what ``prepare`` raises.
    """
    removed = tuple(removal.block for removal in removals)
    keep = kept(num_blocks(dense.model), removed)
    quality = Quality((removals[0].dense_loss, *(removal.loss for removal in removals)))
    if spec.evaluate:
        windows = held_out(spec.calibration, dense.model, dense.tokenizer)
        quality = _with_perplexities(quality, dense, windows, removed)
        if spec.quantize is not None:
            forward = dense.forward(keep, spec.quantize)
            found = measure_perplexity(forward, windows).perplexity
            quality = replace(quality, quantized=Quantized(spec.quantize.value, found))
    if spec.gate is not None:
        quality = gated(spec.gate, quality, partial(ask_both, dense, removed))
    if spec.zero_shot:
        quality = replace(quality, zero_shot=_zero_shot(dense, keep, tasks_dir))
    return quality


def _with_perplexities(
    quality: Quality, dense: DenseModel, windows: Windows, removed: Blocks
) -> Quality:
    scorer = dense.local_scorer(windows.token_ids)
    num_windows, seqlen = windows.token_ids.shape
    return replace(
        quality,
        perplexities=tuple(perplexity_curve(scorer, num_blocks(dense.model), removed)),
        evaluated_on=f"{windows.source}, {num_windows} windows of {seqlen} tokens",
    )


def _zero_shot(dense: DenseModel, keep: Blocks, tasks_dir: Path | None) -> ZeroShot:
    whole, pruned = (
        tuple(score_tasks(model, dense.tokenizer, PAPER_TASKS, tasks_dir=tasks_dir))
        for model in (dense.model, view(dense.model, keep))
    )
    return ZeroShot(whole, pruned)
