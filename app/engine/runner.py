"""The forward of one variant over its cache: a batch of sequences in, logits out.

Prefill and decode differ only in how many tokens each sequence is fed. Rows are padded on the
right; positions and masks are explicit, because every sequence is somewhere else.
"""

from collections.abc import Mapping

import torch
from transformers import PreTrainedConfig

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
        self.cache.open(Window(first_slot, positions, num_tokens, batch.cache_shape))
        hidden = self._model.base_model(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=self._masks(positions, num_tokens),
            position_ids=positions,
            cache=self.cache,
            use_cache=True,
        ).last_hidden_state  # [rows, width, hidden_size]
        last = torch.tensor([len(ids) - 1 for ids in fed], device=device)
        rows = torch.arange(len(fed), device=device)
        return final_logits(self._model, hidden[rows, last]).float()

    def _masks(
        self, positions: torch.Tensor, num_tokens: int
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Additive masks ``[rows, 1, width, num_tokens]``: one, or one per kind of block."""
        masks = {
            kind: causal_mask(positions, num_tokens, window, self._model.dtype)
            for kind, window in self._windows.items()
        }
        return masks if len(masks) > 1 else next(iter(masks.values()))


def attention_windows(config: PreTrainedConfig) -> Mapping[str, int | None]:
    """Kinds of attention among the blocks, with how far back each looks (None: all the way)."""
    window: int | None = getattr(config, "sliding_window", None)
    default = "full_attention" if window is None else "sliding_attention"
    windows = {"full_attention": None, "sliding_attention": window}
    kinds = set(getattr(config, "layer_types", None) or [default])
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
