"""Advice about the pruned variants of a model, from what the catalog knows of them."""

from collections.abc import Iterator, Sequence

from app.models.catalog import Catalog
from app.models.entry import ModelEntry
from pruning.evaluation.advice import Advice, Candidate, Limits, advise
from pruning.evaluation.quality import Interval


def advice_on(name: str, catalog: Catalog, limits: Limits) -> Advice:
    """Which depth of a model to take. Of a variant, the advice is about its dense model.

    Raises ``UnknownModel`` and ``JobStoreUnavailable``.
    """
    model = catalog.resolve(name).base
    entries = list(_entries(model, catalog))
    share = _share_of_predicted(entries, catalog)
    return advise(model, [_candidate(entry, catalog, share) for entry in entries], limits)


def _entries(model: str, catalog: Catalog) -> Iterator[ModelEntry]:
    """The depths of the newest order, healed ones too, and other healed checkpoints."""
    entries = [
        entry
        for entry in catalog.entries()
        if entry.base == model and entry.is_pruned and entry.external is None and not entry.error
    ]
    newest = {entry.order.name for entry in entries if entry.order and "@-" in entry.name}
    for entry in entries:
        order = entry.order
        is_named_by_job = order is not None and order.name == entry.name
        is_other_healed = order is not None and order.is_healed and order.name not in newest
        if is_other_healed or not is_named_by_job or not newest:
            yield entry


def _share_of_predicted(entries: Sequence[ModelEntry], catalog: Catalog) -> float:
    """How much of the time that depths were predicted to save the measured ones save, at most 1.

    Otherwise a depth that was not measured would be preferred for a prediction that is too high.
    """
    saved = wanted = 0.0
    for entry in entries:
        measured, predicted = catalog.measured_speedup(entry), entry.predicted_speedup
        if measured is not None and predicted is not None:
            saved += _saved(measured.ratio)
            wanted += _saved(predicted)
    return min(1.0, max(0.0, saved / wanted)) if wanted > 0 else 1.0


def _saved(speedup: float) -> float:
    """The share of the time of a token that a speed-up saves."""
    return 1 - 1 / speedup


def _candidate(entry: ModelEntry, catalog: Catalog, share: float) -> Candidate:
    measured, predicted = catalog.measured_speedup(entry), entry.predicted_speedup
    speedup = None
    if predicted is not None:
        speedup = Interval(1 / (1 - share * _saved(predicted)), None, None)
    is_whole = entry.order is not None and entry.num_removed == entry.order.depth
    return Candidate(
        name=entry.name,
        num_removed=entry.num_removed,
        num_blocks=entry.num_blocks,
        speedup=measured.interval if measured else speedup,
        is_measured=measured is not None,
        ratios={domain.domain: domain.ratio(entry.measured_on(domain)) for domain in entry.domains},
        parameters=_share(entry),
        probe=entry.order.quality.probe if entry.order and is_whole else None,
    )


def _share(entry: ModelEntry) -> float | None:
    of_dense = entry.order.dense_num_parameters if entry.order else None
    return entry.num_parameters / of_dense if entry.num_parameters and of_dense else None
