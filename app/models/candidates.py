"""Every way to serve a model more cheaply: int8, the depths of all its jobs, and both together."""

from collections.abc import Iterator

from app.models.catalog import Catalog, UnknownModel
from app.models.entry import ModelEntry


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
    for entry in (catalog.resolve(model), *pruned_variants(model, catalog)):
        try:
            yield catalog.resolve(f"{entry.name}+int8")
        except UnknownModel:  # healed, or of a family that is not quantized
            continue
