"""Refinement of a removal order: a removed block comes back, and another goes in its place.

The greedy search never takes a removal back, although later removals may make another block the
better choice. Refinement exchanges blocks while that improves the set of removed blocks, and then
orders the set again, so that every depth has a model. Works on block indices, as ``sleb`` does.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum

from pruning.removal import Removal
from pruning.sleb import Blocks


class RoundKind(StrEnum):
    EXCHANGE = "exchange"
    ORDER = "order"


@dataclass(frozen=True)
class Round:
    """A choice of the block that is removed next, of the ``candidates``, behind ``removed``."""

    kind: RoundKind
    removed: Blocks
    candidates: Blocks

    @property
    def name(self) -> str:
        """The kind and the removed blocks. Nothing else tells the rounds of a search apart."""
        return "-".join([self.kind, *map(str, self.removed)])


@dataclass(frozen=True)
class Exchange:
    """The blocks ``restored`` come back, and as many ``removed`` go in their place.

    Scores are means over windows, of the model before and after the exchange.
    """

    number: int  # 1 for the first
    restored: Blocks
    removed: Blocks
    score: float
    score_before: float


# Decides a round. One that was decided before, with these candidates or more, costs nothing.
Decide = Callable[[Round], Removal]


def exchanges(
    decide: Decide, removed: Collection[int], score: float, free: Blocks, most: int
) -> Iterator[Exchange]:
    """Yield exchanges while the score falls, each the best one that there is, and ``most`` at most.

    ``score`` is that of the model without the blocks ``removed``, which are some of the ``free``
    ones. If the exchanges end before ``most``, no exchange of a single block gives a lower score.
    Two removals may both be exchanged at once: then no other pair at all gives a lower score.
    """
    now = frozenset(removed)
    for number in range(1, most + 1):
        decisions = [(round_, decide(round_)) for round_ in _rounds(now, free)]
        best_round, best = min(decisions, key=lambda decision: decision[1].score)
        if not best.score < score:
            return
        found = frozenset((*best_round.removed, best.block))
        restored, gone = tuple(sorted(now - found)), tuple(sorted(found - now))
        yield Exchange(number, restored, gone, best.score, score)
        now, score = found, best.score


def ordered(decide: Decide, removed: Collection[int]) -> list[Removal]:
    """Put a set of blocks into an order, each time by the block without which the score is lowest.

    The removals have the scores of the blocks of the set only.
    """
    removals: list[Removal] = []
    while len(removals) < len(removed):
        gone = {removal.block for removal in removals}
        left = tuple(sorted(set(removed) - gone))
        removals.append(decide(Round(RoundKind.ORDER, tuple(sorted(gone)), left)))
    return removals


def exchange_round(removed: Collection[int], free: Blocks) -> Round:
    """The choice of one more block behind ``removed``, of all that are free."""
    candidates = tuple(block for block in free if block not in removed)
    return Round(RoundKind.EXCHANGE, tuple(sorted(removed)), candidates)


def _rounds(removed: frozenset[int], free: Blocks) -> Iterator[Round]:
    """The rounds that together have every set of blocks that one exchange leads to."""
    if len(removed) == 2:  # few enough to compare all pairs, which finds the best one
        for block in free[:-1]:
            later = tuple(other for other in free if other > block)
            yield Round(RoundKind.EXCHANGE, (block,), later)
        return
    for block in sorted(removed):
        yield exchange_round(removed - {block}, free)
