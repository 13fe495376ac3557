"""The forward of one variant over its cache: a batch of sequences in, logits out.

Prefill and decode differ only in how many tokens each sequence is fed. Rows are padded on the
right; positions and masks are explicit, because every sequence is somewhere else. A token a row
takes the flat step where there is one, all else the model's own forward.
"""

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from transformers import PreTrainedConfig

from app.engine.decode import flat_decoder, kinds_of_attention, vector_kernels
from app.engine.kv_cache import SlotCache, Window
from app.engine.scheduler import Batch
from app.engine.variants import Variant
from pruning.blocks import final_logits


class UnsupportedAttention(ValueError):
    """Blocks attend in a way that no mask here describes."""


class Runner:
    def __init__(self, variant: Variant) -> None:
        self.cache = SlotCache()
        self._model = variant.model
        self._windows = attention_windows(variant.model.config)
        self._decode = flat_decoder(variant.model)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> torch.Tensor:
        """Float32 logits ``[rows, vocab]`` behind the last token that each sequence is fed."""
        device = self._model.device
        fed = [seq.tokens[seq.num_cached : seq.num_cached + batch.width] for seq in batch.sequences]
        padded = [ids + [0] * (batch.width - len(ids)) for ids in fed]
        starts = torch.tensor([seq.num_cached for seq in batch.sequences], device=device)
        positions = starts[:, None] + torch.arange(batch.width, device=device)
        num_tokens = max(seq.num_cached for seq in batch.sequences) + batch.width
        first_slot = batch.sequences[0].slot
        assert first_slot is not None
        window = Window(first_slot, positions, num_tokens, batch.cache_shape)
        is_one_token = len(fed) * batch.width == 1
        with vector_kernels() if is_one_token else nullcontext():
            hidden = self._hidden(torch.tensor(padded, device=device), window)
            last = torch.tensor([len(ids) - 1 for ids in fed], device=device)
            rows = torch.arange(len(fed), device=device)
            return final_logits(self._model, hidden[rows, last]).float()

    def _hidden(self, token_ids: torch.Tensor, window: Window) -> torch.Tensor:
        """In front of the head, ``[rows, width, hidden_size]``."""
        self.cache.open(window)
        masks = self._masks(window)
        if self._decode is not None and token_ids.shape[1] == 1:
            return self._decode(token_ids[:, 0], window.positions, masks, self.cache)[:, None]
        hidden: torch.Tensor = self._model.base_model(
            input_ids=token_ids,
            attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
            position_ids=window.positions,
            cache=self.cache,
            use_cache=True,
        ).last_hidden_state
        return hidden

    def _masks(self, window: Window) -> dict[str, torch.Tensor]:
        """Additive masks ``[rows, 1, width, num_tokens]``, one per kind of block."""
        return {
            kind: causal_mask(window.positions, window.num_tokens, reach, self._model.dtype)
            for kind, reach in self._windows.items()
        }


def attention_windows(config: PreTrainedConfig) -> Mapping[str, int | None]:
    """Kinds of attention among the blocks, with how far back each looks (None: all the way)."""
    windows = {
        "full_attention": None,
        "sliding_attention": getattr(config, "sliding_window", None),
    }
    kinds = set(kinds_of_attention(config))
    if unknown := kinds - windows.keys():
        raise UnsupportedAttention(
            f"{config.model_type} has blocks of type {', '.join(sorted(unknown))}; "
            f"the engine knows {', '.join(windows)}"
        )
    return {kind: windows[kind] for kind in kinds}


def causal_mask(
    positions: torch.Tensor, num_tokens: int, window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """Zero where queries at ``positions`` ``[rows, width]`` may look, else the lowest number."""
    distance = positions[:, None, :, None] - torch.arange(num_tokens, device=positions.device)
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    zeros = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
    return zeros.masked_fill(hidden, torch.finfo(dtype).min)
