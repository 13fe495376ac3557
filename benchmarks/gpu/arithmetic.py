"""FLOP and bytes of a model by its shape: of a token in a block and in the head, and of its cache.

Weights and hidden states are in bfloat16. A product of a row with a matrix is two FLOP for each of
its numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

_ITEM_BYTES = 2


@dataclass(frozen=True)
class ModelSize:
    """The numbers of a config that decide the work."""

    num_blocks: int
    hidden: int
    inner: int
    num_heads: int
    num_key_heads: int
    vocab: int

    @classmethod
    def of(cls, shape: Mapping[str, Any]) -> Self:
        """Of config keys of a model of the usual kind."""
        heads = shape["num_attention_heads"]
        return cls(
            shape["num_hidden_layers"],
            shape["hidden_size"],
            shape["intermediate_size"],
            heads,
            shape.get("num_key_value_heads", heads),
            shape["vocab_size"],
        )

    @property
    def head_dim(self) -> int:
        return self.hidden // self.num_heads

    @property
    def block_parameters(self) -> int:
        """Of the matrices of a block."""
        attention = 2 * self.hidden**2 + 2 * self.hidden * self.num_key_heads * self.head_dim
        return attention + 3 * self.hidden * self.inner

    @property
    def head_parameters(self) -> int:
        return self.hidden * self.vocab

    def num_parameters(self, num_blocks: int) -> int:
        """Of so many blocks and the head, without embeddings of its own."""
        return num_blocks * self.block_parameters + self.head_parameters

    def weight_bytes(self, num_blocks: int) -> int:
        """What a decode step reads, whose embeddings are rows."""
        return _ITEM_BYTES * self.num_parameters(num_blocks)

    def block_bytes(self) -> int:
        return _ITEM_BYTES * self.block_parameters

    def block_flops(self, seqlen: int) -> float:
        """Of a token of a window, which sees half of it on average."""
        return 2 * self.block_parameters + 2 * self.hidden * seqlen

    def head_flops(self) -> float:
        return 2 * self.head_parameters

    def window_flops(self, seqlen: int, num_blocks: int) -> float:
        """Of a whole window through so many blocks."""
        return seqlen * num_blocks * self.block_flops(seqlen)

    def cached_bytes(self, num_blocks: int) -> int:
        """The keys and values of a token."""
        return num_blocks * 2 * self.num_key_heads * self.head_dim * _ITEM_BYTES
