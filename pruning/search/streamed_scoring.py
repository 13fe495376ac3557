"""The scorer of a streamed model, which loads each block once for all candidates that need it.

Hidden states are reused as in ``SharedPrefixScorer``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import accumulate, pairwise
from typing import TypeVar

import torch

from pruning.models.blocks import BlockCall, num_blocks
from pruning.models.memory import BATCH_TOKENS, state_budget
from pruning.models.streaming import StreamedModel
from pruning.removal import Losses
from pruning.search.objective import Objective
from pruning.search.prefixes import Prefixes, Walk
from pruning.search.window_scorer import grown
from pruning.sleb import Blocks

_Item = TypeVar("_Item")


class StreamedScorer:
    """Exact: one sweep over the blocks runs the trunk and all branches of a round.

    ``windows`` are token ids ``[num_windows, seqlen]``. If the hidden states of all windows exceed
    ``state_budget`` bytes, each group of windows has its own sweep, and no states are kept between
    rounds. A call of a block has at most ``batch_tokens`` tokens, but at least one window. No batch
    crosses any of the ``boundaries``.
    """

    def __init__(
        self,
        streamed: StreamedModel,
        windows: torch.Tensor,
        *,
        state_budget: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        boundaries: Sequence[int] = (),
        objective: Objective = Objective.LOSS,
    ) -> None:
        self._streamed = streamed
        self._objective = objective
        self._batch_tokens = batch_tokens
        self._windows = windows.to(streamed.device)
        self._boundaries = boundaries
        self.num_windows = windows.shape[0]
        self.set_state_budget(state_budget)

    def set_state_budget(self, num_bytes: int | None) -> None:
        """Limit hidden states to ``num_bytes``, or to half of the free memory; forgets all states.

        Raises ``StateBudgetTooSmall``.
        """
        model, (num_windows, seqlen) = self._streamed.model, self._windows.shape
        state, depth = seqlen * model.config.hidden_size * model.dtype.itemsize, num_blocks(model)
        of_dense = state * self._objective.needs_dense
        sweep = state * (2 * depth + 1)  # the trunk before every block, and all branches
        budget = state_budget(
            self._streamed.device,
            num_bytes,
            least=sweep + of_dense,
            of=f"one window of {seqlen} tokens",
        )
        self._keeps_dense = budget >= num_windows * of_dense + sweep
        if self._keeps_dense:
            budget -= num_windows * of_dense
        else:
            sweep += of_dense
        num_states = budget // (num_windows * state)
        self._keeps_all = num_states > 3 * depth  # with one state per branch to resume from
        self._windows_per_sweep = budget // sweep
        largest = max(1, min(self._batch_tokens // seqlen, self._windows_per_sweep))
        self._batches: dict[int, Prefixes] = {}  # by first window
        for first, last in pairwise(sorted({0, *self._boundaries, num_windows})):
            for begin in range(first, last, largest):
                token_ids = self._windows[begin : min(begin + largest, last)]
                self._batches[begin] = Prefixes(model, token_ids, num_states - depth)

    @property
    def state_bytes(self) -> int:
        """Bytes of all known hidden states."""
        return sum(batch.state_bytes for batch in self._batches.values())

    def losses(self, keep: Blocks) -> Losses:
        return self._losses_by_candidate(keep, None, range(self.num_windows))[None]

    def parts(self, windows: range) -> Sequence[range]:
        """The groups of windows that have a sweep of their own."""
        sizes = (sum(map(_num_windows, group)) for group in self._groups(windows))
        return [range(*pair) for pair in pairwise(accumulate(sizes, initial=windows.start))]

    def growing(
        self, keep: Blocks, candidates: Blocks, windows: range, known: Mapping[int, Losses]
    ) -> Iterator[tuple[int, Losses]]:
        return grown(self, keep, candidates, windows, known)

    def score_round(self, keep: Blocks, candidates: Blocks) -> Iterator[tuple[int, Losses]]:
        return self.score(keep, candidates, range(self.num_windows))

    def score(
        self, keep: Blocks, candidates: Blocks, windows: range
    ) -> Iterator[tuple[int, Losses]]:
        """As in ``WindowScorer``. All candidates are ready at the same time, after the sweep."""
        losses = self._losses_by_candidate(keep, candidates, windows)
        for block in candidates:
            yield block, losses[block]

    def _losses_by_candidate(
        self, keep: Blocks, candidates: Blocks | None, windows: range
    ) -> dict[int | None, list[float]]:
        """Losses by the block that is left out; None is ``keep`` itself, without candidates."""
        losses: dict[int | None, list[float]] = {}
        for group in self._groups(windows):
            try:
                for without, found in self._group_losses(group, keep, candidates):
                    losses.setdefault(without, []).extend(found)
            finally:
                if not self._keeps_all:
                    for batch in group:
                        batch.forget(keep_dense=self._keeps_dense)
        return losses

    def _groups(self, windows: range) -> Iterator[list[Prefixes]]:
        return _grouped(self._batches_of(windows), _num_windows, self._windows_per_sweep)

    def _batches_of(self, windows: range) -> list[Prefixes]:
        chosen = [batch for begin, batch in self._batches.items() if begin in windows]
        if sum(map(_num_windows, chosen)) != len(windows):
            raise ValueError(f"{windows} do not begin and end at boundaries: {self._boundaries}")
        return chosen

    @torch.inference_mode()
    def _group_losses(
        self, group: Sequence[Prefixes], keep: Blocks, candidates: Blocks | None
    ) -> list[tuple[int | None, list[float]]]:
        self._prepare(group)
        routes = [_Routes(batch, keep, candidates) for batch in group]
        needed = sorted({block for each in routes for block in each.blocks()})
        with closing(self._streamed.blocks(needed)) as loaded:
            for block in loaded:
                walks = [walk for each in routes for walk in each.walks() if walk.at == block]
                _advance(walks, group[0].calls[block], self._batch_tokens)
                for each in routes:
                    each.branch_off()
        objective = Objective.LOSS if candidates is None else self._objective
        with self._streamed.head():
            return [
                (without, self._final_scores(objective, walk, each.batch))
                for each in routes
                for without, walk in each.ends.items()
            ]

    def _prepare(self, group: Sequence[Prefixes]) -> None:
        """Embed the tokens, and run the dense model if the objective needs it."""
        fresh = [batch for batch in group if not batch.is_prepared]
        if fresh:
            with self._streamed.embeddings():
                for batch in fresh:
                    batch.prepare()
        batches = [batch for batch in fresh if batch.dense is None]
        if not self._objective.needs_dense or not batches:
            return
        walks = [batch.dense_walk() for batch in batches]
        with closing(self._streamed.blocks(range(num_blocks(self._streamed.model)))) as loaded:
            for block in loaded:
                _advance(walks, batches[0].calls[block], self._batch_tokens)
        for batch, walk in zip(batches, walks, strict=True):
            batch.dense = walk.hidden

    def _final_scores(self, objective: Objective, walk: Walk, batch: Prefixes) -> list[float]:
        nats = objective.window_nats(
            self._streamed.model, walk.hidden, batch.token_ids, batch.dense
        )
        if not nats.isfinite().all():
            batch.forget()  # so that later scores do not depend on these states
        found: list[float] = nats.tolist()
        return found


class _Routes:
    """The walks of one batch: the trunk, and a branch for each candidate."""

    def __init__(self, batch: Prefixes, keep: Blocks, candidates: Blocks | None) -> None:
        batch.move_to(keep)
        self.batch = batch
        self.ends: dict[int | None, Walk] = {} if candidates is not None else {None: batch.trunk()}
        self._keep = keep
        self._waiting: list[int] = []  # candidates that the trunk has not reached
        self._trunk: Walk | None = None
        for block in sorted(candidates or ()):
            if batch.has_branch(block):
                self.ends[block] = batch.branch(block)
            else:
                self._waiting.append(block)
        self.branch_off()

    def walks(self) -> list[Walk]:
        return [*self.ends.values(), *([] if self._trunk is None else [self._trunk])]

    def branch_off(self) -> None:
        """Start the branches of the candidates that the trunk has reached."""
        while self._waiting:
            self._trunk = self.batch.trunk(until=self._waiting[0])
            if self._trunk.at is not None:
                return
            block = self._waiting.pop(0)
            self.ends[block] = self.batch.branch(block)
        self._trunk = None

    def blocks(self) -> set[int]:
        """The blocks that the walks still need."""
        begins = [walk.at for walk in self.ends.values() if walk.at is not None]
        needed = {block for begin in begins for block in self._keep if block >= begin}
        reached = 0
        for waiting in self._waiting:
            begin = self.batch.trunk(until=waiting).at
            stretch = range(waiting if begin is None else max(begin, reached), waiting)
            needed |= {block for block in self._keep if block in stretch or block > waiting}
            reached = waiting
        return needed


def _advance(walks: Sequence[Walk], call: BlockCall, batch_tokens: int) -> None:
    """Advance the walks by one block, several walks per call."""
    for group in _grouped(walks, _num_tokens, batch_tokens):
        if len(group) == 1:
            group[0].advance(call(group[0].hidden))
            continue
        outputs = call(torch.cat([walk.hidden for walk in group]))
        parts = torch.split(outputs, [walk.hidden.shape[0] for walk in group])
        for walk, part in zip(group, parts, strict=True):
            walk.advance(part.clone())  # a view would keep all parts in memory


def _grouped(
    items: Iterable[_Item], size: Callable[[_Item], int], limit: int
) -> Iterator[list[_Item]]:
    """Yield groups of consecutive items of total size ``limit`` at most, or of a single item."""
    group: list[_Item] = []
    for item in items:
        if group and sum(map(size, group)) + size(item) > limit:
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _num_windows(batch: Prefixes) -> int:
    return batch.token_ids.shape[0]


def _num_tokens(walk: Walk) -> int:
    return walk.hidden.shape[0] * walk.hidden.shape[1]
