"""Which sequences of a decode are read together: all of a group as far as its longest one.

Without groups, one long sequence beside many short ones would make the step read, and copy, as if
all of them were long. Each group more reads the weights once more.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ReadLimits:
    """Pages of all blocks are the unit."""

    most_pages: int  # that a group may read: the memory of their copies
    pages_of_pass: int  # that take as long to read as all weights


def decode_groups(num_pages: Sequence[int], limits: ReadLimits) -> list[list[int]]:
    """The rows of each group, by the pages of each row. The longest come first."""
    order = sorted(range(len(num_pages)), key=lambda row: -num_pages[row])
    lengths = [num_pages[row] for row in order]
    groups, first = [], 0
    for end in _ends(lengths, limits):
        groups.append(order[first:end])
        first = end
    return groups


def _ends(lengths: Sequence[int], limits: ReadLimits) -> list[int]:
    """Where each group ends, of rows with descending lengths."""
    ends, first = [], 0
    while first < len(lengths):
        rest = lengths[first:]
        most = min(len(rest), max(1, limits.most_pages // rest[0]))
        saved = {at: (rest[0] - rest[at]) * (len(rest) - at) for at in range(1, len(rest))}
        best = max(saved, key=saved.__getitem__, default=len(rest))
        is_worth_it = saved.get(best, 0) > limits.pages_of_pass
        first += min(most, best) if is_worth_it else most
        ends.append(first)
    return ends
