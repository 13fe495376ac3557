"""Hidden states of a batch of windows that stay valid while blocks are removed.

No change of a block changes the states before it. So the trunk (all kept blocks) runs once, and
every branch (the trunk without one block) starts from the trunk's state before that block. After
block r is removed, r's branch is the new trunk, and branches at earlier blocks resume after r.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import PreTrainedModel

from pruning.models.blocks import BlockCall, block_calls, num_blocks
from pruning.models.memory import grouped
from pruning.sleb import Blocks

NO_BLOCK = -1  # as a candidate: the kept blocks themselves, by their loss

# Hidden states by the block that they are the input of; ``num_blocks`` is the end of the model.
_Trail = dict[int, torch.Tensor]


@dataclass(frozen=True)
class StatePlace:
    """Where states are kept that are computed on a device."""

    device: torch.device
    is_on_host: bool = False  # in pinned memory: copies wait for nothing, and follow the kernels

    def kept(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self.is_on_host:
            return hidden
        pinned = torch.empty(hidden.shape, dtype=hidden.dtype, pin_memory=True)
        return pinned.copy_(hidden, non_blocking=True)


class Walk:
    """A pass from the furthest known state along a path of blocks, to the input of the last one.

    The caller runs block ``at`` on ``hidden`` and passes the result to ``advance``, until ``at`` is
    None. States before the blocks ``columns`` are kept in ``place``.
    """

    def __init__(
        self, trail: _Trail, path: Sequence[int], columns: Collection[int], place: StatePlace
    ) -> None:
        start = max(at for at in trail if at <= path[-1])
        self._trail = trail
        self._place = place
        self._path = [at for at in path if at >= start]
        self._columns = columns
        self._start = start

    @cached_property
    def hidden(self) -> torch.Tensor:
        """The input of the block ``at``. A state on the host is copied when it is asked for."""
        return self._trail[self._start].to(self._place.device, non_blocking=True)

    @property
    def at(self) -> int | None:
        return self._path[0] if len(self._path) > 1 else None

    def advance(self, hidden: torch.Tensor) -> None:
        del self._path[0]
        if self._path[0] in self._columns:
            self._trail[self._path[0]] = self._place.kept(hidden)
        self.hidden = hidden


class Prefixes:
    """The known states of ``token_ids [batch, seqlen]`` for the currently kept blocks.

    At most ``num_states`` states ``[batch, seqlen, hidden_size]`` are kept: those of the trunk, one
    per branch, and, as far as there is room, more along the branches to resume from. ``dense`` is
    the output of the dense model's last block, which the caller sets if divergences need it. With
    ``is_on_host`` states are kept in memory of the host, for a model on a GPU.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        token_ids: torch.Tensor,
        num_states: int,
        *,
        is_on_host: bool = False,
    ) -> None:
        self._model = model
        self._place = StatePlace(token_ids.device, is_on_host)
        self._num_blocks = num_blocks(model)
        self._num_states = num_states
        self._keep: Blocks = ()
        self._trunk: _Trail = {}
        self._branches: dict[int, _Trail] = {}  # by the block that the branch leaves out
        self.token_ids = token_ids
        self.dense: torch.Tensor | None = None
        self.calls: Sequence[BlockCall] = ()

    @property
    def is_prepared(self) -> bool:
        return bool(self._trunk)

    @property
    def state_bytes(self) -> int:
        """Bytes of all known states; a state that several trails share counts once."""
        trails = (self._trunk, *self._branches.values())
        known = {id(hidden): hidden.nbytes for trail in trails for hidden in trail.values()}
        return sum(known.values()) + (0 if self.dense is None else self.dense.nbytes)

    def prepare(self) -> None:
        """Embed the tokens, which needs the weights before the first block."""
        hidden, self.calls = block_calls(self._model, self.token_ids)
        self._trunk = {self._num_blocks: self._place.kept(hidden)}  # no block is kept yet

    def forget(self, *, keep_dense: bool = False) -> None:
        self.calls, self._keep = (), ()
        self._trunk, self._branches = {}, {}
        self.dense = self.dense if keep_dense else None

    def dense_walk(self) -> Walk:
        """The walk through all blocks, for a batch that was just prepared."""
        self.move_to(tuple(range(self._num_blocks)))
        return self.trunk()

    def move_to(self, keep: Blocks) -> None:
        """Drop the states that are not those of a model with exactly the blocks ``keep``.

        If blocks come back, which no search asks for, only the embedded tokens stay.
        """
        assert self.is_prepared, "call prepare() first"
        if not set(keep) <= set(self._keep):
            self._keep, self._branches = keep, {}
            self._trunk = {self._next(0, keep): self._trunk[min(self._trunk)]}
            return
        for block in sorted(set(self._keep) - set(keep)):
            branch = self._branches.pop(block, {})
            self._remove(block)
            self._trunk |= branch

    def has_branch(self, block: int) -> bool:
        """Whether ``branch`` needs no state of the trunk."""
        return block in self._branches

    def trunk(self, until: int | None = None) -> Walk:
        """The walk through the kept blocks up to the input of ``until``, or to the end."""
        end = self._num_blocks if until is None else until
        path = (*(block for block in self._keep if block < end), end)
        return Walk(self._trunk, path, path, self._place)

    def branch(self, block: int) -> Walk:
        """The walk without ``block``. The trunk must have reached it, unless ``has_branch``."""
        known = self._branches.get(block) or {self._next(block + 1, self._keep): self._trunk[block]}
        columns = self._columns(block)
        trail = self._branches[block] = _thinned(known, columns)
        path = (*(alive for alive in self._keep if alive != block), self._num_blocks)
        return Walk(trail, path, columns, self._place)

    def _remove(self, block: int) -> None:
        """Keep the states before ``block``. The last of them is the input of the next block now."""
        keep = tuple(alive for alive in self._keep if alive != block)
        now = self._next(block, keep)

        def still_valid(trail: _Trail) -> _Trail:
            return {now if at == block else at: trail[at] for at in trail if at <= block}

        self._trunk = still_valid(self._trunk)
        self._branches = {
            without: valid
            for without, trail in self._branches.items()
            if without < block and (valid := still_valid(trail))
        }
        self._keep = keep

    def _next(self, block: int, keep: Blocks) -> int:
        """The first kept block from ``block`` on, or the end of the model."""
        return next((alive for alive in keep if alive >= block), self._num_blocks)

    def _columns(self, block: int) -> Sequence[int]:
        """The blocks whose inputs the branch without ``block`` keeps: all later ones that fit."""
        later = [alive for alive in self._keep if alive > block]
        num_required = 2 * len(self._keep)  # the trunk, and one state per branch
        free = self._num_states - num_required
        num_possible = (len(self._keep) - 1) * (len(self._keep) - 2) // 2
        if free >= num_possible:
            return later
        share = max(0, free) * len(later) // max(1, num_possible)
        return later[:: len(later) // share] if share else ()


def _thinned(trail: _Trail, columns: Collection[int]) -> _Trail:
    """The furthest state and those of the columns."""
    furthest = max(trail)
    return {at: trail[at] for at in trail if at == furthest or at in columns}


class Routes:
    """The walks of one batch: the trunk, and a branch for each candidate."""

    def __init__(self, batch: Prefixes, keep: Blocks, candidates: Blocks) -> None:
        batch.move_to(keep)
        self.batch = batch
        self.ends: dict[int, Walk] = {}  # by the block that is left out
        self._keep = keep
        self._waiting: list[int] = []  # candidates that the trunk has not reached
        self._trunk: Walk | None = None
        for block in sorted(candidates):
            if block == NO_BLOCK:
                self.ends[block] = batch.trunk()
            elif batch.has_branch(block):
                self.ends[block] = batch.branch(block)
            else:
                self._waiting.append(block)
        self.branch_off()

    def walks(self) -> list[Walk]:
        return [*self.ends.values(), *([] if self._trunk is None else [self._trunk])]

    def branch_off(self) -> None:
        """Start the branches of the candidates that the trunk has reached."""
        while self._waiting:
            self._trunk = self._trunk or self.batch.trunk(until=self._waiting[0])
            if self._trunk.at is not None:
                return
            block, self._trunk = self._waiting.pop(0), None
            self.ends[block] = self.batch.branch(block)

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


def advance(walks: Sequence[Walk], call: BlockCall, batch_tokens: int) -> None:
    """Advance the walks by one block, several walks per call."""
    for group in grouped(walks, _num_tokens, batch_tokens):
        if len(group) == 1:
            group[0].advance(call(group[0].hidden))
            continue
        outputs = call(torch.cat([walk.hidden for walk in group]))
        parts = torch.split(outputs, [walk.hidden.shape[0] for walk in group])
        for walk, part in zip(group, parts, strict=True):
            walk.advance(part.clone())  # a view would keep all parts in memory


def _num_tokens(walk: Walk) -> int:
    return walk.hidden.shape[0] * walk.hidden.shape[1]
