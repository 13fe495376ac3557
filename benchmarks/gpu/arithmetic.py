"""What is known of cards and of models by their shapes, and the time of work by a simple model.

A kernel takes as long as its FLOP at a share of the peak, or its bytes at a share of the
bandwidth, whichever is longer. A recorded kernel begins a moment after the one before it. Without
a recording, the host cannot launch kernels faster than a fixed rate. Weights and hidden states are
in bfloat16, and a product of a row with a matrix is two FLOP for each of its numbers. No figure
here was measured by this project.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

BANDWIDTH_SHARE = 0.8  # of the bandwidth, that large reads reach
KERNEL_GAP_S = 1.5e-6  # between two kernels of a recorded step
_ITEM_BYTES = 2  # of a number
LAUNCH_S = 8e-6  # for which the host is busy with each kernel, Python included


@dataclass(frozen=True)
class Card:
    """A GPU by its data sheet, and the share of its peak that large products reach."""

    name: str
    flops_per_s: float  # in bfloat16 with sums in float32, without sparsity
    bytes_per_s: float
    flops_share: float
    host_bytes_per_s: float = 20e9  # of copies from pinned memory

    def compute_s(self, flops: float) -> float:
        """Seconds of large products of so many FLOP."""
        return flops / (self.flops_per_s * self.flops_share)

    def read_s(self, num_bytes: float) -> float:
        """Seconds of moving so many bytes of its memory."""
        return num_bytes / (self.bytes_per_s * BANDWIDTH_SHARE)

    def work_s(self, flops: float, num_bytes: float) -> float:
        """Seconds of kernels with so many FLOP and bytes together."""
        return max(self.compute_s(flops), self.read_s(num_bytes))

    def step_s(self, work_s: float, num_kernels: int, *, is_recorded: bool) -> float:
        """Seconds of a step of so many kernels that work for ``work_s``."""
        recorded_s = work_s + num_kernels * KERNEL_GAP_S
        return recorded_s if is_recorded else max(recorded_s, num_kernels * LAUNCH_S)


# By the names of --predict. A100 and H100 are those of 80 GB with SXM.
CARDS: Mapping[str, Card] = {
    "a100": Card("A100", 312e12, 2.039e12, 0.55),
    "h100": Card("H100", 989e12, 3.35e12, 0.50),
    "h200": Card("H200", 989e12, 4.8e12, 0.50),
    "rtx4090": Card("RTX 4090", 165e12, 1.008e12, 0.55),
}


def card_named(device_name: str) -> Card | None:
    """The card of a device as torch names it; None if it is not known here."""
    return next((card for card in CARDS.values() if card.name in device_name), None)


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

    def num_parameters(self, num_blocks: int) -> int:
        """Of so many blocks and the head, without embeddings of its own."""
        return num_blocks * self.block_parameters + self.hidden * self.vocab

    def weight_bytes(self, num_blocks: int) -> int:
        """What a decode step reads, whose embeddings are rows."""
        return _ITEM_BYTES * self.num_parameters(num_blocks)

    def block_bytes(self) -> int:
        return _ITEM_BYTES * self.block_parameters

    def block_flops(self, seqlen: int) -> float:
        """Of a token of a window, which sees half of it on average."""
        return 2 * self.block_parameters + 2 * self.hidden * seqlen

    def head_flops(self) -> float:
        return 2 * self.hidden * self.vocab

    def cached_bytes(self, num_blocks: int) -> int:
        """The keys and values of a token."""
        return num_blocks * 2 * self.num_key_heads * self.head_dim * _ITEM_BYTES
