"""Keys and values of one variant's running sequences: a slot each, contiguous, written in place.

Implements the part of a transformers ``Cache`` that decoder blocks call. The scheduler decides
which sequence holds which slot, and for how long.
"""

from dataclasses import dataclass, replace

import torch
from transformers import Cache


@dataclass(frozen=True)
class AttentionMetadata:
    """Where the tokens of one forward are written, and what they read."""

    slots: torch.Tensor  # [tokens]
    positions: torch.Tensor  # [tokens]; no two tokens have slot and position in common
    cache_shape: tuple[int, int]  # slots, and tokens per slot, needed by all running sequences
    rows: slice | None  # slots that are read; None: the tokens of this forward, and no cache
    num_tokens: int = 0  # read of each of them, from position 0 on
    num_packed: int = 0  # tokens of the longest prompt, if several are packed

    @property
    def num_seen(self) -> int:
        """The most tokens that one of the tokens sees."""
        return max(self.num_tokens, self.num_packed)

    def of(self, tokens: slice) -> "AttentionMetadata":
        """The same for some of the tokens, which read the cache."""
        return replace(self, slots=self.slots[tokens], positions=self.positions[tokens])


class SlotCache(Cache):
    """A pair of tensors ``[slots, heads, tokens, head_dim]`` for each block, resized as needed.

    Unused values are finite, because the mask multiplies them by zero. ``version`` changes when a
    tensor is replaced.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.version = 0
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._metadata: AttentionMetadata | None = None

    def open(self, metadata: AttentionMetadata) -> None:
        """Set what the next forward writes and reads."""
        self._metadata = metadata

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_args: object,
        **_kwargs: object,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same as ``write``, for tensors ``[rows, heads, width, head_dim]`` from a model."""
        keys, values = (each.transpose(1, 2).flatten(0, 1) for each in (key_states, value_states))
        return self.write(keys, values, layer_idx)

    def write(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write ``[tokens, heads, head_dim]``; returns what the metadata reads, as views of
        ``[rows, heads, num_tokens, head_dim]``."""
        metadata = self.metadata
        ours = self.tensors(layer_idx, keys)
        return _written(ours[0], keys, metadata), _written(ours[1], values, metadata)

    def tensors(self, layer_idx: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values of a block, with room for what the metadata needs. ``like`` is
        ``[…, heads, head_dim]``."""
        if layer_idx == len(self._keys):
            self._keys.append(_empty_like(like))
            self._values.append(_empty_like(like))
        return self._fit(self._keys, layer_idx), self._fit(self._values, layer_idx)

    @property
    def metadata(self) -> AttentionMetadata:
        """What the cache was opened with."""
        assert self._metadata is not None
        return self._metadata

    def _fit(self, tensors: list[torch.Tensor], layer_idx: int) -> torch.Tensor:
        tensor = _fitted(tensors[layer_idx], *self.metadata.cache_shape)
        if tensor is not tensors[layer_idx]:
            tensors[layer_idx] = tensor
            self.version += 1
        return tensor

    @torch.inference_mode()
    def free(self, slot: int, last: int) -> None:
        """Free ``slot`` by moving the content of ``last``, the last slot in use, into it."""
        for tensor in (*self._keys, *self._values):
            if last != slot:
                tensor[slot] = tensor[last]
            tensor[last : last + 1] = 0  # a slice: a failed forward may not have made the slot

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - the name is the base class's
        """Zero: models call this, but then use the positions that they are given."""
        return 0

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self._keys, *self._values))

    def check_integrity(self, num_slots: int, num_tokens: int) -> None:
        """Raise ``AssertionError`` unless these fit, free slots are zero and all is finite.

        The first token of a free slot may be what a replayed decode was padded with.
        """
        for tensor in (*self._keys, *self._values):
            assert tensor.shape[0] >= num_slots
            assert tensor.shape[2] >= num_tokens
            assert not tensor[num_slots:, :, 1:].any(), "a freed slot was not cleared"
            assert tensor.isfinite().all()


class OneBlockCache(SlotCache):
    """A cache in which all blocks share the tensors of the first one, to time blocks with."""

    def tensors(self, _layer_idx: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().tensors(0, like)


def _written(
    tensor: torch.Tensor, states: torch.Tensor, metadata: AttentionMetadata
) -> torch.Tensor:
    tensor[metadata.slots, :, metadata.positions] = states
    if metadata.rows is None:
        return states.transpose(0, 1)[None]
    return tensor[metadata.rows, :, : metadata.num_tokens]


def _empty_like(states: torch.Tensor) -> torch.Tensor:
    _, num_heads, head_dim = states.shape
    return states.new_zeros(0, num_heads, 0, head_dim)


def _fitted(tensor: torch.Tensor, num_slots: int, num_tokens: int) -> torch.Tensor:
    """The tensor, or a copy with just this room if it is too small or more than twice too big."""
    slots, num_heads, tokens, head_dim = tensor.shape
    is_enough = slots >= num_slots and tokens >= num_tokens
    if is_enough and slots * tokens <= 2 * num_slots * num_tokens:
        return tensor
    fitted = tensor.new_zeros(num_slots, num_heads, num_tokens, head_dim)
    slots, tokens = min(slots, num_slots), min(tokens, num_tokens)
    fitted[:slots, :, :tokens] = tensor[:slots, :, :tokens]
    return fitted
