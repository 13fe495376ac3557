"""Cuts: where blocks of a pruned model are missing, and the steps that lead a model past them.

Knows no torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from pruning.sleb import Blocks


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
    SAMPLE = auto()  # the training windows on which norms are measured
    REST = auto()  # all other training windows


Parts = frozenset[Part]


@dataclass(frozen=True)
class Run:
    """A block runs as it is."""

    block: int


@dataclass(frozen=True)
class Scale:
    """The output of the block in front of the cut is multiplied by a factor.

    The factor is the ratio of two means, for which a sample of the training windows is enough.
    """

    cut: Cut
    observes = frozenset({Part.SAMPLE})


@dataclass(frozen=True)
class Refit:
    """The block in front of the cut runs with a refitted matrix."""

    cut: Cut
    observes = frozenset(Part)


Correction = Scale | Refit
Step = Run | Correction


def observed(step: Step) -> Parts:
    """The windows that a step compares with the dense model behind the cut."""
    return frozenset() if isinstance(step, Run) else step.observes


def cuts_of(keep: Blocks, num_blocks: int) -> tuple[Cut, ...]:
    """The cuts of the model that keeps these blocks, from the first to the last.

    Blocks that are missing in front of the first kept block make no cut: no block in front of them
    could be repaired.
    """
    following = (*keep[1:], num_blocks)
    pairs = zip(keep, following, strict=True)
    return tuple(Cut(before, after) for before, after in pairs if after != before + 1)


def route(
    keep: Blocks, num_blocks: int, at_cut: Callable[[Cut], Sequence[Step]]
) -> tuple[Step, ...]:
    """The steps of the model that keeps these blocks, with those of ``at_cut`` at each cut."""
    cuts = {cut.before: cut for cut in cuts_of(keep, num_blocks)}
    steps: list[Step] = []
    for block in keep:
        steps += at_cut(cuts[block]) if block in cuts else [Run(block)]
    return tuple(steps)
