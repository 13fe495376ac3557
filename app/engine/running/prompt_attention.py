"""Attention of parts of prompts on a GPU: one call for those of like lengths.

A call for each prompt would be several launches for each of them in each block. So the prompts of a
group are the rows of one call, as long as the longest of them. What padding gives is thrown away.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import torch
from torch.nn import functional as F

from app.engine.attention import causal_mask
from app.engine.autotuning import size_of
from app.engine.cache.paged_cache import AttentionMetadata
from app.engine.cache.pages import PAGE_TOKENS
from app.engine.transfer import upload

_FEWEST_QUERIES, _FEWEST_KEYS = 64, 512  # fewer take no less time on a GPU


def alike(places: Sequence[range]) -> tuple[tuple[int, ...], ...]:
    """The rows of each group, by the places of the tokens of each row. Lengths of a group have the
    same powers of two, and it has either beginnings of prompts or none.

    The number of groups depends on the longest lengths, and not on the number of prompts.
    """
    groups: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for row, each in enumerate(places):
        num_keys = max(size_of(each.stop), _FEWEST_KEYS) if each.start else 0
        groups[max(size_of(len(each)), _FEWEST_QUERIES), num_keys].append(row)
    return tuple(map(tuple, groups.values()))


@dataclass(frozen=True)
class PaddedGroup:
    """The rows of one attention call. All numbers but that of the rows are of each row."""

    num_rows: int
    num_queries: int
    num_stored: int  # keys
    are_beginnings: bool  # of prompts, so that a query sees as many keys as there are queries

    @property
    def num_padded(self) -> int:
        return self.num_rows * self.num_queries


# Of a kind of attention and a group: ``[rows, 1, times · queries, keys]``, additive, with all
# queries so many times. None where a query sees all before it: a GPU has faster kernels for that.
Mask = Callable[[str, int, int], torch.Tensor | None]


@dataclass(frozen=True)
class PaddedPrefillAttention:
    """Queries of several sequences one after the other, ``[tokens, heads, head_dim]``."""

    groups: Sequence[PaddedGroup]
    taken: torch.Tensor  # [padded tokens]: the token that each of them is, group after group
    places: torch.Tensor  # [tokens]: where each of them is among the padded ones
    mask: Mask

    def __call__(
        self, kind: str, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:  # fmt: skip
        """Keys and values are ``[1, key_heads, tokens, head_dim]``, those of one group after the
        other; the result is shaped like the queries."""
        num_stored = [each.num_rows * each.num_stored for each in self.groups]
        parts = zip(
            queries.index_select(0, self.taken).split([each.num_padded for each in self.groups]),
            keys[0].split(num_stored, dim=1),
            values[0].split(num_stored, dim=1),
            strict=True,
        )
        attended = [self._of_group(kind, index, *part, scaling) for index, part in enumerate(parts)]
        return torch.cat(attended).index_select(0, self.places)

    def _of_group(
        self, kind: str, index: int, queries: torch.Tensor, keys: torch.Tensor,
        values: torch.Tensor, scaling: float,
    ) -> torch.Tensor:  # fmt: skip
        """``[rows · queries, heads, head_dim]`` over ``[key_heads, rows · keys, head_dim]``."""
        num_rows, num_queries = self.groups[index].num_rows, self.groups[index].num_queries
        by_head = queries.unflatten(0, (num_rows, -1)).transpose(1, 2)
        own_keys, own_values = (
            each.unflatten(1, (num_rows, -1)).transpose(0, 1) for each in (keys, values)
        )
        num_sharing = by_head.shape[1] // len(keys)
        if self.mask(kind, index, 1) is None:
            attended = F.scaled_dot_product_attention(
                by_head, own_keys[:, :, :num_queries], own_values[:, :, :num_queries],
                is_causal=True, scale=scaling, enable_gqa=num_sharing > 1,
            )  # fmt: skip
            return attended.transpose(1, 2).flatten(0, 1)
        # No kernel with a mask shares keys among heads, so the smaller of the two is repeated.
        if num_queries > 2 * len(keys) * keys.shape[-1]:
            own_keys, own_values = (
                each.repeat_interleave(num_sharing, dim=1) for each in (own_keys, own_values)
            )
            num_sharing = 1
        grouped = by_head.reshape(*own_keys.shape[:2], num_sharing * num_queries, -1)
        mask = self.mask(kind, index, num_sharing)
        attended = F.scaled_dot_product_attention(
            grouped, own_keys, own_values, attn_mask=mask, scale=scaling
        )
        return attended.reshape(by_head.shape).transpose(1, 2).flatten(0, 1)


def padded_attention(
    windows: Mapping[str, int | None],
    places: Sequence[range],
    metadata: AttentionMetadata,
    dtype: torch.dtype,
) -> PaddedPrefillAttention:
    """Attention of several tokens of each sequence, which are at these places, in the groups of the
    metadata."""
    firsts = [0, *accumulate(map(len, places))]
    taken: list[int] = []
    sources = [0] * firsts[-1]
    groups = []
    for rows in metadata.groups:
        num_queries = max(len(places[row]) for row in rows)
        for row in rows:
            first, num = firsts[row], len(places[row])
            sources[first : first + num] = range(len(taken), len(taken) + num)
            taken += [*range(first, first + num), *[first] * (num_queries - num)]
        num_stored = metadata.num_pages(rows) * PAGE_TOKENS
        are_beginnings = not places[rows[0]].start
        groups.append(PaddedGroup(len(rows), num_queries, num_stored, are_beginnings))
    both = upload([*taken, *sources], metadata.positions.device)
    of_tokens, at = both.split([len(taken), len(sources)])
    positions = metadata.positions[of_tokens].split([each.num_padded for each in groups])

    @cache  # of all blocks
    def mask(kind: str, index: int, num_times: int) -> torch.Tensor | None:
        group, reach = groups[index], windows[kind]
        if group.are_beginnings and (reach is None or group.num_queries <= reach):
            return None
        rows = positions[index].view(group.num_rows, -1)
        once = causal_mask(rows, group.num_stored, reach, dtype)
        return once.repeat(1, 1, num_times, 1) if num_times > 1 else once

    return PaddedPrefillAttention(groups, of_tokens, at, mask)
