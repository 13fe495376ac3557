"""The forward of one variant over its cache: a batch of sequences in, logits out.

Prefill and decode differ only in the number of tokens for each sequence. Nothing is padded: prompts
are packed in one row, with explicit positions and masks. Models with blocks of the usual kind use
the flat forward, the others their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, chain

import torch

from app.engine.attention import (
    Attention,
    BatchedDecodeAttention,
    VarlenPrefillAttention,
    attention_windows,
    causal_mask,
    own_mask,
    packed_mask,
)
from app.engine.cuda_graphs import DecodeGraphs, Recorder, Shape
from app.engine.flat_model import FlatModel
from app.engine.head import Head
from app.engine.kv_cache import AttentionMetadata, SlotCache
from app.engine.row_kernels import RowKernels
from app.engine.scheduler import Batch
from app.engine.tuning import OFF, Tuner
from app.engine.variant import Variant


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

    With ``record``, it replays recorded decode steps. ``tuner`` chooses between kernels.
    """

    def __init__(
        self,
        variant: Variant,
        flat: FlatModel | None = None,
        record: Recorder | None = None,
        tuner: Tuner = OFF,
    ) -> None:
        self.cache = SlotCache()
        self.graphs: DecodeGraphs | None = None
        self._model = variant.model
        self._windows = attention_windows(variant.model.config)
        self._flat_model = flat
        self._tuner = tuner
        self._head = Head(variant.model, tuner)
        self._row_kernels = RowKernels(variant.model, tuner)
        if record is not None:
            self.graphs = DecodeGraphs(record, self._decode, self.cache, self._model.device)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Forwarded:
        if self.graphs is not None and (logits := self.graphs.run(batch)) is not None:
            return Forwarded(logits, None)
        places = [
            range(seq.num_cached, seq.num_cached + num)
            for seq, num in zip(batch.sequences, batch.num_scheduled_tokens, strict=True)
        ]
        scheduled = [
            seq.tokens[each.start : each.stop]
            for seq, each in zip(batch.sequences, places, strict=True)
        ]
        token_ids = torch.tensor([*chain(*scheduled)], device=self._model.device)
        metadata = self._metadata(batch, places)
        self.cache.open(metadata)
        with self._row_kernels.for_rows(len(token_ids)):
            if self._flat_model is None:
                shape = (-1, 1) if batch.is_one_token_each else (1, -1)
                masks = self._model_masks(metadata, batch)
                positions = metadata.positions.view(shape)
                hidden = self._model_forward(token_ids.view(shape), positions, masks)
            else:
                attention = self._attention(metadata, places)
                hidden = self._flat_model(token_ids, metadata.positions, attention, self.cache)
            if batch.is_one_token_each:
                return Forwarded(self._head(hidden), None)
            last = hidden[[num - 1 for num in accumulate(batch.num_scheduled_tokens)]]
            return Forwarded(self._head(last), hidden)

    def _decode(
        self, token_ids: torch.Tensor, positions: torch.Tensor, shape: Shape
    ) -> torch.Tensor:
        """The logits of ``forward`` for one token in each of the first slots. No decision on the
        host depends on anything but the shape, so the step can be recorded.
        """
        num_slots, num_tokens = shape
        slots = torch.arange(num_slots, device=token_ids.device)
        self.cache.open(AttentionMetadata(slots, positions, shape, slice(0, num_slots), num_tokens))
        attention = self._decode_attention(positions, num_tokens)
        if self._flat_model is None:
            masks = {kind: attention.mask(kind) for kind in self._windows}
            hidden = self._model_forward(token_ids[:, None], positions[:, None], masks)
        else:
            hidden = self._flat_model(token_ids, positions, attention, self.cache)
        return self._head(hidden)

    def _metadata(self, batch: Batch, places: Sequence[range]) -> AttentionMetadata:
        first, num_slots = batch.sequences[0].slot, len(places)
        assert first is not None
        if batch.is_one_token_each:  # whole steps of the cache: a product over them is far faster
            rows, num_tokens = slice(first, first + num_slots), batch.cache_shape[1]
        elif num_slots == 1:
            rows, num_tokens = slice(first, first + 1), places[0].stop
        else:
            assert not any(each.start for each in places), "only whole prompts are packed"
            rows, num_tokens = None, 0
        slots = [slot for slot, each in enumerate(places, first) for _ in each]
        positions = [*chain(*places)]
        ours = torch.tensor([slots, positions], device=self._model.device)
        return AttentionMetadata(ours[0], ours[1], batch.cache_shape, rows, num_tokens)

    def _attention(self, metadata: AttentionMetadata, places: Sequence[range]) -> Attention:
        dtype = self._model.dtype
        if all(len(each) == 1 for each in places):
            return self._decode_attention(metadata.positions, metadata.num_tokens)
        masks = {
            kind: [own_mask(each, reach, dtype, self._model.device) for each in places]
            for kind, reach in self._windows.items()
        }
        return VarlenPrefillAttention(
            [len(each) for each in places], [each.stop for each in places], masks, self._tuner
        )

    def _decode_attention(self, positions: torch.Tensor, num_tokens: int) -> BatchedDecodeAttention:
        """Attention of one token for each slot, at these positions ``[slots]``."""

        @cache  # compiled blocks need none
        def mask(kind: str) -> torch.Tensor:
            reach = self._windows[kind]
            return causal_mask(positions[:, None], num_tokens, reach, self._model.dtype)

        return BatchedDecodeAttention(mask, self._tuner)

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
        self, token_ids: torch.Tensor, positions: torch.Tensor, masks: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Run the model's own forward on tokens ``[rows, width]``; return hidden states
        ``[tokens, hidden_size]`` in front of the head.
        """
        hidden: torch.Tensor = self._model.base_model(
            input_ids=token_ids,
            attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
            position_ids=positions,
            cache=self.cache,
            use_cache=True,
        ).last_hidden_state
        return hidden.flatten(0, 1)
