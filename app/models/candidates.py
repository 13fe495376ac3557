"""Every way to serve a model more cheaply: int8, the depths of all its jobs, and both together."""

from collections.abc import Iterator

from app.models.catalog import Catalog, UnknownModel
from app.models.entry import ModelEntry
from pruning.evaluation.points import DENSE_RATIO, Point
from pruning.spec import InvalidSpec


class NotDense(InvalidSpec):
    """What is asked for compares all variants of a dense model, and the name is one of them."""

    def __init__(self, name: str) -> None:
        super().__init__(
            "model",
            f"{name[:128]} is a variant: name the dense model, whose variants are all compared, "
            "those with int8 weights too",
        )


def pruned_variants(model: str, catalog: Catalog) -> list[ModelEntry]:
    """The published depths of all jobs of a dense model, repaired or healed as published.

    Each is once there, by its shortest name. Equal results of several jobs are one variant.
    """
    variants: dict[object, ModelEntry] = {}
    for entry in catalog.entries():
        if entry.base == model and entry.is_pruned and not entry.external and not entry.error:
            for each in _prefixes(entry, catalog):
                variants.setdefault((each.removed_blocks, each.repair), each)
    return sorted(variants.values(), key=lambda each: (each.num_removed, each.name))


def _prefixes(entry: ModelEntry, catalog: Catalog) -> list[ModelEntry]:
    """Of a whole checkpoint, all its depths."""
    order = entry.order
    if order is None or order.name != entry.name:
        return [entry]
    return [*catalog.prefixes(order)[:-1], entry]


def int8_forms(model: str, catalog: Catalog) -> Iterator[ModelEntry]:
    """The dense model with int8 weights, and each depth that can have them."""
    for name in (model, *(entry.name for entry in pruned_variants(model, catalog))):
        try:
            yield catalog.resolve(f"{name}+int8")
        except UnknownModel:  # healed, of a family that is not quantized, or the model is gone
            continue


def dense_point(model: str) -> Point:
    """Without speeds."""
    return Point(model, ratios=DENSE_RATIO)


def point_of(entry: ModelEntry, catalog: Catalog) -> Point:
    """What is known of a candidate, without its speeds."""
    order = entry.order
    of_dense = order.dense_num_parameters if order else None
    is_whole = order is not None and entry.num_removed == order.depth and not entry.is_int8
    return Point(
        entry.name,
        entry.num_removed,
        is_int8=entry.is_int8,
        is_healed=is_healed(entry),
        ratios=catalog.ratios(entry),
        checkpoint=order.name if order else "",
        num_blocks=entry.num_blocks,
        parameters=entry.num_parameters / of_dense if entry.num_parameters and of_dense else None,
        probe=order.quality.probe if order and is_whole else None,
        tasks=catalog.tasks(entry),
    )


def is_healed(entry: ModelEntry) -> bool:
    return entry.repair is not None and entry.repair.is_healed
