"""Removal in the order of scores of the dense model (arXiv 2402.09025, section 3).

Metric 1 of the paper scores a block by how much it changes its input, metric 2 by the loss of the
dense model without it. The scores are measured once, so they ignore how removals affect each other,
and cost no more than the first round of ``sleb``.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from pruning.removal import Losses
from pruning.sleb import Blocks, RoundScorer

# Yields ``(block, scores)`` of candidates, one score per window, in the model of the first blocks.
# The block with the lowest mean is removed first.
Rank = Callable[[Blocks, Blocks], Iterable[tuple[int, Losses]]]


@dataclass
class Ranking:
    """A scorer that repeats the scores of the dense model in every round: ``sleb`` sorts them."""

    scorer: RoundScorer
    rank: Rank
    dense: Blocks
    scores: dict[int, Losses] = field(default_factory=dict)

    def losses(self, keep: Blocks) -> Losses:
        return self.scorer.losses(keep)

    def score_round(
        self,
        keep: Blocks,  # noqa: ARG002 - scores are those of the dense model
        candidates: Blocks,
    ) -> Iterator[tuple[int, Losses]]:
        if not self.scores:
            self.scores = dict(self.rank(self.dense, candidates))
        yield from ((block, self.scores[block]) for block in candidates)
