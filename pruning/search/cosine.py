"""Metric 1 of the paper: how much a block changes its input (arXiv 2402.09025, section 3).

arXiv 2403.03853 calls this measure Block Influence.
"""

from collections.abc import Iterator
from contextlib import closing

import torch
from torch.nn import functional as F

from pruning.models import memory
from pruning.models.blocks import block_calls
from pruning.models.streaming import VisitedModel
from pruning.removal import Losses
from pruning.sleb import Blocks


@torch.inference_mode()
def cosines(
    dense: VisitedModel,
    windows: torch.Tensor,
    keep: Blocks,
    candidates: Blocks,
    *,
    batch_tokens: int = memory.BATCH_TOKENS,
    state_budget: int | None = None,
) -> Iterator[tuple[int, Losses]]:
    """Yield ``(block, scores)``, one score per window, in the model of the blocks ``keep``.

    The score of a block on a window of T tokens is ``1 - (1 / T) sum_t x_t . y_t / (|x_t| |y_t|)``
    in float64, where ``x_t`` and ``y_t`` are the hidden states of token t before and after the
    block. ``windows`` are token ids ``[num_windows, seqlen]``. A pass through the blocks has as
    many windows as fit into ``state_budget`` bytes, and at least one.
    """
    seqlen, width = windows.shape[1], dense.model.config.hidden_size
    window_bytes = 2 * seqlen * width * dense.model.dtype.itemsize  # before and after a block
    at_once = max(1, memory.state_budget(dense.device, state_budget) // window_bytes)
    scores: dict[int, list[float]] = {block: [] for block in candidates}
    path = tuple(block for block in keep if block <= max(candidates, default=-1))
    for sweep in torch.split(windows.to(dense.device), at_once):
        with dense.embeddings():
            parts = torch.split(sweep, max(1, batch_tokens // seqlen))
            embedded = [block_calls(dense.model, part) for part in parts]
        batches, calls = [hidden for hidden, _ in embedded], embedded[0][1]
        with closing(dense.blocks(path)) as loaded:
            for block in loaded:
                before, batches = batches, [calls[block](hidden) for hidden in batches]
                if block in scores:
                    scores[block] += _changes(before, batches)
    yield from scores.items()


def _changes(before: list[torch.Tensor], after: list[torch.Tensor]) -> list[float]:
    """Score per window of states ``[batch, seqlen, hidden_size]`` before and after a block."""
    changes: list[float] = []
    for inputs, outputs in zip(before, after, strict=True):
        similarity = F.cosine_similarity(inputs.double(), outputs.double(), dim=-1)
        changes += (1 - similarity.mean(dim=1)).tolist()
    return changes
