"""Transformer blocks of a Hugging Face model: their number, views without some, and their calls.

All module paths come from ``architectures``.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from pruning.models.architectures import architecture
from pruning.models.products import float32_products
from pruning.models.rounding import MATRICES, QuantizedExperts, QuantizedLinear
from pruning.plural import counted

_Module = TypeVar("_Module", bound=nn.Module)
Own = Mapping[str, torch.Tensor]  # by the names of the dense parameters that they replace
NO_OWN: Own = {}


def num_blocks(model: PreTrainedModel) -> int:
    return len(block_list(model))


def block_list(model: PreTrainedModel) -> nn.ModuleList:
    blocks = model.get_submodule(architecture(model.config).blocks)
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def view(
    model: PreTrainedModel,
    keep: Sequence[int],
    own: Own = NO_OWN,
    scales: Mapping[int, float] = MappingProxyType({}),
) -> PreTrainedModel:
    """The model made of the blocks ``keep`` (ascending), sharing every parameter with ``model``.

    Modules are new and tensors are shared, so a view takes no memory for weights and does not
    change ``model``. ``own`` are tensors that replace parameters of kept blocks, by their names in
    the plain model; a quantized layer rounds them. ``scales`` are factors of the input of kept
    blocks. Raises ``ValueError`` if
    ``keep`` is not made of ascending block indices.
    """
    path = architecture(model.config).blocks
    blocks = block_list(model)
    if not keep or list(keep) != sorted(set(keep)) or not 0 <= keep[0] <= keep[-1] < len(blocks):
        raise ValueError(
            f"keep={list(keep)} must be ascending indices of {counted(len(blocks), 'block')}"
        )
    config = pruned_config(model.config, keep)
    root = _shell(model, config)
    parent: nn.Module = root
    for name in path.split("."):
        child = _shell(parent.get_submodule(name), config)
        parent._modules[name] = child
        parent = child
    parent._modules = {
        str(position): _renumbered(blocks[index], config, position)
        for position, index in enumerate(keep)
    }
    for name, tensor in own.items():
        index, _, inner = name.removeprefix(f"{path}.").partition(".")
        _set_parameter(parent.get_submodule(str(keep.index(int(index)))), inner, tensor)
    for block, scale in scales.items():
        _scale_input(parent.get_submodule(str(keep.index(block))), scale)
    root.generation_config = copy.deepcopy(model.generation_config)
    return root


def with_blocks(
    model: PreTrainedModel, other: PreTrainedModel, blocks: Iterable[int]
) -> PreTrainedModel:
    """A model with all blocks of ``model``, but with these of ``other``, which has as many.

    It shares every parameter with the two.
    """
    mixed = view(model, range(num_blocks(model)))
    for index in blocks:
        block_list(mixed)[index] = block_list(other)[index]
    return mixed


def pruned_config(config: PreTrainedConfig, keep: Sequence[int]) -> PreTrainedConfig:
    """The config of the model made of the blocks ``keep``, in which nothing is about others."""
    row, pruned = architecture(config), copy.deepcopy(config)
    for key in row.per_block:
        if (entries := getattr(config, key, None)) is not None:
            setattr(pruned, key, [entries[index] for index in keep])
    for key in row.boundaries:
        setattr(pruned, key, sum(index < getattr(config, key) for index in keep))
    for key in row.listed:
        places = getattr(config, key, None) or ()
        setattr(pruned, key, [place for place, index in enumerate(keep) if index in places])
    for key in row.periods:
        pruned.__dict__.pop(key, None)
    pruned.num_hidden_layers = len(keep)
    if config.is_heterogeneous:
        own = {int(block): each for block, each in config.to_dict()["per_layer_config"].items()}
        pruned.per_layer_config = {
            position: own[block] for position, block in enumerate(keep) if block in own
        }
    return pruned


def input_scale(block: nn.Module) -> float:
    """The factor by which a block of a view multiplies its input."""
    scale: float = getattr(block, "input_scale", 1.0)
    return scale


def own_of_block(model: PreTrainedModel, block: int, own: Own, device: torch.device) -> Own:
    """Those of ``own`` that belong to a block, by their names in it, on the device."""
    prefix = f"{architecture(model.config).blocks}.{block}."
    return {
        name.removeprefix(prefix): own[name].to(device) for name in own if name.startswith(prefix)
    }


def with_own(block: nn.Module, own: Own) -> nn.Module:
    """The block with tensors of its own in place of the parameters of these names in it.

    Shells are new; ``block`` stays as it was.
    """
    shell = _copied(block)
    for name, tensor in own.items():
        _set_parameter(shell, name, tensor)
    return shell


@dataclass(frozen=True)
class BlockCall:
    """A block and its arguments beside the hidden states: masks, positions and rotations.

    The arguments do not depend on the hidden states, so they are valid for any kept blocks.
    """

    block: nn.Module
    args: tuple[object, ...]
    kwargs: Mapping[str, object]

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        with float32_products(hidden, hidden[..., 0].numel()):
            output = self.block(hidden, *self.args, **self.kwargs)
        if isinstance(output, tuple):
            output = output[0]
        assert isinstance(output, torch.Tensor)
        return output

    def of(self, block: nn.Module) -> "BlockCall":
        """The call of another block with the same arguments."""
        return replace(self, block=block)


def block_calls(
    model: PreTrainedModel, token_ids: torch.Tensor
) -> tuple[torch.Tensor, tuple[BlockCall, ...]]:
    """The input of the first block ``[batch, seqlen, hidden_size]``, and the calls of all blocks.

    The calls are those for windows of this length without a cache. Their arguments are those of a
    single window, and broadcast over any batch. Runs no block.
    """
    calls: list[BlockCall] = []
    returns_tuple = architecture(model.config).returns_tuple

    def note(block: nn.Module, hidden: torch.Tensor, *args: object, **kwargs: object) -> object:
        calls.append(BlockCall(block, args, kwargs))
        return (hidden, None) if returns_tuple else hidden

    skeleton = view(model, range(num_blocks(model)))
    for block, shell in zip(block_list(model), block_list(skeleton), strict=True):
        shell.__dict__.update(
            forward=partial(note, block), _forward_hooks={}, _forward_pre_hooks={}
        )
    for parent, name in _tail(skeleton):
        setattr(parent, name, nn.Identity())
    skeleton.base_model(token_ids[:1], use_cache=False)
    noted = tuple(calls)
    hidden: torch.Tensor = skeleton.base_model(token_ids, use_cache=False).last_hidden_state
    return hidden, noted


def finish(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Turn the output of the last block into the input of the head, both ``[..., width]``."""
    for parent, name in _tail(model):
        hidden = getattr(parent, name)(hidden)
    return hidden


def final_logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Logits ``[..., vocab]`` in the model dtype, from the input of the head ``[..., width]``."""
    return softcapped(model, model.get_output_embeddings()(hidden))


def softcapped(model: PreTrainedModel, logits: torch.Tensor) -> torch.Tensor:
    """What the model makes of the output of its head."""
    row, config = architecture(model.config), model.config
    factor = getattr(config, row.logit_multiplier) if row.logit_multiplier else None
    if factor is not None:
        logits = logits * factor
    if row.logit_divisor is not None:
        logits = logits / getattr(config, row.logit_divisor)
    cap = getattr(config, row.logit_softcap) if row.logit_softcap else None
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _tail(model: PreTrainedModel) -> Iterator[tuple[nn.Module, str]]:
    """The modules of this model between the last block and the head, by parent and name."""
    for path in architecture(model.config).tail:
        parent_path, _, name = path.rpartition(".")
        parent = model.get_submodule(parent_path)
        if getattr(parent, name) is not None:
            yield parent, name


def _renumbered(block: nn.Module, config: PreTrainedConfig, position: int) -> nn.Module:
    shell = _shell(block, config)
    if "layer_idx" in shell.__dict__:
        shell.__dict__["layer_idx"] = position
    for name, child in block._modules.items():
        if child is not None:
            shell._modules[name] = _renumbered(child, config, position)
    return shell


def _copied(block: nn.Module) -> nn.Module:
    copied = with_own_dicts(block)
    for name, child in block._modules.items():
        if child is not None:
            copied._modules[name] = _copied(child)
    return copied


def _set_parameter(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if isinstance(owner, QuantizedLinear) and leaf == "weight":
        owner.set_weight(tensor)
        return
    if isinstance(owner, QuantizedExperts) and leaf in MATRICES:
        owner.set_weight(leaf, tensor)
        return
    if leaf not in owner._parameters:
        raise ValueError(f"{name} is no parameter of a {type(module).__name__}")
    owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


def _scale_input(block: nn.Module, scale: float) -> None:
    def scaled(_block: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0] * scale, *args[1:])

    block.__dict__["input_scale"] = scale
    block.register_forward_pre_hook(scaled)


def _shell(module: _Module, config: PreTrainedConfig) -> _Module:
    """A new module over the same tensors."""
    shell = with_own_dicts(module)
    if isinstance(module.__dict__.get("config"), PreTrainedConfig):
        shell.__dict__["config"] = config
    return shell


def with_own_dicts(module: _Module) -> _Module:
    """A copy of a module. ``copy.copy`` alone would share its dicts, as of its parameters."""
    copied = copy.copy(module)
    dicts = {name: each.copy() for name, each in module.__dict__.items() if isinstance(each, dict)}
    copied.__dict__.update(dicts)
    return copied
