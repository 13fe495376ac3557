"""Adapters of peft (LoRA) on the blocks of a pruned view, and what they change of its weights.

An adapter adds a product of two thin matrices to every linear layer of a block. Only these are
trained: all other tensors are shared with the dense model and stay as they are. An adapter of all
depths is added to the dense weights once. Each depth has matrices of its own beside them, which are
those of its repair with the adapter added.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pruning.healing.places import ADAPTER_TENSORS
from pruning.models.architectures import architecture
from pruning.models.blocks import Own, block_list, num_blocks
from pruning.models.safetensors_files import WeightFiles
from pruning.models.store import load
from pruning.repair.folding import LazyTensors, Read, folded
from pruning.repair.record import Method
from pruning.repair.repair import Repaired
from pruning.sleb import Blocks
from pruning.spec.heal import Heal

_NAME = "default"  # as peft calls the only adapter of a model
_DOWN, _UP = "lora_A", "lora_B"  # [rank, width_in] and [width_out, rank]
_OUT_OF_STATES = "out_proj"  # peft refuses it in models with states
_PREFIX = "base_model.model."  # of peft's names in a file
_UNREPAIRED = Repaired(Method.NONE, {})

Tensors = Mapping[str, torch.Tensor]


class AdapterUnreadable(ValueError):
    """The file of an adapter is missing or damaged."""


class NothingToAdapt(ValueError):
    """The blocks have no layer that an adapter can be put on."""


@dataclass(frozen=True)
class Adapter:
    """An adapter in training.

    ``model`` is the view that it was put on, which computes with it. ``parameters`` are its
    matrices in float32, by the path of their layer in the view and peft's name for them.
    """

    model: PreTrainedModel
    settings: Mapping[str, Any]  # of peft's ``LoraConfig``
    parameters: Mapping[str, nn.Parameter]

    @property
    def num_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.parameters.values())

    def values(self) -> Tensors:
        """A copy of its matrices, on the CPU."""
        return {name: each.detach().to("cpu", copy=True) for name, each in self.parameters.items()}

    @torch.no_grad()
    def load(self, tensors: Tensors) -> None:
        """Take over what ``values`` returned. Raises ``KeyError`` for those of another adapter."""
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[name])

    def save(self, directory: Path, tensors: Tensors, base: str) -> None:
        """Write these matrices as peft does, for the plain model of the name ``base``."""
        from peft import LoraConfig  # noqa: PLC0415 - takes a second

        directory.mkdir(parents=True, exist_ok=True)
        config = LoraConfig(**self.settings, base_model_name_or_path=base, inference_mode=True)
        config.save_pretrained(str(directory))
        named = {f"{_PREFIX}{name}": tensor.contiguous() for name, tensor in tensors.items()}
        save_file(named, directory / ADAPTER_TENSORS, metadata={"format": "pt"})


def adapted(pruned: PreTrainedModel, heal: Heal, blocks: Sequence[int] | None = None) -> Adapter:
    """Put a new adapter on ``pruned``, a view of its own, which is changed by it.

    It is on these of its blocks, or on all. It computes as before: one of the two matrices is zero.
    Raises ``NothingToAdapt``.
    """
    from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415 - takes a second

    settings = _settings(pruned, heal)
    pattern = architecture(pruned.config).blocks.rpartition(".")[2]
    if blocks is not None:
        settings |= {"layers_to_transform": list(blocks), "layers_pattern": pattern}
    pruned.requires_grad_(False)
    # Of a whole model, peft takes layers with the names that experts once had for experts
    parts = nn.ModuleDict({"model": nn.ModuleDict({pattern: block_list(pruned)})})
    devices = [pruned.device] if pruned.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(heal.seed)
        inject_adapter_in_model(LoraConfig(**settings), parts, adapter_name=_NAME)
    parameters = {}
    for name, parameter in pruned.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # small steps are lost in bfloat16
            parameters[name.replace(f".{_NAME}.", ".")] = parameter
    return Adapter(pruned, settings, parameters)


def read_adapter(directory: Path) -> Tensors:
    """What ``Adapter.save`` has written into ``directory``, by the names of ``values``.

    Raises ``AdapterUnreadable``.
    """
    try:
        tensors = load_file(directory / ADAPTER_TENSORS)
    except (OSError, SafetensorError) as error:
        raise AdapterUnreadable(f"{directory} has no readable adapter: {error}") from error
    return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}


def on_blocks(model: PreTrainedModel, tensors: Tensors, blocks: Iterable[int]) -> Tensors:
    """Those of these tensors that are in such blocks, by their names in ``model``."""
    prefixes = tuple(f"{architecture(model.config).blocks}.{block}." for block in blocks)
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefixes)}


def with_adapter(
    model: PreTrainedModel,
    heal: Heal,
    adapter: Tensors,
    own: Own,
    read: Read,
    keep: Blocks | None = None,
) -> LazyTensors:
    """The tensors of a healed model, by the names of the dense parameters that they replace.

    They are those of ``own``, the repair's, and those that the adapter adds to: it was put on a
    view of the blocks ``keep``, or of all.
    """
    blocks = range(num_blocks(model)) if keep is None else keep
    layers = dict(_dense_layers(model, blocks, adapter))

    def made(name: str) -> torch.Tensor:
        if name not in layers:
            return own[name]
        old = own[name] if name in own else dict(read([name]))[name]
        paths = (f"{layers[name]}.{part}.weight" for part in (_DOWN, _UP))
        down, up = (adapter[path].to(old.device).float() for path in paths)
        change = heal.alpha / heal.rank * (up @ down)
        if isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D):
            change = change.T
        return (old.detach().float() + change).to(old.dtype)

    return LazyTensors(dict.fromkeys([*own, *layers]), made)


def own_repair(
    model: PreTrainedModel, heal: Heal, adapter: Tensors, repaired: Repaired | None, read: Read
) -> Repaired:
    """The repair of a depth, with the adapter that all depths share added to it."""
    if repaired is None:
        return _UNREPAIRED
    merged = with_adapter(model, heal, adapter, repaired.tensors, read)
    return replace(repaired, tensors={name: merged[name] for name in repaired.tensors})


def depth_tensors(
    model: PreTrainedModel,
    keep: Blocks,
    heal: Heal,
    adapter: Tensors,
    repaired: Repaired | None,
    read: Read,
) -> LazyTensors:
    """What repair and healing change of the dense model at the depth that keeps ``keep``.

    ``adapter`` has the matrices on blocks of that depth.
    """
    repaired = repaired or _UNREPAIRED
    own = on_blocks(model, repaired.tensors, keep)
    healed = replace(repaired, tensors=with_adapter(model, heal, adapter, own, read))
    return folded(model, keep, healed, read)


def changed_tensors(directory: Path, changed: Iterable[str], keep: Blocks) -> Tensors:
    """Tensors of a published model that keeps these blocks, by the names that its dense parent has
    for them. They may be memory-mapped."""
    model = load(directory, device="meta").model
    blocks = architecture(model.config).blocks
    names = {}
    for name in changed:
        block, _, inner = name.removeprefix(f"{blocks}.").partition(".")
        names[f"{blocks}.{keep.index(int(block))}.{inner}"] = name
    return {names[name]: values for name, values in WeightFiles(directory, model).read(names)}


def _dense_layers(
    model: PreTrainedModel, keep: Sequence[int], tensors: Tensors
) -> Iterator[tuple[str, str]]:
    """The parameters of ``model`` that an adapter changes, and the paths of its own layers."""
    path = architecture(model.config).blocks
    for name in tensors:
        layer, part, _ = name.rsplit(".", 2)
        if part != _DOWN:
            continue
        position, _, inner = layer.removeprefix(f"{path}.").partition(".")
        yield f"{path}.{keep[int(position)]}.{inner}.weight", layer


def _settings(pruned: PreTrainedModel, heal: Heal) -> dict[str, Any]:
    """Those of peft's ``LoraConfig``."""
    layers = {
        leaf: layer
        for name, layer in block_list(pruned).named_modules()
        if isinstance(layer, nn.Linear | Conv1D)
        if (leaf := name.rpartition(".")[2]) != _OUT_OF_STATES
        or not architecture(pruned.config).has_states
    }
    if not layers:
        raise NothingToAdapt(
            f"blocks of type {pruned.config.model_type} have no linear layers for adapters"
        )
    return {
        "r": heal.rank,
        "lora_alpha": heal.alpha,
        "lora_dropout": 0.0,  # nothing random, so that a training can be resumed exactly
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "target_modules": sorted(layers),
        "fan_in_fan_out": any(isinstance(layer, Conv1D) for layer in layers.values()),
    }
