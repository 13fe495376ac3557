"""Metric 1 of the paper: how much a block changes its input (arXiv 2402.09025, section 3).

arXiv 2403.03853 calls this measure Block Influence.
"""

from collections.abc import Iterator
from contextlib import closing

import torch
from torch.nn import functional as F

from pruning.models.blocks import BlockCall, block_calls
from pruning.models.memory import BATCH_TOKENS, state_budget
from pruning.removal import Losses
from pruning.repair.repair import VisitedModel
from pruning.sleb import Blocks


class CosineRanker:
    """Scores every candidate in one pass through the model.

    The score of a block on a window of T tokens is ``1 - (1 / T) sum_t x_t . y_t / (|x_t| |y_t|)``
    in float64, where ``x_t`` and ``y_t`` are the hidden states of token t before and after the
    block. ``windows`` are token ids ``[num_windows, seqlen]``. A pass through the blocks has as
    many windows as fit into ``state_budget`` bytes, and at least one.
    """

    def __init__(
        self,
        dense: VisitedModel,
        windows: torch.Tensor,
        *,
        batch_tokens: int = BATCH_TOKENS,
        state_budget: int | None = None,
    ) -> None:
        self._dense = dense
        self._batch_size = max(1, batch_tokens // windows.shape[1])
        self._sweep_size = _num_fitting(dense, windows.shape[1], state_budget)
        self._windows = windows.to(dense.device)

    @torch.inference_mode()
    def score_round(self, keep: Blocks, candidates: Blocks) -> Iterator[tuple[int, Losses]]:
        """Yield ``(block, scores)``, one score per window, in the model of the blocks ``keep``."""
        scores: dict[int, list[float]] = {block: [] for block in candidates}
        path = tuple(block for block in keep if block <= max(candidates, default=-1))
        for sweep in torch.split(self._windows, self._sweep_size):
            batches, calls = self._embedded(sweep)
            with closing(self._dense.blocks(path)) as loaded:
                for block in loaded:
                    before, batches = batches, [calls[block](hidden) for hidden in batches]
                    if block in scores:
                        scores[block] += _changes(before, batches)
        yield from scores.items()

    def _embedded(self, windows: torch.Tensor) -> tuple[list[torch.Tensor], tuple[BlockCall, ...]]:
        with self._dense.embeddings():
            parts = torch.split(windows, self._batch_size)
            embedded = [block_calls(self._dense.model, part) for part in parts]
        return [hidden for hidden, _ in embedded], embedded[0][1]


def _num_fitting(dense: VisitedModel, seqlen: int, num_bytes: int | None) -> int:
    """How many windows fit into the budget with their states before and after a block."""
    width: int = dense.model.config.hidden_size
    budget = state_budget(dense.device, num_bytes)
    return max(1, budget // (2 * seqlen * width * dense.model.dtype.itemsize))


def _changes(before: list[torch.Tensor], after: list[torch.Tensor]) -> list[float]:
    """Score per window of states ``[batch, seqlen, hidden_size]`` before and after a block."""
    changes: list[float] = []
    for inputs, outputs in zip(before, after, strict=True):
        similarity = F.cosine_similarity(inputs.double(), outputs.double(), dim=-1)
        changes += (1 - similarity.mean(dim=1)).tolist()
    return changes
