"""The scorer of a model that is never in memory as a whole: a block visits once for everything
that needs it, instead of all blocks once for every candidate.

What is known, and where branches resume, is as in ``SharedPrefixScorer``.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from typing import TypeVar

import torch

from pruning.models.blocks import BlockCall, finish, num_blocks
from pruning.models.loss import window_losses
from pruning.models.memory import BATCH_TOKENS, state_budget
from pruning.models.streaming import StreamedModel
from pruning.removal import Losses
from pruning.search.prefixes import Prefixes, Walk
from pruning.sleb import Blocks

_Item = TypeVar("_Item")


class StreamedScorer:
    """Exact: one sweep over the blocks takes the trunk and all branches of a round along.

    ``windows`` are token ids ``[num_windows, seqlen]``. ``state_budget`` bounds the bytes of hidden
    states; windows that do not fit into one sweep are swept group by group, and then nothing is
    kept from round to round. ``batch_tokens`` at most go through a block in one call, but at least
    one window. No batch crosses one of the ``boundaries``.
    """

    def __init__(
        self,
        streamed: StreamedModel,
        windows: torch.Tensor,
        *,
        state_budget: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        boundaries: Sequence[int] = (),
    ) -> None:
        self._streamed = streamed
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
        sweep = state * (2 * depth + 1)  # the trunk in front of every block, and all branches
        budget = state_budget(
            self._streamed.device, num_bytes, least=sweep, of=f"one window of {seqlen} tokens"
        )
        num_states = budget // (num_windows * state)
        self._keeps_all = num_states > 3 * depth  # room as well for where branches resume
        self._windows_per_sweep = budget // sweep
        largest = max(1, min(self._batch_tokens // seqlen, self._windows_per_sweep))
        self._batches: dict[int, Prefixes] = {}  # by their first window
        for first, last in pairwise(sorted({0, *self._boundaries, num_windows})):
            for begin in range(first, last, largest):
                token_ids = self._windows[begin : min(begin + largest, last)]
                self._batches[begin] = Prefixes(model, token_ids, num_states - depth)

    @property
    def state_bytes(self) -> int:
        """Of the hidden states known now."""
        return sum(batch.state_bytes for batch in self._batches.values())

    def losses(self, keep: Blocks) -> Losses:
        return self._of_all(keep, None, range(self.num_windows))[None]

    def score_round(self, keep: Blocks, candidates: Blocks) -> Iterator[tuple[int, Losses]]:
        return self.score(keep, candidates, range(self.num_windows))

    def score(
        self, keep: Blocks, candidates: Blocks, windows: range
    ) -> Iterator[tuple[int, Losses]]:
        """As any ``WindowScorer``; but all candidates are done at once, at the end of the sweep."""
        losses = self._of_all(keep, candidates, windows)
        for block in candidates:
            yield block, losses[block]

    def _of_all(
        self, keep: Blocks, candidates: Blocks | None, windows: range
    ) -> dict[int | None, list[float]]:
        """Losses by the block left out; of ``keep`` itself, by None, if there are no candidates."""
        losses: dict[int | None, list[float]] = {}
        for group in _packed(self._between(windows), _num_windows, self._windows_per_sweep):
            try:
                for without, found in self._of_group(group, keep, candidates):
                    losses.setdefault(without, []).extend(found)
            finally:
                if not self._keeps_all:
                    for batch in group:
                        batch.forget()
        return losses

    def _between(self, windows: range) -> list[Prefixes]:
        chosen = [batch for begin, batch in self._batches.items() if begin in windows]
        if sum(map(_num_windows, chosen)) != len(windows):
            raise ValueError(f"{windows} do not begin and end at boundaries: {self._boundaries}")
        return chosen

    @torch.inference_mode()
    def _of_group(
        self, group: Sequence[Prefixes], keep: Blocks, candidates: Blocks | None
    ) -> list[tuple[int | None, list[float]]]:
        if fresh := [batch for batch in group if not batch.is_prepared]:
            with self._streamed.embeddings():
                for batch in fresh:
                    batch.prepare()
        routes = [_Routes(batch, keep, candidates) for batch in group]
        asked = sorted({block for each in routes for block in each.blocks()})
        with closing(self._streamed.blocks(asked)) as visits:
            for block in visits:
                walks = [walk for each in routes for walk in each.walks() if walk.at == block]
                _advance(walks, group[0].calls[block], self._batch_tokens)
                for each in routes:
                    each.branch_off()
        with self._streamed.head():
            return [
                (without, self._at_the_end(walk, each.batch))
                for each in routes
                for without, walk in each.ends.items()
            ]

    def _at_the_end(self, walk: Walk, batch: Prefixes) -> list[float]:
        model = self._streamed.model
        losses = window_losses(model, finish(model, walk.hidden), batch.token_ids)
        if not losses.isfinite().all():
            batch.forget()  # nothing may build on states that gave no number
        found: list[float] = losses.tolist()
        return found


class _Routes:
    """The walks of one batch: along the trunk, and from it along a branch for every candidate."""

    def __init__(self, batch: Prefixes, keep: Blocks, candidates: Blocks | None) -> None:
        batch.move_to(keep)
        self.batch = batch
        self.ends: dict[int | None, Walk] = {} if candidates is not None else {None: batch.trunk()}
        self._keep = keep
        self._waiting: list[int] = []  # candidates that the trunk has not come to
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
        """Begin the branches that the trunk has come to."""
        while self._waiting:
            self._trunk = self.batch.trunk(until=self._waiting[0])
            if self._trunk.at is not None:
                return
            block = self._waiting.pop(0)
            self.ends[block] = self.batch.branch(block)
        self._trunk = None

    def blocks(self) -> set[int]:
        """Those that the walks will come through."""
        begins = [walk.at for walk in self.ends.values() if walk.at is not None]
        through = {block for begin in begins for block in self._keep if block >= begin}
        reached = 0
        for waiting in self._waiting:
            begin = self.batch.trunk(until=waiting).at
            stretch = range(waiting if begin is None else max(begin, reached), waiting)
            through |= {block for block in self._keep if block in stretch or block > waiting}
            reached = waiting
        return through


def _advance(walks: Sequence[Walk], call: BlockCall, batch_tokens: int) -> None:
    """Run a block on what the walks have come to, several of them in one call."""
    for group in _packed(walks, _num_tokens, batch_tokens):
        if len(group) == 1:
            group[0].advance(call(group[0].hidden))
            continue
        together = call(torch.cat([walk.hidden for walk in group]))
        parts = torch.split(together, [walk.hidden.shape[0] for walk in group])
        for walk, part in zip(group, parts, strict=True):
            walk.advance(part.clone())  # a part alone would keep all of them in memory


def _packed(
    items: Iterable[_Item], size: Callable[[_Item], int], limit: int
) -> Iterator[list[_Item]]:
    """As many in a row as the limit allows, but at least one."""
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
