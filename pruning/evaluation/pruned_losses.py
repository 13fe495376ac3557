"""Window losses of the dense model and of many pruned ones, in one pass over the blocks.

Two models that have the same blocks up to some block share the hidden states in front of it, so the
prefixes of a removal order, raw and repaired, cost less than one by one. Each block is loaded once.
"""

from collections.abc import Callable, Iterator, Sequence
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
from pruning.models.streaming import VisitedModel
from pruning.plural import counted
from pruning.removal import Losses
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

    Raises ``StateBudgetTooSmall``.
    """
    return losses_of_parts(dense, models, [windows])[0]


def losses_of_parts(
    dense: DenseModel,
    models: Sequence[PrunedModel],
    parts: Sequence[torch.Tensor],
    observe: Callable[[int, int], object] = lambda _done, _total: None,
) -> list[list[Losses]]:
    """The losses of each model on each part, which is windows ``[num_windows, seqlen]``.

    All windows have one length. Hidden states take at most the state budget of the run; windows
    that exceed it have a pass of their own. Calls ``observe(done, total)`` with the windows that
    went through a block. Raises ``StateBudgetTooSmall``.
    """
    config, seqlen = dense.model.config, parts[0].shape[1]
    needed = (len(models) + 1) * seqlen * config.hidden_size * dense.model.dtype.itemsize
    budget = state_budget(
        dense.visited().device,
        dense.resources.state_budget,
        least=needed,
        of=f"one window of {seqlen} tokens in {counted(len(models), 'model')}",
    )
    losses_by_part: list[list[list[float]]] = [[[] for _ in models] for _ in parts]
    tally = _Tally(len(_blocks_of(models)) * sum(map(len, parts)), observe)
    for pieces in _passes(parts, budget // needed):
        for number, of_piece in _one_pass(dense, models, pieces, tally):
            for losses, more in zip(losses_by_part[number], of_piece, strict=True):
                losses.extend(more)
    return [list(of_part) for of_part in losses_by_part]


def _blocks_of(models: Sequence[PrunedModel]) -> list[int]:
    return sorted({block for model in models for block in model.keep})


@dataclass
class _Tally:
    """Counts windows, once for each block that they went through."""

    total: int
    observe: Callable[[int, int], object]
    done: int = 0

    def add(self, num_windows: int) -> None:
        self.done += num_windows
        self.observe(self.done, self.total)


_Pieces = Sequence[tuple[int, torch.Tensor]]  # each with the number of the part that it is from


def _passes(parts: Sequence[torch.Tensor], most_windows: int) -> Iterator[_Pieces]:
    """What fits into memory at once: parts, some of them in pieces."""
    pieces: list[tuple[int, torch.Tensor]] = []
    room = most_windows
    for number, part in enumerate(parts):
        windows = part
        while len(windows):
            piece, windows = windows[:room], windows[room:]
            pieces.append((number, piece))
            room -= len(piece)
            if not room:
                yield pieces
                pieces, room = [], most_windows
    if pieces:
        yield pieces


@torch.inference_mode()
def _one_pass(
    dense: DenseModel, models: Sequence[PrunedModel], pieces: _Pieces, tally: "_Tally"
) -> list[tuple[int, list[list[float]]]]:
    """The losses of each model on the windows of each piece, in order."""
    visited = dense.visited()
    batch_size = max(1, dense.resources.batch_tokens // pieces[0][1].shape[1])
    with visited.embeddings():
        batches = [
            (number, _Batch(visited.model, token_ids.to(visited.device), len(models)))
            for number, piece in pieces
            for token_ids in torch.split(piece, batch_size)
        ]
    with closing(visited.blocks(_blocks_of(models))) as loaded:
        for block in loaded:
            modules = list(_modules(visited, block, models))
            for _, batch in batches:
                batch.run(block, modules)
                tally.add(batch.num_windows)
    with visited.head():
        return [(number, batch.losses(visited.model)) for number, batch in batches]


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
    """Windows that go through a block together, in all models.

    Models may share the tensors of their states.
    """

    def __init__(self, model: PreTrainedModel, token_ids: torch.Tensor, num_models: int) -> None:
        self._token_ids = token_ids
        self.num_windows = len(token_ids)
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
        by_state: dict[int, list[float]] = {}
        for hidden in self._states:
            if id(hidden) not in by_state:
                losses = window_losses(model, finish(model, hidden), self._token_ids)
                by_state[id(hidden)] = losses.tolist()
        return [by_state[id(hidden)] for hidden in self._states]
