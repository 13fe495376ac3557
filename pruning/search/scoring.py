"""Scorers that measure the loss on the calibration windows without one more block.

``PlainScorer`` is the reference. ``SharedPrefixScorer`` gives the same losses, and reuses hidden
states that it computed before.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from pruning.models.blocks import finish, num_blocks, view
from pruning.models.loss import window_losses
from pruning.models.memory import BATCH_TOKENS, state_budget
from pruning.removal import Losses
from pruning.search.prefixes import Prefixes, Walk
from pruning.sleb import Blocks, RoundScorer

PLAIN_LOGITS_BYTES = 2**30


class WindowScorer(RoundScorer, Protocol):
    """Scores candidates on all windows or on some of them."""

    @property
    def num_windows(self) -> int: ...

    def score(
        self, keep: Blocks, candidates: Blocks, windows: range
    ) -> Iterator[tuple[int, Losses]]:
        """Yield ``(block, losses of keep without it)`` on these windows only.

        ``windows`` must begin and end at 0, ``num_windows`` or a boundary of the scorer.
        """


class PlainScorer:
    """The slow reference: a full forward pass with all logits for every candidate.

    ``windows`` are token ids ``[num_windows, seqlen]``.
    """

    def __init__(self, model: PreTrainedModel, windows: torch.Tensor, batch_size: int = 16) -> None:
        logits_bytes = 4 * windows.shape[1] * model.config.vocab_size
        self._model = model
        self._batch_size = max(1, min(batch_size, PLAIN_LOGITS_BYTES // logits_bytes))
        self._windows = windows.to(model.device)

    @torch.inference_mode()
    def losses(self, keep: Blocks) -> Losses:
        pruned = view(self._model, keep)
        found: list[float] = []
        for batch in torch.split(self._windows, self._batch_size):
            logits = pruned(batch, use_cache=False).logits[:, :-1].float()
            nats = F.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
            found += nats.double().mean(dim=1).tolist()
        return found

    def score_round(self, keep: Blocks, candidates: Blocks) -> Iterator[tuple[int, Losses]]:
        for block in candidates:
            yield block, self.losses(tuple(alive for alive in keep if alive != block))


@dataclass(frozen=True)
class BatchPlan:
    """How windows are divided into batches, and how many states of each may stay in memory."""

    batch_sizes: tuple[int, ...]
    num_states: int  # hidden states per window that fit
    keeps_all: bool  # whether the trunks of all batches fit; otherwise each batch is forgotten

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        windows: torch.Tensor,
        num_bytes: int | None,
        batch_tokens: int,
        boundaries: Sequence[int],
    ) -> "BatchPlan":
        """Divide ``windows [num_windows, seqlen]`` so that their states fit into ``num_bytes``.

        None is half of the free memory. Raises ``StateBudgetTooSmall``.
        """
        num_windows, seqlen = windows.shape
        state = seqlen * model.config.hidden_size * model.dtype.itemsize
        trunk = state * (num_blocks(model) + 1)
        budget = state_budget(
            model.device, num_bytes, least=trunk, of=f"one window of {seqlen} tokens"
        )
        largest = max(1, min(batch_tokens // seqlen, budget // trunk))
        sizes = [
            min(largest, end - begin)
            for first, end in pairwise(sorted({0, *boundaries, num_windows}))
            for begin in range(first, end, largest)
        ]
        num_states = budget // (num_windows * state)
        return cls(tuple(sizes), num_states, num_states > num_blocks(model))


class SharedPrefixScorer:
    """Exact, with 2.2 to 2.7 times fewer block passes than the plain scorer.

    ``windows`` are token ids ``[num_windows, seqlen]``. At most ``state_budget`` bytes of hidden
    states are kept; others are computed again. A batch has at most ``batch_tokens`` tokens, but at
    least one window, and does not cross any of the ``boundaries``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        windows: torch.Tensor,
        *,
        state_budget: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        boundaries: Sequence[int] = (),
    ) -> None:
        self._model = model
        self._windows = windows.to(model.device)
        self._batch_tokens = batch_tokens
        self._boundaries = boundaries
        self.num_windows = windows.shape[0]
        self.set_state_budget(state_budget)

    def set_state_budget(self, num_bytes: int | None) -> None:
        """Limit hidden states to ``num_bytes``, or to half of the free memory; forgets all states.

        Raises ``StateBudgetTooSmall``.
        """
        plan = BatchPlan.of(
            self._model, self._windows, num_bytes, self._batch_tokens, self._boundaries
        )
        batches = torch.split(self._windows, list(plan.batch_sizes))
        self._keeps_all = plan.keeps_all
        self._batches = [Prefixes(self._model, batch, plan.num_states) for batch in batches]

    @property
    def state_bytes(self) -> int:
        """Bytes of all known hidden states."""
        return sum(batch.state_bytes for batch in self._batches)

    def losses(self, keep: Blocks) -> Losses:
        found: list[float] = []
        for batch in self._batches:
            with self._forgotten_after(batch):
                found += self._batch_losses(batch, keep)
        return found

    def score_round(self, keep: Blocks, candidates: Blocks) -> Iterator[tuple[int, Losses]]:
        return self.score(keep, candidates, range(self.num_windows))

    def score(
        self, keep: Blocks, candidates: Blocks, windows: range
    ) -> Iterator[tuple[int, Losses]]:
        batches = self._batches_of(windows)
        if self._keeps_all:
            for block in candidates:
                yield block, [loss for b in batches for loss in self._batch_losses(b, keep, block)]
            return
        losses: dict[int, list[float]] = {block: [] for block in candidates}
        for batch in batches:
            with self._forgotten_after(batch):
                for block in candidates:
                    losses[block] += self._batch_losses(batch, keep, block)
                    if batch is batches[-1]:
                        yield block, losses[block]

    @contextmanager
    def _forgotten_after(self, batch: Prefixes) -> Iterator[None]:
        """Forget the states of the batch afterwards, unless the budget has room for all batches."""
        try:
            yield
        finally:
            if not self._keeps_all:
                batch.forget()

    def _batches_of(self, windows: range) -> list[Prefixes]:
        begins, begin = [], 0
        for batch in self._batches:
            begins.append(begin)
            begin += batch.token_ids.shape[0]
        chosen = [batch for at, batch in zip(begins, self._batches, strict=True) if at in windows]
        if sum(batch.token_ids.shape[0] for batch in chosen) != len(windows):
            raise ValueError(f"{windows} do not begin and end at boundaries: {self._boundaries}")
        return chosen

    @torch.inference_mode()
    def _batch_losses(
        self, batch: Prefixes, keep: Blocks, without: int | None = None
    ) -> list[float]:
        if not batch.is_prepared:
            batch.prepare()
        batch.move_to(keep)
        if without is not None and not batch.has_branch(without):
            _run(batch.trunk(until=without), batch)
        walk = batch.trunk() if without is None else batch.branch(without)
        _run(walk, batch)
        losses = window_losses(self._model, finish(self._model, walk.hidden), batch.token_ids)
        if not losses.isfinite().all():
            batch.forget()  # so that later losses do not depend on these states
        found: list[float] = losses.tolist()
        return found


def _run(walk: Walk, batch: Prefixes) -> None:
    while (block := walk.at) is not None:
        walk.advance(batch.calls[block](walk.hidden))
