"""Quality of a model, and of every prefix of a removal order, as perplexity on token windows."""

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from pruning.removal import Losses
from pruning.sleb import RoundScorer

MAX_NATS = 700.0  # a broken model's loss may be beyond what exp can say in a float


def perplexity(losses: Losses) -> float:
    """exp of the mean nats per token over windows that do not overlap."""
    return math.exp(min(fmean(losses), MAX_NATS))


def perplexity_curve(
    scorer: RoundScorer, num_blocks: int, removed: Sequence[int]
) -> Iterator[float]:
    """Perplexity after 0, 1, 2 ... of the removals, on the windows of ``scorer``: every depth."""
    keep = list(range(num_blocks))
    yield perplexity(scorer.losses(tuple(keep)))
    for block in removed:
        keep.remove(block)
        yield perplexity(scorer.losses(tuple(keep)))
