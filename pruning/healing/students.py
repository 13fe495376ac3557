"""The models that one adapter heals: the deepest of a removal order alone, or every depth of it.

All depths of an order share the dense weights and the adapter. Each has what its repair changed.
"""

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from pruning.healing.activations import checkpoint_blocks
from pruning.healing.adapter import Adapter, adapted
from pruning.models.architectures import architecture
from pruning.models.blocks import (
    Own,
    block_calls,
    block_list,
    finish,
    num_blocks,
    view,
    with_blocks,
)
from pruning.removal import kept
from pruning.repair.folding import scales_of
from pruning.repair.plan import NUM_BEHIND
from pruning.repair.repair import Repaired
from pruning.sleb import Blocks
from pruning.spec.heal import Heal

_LEAF = ".base_layer"  # peft's name for a layer below its adapter
_NUM_IN_FRONT = 3  # adapted blocks in front of what a repair may change, at least


@dataclass(frozen=True)
class Student:
    """A model that keeps these blocks of the dense one, and computes with the adapter.

    The adapter is on the blocks ``adapted``. The others are those of the dense model.
    """

    keep: Blocks
    adapted: Blocks
    model: PreTrainedModel


@dataclass(frozen=True)
class Students:
    """Models with one adapter, the deepest last. Each keeps the blocks that the next one keeps.

    The first ``num_shared`` blocks are those of the dense model in each.
    """

    adapter: Adapter
    each: tuple[Student, ...]
    num_shared: int = 0

    def digest(self, words: str) -> str:
        """Hex sha256 of what is trained besides ``words``: the blocks of each with an adapter."""
        blocks = [[student.keep, student.adapted] for student in self.each]
        return hashlib.sha256(f"{words} {blocks}".encode()).hexdigest()

    def up_to(self, num_depths: int) -> "Students":
        """The first of them, with the adapter on the blocks that these need."""
        each = self.each[:num_depths]
        blocks = sorted(set().union(*(student.adapted for student in each)))
        settings = {**self.adapter.settings, "layers_to_transform": blocks}
        return replace(self, each=each, adapter=replace(self.adapter, settings=settings))

    def of_step(self, step: int, seed: int) -> tuple[Student, ...]:
        """Those that a step trains: the deepest, and another one.

        The others take turns in an order that is drawn anew for each turn, so it depends on the
        seed and the number of the step alone.
        """
        *others, deepest = self.each
        if not others:
            return (deepest,)
        turn, place = divmod(step, len(others))
        rng = random.Random(f"{seed} depths {turn}")  # noqa: S311 - not a secret
        return others[rng.sample(range(len(others)), len(others))[place]], deepest

    def checkpoint_activations(self) -> None:
        """Compute activations again in the backward pass: less memory, more time."""
        for student in self.each:
            checkpoint_blocks(student.model)


def alone(model: PreTrainedModel, keep: Blocks, own: Own, heal: Heal) -> Students:
    """The model that keeps these blocks, with ``own`` tensors, and an adapter around its cuts.

    Of a model without cuts, it is on all blocks.
    """
    total = num_blocks(model)
    removed = tuple(block for block in range(total) if block not in keep)
    near = _around(_changed(model, removed), len(removed), total) if removed else range(total)
    reach = tuple(block for block in keep if block in near)
    adapter = adapted(view(model, keep, own), heal, [keep.index(block) for block in reach])
    return Students(adapter, (Student(keep, reach, adapter.model),))


def of_order(
    model: PreTrainedModel, order: Blocks, repairs: Mapping[int, Repaired], heal: Heal
) -> Students:
    """Every depth of a removal order, by the repairs of those that have one.

    At each depth the adapter is on the blocks around its own cuts. On others it fits the kinds of
    text that it is trained on, and gives nothing back on other text (benchmarks/results). In front
    of the first difference it is on so few that, with the repairs, it changes no more than one copy
    of the blocks.
    """
    total, depths = num_blocks(model), range(1, len(order) + 1)
    changed = [_changed(model, order[:depth], repairs.get(depth)) for depth in depths]
    nears = [_around(each, depth, total) for depth, each in zip(depths, changed, strict=True)]
    different, first = (min(each.start for each in ranges) for ranges in (changed, nears))
    least = max(near.stop for near in nears) - 1 - total + _num_repaired(model, repairs)
    num_shared = min(different, max(first, least))
    keeps = [kept(total, order[:depth]) for depth in depths]
    reaches = [
        tuple(block for block in keep if block in near and block >= num_shared)
        for keep, near in zip(keeps, nears, strict=True)
    ]
    adapter = adapted(view(model, range(total)), heal, sorted(set().union(*reaches)))
    students = []
    for depth, keep, reach in zip(depths, keeps, reaches, strict=True):
        whole = with_blocks(model, adapter.model, reach)
        students.append(Student(keep, reach, _repaired(whole, keep, repairs.get(depth))))
    return Students(adapter, tuple(students), num_shared)


def _changed(model: PreTrainedModel, removed: Blocks, repaired: Repaired | None = None) -> range:
    """From the first block that a repair may change to the last that it would fit."""
    prefix = f"{architecture(model.config).blocks}."
    names = repaired.tensors if repaired else ()
    refitted = [int(name.removeprefix(prefix).partition(".")[0]) for name in names]
    first = min([*(block - 1 for block in removed), *refitted])
    last = max([*(block + NUM_BEHIND for block in removed), *refitted])
    return range(max(0, first), min(num_blocks(model), last + 1))


def _around(changed: range, num_removed: int, total: int) -> range:
    """The blocks that the adapter may be on. The more are missing, the more around them."""
    first = changed.start - max(_NUM_IN_FRONT, num_removed)
    return range(max(0, first), min(total, changed.stop + num_removed - 1))


def _num_repaired(model: PreTrainedModel, repairs: Mapping[int, Repaired]) -> int:
    """How many blocks have as many parameters as all repairs together, rounded up."""
    repaired = sum(
        tensor.numel() for repair in repairs.values() for tensor in repair.tensors.values()
    )
    return math.ceil(repaired / sum(each.numel() for each in block_list(model)[0].parameters()))


def last_hiddens(
    dense: PreTrainedModel, students: Students, chosen: Sequence[Student], token_ids: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The inputs of the head ``[batch, seqlen, width]``, of the dense model and of those chosen.

    What all have in common runs once. That of the dense model has no gradient.
    """
    with torch.no_grad():
        shared, calls = block_calls(dense, token_ids)
        for call in calls[: students.num_shared]:
            shared = call(shared)
        whole = shared
        for call in calls[students.num_shared :]:
            whole = call(whole)
        whole = finish(dense, whole)
    hiddens = []
    for student in chosen:
        hidden = shared
        for index, block in zip(student.keep, block_list(student.model), strict=True):
            if index >= students.num_shared:
                hidden = calls[index].of(block)(hidden)
        hiddens.append(finish(dense, hidden))
    return whole, hiddens


def _repaired(model: PreTrainedModel, keep: Blocks, repaired: Repaired | None) -> PreTrainedModel:
    """The view that keeps these blocks, with the adapter on top of what the repair changed."""
    if repaired is None:
        return view(model, keep)
    known = dict(model.named_parameters(remove_duplicate=False))
    own = {}
    for name, tensor in repaired.tensors.items():
        path, _, leaf = name.rpartition(".")
        below = f"{path}{_LEAF}.{leaf}"
        target = below if below in known else name
        own[target] = tensor.to(model.device, model.dtype)
    return view(model, keep, own, scales_of(keep, repaired))
