"""Keys and values in pages of one pool, for all variants of one shape.

Implements the part of a transformers ``Cache`` that decoder blocks call. The pool's bookkeeping
decides which sequence has which units.

Letters: K key heads, U units, T tokens of a page, D size of a head, N tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NoReturn

import numpy as np
import torch
from transformers import Cache, PreTrainedModel

from app.engine.attention import kinds_of_attention
from app.engine.cache.pages import PAGE_TOKENS, PagePool, pages_of

# Of the memory of a processor, what is taken while the engine is idle, and how much at a time.
# To take it from the system costs up to a twentieth of the time of the prompt that needs it.
_AHEAD_BYTES, _AT_A_TIME_BYTES = 2**26, 2**20


@dataclass(frozen=True, eq=False)
class AttentionMetadata:
    """Where the tokens of several sequences are written, one after the other, and what they read.

    Tensors have one type, int64, and one device. A table has zeros behind the pages of a sequence.
    """

    tables: torch.Tensor  # [sequences, pages, blocks]: units
    owners: torch.Tensor  # [tokens]: the sequence of each
    positions: torch.Tensor  # [tokens]
    # Tokens of each sequence that are read. None: a token each, and all pages of the table.
    num_read: tuple[int, ...] | None
    num_seen: int  # the most tokens that one of the tokens sees
    # Sequences that are read group after group, each as far as the longest of its group. Without
    # groups, each is read as far as it goes, in the order of the table.
    groups: tuple[tuple[int, ...], ...] = ()

    @property
    def num_tokens(self) -> int:
        """The tokens of a sequence for which the table has room."""
        return self.tables.shape[1] * PAGE_TOKENS

    @property
    def num_stored(self) -> list[int]:
        """The tokens of each sequence in whole pages, as they are read."""
        if self.num_read is None:
            return [self.num_tokens] * len(self.tables)
        return [pages_of(num) * PAGE_TOKENS for num in self.num_read]

    @cached_property
    def written_units(self) -> torch.Tensor:
        """``[blocks, tokens]``: the unit that each token is written to."""
        return self.tables[self.owners, self.positions // PAGE_TOKENS].T.contiguous()

    @cached_property
    def offsets(self) -> torch.Tensor:
        """``[tokens]``: the place of each token in its unit."""
        return self.positions % PAGE_TOKENS

    @cached_property
    def read_units(self) -> torch.Tensor:
        """``[blocks, pages]``: the units that are read, of one sequence after the other."""
        if self.num_read is None:
            return self.tables.flatten(0, 1).T.contiguous()
        groups = self.groups or tuple((row,) for row in range(len(self.tables)))
        parts = [self.tables[row, : self.num_pages(rows)] for rows in groups for row in rows]
        return torch.cat(parts).T.contiguous()

    def num_pages(self, rows: Sequence[int]) -> int:
        """The pages of the longest of these sequences, as far as they are read."""
        assert self.num_read is not None
        return max(pages_of(self.num_read[row]) for row in rows)

    def of(self, tokens: slice) -> "AttentionMetadata":
        """The same for some of the tokens."""
        return replace(self, owners=self.owners[tokens], positions=self.positions[tokens])


def tables_of(units: Sequence[torch.Tensor], num_pages: int) -> torch.Tensor:
    """The table ``[sequences, num_pages, blocks]`` of sequences with these ``[pages, blocks]``."""
    tables = torch.zeros(len(units), num_pages, units[0].shape[1], dtype=torch.long)
    for table, each in zip(tables, units, strict=True):
        table[: len(each)] = each[:num_pages]
    return tables


@dataclass(frozen=True)
class UnitShape:
    """What variants have in common whose keys and values are in one pool."""

    num_key_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def num_bytes(self) -> int:
        """Of the keys and the values of one block, for the tokens of a page."""
        return 2 * self.num_key_heads * PAGE_TOKENS * self.head_dim * self.dtype.itemsize


class _Found(Exception):
    """The shape of the first keys."""

    def __init__(self, shape: UnitShape) -> None:
        super().__init__()
        self.shape = shape


class CannotCompute(ValueError):
    """The model's own forward fails, as it does with a wrong number in its config."""


class _Probe(Cache):
    """Ends a forward at the first keys that it is to keep."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    def update(self, key_states: torch.Tensor, *_args: object, **_kwargs: object) -> NoReturn:
        _, num_heads, _, head_dim = key_states.shape
        raise _Found(UnitShape(num_heads, head_dim, key_states.dtype, key_states.device))

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - the name is the base class's
        return 0


@torch.inference_mode()
def unit_shape(model: PreTrainedModel) -> UnitShape:
    """The shape of a model's keys and values, which configs do not tell alike: the first block
    makes those of a token.

    Raises ``CannotCompute``, and the errors of a device.
    """
    token_id = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    mask = torch.zeros(1, 1, 1, 1, dtype=model.dtype, device=model.device)
    kinds = set(kinds_of_attention(model.config))
    masks = dict.fromkeys(kinds, mask) if len(kinds) > 1 else mask
    try:
        model.base_model(
            input_ids=token_id,
            attention_mask=masks,
            position_ids=torch.zeros_like(token_id),
            cache=_Probe(),
            use_cache=True,
        )
    except _Found as found:
        return found.shape
    except (torch.AcceleratorError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise CannotCompute(
            f"{type(model).__name__} cannot generate a token with its config.json: {error}"
        ) from error
    raise CannotCompute(f"{type(model).__name__} does not store keys and values in its cache")


class PagedCache(Cache):
    """Keys and values ``[K, U, T, D]``, at addresses that never change.

    Unused numbers are finite, because masks multiply them by zero.
    """

    metadata: AttentionMetadata  # what the next forward writes and reads, set in front of it

    def __init__(self, shape: UnitShape, num_units: int) -> None:
        """Memory of a processor is taken when a unit is first written."""
        super().__init__(layers=[])
        self.shape = shape
        self.pool = PagePool(num_units)
        size = (shape.num_key_heads, 1 + num_units, PAGE_TOKENS, shape.head_dim)
        self.keys = _zeros(size, shape)
        self.values = _zeros(size, shape)
        self._num_written = 0  # units whose memory is taken

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_args: object,
        **_kwargs: object,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same as ``write``, for tensors ``[rows, K, width, D]`` from a model."""
        keys, values = (each.transpose(1, 2).flatten(0, 1) for each in (key_states, value_states))
        return self.write(keys, values, layer_idx)

    def write(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write ``[N, K, D]``. Returns copies of what the metadata reads, ``[rows, K, tokens, D]``:
        a row for each sequence, or one row with whole pages of one sequence after the other."""
        written, offsets = self.metadata.written_units[layer_idx], self.metadata.offsets
        for tensor, states in ((self.keys, keys), (self.values, values)):
            tensor[:, written, offsets] = states.transpose(0, 1)
        return self.read(layer_idx)

    def read(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What ``write`` returns, for tokens that are written."""
        metadata = self.metadata
        num_rows = len(metadata.tables) if metadata.num_read is None else 1
        cached = []
        for tensor in (self.keys, self.values):
            pages = tensor.index_select(1, metadata.read_units[layer_idx])
            cached.append(pages.view(len(tensor), num_rows, -1, tensor.shape[-1]).transpose(0, 1))
        return cached[0], cached[1]

    @torch.inference_mode()
    def clear(self, units: Sequence[int]) -> None:
        """Zero these units, which may have numbers that are not finite."""
        self.keys[:, units] = 0
        self.values[:, units] = 0

    def rebuild(self) -> None:
        """Forget all pages, whose numbers may not be finite. No sequence may have one."""
        self.clear(range(1, 1 + self.pool.num_touched))
        self.pool.reset()

    @torch.inference_mode()
    def take_ahead(self) -> bool:
        """Take a part of the memory that new pages will need next. False: enough is taken."""
        used = self.pool.num_touched
        ahead = min(self.pool.num_units, used + _AHEAD_BYTES // self.shape.num_bytes)
        first = 1 + max(self._num_written, used)
        if self.shape.device.type != "cpu" or first > ahead:
            return False
        self._num_written = min(ahead, first + _AT_A_TIME_BYTES // self.shape.num_bytes)
        for tensor in (self.keys, self.values):
            tensor[:, first : 1 + self._num_written] = 0
        return True

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - the name is the base class's
        """Zero: models call this, but then use the positions that they are given."""
        return 0

    @property
    def num_bytes(self) -> int:
        """Of all units, used or not."""
        return self.keys.nbytes + self.values.nbytes


def _zeros(size: tuple[int, ...], shape: UnitShape) -> torch.Tensor:
    if shape.device.type != "cpu":
        return torch.zeros(size, dtype=shape.dtype, device=shape.device)
    # torch would write zeros, which takes the memory at once
    flat = torch.from_numpy(np.zeros(int(np.prod(size)) * shape.dtype.itemsize, np.uint8))
    return flat.view(shape.dtype).view(size)
