"""Attention over the pages of a cache, and its masks.

There are two layouts. In a decode every sequence has one token, and sequences are rows of one
batch. Parts of prompts are packed in one row, and each attends to its own sequence only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch.nn import functional as F
from transformers import PreTrainedConfig

from app.engine.autotuning import OFF, Autotuner, Run, Trial, context_of, key_of, size_of
from app.engine.flash_attention import chunk_attention

_MAX_SCORES = 512 * 512  # of a head: more take too much memory to exist as a whole

# Two ways to compute the same on a CPU.
FUSED, PRODUCTS = "fused attention", "products"
_DECODE, _PROMPT = "attention, decode", "attention, prompt"


class UnsupportedAttention(ValueError):
    """The model has a kind of attention for which there is no mask here."""


# Of one forward, called by each block with its kind, queries, the keys and values that its metadata
# has it read, and a scaling. The result is shaped like the queries.
Attention = Callable[[str, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]


@dataclass(frozen=True)
class BatchedDecodeAttention:
    """One query token for each sequence, ``[rows, heads, head_dim]``, over its own pages."""

    mask: Callable[[str], torch.Tensor]  # of a kind, additive, [rows, 1, 1, num_tokens]
    tuner: Autotuner = OFF

    def __call__(
        self, kind: str, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:  # fmt: skip
        """Keys and values are ``[rows, key_heads, num_tokens, head_dim]``, by heads in memory; the
        result is shaped like the queries."""
        rows, num_key_heads, num_tokens, head_dim = keys.shape
        # Queries that share a key head are treated as successive tokens of that head.
        grouped = queries.reshape(rows, num_key_heads, -1, head_dim)
        mask = self.mask(kind)

        shape = (size_of(rows), *grouped.shape[1:], context_of(num_tokens))
        if _kernel(self.tuner, _DECODE, shape, keys) == FUSED:
            attended = F.scaled_dot_product_attention(
                grouped, keys, values, attn_mask=mask, scale=scaling
            )
        else:
            by_head = (each.transpose(0, 1) for each in (keys, values))
            all_keys, all_values = (each.flatten(0, 1) for each in by_head)
            of_heads = _products(grouped.transpose(0, 1), all_keys, all_values, mask[:, 0], scaling)
            attended = of_heads.transpose(0, 1)
        return attended.reshape(queries.shape)


@dataclass(frozen=True)
class VarlenPrefillAttention:
    """Queries of several sequences one after the other, ``[tokens, heads, head_dim]``, on a CPU:
    there is a call for each, since none is launched and nothing is padded."""

    places: Sequence[range]  # of the queries of each sequence
    num_stored: Sequence[int]  # keys that are there of each, with those behind its last token
    windows: Mapping[str, int | None]  # of the kinds
    mask: Callable[[str, int], torch.Tensor]  # of a kind and a sequence, [queries, keys]
    tuner: Autotuner = OFF

    def __call__(
        self, kind: str, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:  # fmt: skip
        """Keys and values are ``[1, key_heads, tokens, head_dim]``, all that are stored of one
        sequence after the other; the result is shaped like the queries."""
        parts = zip(
            queries.split([len(each) for each in self.places]),
            keys[0].split(list(self.num_stored), dim=1),
            values[0].split(list(self.num_stored), dim=1),
            strict=True,
        )
        attended = []
        for index, (of_one, own_keys, own_values) in enumerate(parts):
            end, reach = self.places[index].stop, self.windows[kind]
            seen = own_keys[:, :end], own_values[:, :end]
            mask = partial(self.mask, kind, index)
            sees_all = reach is None or end <= reach
            attended.append(_of_one(of_one, *seen, mask, scaling, self.tuner, sees_all=sees_all))
        return torch.cat(attended)


def _of_one(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
    mask: Callable[[], torch.Tensor], scaling: float, tuner: Autotuner, *, sees_all: bool,
) -> torch.Tensor:  # fmt: skip
    """``[queries, heads, head_dim]`` over ``[key_heads, keys, head_dim]``."""
    by_head = queries.transpose(0, 1)
    num_sharing, num_keys = len(by_head) // len(keys), keys.shape[1]
    if len(queries) * num_keys <= _MAX_SCORES:
        shape = (*by_head.shape[::2], size_of(len(queries)), context_of(num_keys))
        if _kernel(tuner, _PROMPT, shape, keys) == PRODUCTS:
            grouped = by_head.unflatten(0, (-1, num_sharing))
            attended = _products(grouped, keys, values, mask(), scaling).flatten(0, 1)
            return attended.transpose(0, 1)
    if sees_all:
        return chunk_attention(by_head, keys, values, scaling).transpose(0, 1)
    all_keys, all_values = (
        each.repeat_interleave(num_sharing, dim=0)[None] for each in (keys, values)
    )
    return F.scaled_dot_product_attention(
        by_head[None], all_keys, all_values, attn_mask=mask(), scale=scaling
    )[0].transpose(0, 1)


def _products(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor,
    scaling: float,
) -> torch.Tensor:  # fmt: skip
    """Two batches of products, ``[…, …, …, head_dim]`` over ``[batch, tokens, head_dim]``, with
    a softmax in float32 in between, as in the models' own eager attention."""
    flat = queries.reshape(len(keys), -1, queries.shape[-1])
    scores = (flat @ keys.transpose(1, 2)).float().mul_(scaling)
    shares = scores.view(*queries.shape[:-1], -1).add_(mask).softmax(dim=-1).to(values.dtype)
    return (shares.view(len(keys), -1, keys.shape[1]) @ values).view(queries.shape)


def _kernel(tuner: Autotuner, name: str, shape: tuple[int, ...], keys: torch.Tensor) -> str:
    """On a GPU, this may be recorded, and fused attention is made for it."""
    if keys.device.type != "cpu":
        return FUSED
    return tuner.kernel(key_of(name, keys, *shape), (FUSED, PRODUCTS))


def decode_attention(
    windows: Mapping[str, int | None],
    positions: torch.Tensor,
    num_tokens: int,
    dtype: torch.dtype,
    tuner: Autotuner,
) -> BatchedDecodeAttention:
    """Attention of one token of each sequence, at these positions ``[rows]``."""

    @cache  # compiled blocks need none
    def mask(kind: str) -> torch.Tensor:
        return causal_mask(positions[:, None], num_tokens, windows[kind], dtype)

    return BatchedDecodeAttention(mask, tuner)


def prefill_attention(
    windows: Mapping[str, int | None],
    places: Sequence[range],
    num_stored: Sequence[int],
    like: torch.Tensor,
    tuner: Autotuner,
) -> VarlenPrefillAttention:
    """Attention of several tokens of each sequence, which are at these places, to keys and values
    ``like`` a tensor."""

    @cache  # of all blocks
    def mask(kind: str, index: int) -> torch.Tensor:
        return own_mask(places[index], windows[kind], like.dtype)

    return VarlenPrefillAttention(places, num_stored, windows, mask, tuner)


@dataclass(frozen=True)
class AttentionShape:
    """The heads of a block, whose keys and values are like a tensor."""

    num_queries: int
    num_keys: int
    head_dim: int
    like: torch.Tensor

    def decode_trial(self, rows: int, num_tokens: int) -> Trial:
        """Time attention of so many sequences with so many tokens each."""
        sharing = self.num_queries // self.num_keys
        shape = (rows, self.num_keys, sharing, self.head_dim, num_tokens)

        def prepare() -> Mapping[str, Run]:
            size = (2, self.num_keys, rows, num_tokens, self.head_dim)
            cached = self.like.new_zeros(size).transpose(1, 2)
            queries = self.like.new_zeros(rows, self.num_queries, self.head_dim)
            mask = self.like.new_zeros(rows, 1, 1, num_tokens)

            def run(kernel: str) -> object:
                attention = BatchedDecodeAttention(lambda _kind: mask, _only(kernel))
                return attention("", queries, cached[0], cached[1], 1.0)

            return {kernel: partial(run, kernel) for kernel in (FUSED, PRODUCTS)}

        return Trial(key_of(_DECODE, self.like, *shape), prepare)

    def prompt_trial(self, num_queries: int, num_tokens: int) -> Trial | None:
        """Time attention of so many tokens at the end of so many. None if there is no choice, or
        never that many."""
        if num_queries > num_tokens or num_queries * num_tokens > _MAX_SCORES:
            return None
        shape = (self.num_queries, self.head_dim, num_queries, num_tokens)

        def prepare() -> Mapping[str, Run]:
            queries = self.like.new_zeros(num_queries, self.num_queries, self.head_dim)
            cached = self.like.new_zeros(2, self.num_keys, num_tokens, self.head_dim)
            mask = self.like.new_zeros(num_queries, num_tokens)

            def run(kernel: str) -> object:
                keys, values = cached
                return _of_one(
                    queries, keys, values, lambda: mask, 1.0, _only(kernel), sees_all=True
                )

            return {kernel: partial(run, kernel) for kernel in (FUSED, PRODUCTS)}

        return Trial(key_of(_PROMPT, self.like, *shape), prepare)


def _only(kernel: str) -> Autotuner:
    return Autotuner(always=frozenset({kernel}))


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
            f"{config.model_type} has unsupported attention types: "
            f"{', '.join(sorted(unknown))}; the engine supports {', '.join(windows)}"
        )
    return {kind: windows[kind] for kind in kinds}


def causal_mask(
    positions: torch.Tensor, num_tokens: int, window: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """Zero where queries at ``positions`` ``[rows, width]`` may look, else the lowest number:
    additive, ``[rows, 1, width, num_tokens]``."""
    distance = positions[:, None, :, None] - torch.arange(num_tokens, device=positions.device)
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    zeros = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return zeros.masked_fill_(hidden, torch.finfo(dtype).min)


def packed_mask(
    places: Sequence[range], num_stored: Sequence[int], window: int | None, like: torch.Tensor
) -> torch.Tensor:
    """The same for parts of prompts at these places in one row, over all keys that are stored of
    one sequence after the other: ``[1, 1, queries, keys]``."""
    dtype = like.dtype
    parts = [
        causal_mask(torch.tensor([each]), num, window, dtype)[0, 0]
        for each, num in zip(places, num_stored, strict=True)
    ]
    mask = torch.full((sum(map(len, places)), sum(num_stored)), torch.finfo(dtype).min, dtype=dtype)
    rows = mask.split([len(each) for each in places])
    for at, (row, part) in enumerate(zip(rows, parts, strict=True)):
        row.split(list(num_stored), dim=1)[at].copy_(part)
    return mask[None, None].to(like.device)


def own_mask(places: range, window: int | None, dtype: torch.dtype) -> torch.Tensor:
    """Of one sequence by itself, ``[queries, keys]``."""
    return causal_mask(torch.tensor([places]), places.stop, window, dtype)[0, 0]
