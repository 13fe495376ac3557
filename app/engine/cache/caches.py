"""The caches of an engine: one for each shape of keys and values among the loaded variants."""

from threading import Lock
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch

from app.engine.cache.paged_cache import PagedCache, UnitShape, unit_shape
from app.engine.variant import Variant
from pruning.models.blocks import num_blocks
from pruning.models.memory import free_bytes, total_bytes

# Of the free memory when the first variant of a shape is loaded, on a GPU behind the largest
# step. A processor's memory is shared with jobs and other models, and is taken as it is used.
_CPU_SHARE, _GPU_SHARE = 0.25, 0.8
_MAX_BYTES = 1 << 40


class CacheTooSmall(ValueError):
    """The memory for keys and values has no room for a single page."""


class CacheTooLarge(ValueError):
    """The memory that was asked for keys and values is more than the device has."""


def check_cache(num_bytes: int | None, device: torch.device) -> None:
    """Raise ``CacheTooLarge`` for more bytes than a GPU has. A CPU takes memory as it is used."""
    if num_bytes is not None and device.type == "cuda":
        _check_room(num_bytes, total_bytes(device), f"{device} has only")


def _check_room(num_bytes: int, room: int, whose: str) -> None:
    if num_bytes > room:
        raise CacheTooLarge(
            f"SLEB_KV_CACHE_BYTES={num_bytes} is too large: {whose} {room} bytes; reduce "
            "it, or unset it to use 0.8 of the memory left by weights and steps"
        )


@torch.inference_mode()
def step_bytes(variant: Variant, num_tokens: int, num_rows: int) -> int:
    """The most memory of its GPU that a step takes beside weights and cache, found by running one:
    a prompt of so many tokens, and the logits of so many rows."""
    model = variant.model
    token_ids = torch.zeros(1, num_tokens, dtype=torch.long, device=model.device)
    before = torch.cuda.memory_allocated(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    hidden = model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state
    model.get_output_embeddings()(hidden[0, :1].expand(num_rows, -1)).float()
    return torch.cuda.max_memory_allocated(model.device) - before


class Caches:
    """Safe from any thread. A cache lives as long as a variant of its shape."""

    def __init__(self, num_bytes: int | None, num_tokens: int = 512, num_rows: int = 64) -> None:
        """``num_tokens`` of prompts and ``num_rows`` of logits are the most that a step has."""
        self._num_bytes = num_bytes
        self._largest_step = num_tokens, num_rows
        self._lock = Lock()
        self._by_variant: WeakKeyDictionary[Variant, PagedCache] = WeakKeyDictionary()
        self._by_shape: WeakValueDictionary[UnitShape, PagedCache] = WeakValueDictionary()

    def of(self, variant: Variant) -> PagedCache:
        """The cache of a variant, made for the first one of its shape.

        Raises ``CacheTooSmall`` or ``CacheTooLarge``.
        """
        with self._lock:
            cache = self._by_variant.get(variant)
            if cache is None:
                cache = self._by_variant[variant] = self._of_shape(variant)
            return cache

    def every(self) -> list[PagedCache]:
        """All caches."""
        with self._lock:
            return [*self._by_shape.values()]

    def _of_shape(self, variant: Variant) -> PagedCache:
        shape = unit_shape(variant.model)
        cache = self._by_shape.get(shape)
        if cache is None:
            num_units = self._bytes_for(variant) // shape.num_bytes - 1  # one of padding
            if num_units < num_blocks(variant.model):
                raise CacheTooSmall(
                    f"the KV cache is too small for one page of {variant.name}: expected at least "
                    f"{(num_blocks(variant.model) + 1) * shape.num_bytes} bytes; raise "
                    "SLEB_KV_CACHE_BYTES, or free memory"
                )
            cache = self._by_shape[shape] = PagedCache(shape, num_units)
        return cache

    def _bytes_for(self, variant: Variant) -> int:
        device = variant.model.device
        if self._num_bytes is not None:
            if device.type == "cuda":
                _check_room(
                    self._num_bytes, free_bytes(device), f"the weights leave only on {device}"
                )
            return self._num_bytes
        if device.type == "cpu":
            return min(_MAX_BYTES, int(_CPU_SHARE * free_bytes(device)))
        num_tokens, num_rows = self._largest_step
        for_steps = step_bytes(variant, min(num_tokens, variant.max_model_len), num_rows)
        return max(0, int(_GPU_SHARE * (free_bytes(device) - for_steps)))
