"""Forward passes of a model without some of its blocks, for weights in memory or on disk."""

from collections.abc import Iterator, MutableSequence, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from pruning.models.blocks import (
    BlockCall,
    Own,
    block_calls,
    block_list,
    finish,
    own_of_block,
    with_own,
)
from pruning.models.loss import last_hidden
from pruning.models.memory import BATCH_TOKENS, grouped, state_budget
from pruning.models.streaming import StreamedModel
from pruning.sleb import Blocks


@dataclass(frozen=True)
class InMemoryForward:
    """Forward passes of a model in memory, dense or pruned.

    A batch should have ``batch_tokens``, with padding; but at least one sequence.
    """

    model: PreTrainedModel
    batch_tokens: int = BATCH_TOKENS

    @torch.inference_mode()
    def hidden(
        self, batches: Sequence[torch.Tensor]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield token ids on the model's device, and the inputs of the head for them.

        Batches are ``[batch, seqlen]``, inputs of the head ``[batch, seqlen, hidden_size]``.
        """
        for batch in batches:
            token_ids = batch.to(self.model.device)
            yield token_ids, last_hidden(self.model, token_ids)


@dataclass(frozen=True)
class StreamedForward:
    """Forward passes of a model on disk. Loads each block once for all batches that fit.

    ``state_budget`` limits the bytes of hidden states, by default to half of the free memory.
    ``own`` replaces parameters of kept blocks, one block at a time.
    """

    streamed: StreamedModel
    keep: Blocks
    state_budget: int | None = None
    batch_tokens: int = BATCH_TOKENS
    own: Own = field(default_factory=dict)

    @property
    def model(self) -> PreTrainedModel:
        """Its head has weights while ``hidden`` is suspended at a yield."""
        return self.streamed.model

    @torch.inference_mode()
    def hidden(
        self, batches: Sequence[torch.Tensor]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """As of a model in memory. Raises ``StateBudgetTooSmall`` for a batch beyond the budget."""
        for group in self._groups(batches):
            yield from self._sweep(group)

    def _groups(self, batches: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
        """Those that are in memory together."""
        per_token = self.model.config.hidden_size * self.model.dtype.itemsize
        most = max((batch.numel() for batch in batches), default=0)
        budget = state_budget(
            self.streamed.device,
            self.state_budget,
            least=most * per_token,
            of=f"a batch of {most} tokens",
        )
        return grouped(batches, torch.Tensor.numel, budget // per_token)

    def _sweep(self, group: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        token_ids = [batch.to(self.streamed.device) for batch in group]
        states: list[torch.Tensor] = []
        calls: dict[int, tuple[BlockCall, ...]] = {}  # by length: masks and positions depend on it
        with self.streamed.embeddings():
            for batch in token_ids:
                hidden, calls[batch.shape[1]] = block_calls(self.model, batch)
                states.append(hidden)
        with closing(self.streamed.blocks(self.keep)) as loaded:
            for block in loaded:
                self._run(block, [calls[batch.shape[1]][block] for batch in token_ids], states)
        with self.streamed.head():
            for batch, hidden in zip(token_ids, states, strict=True):
                yield batch, finish(self.model, hidden)

    def _run(
        self, block: int, calls: Sequence[BlockCall], states: MutableSequence[torch.Tensor]
    ) -> None:
        """Run a loaded block on every state. Nothing here outlives the block's weights."""
        own = own_of_block(self.model, block, self.own, self.streamed.device)
        module = with_own(block_list(self.model)[block], own)
        for at, call in enumerate(calls):
            states[at] = call.of(module)(states[at])


Forward = InMemoryForward | StreamedForward
