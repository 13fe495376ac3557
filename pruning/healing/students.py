"""The models that one adapter heals: the deepest of a removal order alone, or every depth of it.

All depths of an order share the dense weights and the adapter. Each has what its repair changed.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from pruning.healing.activations import checkpoint_blocks
from pruning.healing.adapter import Adapter, adapted
from pruning.models.architectures import architecture
from pruning.models.blocks import Own, block_calls, block_list, finish, num_blocks, view
from pruning.removal import kept
from pruning.repair.folding import scales_of
from pruning.repair.plan import NUM_BEHIND
from pruning.repair.repair import Repaired
from pruning.sleb import Blocks
from pruning.spec.heal import Heal

_LEAF = ".base_layer"  # peft's name for a layer below its adapter
_NUM_IN_FRONT = 3  # adapted blocks in front of the first difference; benchmarks/results has others


@dataclass(frozen=True)
class Student:
    """A model that keeps these blocks of the dense one, and computes with the adapter."""

    keep: Blocks
    model: PreTrainedModel


@dataclass(frozen=True)
class Students:
    """Models with one adapter, the deepest last. Each keeps the blocks that the next one keeps.

    Blocks in front of ``adapted`` are those of the dense model, and all blocks in front of
    ``different`` compute the same in each.
    """

    adapter: Adapter
    each: tuple[Student, ...]
    adapted: int = 0
    different: int = 0

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
    """The model that keeps these blocks, with ``own`` tensors, and an adapter on all of them."""
    adapter = adapted(view(model, keep, own), heal)
    return Students(adapter, (Student(keep, adapter.model),))


def of_order(
    model: PreTrainedModel, order: Blocks, repairs: Mapping[int, Repaired], heal: Heal
) -> Students:
    """Every depth of a removal order, by the repairs of those that have one.

    The adapter is on the blocks around the cuts that are kept at some depth. On others it fits the
    kinds of text that it is trained on, and gives nothing back on other text (benchmarks/results).
    In front of the first difference it is on so few that, with the repairs, it changes no more than
    one copy of the blocks.
    """
    total, changed = num_blocks(model), _changed(model, order, repairs)
    different, end = changed.start, changed.stop
    least = end - 1 - total + _num_repaired(model, repairs)
    begin = max(0, min(different, max(different - _NUM_IN_FRONT, least)))
    blocks = [block for block in range(begin, end) if block != order[0]]
    adapter = adapted(view(model, range(total)), heal, blocks)
    keeps = [kept(total, order[:number]) for number in range(1, len(order) + 1)]
    students = [
        Student(keep, _repaired(adapter.model, keep, repairs.get(number)))
        for number, keep in enumerate(keeps, start=1)
    ]
    return Students(adapter, tuple(students), begin, different)


def _changed(model: PreTrainedModel, order: Blocks, repairs: Mapping[int, Repaired]) -> range:
    """From the first block that may differ between depths to the last that a repair would fit."""
    prefix = f"{architecture(model.config).blocks}."
    refitted = [
        int(name.removeprefix(prefix).partition(".")[0])
        for repaired in repairs.values()
        for name in repaired.tensors
    ]
    first = min([*(block - 1 for block in order), *refitted])
    last = max([*(block + NUM_BEHIND for block in order), *refitted])
    return range(max(0, first), min(num_blocks(model), last + 1))


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

    What they have in common runs once. That of the dense model has no gradient.
    """
    with torch.no_grad():
        front, calls = block_calls(dense, token_ids)
        for call in calls[: students.adapted]:
            front = call(front)
        whole = front
        for call in calls[students.adapted :]:
            whole = call(whole)
        whole = finish(dense, whole)

    def run(student: Student, hidden: torch.Tensor, behind: int, before: int) -> torch.Tensor:
        for index, block in zip(student.keep, block_list(student.model), strict=True):
            if behind <= index < before:
                hidden = calls[index].of(block)(hidden)
        return hidden

    shared = run(students.each[-1], front, students.adapted, students.different)
    hiddens = [run(student, shared, students.different, len(calls)) for student in chosen]
    return whole, [finish(dense, hidden) for hidden in hiddens]


def _repaired(
    adapter_model: PreTrainedModel, keep: Blocks, repaired: Repaired | None
) -> PreTrainedModel:
    """The view that keeps these blocks, with the adapter on top of what the repair changed."""
    if repaired is None:
        return view(adapter_model, keep)
    known = dict(adapter_model.named_parameters(remove_duplicate=False))
    own = {}
    for name, tensor in repaired.tensors.items():
        path, _, leaf = name.rpartition(".")
        below = f"{path}{_LEAF}.{leaf}"
        target = below if below in known else name
        own[target] = tensor.to(adapter_model.device, adapter_model.dtype)
    return view(adapter_model, keep, own, scales_of(keep, repaired))
