"""A decoder block written flat: its own modules, called on tokens of any number of sequences."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from app.engine.attention import Attention
from app.engine.cache.paged_cache import PagedCache
from app.engine.kernels.merged_linear import Project, feed_forward, side_by_side
from app.engine.step import Interruption
from pruning.models.blocks import input_scale
from pruning.models.layout import Parts

_CLOSE = 0.02  # of norms in bfloat16, which round at another place


@dataclass(frozen=True)
class Rotation:
    """The rotary position embedding of some tokens."""

    cos: torch.Tensor  # [tokens, 1, head_dim]
    sin: torch.Tensor  # of the same shape, its first half negative

    def __call__(self, heads: torch.Tensor) -> torch.Tensor:
        """Rotate queries or keys ``[tokens, heads, head_dim]``."""
        halves_swapped = heads.roll(heads.shape[-1] // 2, dims=-1)
        return (heads * self.cos + halves_swapped * self.sin).to(heads.dtype)

    def of(self, rows: slice) -> "Rotation":
        """The rotation of some of the tokens."""
        return Rotation(self.cos[rows], self.sin[rows])


@dataclass(frozen=True)
class BlockInputs:
    """What the blocks of one step read beside their weights."""

    hidden: torch.Tensor  # [tokens, hidden_size]
    rotations: Mapping[str, Rotation]  # by kind of attention
    cache: PagedCache  # whose metadata is of these tokens
    interruption: Interruption


class FusedNorm(nn.Module):
    """A norm by the root mean square as one kernel, with the weight of the module it is for."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.epsilon = epsilon

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.epsilon)


@torch.inference_mode()
def fused(norm: nn.Module) -> nn.Module:
    """The norm as one kernel on a GPU, where each of its operations is a launch. Others stay."""
    weight: Any = getattr(norm, "weight", None)
    epsilon: Any = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if weight is None or epsilon is None or weight.device.type in ("cpu", "meta"):
        return norm
    sample = torch.linspace(-2, 3, weight.numel(), device=weight.device, dtype=weight.dtype)[None]
    fused_norm = FusedNorm(weight, float(epsilon))
    is_same = torch.allclose(fused_norm(sample), norm(sample), rtol=_CLOSE, atol=_CLOSE)
    return fused_norm if is_same else norm


@dataclass(frozen=True)
class FlatBlock:
    """The modules of one block, in the order of their use."""

    position: int
    kind: str  # of attention
    norms: tuple[nn.Module, nn.Module, nn.Module, nn.Module]  # around attention, around the rest
    project: Project  # to queries, keys and values, side by side
    head_norms: tuple[nn.Module, ...]  # of queries and of keys
    output: nn.Module
    feed_forward: Project
    head_dim: int
    num_heads: tuple[int, int, int]  # of queries, keys and values
    scaling: float  # of attention
    is_rotated: bool
    input_scale: float  # of the hidden states
    inner_width: int  # of the feed-forward part

    def __call__(
        self, hidden: torch.Tensor, rotation: Rotation, attention: Attention, cache: PagedCache
    ) -> torch.Tensor:
        """Map hidden states ``[tokens, hidden_size]`` to the next; writes to the open cache."""
        before, after, before_feed, after_feed = self.norms
        if self.input_scale != 1.0:
            hidden = hidden * self.input_scale
        hidden = hidden + after(self._attend(before(hidden), rotation, attention, cache))
        update: torch.Tensor = after_feed(self.feed_forward(before_feed(hidden)))
        return hidden + update

    def _attend(
        self, hidden: torch.Tensor, rotation: Rotation, attention: Attention, cache: PagedCache
    ) -> torch.Tensor:
        heads = self.project(hidden).view(len(hidden), -1, self.head_dim)
        num_queries, num_keys, num_values = self.num_heads
        turned, values = heads.split((num_queries + num_keys, num_values), dim=1)
        if self.head_norms:
            parts = turned.split((num_queries, num_keys), dim=1)
            turned = torch.cat([*map(_normed, self.head_norms, parts)], dim=1)
        if self.is_rotated:
            turned = rotation(turned)
        queries, keys = turned.split((num_queries, num_keys), dim=1)
        keys, values = cache.write(keys, values, self.position)
        attended = attention(self.kind, queries, keys, values, self.scaling)
        out: torch.Tensor = self.output(attended.flatten(1))
        return out


def is_usual(block: nn.Module, parts: Parts) -> bool:
    """Whether the block has these parts and no others, whatever they are."""
    of_block = {*parts.norms, parts.attention, parts.feed_forward} - {""}
    of_attention = {*parts.projections, *parts.head_norms, parts.output}
    attention = getattr(block, parts.attention, nn.Module())
    return _children(block) == of_block and _children(attention) == of_attention


def _children(module: nn.Module) -> set[str]:
    return {name for name, each in module.named_children() if not isinstance(each, nn.Dropout)}


def flat_block(position: int, kind: str, block: nn.Module, parts: Parts) -> FlatBlock:
    attention: Any = block.get_submodule(parts.attention)
    config, num_keys = attention.config, attention.config.num_key_value_heads
    before, after, before_feed, after_feed = (
        fused(block.get_submodule(name)) if name else nn.Identity() for name in parts.norms
    )
    return FlatBlock(
        position=position,
        kind=kind,
        norms=(before, after, before_feed, after_feed),
        project=side_by_side([attention.get_submodule(name) for name in parts.projections]),
        head_norms=tuple(fused(attention.get_submodule(name)) for name in parts.head_norms),
        output=attention.get_submodule(parts.output),
        feed_forward=feed_forward(block.get_submodule(parts.feed_forward)),
        head_dim=attention.head_dim,
        num_heads=(config.num_attention_heads, num_keys, num_keys),
        scaling=attention.scaling,
        is_rotated=bool(getattr(attention, "use_rope", True)),
        input_scale=input_scale(block),
        inner_width=int(getattr(config, "intermediate_size", 0) or 0),
    )


def _normed(norm: nn.Module, heads: torch.Tensor) -> torch.Tensor:
    """Each head by itself, or all of a row at once: as wide as the norm is."""
    width = norm.get_parameter("weight").numel()
    normed: torch.Tensor = norm(heads.reshape(len(heads), -1, width))
    return normed.view_as(heads)
