"""Keep what comparisons and evaluations measure, so that the catalog and the advice know it."""

import logging
from collections.abc import Iterator

from app.compare.compare import Comparison, speedup_per_token
from app.compare.evaluation import Evaluation
from app.compare.speedup import Speedup, widened
from app.models.catalog import Catalog
from app.models.measured_speedups import COMPARISON, Measurand, MeasuredSpeedup
from app.models.registry import ServedModel
from pruning.evaluation.domains import domain_quality
from pruning.spec.calibration import PACKAGED
from pruning.spec.evaluation import FIRST_WINDOWS

logger = logging.getLogger(__name__)

MIN_PAIRS = 3  # with two, an interval says nothing
MIN_TOKENS = 16  # of an output: shorter ones are mostly the start


def record_speedups(comparison: Comparison, catalog: Catalog) -> None:
    """Keep what the comparison says of variants of a dense model, if that was its baseline.

    Speeds are those of the own engine: what vLLM gains is another number.
    """
    if not isinstance(comparison.baseline.served, ServedModel):
        return
    base = comparison.baseline.served.entry
    measured = dict(_measured(comparison))
    if base.is_pruned or base.is_int8 or not measured:
        return
    try:
        catalog.record_speedups(base.base, measured)
    except OSError as error:  # the comparison itself is worth as much without
        logger.warning("speed-ups of a comparison are not saved: %s", error)


def record_qualities(evaluation: Evaluation, catalog: Catalog) -> None:
    """Keep the perplexities of int8 weights, unless too few windows or not all texts were read.

    A manifest has those of plain weights.
    """
    entry, texts = evaluation.served.entry, evaluation.perplexities
    if not (entry.is_int8 and evaluation.dense and isinstance(evaluation.served, ServedModel)):
        return
    is_whole = {*PACKAGED} <= {one.text for one in texts}
    if not is_whole or min(one.num_windows for one in texts) < FIRST_WINDOWS:
        return
    domains = tuple(
        domain_quality(own.text, evaluation.windows[own.text], [whole.losses, own.losses])
        for own, whole in zip(texts, evaluation.dense, strict=True)
    )
    try:
        catalog.record_qualities(entry, domains)
    except OSError as error:
        logger.warning("the perplexity of %s is not saved: %s", entry.name, error)


def _measured(comparison: Comparison) -> Iterator[tuple[Measurand, MeasuredSpeedup]]:
    for variant in comparison.variants:
        entry = variant.served.entry
        is_other = (entry.is_pruned or entry.is_int8) and entry.is_view
        lengths = (output.num_tokens for outputs in variant.rounds for output in outputs)
        if not is_other or min(lengths) < MIN_TOKENS:
            continue
        per_token = speedup_per_token(comparison, variant)
        if per_token is None or per_token.num_pairs < MIN_PAIRS:
            continue
        if (kept := widened(per_token, _noise(comparison))) is not None:
            what = Measurand(entry.num_removed, entry.is_int8)
            yield what, kept.record(COMPARISON)


def _noise(comparison: Comparison) -> Speedup | None:
    control = comparison.control
    return None if control is None else speedup_per_token(comparison, control)
