"""Scorers that measure the objective on the calibration windows without one more block.

``PlainScorer`` is the reference. ``SharedPrefixScorer`` gives the same scores, and reuses hidden
states that it computed before. ``losses`` of a scorer are losses whatever the objective is.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from pruning.models.blocks import num_blocks, view
from pruning.models.memory import BATCH_TOKENS, host_budget, state_budget
from pruning.removal import Losses
from pruning.search.objective import Objective
from pruning.search.prefixes import Prefixes, Walk
from pruning.search.window_scorer import grown
from pruning.sleb import Blocks

PLAIN_LOGITS_BYTES = 2**30


class PlainScorer:
    """The slow reference: a full forward pass with all logits for every candidate.

    ``windows`` are token ids ``[num_windows, seqlen]``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        windows: torch.Tensor,
        batch_size: int = 16,
        objective: Objective = Objective.LOSS,
    ) -> None:
        logits_bytes = 4 * windows.shape[1] * model.config.vocab_size
        self._model = model
        self._objective = objective
        self._batch_size = max(1, min(batch_size, PLAIN_LOGITS_BYTES // logits_bytes))
        self._windows = windows.to(model.device)

    @torch.inference_mode()
    def losses(self, keep: Blocks) -> Losses:
        found: list[float] = []
        for batch in torch.split(self._windows, self._batch_size):
            logits = self._logits(keep, batch)
            nats = F.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
            found += nats.double().mean(dim=1).tolist()
        return found

    def score_round(self, keep: Blocks, candidates: Blocks) -> Iterator[tuple[int, Losses]]:
        score = self._divergences if self._objective.needs_dense else self.losses
        for block in candidates:
            yield block, score(tuple(alive for alive in keep if alive != block))

    @torch.inference_mode()
    def _divergences(self, keep: Blocks) -> Losses:
        found: list[float] = []
        for batch in torch.split(self._windows, self._batch_size):
            dense = self._model(batch, use_cache=False).logits[:, :-1].float().log_softmax(dim=-1)
            pruned = self._logits(keep, batch).log_softmax(dim=-1)
            nats = F.kl_div(pruned, dense, log_target=True, reduction="none").sum(dim=-1)
            found += nats.double().mean(dim=1).tolist()
        return found

    def _logits(self, keep: Blocks, batch: torch.Tensor) -> torch.Tensor:
        """Logits ``[batch, seqlen - 1, vocab]`` of the tokens that are predicted."""
        pruned = view(self._model, keep)
        logits: torch.Tensor = pruned(batch, use_cache=False).logits
        return logits[:, :-1].float()


@dataclass(frozen=True)
class BatchPlan:
    """How windows are divided into batches, and how many states of each may stay in memory."""

    batch_sizes: tuple[int, ...]
    num_states: int  # hidden states per window that fit
    num_on_device: int  # windows whose states fit there; those of others are kept on the host
    keeps_all: bool  # whether the trunks of all batches fit; otherwise each batch is forgotten
    keeps_dense: bool  # whether what an objective needs of the dense model fits for all batches

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        windows: torch.Tensor,
        num_bytes: int | None,
        batch_tokens: int,
        boundaries: Sequence[int],
        objective: Objective,
    ) -> "BatchPlan":
        """Divide ``windows [num_windows, seqlen]`` so that their states fit into ``num_bytes``.

        None is half of the free memory, of the device and of the host. Raises
        ``StateBudgetTooSmall``.
        """
        num_windows, seqlen = windows.shape
        state = seqlen * model.config.hidden_size * model.dtype.itemsize
        of_dense = state * objective.needs_dense
        trunk = state * (num_blocks(model) + 1)
        budget = state_budget(
            model.device, num_bytes, least=trunk + of_dense, of=f"one window of {seqlen} tokens"
        )
        keeps_dense = budget >= num_windows * of_dense + trunk
        if keeps_dense:
            budget -= num_windows * of_dense
        else:
            trunk += of_dense
        largest = max(1, min(batch_tokens // seqlen, budget // trunk))
        on_host = host_budget(model.device, num_bytes) * largest * state // _pinned(largest * state)
        num_states = _num_states(num_blocks(model), num_windows * state, budget, on_host)
        num_on_device = budget // (num_states * state) if num_states else num_windows
        return cls(
            tuple(_batch_sizes(num_windows, boundaries, largest)),
            num_states,
            num_on_device,
            num_states > num_blocks(model),
            keeps_dense,
        )


def _batch_sizes(num_windows: int, boundaries: Sequence[int], largest: int) -> Iterator[int]:
    for first, end in pairwise(sorted({0, *boundaries, num_windows})):
        for begin in range(first, end, largest):
            yield min(largest, end - begin)


def _pinned(num_bytes: int) -> int:
    """What torch takes of the host for so many bytes: the next power of two."""
    return 1 << (num_bytes - 1).bit_length()


def _num_states(depth: int, state_bytes: int, on_device: int, on_host: int) -> int:
    """The states of all windows that fit. The host takes no more than a search has use for: the
    trunk, and each branch with a state in front of each later block."""
    most = 2 * depth + 1 + (depth - 1) * (depth - 2) // 2
    return max(on_device // state_bytes, min(most, (on_device + on_host) // state_bytes))


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
        objective: Objective = Objective.LOSS,
    ) -> None:
        self._model = model
        self._windows = windows.to(model.device)
        self._batch_tokens = batch_tokens
        self._boundaries = boundaries
        self._objective = objective
        self.num_windows = windows.shape[0]
        self.set_state_budget(state_budget)

    def set_state_budget(self, num_bytes: int | None) -> None:
        """Limit hidden states to ``num_bytes``, or to half of the free memory; forgets all states.

        On a GPU, the memory of the host is counted too. Raises ``StateBudgetTooSmall``.
        """
        self._plan = plan = BatchPlan.of(
            self._model,
            self._windows,
            num_bytes,
            self._batch_tokens,
            self._boundaries,
            self._objective,
        )
        ends = accumulate(plan.batch_sizes)
        self._batches = [
            Prefixes(
                self._model,
                batch,
                plan.num_states,
                is_on_host=plan.keeps_all and end > plan.num_on_device,
            )
            for batch, end in zip(
                torch.split(self._windows, list(plan.batch_sizes)), ends, strict=True
            )
        ]

    @property
    def state_bytes(self) -> int:
        """Bytes of all known hidden states."""
        return sum(batch.state_bytes for batch in self._batches)

    def losses(self, keep: Blocks) -> Losses:
        found: list[float] = []
        for batch in self._batches:
            with self._forgotten_after(batch):
                found += self._batch_scores(batch, keep)
        return found

    def parts(self, windows: range) -> Sequence[range]:
        """The batches, where each is forgotten before the next."""
        if self._plan.keeps_all:
            return [windows]
        ends = list(accumulate(self._plan.batch_sizes, initial=0))
        return [range(*pair) for pair in pairwise(ends) if pair[0] in windows]

    def growing(
        self, keep: Blocks, candidates: Blocks, windows: range, known: Mapping[int, Losses]
    ) -> Iterator[tuple[int, Losses]]:
        return grown(self, keep, candidates, windows, known)

    def score_round(self, keep: Blocks, candidates: Blocks) -> Iterator[tuple[int, Losses]]:
        return self.score(keep, candidates, range(self.num_windows))

    def score(
        self, keep: Blocks, candidates: Blocks, windows: range
    ) -> Iterator[tuple[int, Losses]]:
        batches = self._batches_of(windows)
        if self._plan.keeps_all:
            for block in candidates:
                yield block, [nats for b in batches for nats in self._batch_scores(b, keep, block)]
            return
        losses: dict[int, list[float]] = {block: [] for block in candidates}
        for batch in batches:
            with self._forgotten_after(batch):
                for block in candidates:
                    losses[block] += self._batch_scores(batch, keep, block)
                    if batch is batches[-1]:
                        yield block, losses[block]

    @contextmanager
    def _forgotten_after(self, batch: Prefixes) -> Iterator[None]:
        """Forget the states of the batch afterwards, unless the budget has room for all batches."""
        try:
            yield
        finally:
            if not self._plan.keeps_all:
                batch.forget(keep_dense=self._plan.keeps_dense)

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
    def _batch_scores(
        self, batch: Prefixes, keep: Blocks, without: int | None = None
    ) -> list[float]:
        """The losses of ``keep``, or its scores by the objective without a candidate."""
        self._prepare(batch)
        batch.move_to(keep)
        if without is not None and not batch.has_branch(without):
            _run(batch.trunk(until=without), batch)
        walk = batch.trunk() if without is None else batch.branch(without)
        _run(walk, batch)
        objective = Objective.LOSS if without is None else self._objective
        nats = objective.window_nats(self._model, walk.hidden, batch.token_ids, batch.dense)
        if not nats.isfinite().all():
            batch.forget()  # so that later scores do not depend on these states
        found: list[float] = nats.tolist()
        return found

    def _prepare(self, batch: Prefixes) -> None:
        if not batch.is_prepared:
            batch.prepare()
            if self._objective.needs_dense and batch.dense is None:
                dense = batch.dense_walk()
                _run(dense, batch)
                batch.dense = dense.hidden


def _run(walk: Walk, batch: Prefixes) -> None:
    while (block := walk.at) is not None:
        walk.advance(batch.calls[block](walk.hidden))
