"""Hidden states of a batch of windows that stay true while blocks are removed one by one.

In front of a removed block nothing changes. So a trunk (all blocks that are kept) runs once, every
branch (the trunk without one block) leaves it in front of that block, and once block r has gone,
the trunk goes on from r's branch, and the branches in front of r resume behind r.
"""

from collections.abc import Collection, Sequence

import torch
from transformers import PreTrainedModel

from pruning.models.blocks import BlockCall, block_calls, num_blocks
from pruning.sleb import Blocks

# Hidden states by the block they stand in front of; ``num_blocks`` is behind the last.
_Trail = dict[int, torch.Tensor]


class Walk:
    """A pass from the furthest known state along a path of blocks, to in front of the last one.

    Whoever drives it runs block ``at`` on ``hidden`` and hands the result to ``advance``, until
    ``at`` is None.
    """

    def __init__(self, trail: _Trail, path: Sequence[int], columns: Collection[int]) -> None:
        start = max(at for at in trail if at <= path[-1])
        self.hidden = trail[start]
        self._trail = trail
        self._path = [at for at in path if at >= start]
        self._columns = columns

    @property
    def at(self) -> int | None:
        return self._path[0] if len(self._path) > 1 else None

    def advance(self, hidden: torch.Tensor) -> None:
        self.hidden = hidden
        del self._path[0]
        if self._path[0] in self._columns:
            self._trail[self._path[0]] = hidden


class Prefixes:
    """The states known for ``token_ids [batch, seqlen]`` and the blocks that are kept now.

    ``num_states`` bounds how many states ``[batch, seqlen, hidden_size]`` stay: a trunk, a state
    for every branch, and what is left goes to states along the branches, to resume from.
    """

    def __init__(self, model: PreTrainedModel, token_ids: torch.Tensor, num_states: int) -> None:
        self._model = model
        self._num_blocks = num_blocks(model)
        self._num_states = num_states
        self._first: torch.Tensor | None = None
        self._keep: Blocks = ()
        self._trunk: _Trail = {}
        self._branches: dict[int, _Trail] = {}  # by the block that the branch does without
        self.token_ids = token_ids
        self.calls: Sequence[BlockCall] = ()

    @property
    def is_prepared(self) -> bool:
        return self._first is not None

    @property
    def state_bytes(self) -> int:
        """Of all states known now; one that several trails share counts once."""
        known = [self._first] if self._first is not None else []
        for trail in (self._trunk, *self._branches.values()):
            known += trail.values()
        return sum({id(hidden): hidden.nbytes for hidden in known}.values())

    def prepare(self) -> None:
        """Embed the tokens: the one thing that needs weights from outside the blocks."""
        self._first, self.calls = block_calls(self._model, self.token_ids)

    def forget(self) -> None:
        self._first, self.calls, self._keep = None, (), ()
        self._trunk, self._branches = {}, {}

    def move_to(self, keep: Blocks) -> None:
        """Carry over what stays true when the kept blocks change by one removal; or start anew."""
        if keep == self._keep:
            return
        gone = set(self._keep) - set(keep)
        if len(gone) == 1 and set(keep) < set(self._keep):
            self._remove(gone.pop(), keep)
        else:
            assert self._first is not None, "prepare() comes first"
            self._trunk = {keep[0] if keep else self._num_blocks: self._first}
            self._branches = {}
        self._keep = keep

    def has_branch(self, block: int) -> bool:
        """Whether ``branch`` can do without the trunk."""
        return block in self._branches

    def trunk(self, until: int | None = None) -> Walk:
        """The walk through the kept blocks to in front of ``until``, or behind the last."""
        end = self._num_blocks if until is None else until
        path = (*(block for block in self._keep if block < end), end)
        return Walk(self._trunk, path, path)

    def branch(self, block: int) -> Walk:
        """The walk without ``block``; the trunk has been in front of it, or ``has_branch``."""
        known = self._branches.get(block) or {self._after(block, self._keep): self._trunk[block]}
        without = tuple(alive for alive in self._keep if alive != block)
        columns = self._columns(block, without)
        start = max(known)
        trail = {at: known[at] for at in known if at == start or at in columns}
        self._branches[block] = trail
        return Walk(trail, (*without, self._num_blocks), columns)

    def _remove(self, gone: int, keep: Blocks) -> None:
        behind = self._after(gone, keep)

        def carried(trail: _Trail) -> _Trail:
            """States in front of the gone block are now in front of the one behind it."""
            return {
                behind if block == gone else block: hidden
                for block, hidden in trail.items()
                if block <= gone
            }

        branch = self._branches.pop(gone, {})
        self._trunk = {**carried(self._trunk), **branch}
        self._branches = {
            block: trail_
            for block, trail in self._branches.items()
            if block < gone and (trail_ := carried(trail))
        }

    def _after(self, block: int, keep: Blocks) -> int:
        return next((alive for alive in keep if alive > block), self._num_blocks)

    def _columns(self, block: int, without: Blocks) -> Sequence[int]:
        """In front of which blocks to keep a branch's states: all, or as many as the budget has."""
        later = [alive for alive in without if alive > block]
        free = self._num_states - 2 * (len(without) + 1)  # the trunk, and where branches resume
        num_possible = len(without) * (len(without) - 1) // 2
        if free >= num_possible:
            return later
        share = max(0, free) * len(later) // max(1, num_possible)
        return later[:: len(later) // share] if share else ()
