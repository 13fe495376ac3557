"""The forward of one variant over the pages of its cache: a batch of sequences in, logits out.

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
from app.engine.cache.paged_cache import AttentionMetadata, PagedCache, tables_of
from app.engine.cache.pages import PAGE_TOKENS, pages_of
from app.engine.kernels.warm_up import Recorded
from app.engine.running.cuda_graphs import (
    DecodeGraphs,
    DecodeInputs,
    Recorder,
    Shape,
    num_read_pages,
)
from app.engine.running.flat_model import FlatModel
from app.engine.running.head import Head
from app.engine.running.prompt_attention import alike, padded_attention
from app.engine.scheduling.scheduler import Batch
from app.engine.step import Interruption, Step
from app.engine.transfer import sent, upload
from app.engine.variant import Variant
from pruning.models.blocks import block_list, num_blocks
from pruning.models.rotations import held

_COPIED = 3  # a page that torch's attention reads is read, written and read again


@dataclass(frozen=True)
class Forwarded:
    """Float32 logits ``[rows, vocab]`` after the last token of each sequence.

    ``hidden [tokens, hidden_size]`` are the inputs of the head of all scheduled tokens, None if
    each sequence has one.
    """

    logits: torch.Tensor
    hidden: torch.Tensor | None


@dataclass(frozen=True)
class ReadLimits:
    """Of a group of sequences. Pages of all blocks are the unit."""

    most_pages: int  # that it may read: the memory of their copies
    pages_of_pass: int  # that take as long to read as all weights


class ModelRunner:
    """Runs the forward of one variant: ``flat``, or the model's own.

    With ``record``, it replays recorded decode steps. ``tuner`` knows the fastest kernels.
    """

    def __init__(
        self,
        variant: Variant,
        cache: PagedCache,
        flat: FlatModel | None = None,
        record: Recorder | None = None,
        tuner: Autotuner = OFF,
        shapes: Sequence[Shape] = (),
    ) -> None:
        self.cache = cache
        self.head = Head(variant.model, tuner)
        self.graphs: DecodeGraphs | None = None
        self._model = held(variant.model)
        self._windows = attention_windows(variant.model.config)
        self._flat_model = flat
        self._tuner = tuner
        self._num_blocks = num_blocks(self._model)
        is_on_gpu = self._model.device.type != "cpu"
        self._reads_groups = is_on_gpu and flat is not None  # of prompts
        self._read_limits = self._limits_of_reads() if is_on_gpu else None
        if record is not None:
            self.graphs = DecodeGraphs(
                variant.name, record, self._model.device, shapes, self._num_blocks
            )

    @torch.inference_mode()
    def record_next(self) -> Recorded:
        """Record one more decode step. Writes into the unit of no page."""
        return Recorded.ALL if self.graphs is None else self.graphs.record_next(self._decode)

    @torch.inference_mode()
    def forward(self, batch: Batch, step: Step) -> Forwarded:
        """Raises ``StepInterrupted``."""
        if step.is_reproducible:
            return self._reproducible(batch, step)
        if batch.is_decode and self._read_limits is not None:
            pages = [num_read_pages(seq.num_cached + 1) for seq in batch.sequences]
            groups = decode_groups(pages, self._read_limits)
            if len(groups) > 1:
                return self._in_groups(batch, groups, step)
        return self._replayed(batch, step) or self._forward(batch, step)

    def can_run_ahead(self, batch: Batch) -> bool:
        """Whether the decode behind this one is one recorded step."""
        if self.graphs is None or self.graphs.shape_for(batch, 1) is None:
            return False
        pages = [num_read_pages(seq.num_cached + 2) for seq in batch.sequences]
        limits = self._read_limits
        return limits is None or len(decode_groups(pages, limits)) == 1

    @torch.inference_mode()
    def run_ahead(self, batch: Batch, token_ids: torch.Tensor, step: Step) -> torch.Tensor:
        """The logits of the decode behind one that ``can_run_ahead`` and gives these tokens, valid
        until the next replay. The sequences have pages for them, and are as before that one."""
        assert self.graphs is not None
        logits = self.graphs.run(batch, token_ids)
        assert logits is not None
        step.kernels["decode"] = "recorded"
        return logits

    def _replayed(self, batch: Batch, step: Step) -> Forwarded | None:
        """By a recorded step, whose logits are valid until the next one."""
        if self.graphs is None or (logits := self.graphs.run(batch)) is None:
            return None
        step.kernels["decode"] = "recorded"
        return Forwarded(logits, None)

    def _in_groups(self, batch: Batch, groups: Sequence[Sequence[int]], step: Step) -> Forwarded:
        """A decode of some rows after the other."""
        parts = []
        for rows in groups:
            part = replace(
                batch,
                sequences=tuple(batch.sequences[row] for row in rows),
                num_scheduled_tokens=(1,) * len(rows),
            )
            parts.append((self._replayed(part, step) or self._forward(part, step)).logits.clone())
        order = [row for rows in groups for row in rows]
        places = sorted(range(len(order)), key=order.__getitem__)
        return Forwarded(torch.cat(parts)[upload(places, self._model.device)], None)

    def _limits_of_reads(self) -> ReadLimits:
        """As many pages as the cache has, and those that are read and copied as fast as weights."""
        page_bytes = self._num_blocks * self.cache.shape.num_bytes
        weights = sum(weight.nbytes for weight in self._model.parameters())
        most_pages = self.cache.pool.num_units // self._num_blocks
        return ReadLimits(max(1, most_pages), weights // (_COPIED * page_bytes))

    @property
    def depends_on_its_batch(self) -> bool:
        """Whether what a token gives may depend on other tokens of the same forward."""
        return self._flat_model is None or not self._flat_model.can_reproduce

    def _reproducible(self, batch: Batch, step: Step) -> Forwarded:
        """Each sequence by itself, unless what a token gives depends on no other token."""
        if not self.depends_on_its_batch:
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
        owners = [owner for owner, each in enumerate(places) for _ in each]
        token_ids, owner_ids, positions = upload(
            [[*chain(*scheduled)], owners, [*chain(*places)]], self._model.device
        )
        metadata = self._metadata(batch, places, owner_ids, positions)
        self.cache.metadata = metadata
        if self._flat_model is None:
            shape = (-1, 1) if batch.is_one_token_each else (1, -1)
            masks = self._model_masks(metadata, places)
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

    def _decode(self, inputs: DecodeInputs) -> torch.Tensor:
        """The logits of ``forward`` for one token of each sequence. No decision on the host depends
        on anything but shapes, so the step can be recorded.
        """
        token_ids, positions, tables = inputs
        num_rows, step = len(tables), Step()
        owners = torch.arange(num_rows, device=tables.device)
        num_seen = tables.shape[1] * PAGE_TOKENS
        metadata = AttentionMetadata(tables, owners, positions, None, num_seen)
        self.cache.metadata = metadata
        attention = self._decode_attention(positions, metadata.num_tokens)
        if self._flat_model is None:
            masks = {kind: attention.mask(kind) for kind in self._windows}
            hidden = self._model_forward(token_ids[:, None], positions[:, None], masks, step)
        else:
            hidden = self._flat_model(token_ids, positions, attention, self.cache, step)
        return self.head(hidden, step)

    def _metadata(
        self,
        batch: Batch,
        places: Sequence[range],
        owners: torch.Tensor,
        positions: torch.Tensor,
    ) -> AttentionMetadata:
        longest = max(each.stop for each in places)
        units = [torch.from_numpy(seq.pages.units) for seq in batch.sequences]
        is_decode = batch.is_one_token_each
        num_pages = num_read_pages(longest) if is_decode else pages_of(longest)
        tables = sent(tables_of(units, num_pages), self._model.device)
        num_read = None if is_decode else tuple(each.stop for each in places)
        groups = alike(places) if self._reads_groups and not is_decode else ()
        return AttentionMetadata(tables, owners, positions, num_read, longest, groups)

    def _attention(self, metadata: AttentionMetadata, places: Sequence[range]) -> Attention:
        if all(len(each) == 1 for each in places):
            return self._decode_attention(metadata.positions, metadata.num_tokens)
        like = self.cache.keys
        if metadata.groups:
            return padded_attention(self._windows, places, metadata, like.dtype)
        return prefill_attention(self._windows, places, metadata.num_stored, like, self._tuner)

    def _decode_attention(self, positions: torch.Tensor, num_tokens: int) -> BatchedDecodeAttention:
        return decode_attention(
            self._windows, positions, num_tokens, self._model.dtype, self._tuner
        )

    def _model_masks(
        self, metadata: AttentionMetadata, places: Sequence[range]
    ) -> Mapping[str, torch.Tensor]:
        """Masks by kind of attention, as the model's own forward expects them."""
        like = self.cache.keys
        if metadata.num_read is None:
            rows = metadata.positions[:, None]
            return {
                kind: causal_mask(rows, metadata.num_tokens, reach, like.dtype)
                for kind, reach in self._windows.items()
            }
        return {
            kind: packed_mask(places, metadata.num_stored, reach, like)
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


def decode_groups(num_pages: Sequence[int], limits: ReadLimits) -> list[list[int]]:
    """Which rows of a decode are read together, by the pages of each: all of a group as far as its
    longest one. The longest come first.

    Without groups, one long sequence beside many short ones would make the step read, and copy, as
    if all of them were long. Each group more reads the weights once more.
    """
    order = sorted(range(len(num_pages)), key=lambda row: -num_pages[row])
    groups = []
    while order:
        rest = [num_pages[row] for row in order]
        end = min(len(rest), max(1, limits.most_pages // rest[0]))
        saved = {at: (rest[0] - rest[at]) * (len(rest) - at) for at in range(1, len(rest))}
        best = max(saved, key=saved.__getitem__, default=len(rest))
        if saved.get(best, 0) > limits.pages_of_pass:
            end = min(end, best)
        groups.append(order[:end])
        order = order[end:]
    return groups
