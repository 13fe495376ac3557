"""Window losses of the dense model and of many pruned ones, in one pass over the blocks.

Two models that have the same blocks up to some block share the hidden states in front of it, so the
prefixes of a removal order, raw and repaired, cost less than one by one. Each block is loaded once.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.models.blocks import (
    NO_OWN,
    Own,
    block_calls,
    block_list,
    finish,
    own_of_block,
    with_own,
)
from pruning.models.loss import window_losses
from pruning.models.memory import state_budget
from pruning.plural import counted
from pruning.removal import Losses
from pruning.repair.repair import VisitedModel
from pruning.search.dense_model import DenseModel
from pruning.sleb import Blocks


@dataclass(frozen=True)
class PrunedModel:
    """The dense model with the blocks ``keep``, and ``own`` tensors in place of its parameters of
    these names.
    """

    keep: Blocks
    own: Own = field(default_factory=dict)


def pruned_losses(
    dense: DenseModel, models: Sequence[PrunedModel], windows: torch.Tensor
) -> list[Losses]:
    """Nats per predicted token of each of the ``windows [num_windows, seqlen]``, for each model.

    Hidden states take at most the state budget of the run; windows that exceed it have a pass of
    their own. Raises ``StateBudgetTooSmall``.
    """
    config, seqlen = dense.model.config, windows.shape[1]
    state_bytes = seqlen * config.hidden_size * dense.model.dtype.itemsize
    needed = (len(models) + 1) * state_bytes
    budget = state_budget(
        dense.visited().device,
        dense.resources.state_budget,
        least=needed,
        of=f"one window of {seqlen} tokens in {counted(len(models), 'model')}",
    )
    found: list[list[float]] = [[] for _ in models]
    for group in torch.split(windows, budget // needed):
        for losses, more in zip(found, _one_pass(dense, models, group), strict=True):
            losses.extend(more)
    return list(found)


@torch.inference_mode()
def _one_pass(
    dense: DenseModel, models: Sequence[PrunedModel], windows: torch.Tensor
) -> list[list[float]]:
    visited = dense.visited()
    token_ids = windows.to(visited.device)
    size = max(1, dense.resources.batch_tokens // windows.shape[1])
    with visited.embeddings():
        batches = [
            _Batch(visited.model, part, len(models)) for part in torch.split(token_ids, size)
        ]
    needed = sorted({block for pruned in models for block in pruned.keep})
    with closing(visited.blocks(needed)) as loaded:
        for block in loaded:
            modules = list(_modules(visited, block, models))
            for batch in batches:
                batch.run(block, modules)
    with visited.head():
        by_batch = [batch.losses(visited.model) for batch in batches]
    return [[loss for losses in parts for loss in losses] for parts in zip(*by_batch, strict=True)]


def _modules(
    visited: VisitedModel, block: int, models: Sequence[PrunedModel]
) -> Iterator[nn.Module | None]:
    """What each pruned model runs in place of a block: one module for equal tensors, or None."""
    known: list[tuple[Own, nn.Module]] = [(NO_OWN, block_list(visited.model)[block])]
    for pruned in models:
        if block not in pruned.keep:
            yield None
            continue
        own = own_of_block(visited.model, block, pruned.own, visited.device)
        module = next((module for tensors, module in known if _are_equal(tensors, own)), None)
        if module is None:
            module = with_own(known[0][1], own)
            known.append((own, module))
        yield module


def _are_equal(one: Own, other: Own) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class _Batch:
    """Windows that go through a block together. Models may share the tensors of their states."""

    def __init__(self, model: PreTrainedModel, token_ids: torch.Tensor, num_models: int) -> None:
        self._token_ids = token_ids
        hidden, self._calls = block_calls(model, token_ids)
        self._states = [hidden] * num_models

    def run(self, block: int, modules: Sequence[nn.Module | None]) -> None:
        """Advance each model by its module, once for models with the same state and module."""
        call = self._calls[block]
        outputs: dict[tuple[int, int], torch.Tensor] = {}
        states = []
        for module, hidden in zip(modules, self._states, strict=True):
            if module is None:
                states.append(hidden)
                continue
            key = id(module), id(hidden)
            if key not in outputs:
                outputs[key] = call.of(module)(hidden)
            states.append(outputs[key])
        self._states = states

    def losses(self, model: PreTrainedModel) -> list[list[float]]:
        """The losses of each window, for each model."""
        found: dict[int, list[float]] = {}
        for hidden in self._states:
            if id(hidden) not in found:
                losses = window_losses(model, finish(model, hidden), self._token_ids)
                found[id(hidden)] = losses.tolist()
        return [found[id(hidden)] for hidden in self._states]
