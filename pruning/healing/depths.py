"""The weights of all depths that one adapter heals.

The adapter is added to the dense weights once for all depths. Each depth has matrices of its own
beside them, which are those of its repair with the adapter added.
"""

from dataclasses import replace

from transformers import PreTrainedModel

from pruning.healing.adapter import Merged, Tensors
from pruning.models.architectures import architecture
from pruning.models.blocks import NO_OWN, Own, num_blocks
from pruning.repair.folding import Read
from pruning.repair.record import Method
from pruning.repair.repair import Repaired
from pruning.sleb import Blocks
from pruning.spec.heal import Heal

_UNREPAIRED = Repaired(Method.NONE, {})


def shared_tensors(model: PreTrainedModel, heal: Heal, adapter: Tensors, read: Read) -> Merged:
    """The tensors that all depths share in place of the dense ones of these names."""
    return _merged(model, heal, adapter, NO_OWN, read)


def own_repair(
    model: PreTrainedModel, heal: Heal, adapter: Tensors, repaired: Repaired | None, read: Read
) -> Repaired:
    """The repair of a depth as it changes ``shared_tensors``."""
    if repaired is None:
        return _UNREPAIRED
    merged = _merged(model, heal, adapter, repaired.tensors, read)
    return replace(repaired, tensors={name: merged[name] for name in repaired.tensors})


def whole_repair(
    model: PreTrainedModel,
    keep: Blocks,
    heal: Heal,
    adapter: Tensors,
    repaired: Repaired | None,
    read: Read,
) -> Repaired:
    """What repair and healing change of the dense model at the depth that keeps ``keep``."""
    repaired = repaired or _UNREPAIRED
    prefixes = tuple(f"{architecture(model.config).blocks}.{block}." for block in keep)
    adapter, own = (
        {name: tensor for name, tensor in each.items() if name.startswith(prefixes)}
        for each in (adapter, repaired.tensors)
    )
    return replace(repaired, tensors=_merged(model, heal, adapter, own, read))


def _merged(model: PreTrainedModel, heal: Heal, adapter: Tensors, own: Own, read: Read) -> Merged:
    every_block = tuple(range(num_blocks(model)))
    return Merged(model, every_block, heal, adapter, own, read)
