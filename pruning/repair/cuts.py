"""Cuts: where blocks of a pruned model are missing, and the steps that lead a model past them.

Knows no torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from pruning.sleb import Blocks

NUM_BEHIND = 1  # blocks behind a cut that are refitted as well; benchmarks/results has their gain


@dataclass(frozen=True)
class Cut:
    """Blocks are missing behind the kept block ``before`` and in front of the block ``after``.

    ``after`` is the number of blocks if the last blocks are missing.
    """

    before: int
    after: int


class Part(Enum):
    """Windows that go the same way."""

    SELECTION = auto()  # every model runs on them to its end
    SAMPLE = auto()  # the training windows on which steps of a change are tried
    REST = auto()  # all other training windows


Parts = frozenset[Part]
TRAINING: Parts = frozenset({Part.SAMPLE, Part.REST})


@dataclass(frozen=True)
class Run:
    """A block runs as it is."""

    block: int


@dataclass(frozen=True)
class Refit:
    """The block runs with a matrix that is refitted, so that the stream behind it follows the one
    that the dense model has in front of the block ``after``."""

    block: int
    after: int


Step = Run | Refit
Route = tuple[Step, ...]


def observed(step: Step) -> Parts:
    """The windows that a step compares with the dense model."""
    return TRAINING if isinstance(step, Refit) else frozenset()


def cuts_of(keep: Blocks, num_blocks: int) -> tuple[Cut, ...]:
    """The cuts of the model that keeps these blocks, from the first to the last.

    Blocks that are missing in front of the first kept block make no cut: no block in front of them
    could be repaired.
    """
    following = (*keep[1:], num_blocks)
    pairs = zip(keep, following, strict=True)
    return tuple(Cut(before, after) for before, after in pairs if after != before + 1)


def unrepaired(keep: Blocks, num_blocks: int) -> Route:  # noqa: ARG001 - all routes are made alike
    return tuple(Run(block) for block in keep)


def refitted(keep: Blocks, num_blocks: int, num_behind: int = NUM_BEHIND) -> Route:
    """The block in front of each cut is refitted, and so are the next ``num_behind`` behind it."""
    cuts = {cut.before: cut for cut in cuts_of(keep, num_blocks)}

    def steps() -> Iterator[Step]:
        left = 0
        for block in keep:
            left = 1 + num_behind if block in cuts else left - 1
            after = cuts[block].after if block in cuts else block + 1
            yield Refit(block, after) if left > 0 else Run(block)

    return tuple(steps())
