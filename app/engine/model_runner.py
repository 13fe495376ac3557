"""The forward of one variant over its cache: a batch of sequences in, logits out.

Prefill and decode differ only in the number of tokens for each sequence. Nothing is padded: prompts
are packed in one row, with explicit positions and masks. Models with blocks of the usual kind use
the flat forward, the others their own.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, chain

import torch
from torch import nn
from transformers import PreTrainedModel

from app.engine.attention import (
    Attention,
    BatchedDecodeAttention,
    attention_windows,
    causal_mask,
    decode_attention,
    packed_mask,
    prefill_attention,
)
from app.engine.autotuning import OFF, Autotuner
from app.engine.cuda_graphs import DecodeGraphs, Recorder, Shape
from app.engine.flat_model import FlatModel
from app.engine.head import Head
from app.engine.kv_cache import AttentionMetadata, SlotCache
from app.engine.scheduler import Batch, cache_shape
from app.engine.step import Interruption, Step
from app.engine.transfer import upload
from app.engine.variant import Variant
from pruning.models.blocks import block_list


@dataclass(frozen=True)
class Forwarded:
    """Float32 logits ``[rows, vocab]`` after the last token of each sequence.

    ``hidden [tokens, hidden_size]`` are the inputs of the head of all scheduled tokens, None if
    each sequence has one.
    """

    logits: torch.Tensor
    hidden: torch.Tensor | None


class ModelRunner:
    """Runs the forward of one variant: ``flat``, or the model's own.

    With ``record``, it replays recorded decode steps. ``tuner`` knows the fastest kernels.
    """

    def __init__(
        self,
        variant: Variant,
        flat: FlatModel | None = None,
        record: Recorder | None = None,
        tuner: Autotuner = OFF,
    ) -> None:
        self.cache = SlotCache()
        self.head = Head(variant.model, tuner)
        self.graphs: DecodeGraphs | None = None
        self._model = variant.model
        self._windows = attention_windows(variant.model.config)
        self._flat_model = flat
        self._tuner = tuner
        if record is not None:
            self.graphs = DecodeGraphs(record, self._decode, self.cache, self._model.device)

    @torch.inference_mode()
    def forward(self, batch: Batch, step: Step) -> Forwarded:
        """Raises ``StepInterrupted``."""
        if step.is_reproducible:
            return self._reproducible(batch, step)
        if self.graphs is not None and (logits := self.graphs.run(batch)) is not None:
            step.kernels["decode"] = "recorded"
            return Forwarded(logits, None)
        return self._forward(batch, step)

    @property
    def _depends_on_its_batch(self) -> bool:
        """Whether what a token gives may depend on other tokens of the same forward."""
        return self._flat_model is None or not self._flat_model.can_reproduce

    def with_fixed_chunks(self, batch: Batch) -> Batch:
        """The batch without tokens of prompts that are cut there only beside other requests."""
        if not (batch.is_decode and self._depends_on_its_batch):
            return batch
        ends = [seq for seq in batch.sequences if seq.num_uncached == 1]
        return replace(batch, sequences=tuple(ends), num_scheduled_tokens=(1,) * len(ends))

    def _reproducible(self, batch: Batch, step: Step) -> Forwarded:
        """Each sequence by itself, unless what a token gives depends on no other token."""
        if not self._depends_on_its_batch:
            return self._forward(batch, step)
        step.kernels["blocks"] = "one sequence at a time"
        each = [
            self._forward(
                replace(batch, sequences=(seq,), num_scheduled_tokens=(num,)), step, is_alone=True
            )
            for seq, num in zip(batch.sequences, batch.num_scheduled_tokens, strict=True)
        ]
        hidden = [one.hidden for one in each if one.hidden is not None]
        logits = torch.cat([one.logits for one in each])
        return Forwarded(logits, None if batch.is_one_token_each else torch.cat(hidden))

    def _forward(self, batch: Batch, step: Step, *, is_alone: bool = False) -> Forwarded:
        places = [
            range(seq.num_cached, seq.num_cached + num)
            for seq, num in zip(batch.sequences, batch.num_scheduled_tokens, strict=True)
        ]
        scheduled = [
            seq.tokens[each.start : each.stop]
            for seq, each in zip(batch.sequences, places, strict=True)
        ]
        token_ids = upload([*chain(*scheduled)], self._model.device)
        metadata = self._metadata(batch, places, is_alone=is_alone)
        self.cache.open(metadata)
        if self._flat_model is None:
            shape = (-1, 1) if batch.is_one_token_each else (1, -1)
            masks = self._model_masks(metadata, batch)
            positions = metadata.positions.view(shape)
            hidden = self._model_forward(token_ids.view(shape), positions, masks, step)
        else:
            attention = self._attention(metadata, places)
            hidden = self._flat_model(token_ids, metadata.positions, attention, self.cache, step)
        if batch.is_one_token_each:
            return Forwarded(self.head(hidden, step), hidden if is_alone else None)
        ends = [num - 1 for num in accumulate(batch.num_scheduled_tokens)]
        last = hidden[upload(ends, hidden.device)]
        return Forwarded(self.head(last, step), hidden)

    def _decode(
        self, token_ids: torch.Tensor, positions: torch.Tensor, shape: Shape
    ) -> torch.Tensor:
        """The logits of ``forward`` for one token in each of the first slots. No decision on the
        host depends on anything but the shape, so the step can be recorded.
        """
        num_slots, num_tokens = shape
        slots, step = torch.arange(num_slots, device=token_ids.device), Step()
        self.cache.open(AttentionMetadata(slots, positions, shape, slice(0, num_slots), num_tokens))
        attention = self._decode_attention(positions, num_tokens)
        if self._flat_model is None:
            masks = {kind: attention.mask(kind) for kind in self._windows}
            hidden = self._model_forward(token_ids[:, None], positions[:, None], masks, step)
        else:
            hidden = self._flat_model(token_ids, positions, attention, self.cache, step)
        return self.head(hidden, step)

    def _metadata(
        self, batch: Batch, places: Sequence[range], *, is_alone: bool
    ) -> AttentionMetadata:
        """With ``is_alone``, what is read does not depend on other sequences of the cache."""
        first, num_slots = batch.sequences[0].slot, len(places)
        assert first is not None
        if batch.is_one_token_each:  # whole steps of the cache: a product over them is far faster
            num_tokens = cache_shape(1, places[0].stop)[1] if is_alone else batch.cache_shape[1]
            rows = slice(first, first + num_slots)
        elif num_slots == 1:
            rows, num_tokens = slice(first, first + 1), places[0].stop
        else:
            assert not any(each.start for each in places), "only whole prompts are packed"
            rows, num_tokens = None, 0
        slots = [slot for slot, each in enumerate(places, first) for _ in each]
        positions = [*chain(*places)]
        both = upload([slots, positions], self._model.device)
        longest = max(batch.num_scheduled_tokens)
        return AttentionMetadata(both[0], both[1], batch.cache_shape, rows, num_tokens, longest)

    def _attention(self, metadata: AttentionMetadata, places: Sequence[range]) -> Attention:
        model = self._model
        if all(len(each) == 1 for each in places):
            return self._decode_attention(metadata.positions, metadata.num_tokens)
        return prefill_attention(self._windows, places, model.dtype, model.device, self._tuner)

    def _decode_attention(self, positions: torch.Tensor, num_tokens: int) -> BatchedDecodeAttention:
        return decode_attention(
            self._windows, positions, num_tokens, self._model.dtype, self._tuner
        )

    def _model_masks(self, metadata: AttentionMetadata, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Masks by kind of attention, as the model's own forward expects them."""
        positions = metadata.positions.view((-1, 1) if batch.is_one_token_each else (1, -1))
        return {
            kind: packed_mask(
                metadata.positions, batch.num_scheduled_tokens, reach, self._model.dtype
            )
            if metadata.rows is None
            else causal_mask(positions, metadata.num_tokens, reach, self._model.dtype)
            for kind, reach in self._windows.items()
        }

    def _model_forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        masks: Mapping[str, torch.Tensor],
        step: Step,
    ) -> torch.Tensor:
        """Run the model's own forward on tokens ``[rows, width]``; return hidden states
        ``[tokens, hidden_size]`` in front of the head. Raises ``StepInterrupted``.
        """
        with _interruptible(self._model, step.interruption):
            hidden: torch.Tensor = self._model.base_model(
                input_ids=token_ids,
                attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
                position_ids=positions,
                cache=self.cache,
                use_cache=True,
            ).last_hidden_state
        return hidden.flatten(0, 1)


@contextmanager
def _interruptible(model: PreTrainedModel, interruption: Interruption) -> Iterator[None]:
    """Let forwards of this model look at an interruption in front of each block."""

    def check(_module: nn.Module, _args: object) -> None:
        interruption.check()

    hooks = [block.register_forward_pre_hook(check) for block in block_list(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
