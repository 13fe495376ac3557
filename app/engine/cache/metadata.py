"""Where the tokens of one forward are written, and what they read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from app.engine.cache.pages import PAGE_TOKENS, pages_of


@dataclass(frozen=True, eq=False)
class AttentionMetadata:
    """Tokens of several sequences, one after the other.

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
