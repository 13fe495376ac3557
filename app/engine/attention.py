"""Who may look at whom, and attention over the slots of a cache.

Three layouts come up. In a decode every sequence feeds one token, and the neighbouring slots are
rows of one batch. A prompt that is read in chunks looks at its own slot. Several whole prompts lie
packed in one row, each on its own, and need no cache to look at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import PreTrainedConfig

_FEW_KEYS = 512  # rows times tokens; up to here one fused call on a CPU beats two products


class UnsupportedAttention(ValueError):
    """Blocks attend in a way that no mask here describes."""


@dataclass(frozen=True)
class Together:
    """Queries of one token a sequence, ``[rows, heads, head_dim]``, each over its own slot."""

    masks: Mapping[str, torch.Tensor]  # by kind, additive, [rows, 1, 1, num_tokens]

    def __call__(
        self, kind: str, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:  # fmt: skip
        """Keys and values are ``[rows, key_heads, num_tokens, head_dim]``; returns as queries."""
        rows, num_key_heads, num_tokens, head_dim = keys.shape
        # The queries that share a key head go in as if they were successive tokens of it.
        grouped = queries.reshape(rows, num_key_heads, -1, head_dim)
        if keys.device.type == "cpu" and rows * num_tokens > _FEW_KEYS:
            attended = _products(grouped, keys, values, self.masks[kind], scaling)
        else:
            attended = F.scaled_dot_product_attention(
                grouped, keys, values, attn_mask=self.masks[kind], scale=scaling
            )
        return attended.view_as(queries)


@dataclass(frozen=True)
class Apart:
    """Queries of several sequences one after the other, ``[tokens, heads, head_dim]``."""

    num_queries: Sequence[int]  # of each sequence
    num_keys: Sequence[int]
    masks: Mapping[str, Sequence[torch.Tensor | None]]  # [queries, keys]; None: all before it

    def __call__(
        self, kind: str, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:  # fmt: skip
        """Keys and values are ``[1, key_heads, keys, head_dim]``; returns as queries."""
        num_sharing = queries.shape[1] // keys.shape[1]
        keys, values = (its.repeat_interleave(num_sharing, dim=1) for its in (keys, values))
        parts = zip(
            queries.transpose(0, 1)[None].split(list(self.num_queries), dim=2),
            keys.split(list(self.num_keys), dim=2),
            values.split(list(self.num_keys), dim=2),
            self.masks[kind],
            strict=True,
        )
        attended = [
            F.scaled_dot_product_attention(
                its, ours, theirs, attn_mask=mask, is_causal=mask is None, scale=scaling
            )
            for its, ours, theirs, mask in parts
        ]
        return torch.cat(attended, dim=2)[0].transpose(0, 1)


Attention = Together | Apart


def _products(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor,
    scaling: float,
) -> torch.Tensor:  # fmt: skip
    """Two batches of small products, in which a CPU reads keys three times as fast as in torch's
    fused attention; softmax in float32, as the models' own eager attention."""
    scores = queries.flatten(0, 1) @ keys.flatten(0, 1).transpose(1, 2)
    scores = scores.float().view(*queries.shape[:-1], -1) * scaling + mask
    shares = scores.softmax(dim=-1).to(values.dtype)
    return (shares.flatten(0, 1) @ values.flatten(0, 1)).view_as(queries)


def kinds_of_attention(config: PreTrainedConfig) -> list[str]:
    """Of each block."""
    window: int | None = getattr(config, "sliding_window", None)
    default = "full_attention" if window is None else "sliding_attention"
    return list(getattr(config, "layer_types", None) or [default] * config.num_hidden_layers)


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
    """Zero where queries at ``positions`` ``[rows, width]`` may look, else the lowest number:
    additive, ``[rows, 1, width, num_tokens]``."""
    distance = positions[:, None, :, None] - torch.arange(num_tokens, device=positions.device)
    return _additive(_out_of_sight(distance, window), dtype)


def packed_mask(
    positions: torch.Tensor, lengths: Sequence[int], window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """The same for prompts of these lengths in one row, each on its own: ``[1, 1, all, all]``."""
    owners = torch.repeat_interleave(torch.tensor(lengths, device=positions.device))
    hidden = _out_of_sight(positions[:, None] - positions, window)
    return _additive(hidden | (owners[:, None] != owners), dtype)[None, None]


def own_mask(
    places: range, window: int | None, dtype: torch.dtype, device: torch.device
) -> torch.Tensor | None:
    """Of one sequence by itself, ``[queries, keys]``; None where a query sees all before it."""
    if not places.start and (window is None or len(places) <= window):
        return None
    return causal_mask(torch.tensor([places], device=device), places.stop, window, dtype)[0, 0]


def _out_of_sight(distance: torch.Tensor, window: int | None) -> torch.Tensor:
    hidden = distance < 0
    return hidden if window is None else hidden | (distance >= window)


def _additive(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    zeros = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return zeros.masked_fill(hidden, torch.finfo(dtype).min)
