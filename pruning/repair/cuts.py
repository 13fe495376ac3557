"""Cuts: where blocks of a pruned model are missing. In which order blocks have to run so that the
dense model and all its pruned depths advance together.

Knows no torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pruning.sleb import Blocks


@dataclass(frozen=True)
class Cut:
    """Blocks are missing behind the kept block ``before`` and in front of the block ``after``.

    ``after`` is the number of blocks if the last blocks are missing.
    """

    before: int
    after: int


@dataclass(frozen=True)
class Visit:
    """One block runs: on the stream of the dense model, and on those of some pruned models.

    Of the pruned models, numbers in the list of keep-sets, ``passing`` just run the block, and
    ``cutting`` have a cut behind it, which is to be repaired now: the stream of the dense model has
    arrived at its other side.
    """

    block: int
    runs_dense: bool
    passing: tuple[int, ...]
    cutting: tuple[int, ...]


def cuts_of(keep: Blocks, num_blocks: int) -> tuple[Cut, ...]:
    """The cuts of the model that keeps these blocks, from the first to the last.

    Blocks that are missing in front of the first kept block make no cut: no block in front of them
    could be repaired.
    """
    following = (*keep[1:], num_blocks)
    pairs = zip(keep, following, strict=True)
    return tuple(Cut(before, after) for before, after in pairs if after != before + 1)


def visits(keeps: Sequence[Blocks], num_blocks: int) -> Iterator[Visit]:
    """Yield the order of blocks for the dense model and the models that keep ``keeps``.

    Each block runs once on the dense stream. A pruned model waits at a cut until the dense stream
    has reached the other side. A pruned model has a stream of its own from its first cut on; in
    front of that, the stream of the dense model is its own.
    """
    cuts = [cuts_of(keep, num_blocks) for keep in keeps]
    befores = [{cut.before for cut in found} for found in cuts]
    firsts = [found[0].before if found else num_blocks for found in cuts]
    for block in range(num_blocks):
        passing = tuple(
            at
            for at, keep in enumerate(keeps)
            if firsts[at] < block and block in keep and block not in befores[at]
        )
        yield Visit(block, runs_dense=True, passing=passing, cutting=())
        for before in sorted({cut.before for found in cuts for cut in found}, reverse=True):
            arrived = Cut(before, block + 1)
            cutting = tuple(at for at, found in enumerate(cuts) if arrived in found)
            if cutting:
                yield Visit(before, runs_dense=False, passing=(), cutting=cutting)
