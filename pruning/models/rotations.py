"""Rotary embeddings whose frequencies depend on the longest position of a forward.

Such a module looks at the positions on the host, in each forward, and changes itself. A GPU would
be waited for, and a forward could not be recorded.
"""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from pruning.models.architectures import architecture
from pruning.models.blocks import num_blocks, view, with_own_dicts

_ORIGINAL = "original_inv_freq"


def held(model: PreTrainedModel) -> PreTrainedModel:
    """The model with the frequencies of its original length, whatever the positions are.

    A view of ``model``, or the model itself where nothing changes its frequencies.
    """
    path = architecture(model.config).blocks.rpartition(".")[0]
    changing = {
        name: child
        for name, child in model.get_submodule(path).named_children()
        if _is_changing(child)
    }
    if not changing:
        return model
    shell = view(model, range(num_blocks(model)))
    for name, child in changing.items():
        setattr(shell.get_submodule(path), name, held_rotation(child))
    return shell


def held_rotation(rotation: nn.Module) -> nn.Module:
    """The same for a rotary embedding."""
    if not _is_changing(rotation):
        return rotation
    still: Any = with_own_dicts(rotation)
    for name, original in rotation.named_buffers():
        if name.endswith(_ORIGINAL):
            still._buffers[name.replace(_ORIGINAL, "inv_freq")] = original
    of = still.rope_type
    still.rope_type = dict.fromkeys(of, "default") if isinstance(of, dict) else "default"
    held_still: nn.Module = still
    return held_still


def _is_changing(module: nn.Module) -> bool:
    of: Any = getattr(module, "rope_type", None)
    kinds = of.values() if isinstance(of, dict) else [of or ""]
    return any("dynamic" in kind or kind == "longrope" for kind in kinds)
