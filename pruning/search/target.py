"""How many blocks must go for a target that is decided before the search: by time or by bytes."""

from pruning.models.block_bytes import removals_for_bytes
from pruning.models.block_times import BlockTimes
from pruning.models.blocks import block_list, num_blocks
from pruning.models.store import DTYPE_BYTES, dtype_name, num_parameters, read_config
from pruning.search.dense_model import DenseModel
from pruning.spec.prune import PruneSpec


def planned_removals(spec: PruneSpec, dense: DenseModel, times: BlockTimes) -> int:
    """The number of blocks to remove, or an upper bound for ``max_perplexity_ratio``.

    Raises ``TargetUnreachable``.
    """
    blocks = num_blocks(dense.model)
    most = spec.most_removals(blocks)
    if spec.target_speedup is not None:
        return times.removals_for(spec.target_speedup, blocks, most)
    if spec.target_bytes is not None:
        item_bytes = _published_item_bytes(spec, dense)
        free = list(block_list(dense.model))[spec.protect_first : blocks - spec.protect_last]
        sizes = [item_bytes * sum(each.numel() for each in block.parameters()) for block in free]
        total = item_bytes * num_parameters(dense.model)
        return removals_for_bytes(spec.target_bytes, total, sizes, most)
    return most


def _published_item_bytes(spec: PruneSpec, dense: DenseModel) -> int:
    name = spec.published_dtype
    return DTYPE_BYTES[dtype_name(read_config(dense.path)) if name == "auto" else name]
