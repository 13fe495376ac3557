"""Attention over the slots of a cache, and its masks.

There are three layouts. In a decode every sequence has one token, and neighbouring slots are rows
of one batch. A chunk of a prompt attends to its own slot. Several whole prompts are packed in one
row; each attends to itself only and needs no cache.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import PreTrainedConfig

from app.engine.tuning import OFF, Tuner, size_of

_MAX_SCORES = 512 * 512  # of a head: more take too much memory to exist as a whole

# Two ways to compute the same on a CPU.
FUSED, PRODUCTS = "fused attention", "products"


class UnsupportedAttention(ValueError):
    """The model has a kind of attention for which there is no mask here."""


@dataclass(frozen=True)
class BatchedDecodeAttention:
    """One query token for each sequence, ``[rows, heads, head_dim]``, over its own slot."""

    mask: Callable[[str], torch.Tensor]  # of a kind, additive, [rows, 1, 1, num_tokens]
    tuner: Tuner = OFF

    def __call__(
        self, kind: str, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:  # fmt: skip
        """Keys and values are ``[rows, key_heads, num_tokens, head_dim]``; the result is shaped
        like the queries."""
        rows, num_key_heads, num_tokens, head_dim = keys.shape
        # Queries that share a key head are treated as successive tokens of that head.
        grouped = queries.reshape(rows, num_key_heads, -1, head_dim)
        mask = self.mask(kind)

        def fused() -> torch.Tensor:
            return F.scaled_dot_product_attention(
                grouped, keys, values, attn_mask=mask, scale=scaling
            )

        def products() -> torch.Tensor:
            return _products(grouped, keys.flatten(0, 1), values.flatten(0, 1), mask, scaling)

        shape = (size_of(rows), *grouped.shape[1:], size_of(num_tokens))
        attended = _fastest(self.tuner, "a token each", shape, keys, fused, products)
        return attended.view_as(queries)


@dataclass(frozen=True)
class VarlenPrefillAttention:
    """Queries of several sequences one after the other, ``[tokens, heads, head_dim]``."""

    num_queries: Sequence[int]  # of each sequence
    num_keys: Sequence[int]
    masks: Mapping[str, Sequence[torch.Tensor | None]]  # [queries, keys]; None: all before it
    tuner: Tuner = OFF

    def __call__(
        self, kind: str, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:  # fmt: skip
        """Keys and values are ``[1, key_heads, keys, head_dim]``; the result is shaped like the
        queries."""
        parts = zip(
            queries.split(list(self.num_queries)),
            keys[0].split(list(self.num_keys), dim=1),
            values[0].split(list(self.num_keys), dim=1),
            self.masks[kind],
            strict=True,
        )
        return torch.cat([_of_one(*each, scaling, self.tuner) for each in parts])


Attention = BatchedDecodeAttention | VarlenPrefillAttention


def _of_one(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None,
    scaling: float, tuner: Tuner,
) -> torch.Tensor:  # fmt: skip
    """``[queries, heads, head_dim]`` over ``[key_heads, keys, head_dim]``."""
    by_head = queries.transpose(0, 1)
    num_sharing = len(by_head) // len(keys)

    def fused() -> torch.Tensor:
        all_keys, all_values = (
            each.repeat_interleave(num_sharing, dim=0)[None] for each in (keys, values)
        )
        return F.scaled_dot_product_attention(
            by_head[None], all_keys, all_values,
            attn_mask=mask, is_causal=mask is None, scale=scaling,
        )[0]  # fmt: skip

    if mask is None or mask.numel() > _MAX_SCORES:
        return fused().transpose(0, 1)

    def products() -> torch.Tensor:
        grouped = by_head.unflatten(0, (-1, num_sharing))
        return _products(grouped, keys, values, mask, scaling).flatten(0, 1)

    shape = (*by_head.shape[::2], size_of(mask.shape[0]), size_of(mask.shape[1]))
    return _fastest(tuner, "a prompt", shape, keys, fused, products).transpose(0, 1)


def _products(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor,
    scaling: float,
) -> torch.Tensor:  # fmt: skip
    """Two batches of products, ``[…, …, …, head_dim]`` over ``[batch, tokens, head_dim]``, with
    a softmax in float32 in between, as in the models' own eager attention."""
    flat = queries.reshape(len(keys), -1, queries.shape[-1])
    scores = (flat @ keys.transpose(1, 2)).float().mul_(scaling)
    shares = scores.view(*queries.shape[:-1], -1).add_(mask).softmax(dim=-1).to(values.dtype)
    return (shares.view(len(keys), -1, keys.shape[1]) @ values).view_as(queries)


def _fastest(
    tuner: Tuner, name: str, shape: tuple[int, ...], keys: torch.Tensor,
    fused: Callable[[], torch.Tensor], products: Callable[[], torch.Tensor],
) -> torch.Tensor:  # fmt: skip
    """What both compute. On a GPU, this may be recorded, and fused attention is made for it."""
    if keys.device.type != "cpu":
        return fused()
    ways = {FUSED: fused, PRODUCTS: products}
    return ways[tuner.fastest(name, shape, keys.dtype, ways)]()


def kinds_of_attention(config: PreTrainedConfig) -> list[str]:
    """The kind of attention of each block."""
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
    """Of one sequence by itself, ``[queries, keys]``; on a GPU None where a query sees all before
    it, for which it has faster kernels."""
    sees_all = not places.start and (window is None or len(places) <= window)
    if sees_all and device.type != "cpu":
        return None
    return causal_mask(torch.tensor([places], device=device), places.stop, window, dtype)[0, 0]


def _out_of_sight(distance: torch.Tensor, window: int | None) -> torch.Tensor:
    hidden = distance < 0
    return hidden if window is None else hidden | (distance >= window)


def _additive(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    zeros = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return zeros.masked_fill(hidden, torch.finfo(dtype).min)
