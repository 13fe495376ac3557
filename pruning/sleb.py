"""SLEB: greedy removal of redundant transformer blocks (arXiv 2402.09025, section 3).

Block indices only: models, text, devices and what a loss is belong to the scorer.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Blocks = tuple[int, ...]  # indices in the dense model, ascending


class TooManyRemovals(ValueError):
    """More blocks are to be removed than the barriers leave free."""


class NonFiniteLoss(ArithmeticError):
    """A loss is infinite or not a number, so candidates cannot be compared."""


class RoundScorer(Protocol):
    def loss(self, keep: Blocks) -> float:
        """Loss, in nats per predicted token, of the model that keeps exactly these blocks."""

    def score_round(self, keep: Blocks, candidates: Blocks) -> Iterable[tuple[int, float]]:
        """Yield ``(block, loss of keep without that block)`` for each candidate, in any order."""


@dataclass(frozen=True)
class Removal:
    step: int  # 1 for the first block that goes
    block: int
    loss: float
    dense_loss: float
    runner_up: int | None
    margin: float | None  # how much more the runner-up would have cost, in nats
    scores: Mapping[int, float]


def sleb(
    scorer: RoundScorer,
    num_blocks: int,
    num_remove: int,
    *,
    protect_first: int = 1,
    protect_last: int = 1,
    removed: Sequence[int] = (),
    dense_loss: float | None = None,
) -> Iterator[Removal]:
    """Yield one removal after the other: always the block whose absence hurts least.

    Candidates are the alive blocks but the first and last few; ties go to the lowest index.
    ``removed`` resumes behind blocks chosen earlier, ``dense_loss`` then saves an evaluation.
    Raises ``TooManyRemovals`` or ``ValueError`` before any work, later ``NonFiniteLoss``.
    """
    free = max(0, num_blocks - max(1, protect_first + protect_last))  # one block has to stay
    if not len(removed) <= num_remove <= free or min(protect_first, protect_last) < 0:
        raise TooManyRemovals(f"cannot remove {num_remove} of {num_blocks} blocks: {free} are free")
    keep = list(range(num_blocks))
    for block in removed:
        if block not in keep[protect_first : len(keep) - protect_last]:
            raise ValueError(f"cannot resume from {list(removed)}: {block} was no candidate")
        keep.remove(block)
    for step in range(len(removed) + 1, num_remove + 1):
        dense_loss = scorer.loss(tuple(range(num_blocks))) if dense_loss is None else dense_loss
        candidates = tuple(keep[protect_first : len(keep) - protect_last])
        scores = dict(scorer.score_round(tuple(keep), candidates))
        if not all(map(math.isfinite, [dense_loss, *scores.values()])):
            raise NonFiniteLoss(f"step {step}: dense loss {dense_loss}, without a block {scores}")
        best, *others = sorted(scores, key=lambda block: (scores[block], block))
        runner_up = others[0] if others else None
        margin = None if runner_up is None else scores[runner_up] - scores[best]
        keep.remove(best)
        yield Removal(step, best, scores[best], dense_loss, runner_up, margin, scores)
