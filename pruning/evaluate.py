"""Quality of a model, and of every prefix of a removal order, as perplexity on token windows."""

import math
from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel

from pruning.blocks import num_blocks, view
from pruning.loss import mean_loss

MAX_NATS = 700.0  # a broken model's loss may be beyond what exp can say in a float


def perplexity(model: PreTrainedModel, windows: torch.Tensor, batch_size: int = 16) -> float:
    """exp of the mean nats per token over non-overlapping windows ``[num_windows, seqlen]``."""
    return math.exp(min(mean_loss(model, windows, batch_size), MAX_NATS))


def perplexity_curve(
    model: PreTrainedModel, removed: Sequence[int], windows: torch.Tensor
) -> Iterator[float]:
    """Perplexity after 0, 1, 2 ... of the removals: one job, every depth."""
    keep = list(range(num_blocks(model)))
    yield perplexity(model, windows)
    for block in removed:
        keep.remove(block)
        yield perplexity(view(model, keep), windows)
