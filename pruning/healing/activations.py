"""Activations that the blocks of a model in training keep for the backward pass."""

from functools import partial

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from pruning.models.blocks import block_calls, block_list


def checkpoint_blocks(model: PreTrainedModel) -> None:
    """Let each block keep its input only, and compute the others again in the backward pass."""
    for block in block_list(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def kept_bytes(model: PreTrainedModel, token_ids: torch.Tensor) -> int:
    """What all blocks keep for these tokens, by what the first one keeps. No weights count."""
    with torch.no_grad():
        hidden, calls = block_calls(model, token_ids)
    kept = Kept(calls[0].block)
    with torch.enable_grad(), saved_tensors_hooks(kept.add, lambda tensor: tensor):
        calls[0](hidden.requires_grad_())
    return kept.num_bytes * len(calls)


class Kept:
    """Tensors that autograd keeps. A storage counts once."""

    def __init__(self, block: nn.Module) -> None:
        self._weights = {weight.untyped_storage().data_ptr() for weight in block.parameters()}
        # alive, so that no address is used twice
        self._storages: dict[int, torch.UntypedStorage] = {}

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._weights:
            self._storages[storage.data_ptr()] = storage
        return tensor

    @property
    def num_bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._storages.values())
