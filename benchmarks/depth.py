"""Speedup per output token of removed blocks, its upper bound, and the memory of variants."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch

from app.bench.plan import without
from app.engine.engine import Engine
from app.engine.variant import Variant
from app.models.catalog import Catalog, UnknownModel
from benchmarks.steady import SteadyBatch, median_steps_s
from benchmarks.workload import SampleRequest
from pruning.models.block_times import BlockTimes
from pruning.models.blocks import num_blocks
from pruning.models.names import VariantName
from pruning.models.timing import measure_times
from pruning.sleb import Blocks

_NUM_VARIANTS = 10


class UnknownVariant(ValueError):
    """The model has no such variant."""


def removed_blocks(
    model: str, suffix: str, every: int, given: Blocks | None, catalog: Catalog
) -> Blocks:
    """Resolve ``@-k`` by the given order, else by the published one, else to the last ``k`` blocks.

    All blocks are equally fast, so the choice does not affect the speedup. Raises
    ``UnknownVariant``.
    """
    depth = VariantName.parse(suffix).depth or 0
    if VariantName.parse(suffix) != VariantName("", depth=depth) or not 1 <= depth < every:
        raise UnknownVariant(f"{suffix!r}: expected @-1 to @-{every - 1}")
    if given is None:
        try:
            return catalog.resolve(f"{model}{suffix}").removed_blocks
        except UnknownModel:
            return tuple(range(every - depth, every))
    if len(set(given)) < depth or not set(given) <= set(range(every)):
        raise UnknownVariant(
            f"{suffix!r} of the order {list(given)}: expected {depth} different blocks of {every}"
        )
    return given[:depth]


@dataclass(frozen=True)
class DecodeSpeedup:
    """Speedup of one variant. Times are seconds of a decode step, one token per sequence."""

    removed_blocks: Blocks
    batch_size: int
    dense_s: float
    pruned_s: float
    half_s: float  # of the first half of the blocks
    parts: BlockTimes  # of the dense step
    speedup: float
    bound: float  # from these parts
    bound_by_blocks_alone: float


def measure_speedup(
    dense: Variant,
    removed: Blocks,
    requests: Sequence[SampleRequest],
    num_steps: int,
    make_engine: Callable[..., Engine] = Engine,
) -> DecodeSpeedup:
    """Alternate decode steps of the dense model, the variant and half of the model.

    The bound counts embeddings, blocks and head only. The time of a block, including attention
    and cache, comes from the difference between the dense model and its half.
    """
    every = len(dense.keep)
    half = without(dense, range(every // 2, every))
    pruned = without(dense, removed)
    sides = {"dense": dense, "pruned": pruned, "half": half}
    batches = {name: SteadyBatch(variant, requests, make_engine) for name, variant in sides.items()}
    steps_s = median_steps_s(batches, num_steps)
    block_s = (steps_s["dense"] - steps_s["half"]) / (every - len(half.keep))
    parts = replace(measure_times(dense.model, len(requests)), block_s=block_s)
    return DecodeSpeedup(
        removed_blocks=removed,
        batch_size=len(requests),
        dense_s=steps_s["dense"],
        pruned_s=steps_s["pruned"],
        half_s=steps_s["half"],
        parts=parts,
        speedup=steps_s["dense"] / steps_s["pruned"],
        bound=parts.speedup(every, len(removed)),
        bound_by_blocks_alone=every / len(pruned.keep),
    )


def measure_weights(dense: Variant) -> dict[str, int]:
    """Bytes of the dense model alone and with ten variants. Shared storage counts once."""
    every = num_blocks(dense.model)
    variants = [
        without(dense, {(first + more) % every for more in range(1 + first % (every - 1))})
        for first in range(_NUM_VARIANTS)
    ]
    return {
        "variants": len({variant.keep for variant in variants}),
        "dense_bytes": storage_bytes([dense]),
        "bytes": storage_bytes([dense, *variants]),
    }


def storage_bytes(variants: Sequence[Variant]) -> int:
    """Total bytes of all parameters and buffers."""
    models = [variant.model for variant in variants]
    tensors = chain.from_iterable(chain(model.parameters(), model.buffers()) for model in models)
    storages: dict[int, torch.UntypedStorage] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
    return sum(storage.nbytes() for storage in storages.values())
