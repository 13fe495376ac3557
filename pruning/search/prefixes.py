"""Hidden states of a batch of windows that stay valid while blocks are removed one by one.

The removal of a block does not change the states before it. So the trunk (all kept blocks) runs
once, and every branch (the trunk without one block) starts from the trunk's state before that
block. After block r is removed, r's branch is the new trunk, and branches at earlier blocks resume
after r.
"""

from collections.abc import Collection, Sequence

import torch
from transformers import PreTrainedModel

from pruning.models.blocks import BlockCall, block_calls, num_blocks
from pruning.sleb import Blocks

# Hidden states by the block that they are the input of; ``num_blocks`` is the end of the model.
_Trail = dict[int, torch.Tensor]


class Walk:
    """A pass from the furthest known state along a path of blocks, to the input of the last one.

    The caller runs block ``at`` on ``hidden`` and passes the result to ``advance``, until ``at`` is
    None. States before the blocks ``columns`` are kept.
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
    """The known states of ``token_ids [batch, seqlen]`` for the currently kept blocks.

    At most ``num_states`` states ``[batch, seqlen, hidden_size]`` are kept: those of the trunk, one
    per branch, and, as far as there is room, more along the branches to resume from.
    """

    def __init__(self, model: PreTrainedModel, token_ids: torch.Tensor, num_states: int) -> None:
        self._model = model
        self._num_blocks = num_blocks(model)
        self._num_states = num_states
        self._first: torch.Tensor | None = None
        self._keep: Blocks = ()
        self._trunk: _Trail = {}
        self._branches: dict[int, _Trail] = {}  # by the block that the branch leaves out
        self.token_ids = token_ids
        self.calls: Sequence[BlockCall] = ()

    @property
    def is_prepared(self) -> bool:
        return self._first is not None

    @property
    def state_bytes(self) -> int:
        """Bytes of all known states; a state that several trails share counts once."""
        known = [self._first] if self._first is not None else []
        for trail in (self._trunk, *self._branches.values()):
            known += trail.values()
        return sum({id(hidden): hidden.nbytes for hidden in known}.values())

    def prepare(self) -> None:
        """Embed the tokens, which needs the weights before the first block."""
        self._first, self.calls = block_calls(self._model, self.token_ids)

    def forget(self) -> None:
        self._first, self.calls, self._keep = None, (), ()
        self._trunk, self._branches = {}, {}

    def move_to(self, keep: Blocks) -> None:
        """Keep the states that one more removal leaves valid; any other change drops all."""
        if keep == self._keep:
            return
        removed = set(self._keep) - set(keep)
        if len(removed) == 1 and set(keep) < set(self._keep):
            self._remove(removed.pop(), keep)
        else:
            assert self._first is not None, "call prepare() first"
            self._trunk = {keep[0] if keep else self._num_blocks: self._first}
            self._branches = {}
        self._keep = keep

    def has_branch(self, block: int) -> bool:
        """Whether ``branch`` needs no state of the trunk."""
        return block in self._branches

    def trunk(self, until: int | None = None) -> Walk:
        """The walk through the kept blocks up to the input of ``until``, or to the end."""
        end = self._num_blocks if until is None else until
        path = (*(block for block in self._keep if block < end), end)
        return Walk(self._trunk, path, path)

    def branch(self, block: int) -> Walk:
        """The walk without ``block``. The trunk must have reached it, unless ``has_branch``."""
        known = self._branches.get(block) or {self._after(block, self._keep): self._trunk[block]}
        without = tuple(alive for alive in self._keep if alive != block)
        columns = self._columns(block, without)
        start = max(known)
        trail = {at: known[at] for at in known if at == start or at in columns}
        self._branches[block] = trail
        return Walk(trail, (*without, self._num_blocks), columns)

    def _remove(self, removed: int, keep: Blocks) -> None:
        following = self._after(removed, keep)

        def carried(trail: _Trail) -> _Trail:
            """The input of the removed block is now the input of the next one."""
            return {
                following if block == removed else block: hidden
                for block, hidden in trail.items()
                if block <= removed
            }

        branch = self._branches.pop(removed, {})
        self._trunk = {**carried(self._trunk), **branch}
        self._branches = {
            block: still_valid
            for block, trail in self._branches.items()
            if block < removed and (still_valid := carried(trail))
        }

    def _after(self, block: int, keep: Blocks) -> int:
        return next((alive for alive in keep if alive > block), self._num_blocks)

    def _columns(self, block: int, without: Blocks) -> Sequence[int]:
        """The blocks whose inputs a branch keeps: all later ones, or as many as fit."""
        later = [alive for alive in without if alive > block]
        num_required = 2 * (len(without) + 1)  # the trunk, and one state per branch
        free = self._num_states - num_required
        num_possible = len(without) * (len(without) - 1) // 2
        if free >= num_possible:
            return later
        share = max(0, free) * len(later) // max(1, num_possible)
        return later[:: len(later) // share] if share else ()
