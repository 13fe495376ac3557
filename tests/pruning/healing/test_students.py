"""For every family: the depths of an order with one adapter, and the weights that come of it."""

from collections import Counter
from collections.abc import Mapping

import pytest
import torch
from transformers import PreTrainedModel

from pruning.healing.adapter import (
    Adapter,
    depth_tensors,
    on_blocks,
    own_repair,
    with_adapter,
)
from pruning.healing.students import Students, alone, last_hiddens, of_order
from pruning.models.architectures import ARCHITECTURES, architecture
from pruning.models.blocks import (
    NO_OWN,
    block_list,
    final_logits,
    num_blocks,
    view,
    with_blocks,
)
from pruning.models.loss import last_hidden
from pruning.removal import kept
from pruning.repair.folding import reader_of, repaired_view
from pruning.repair.record import Method
from pruning.repair.repair import Repaired
from pruning.spec.heal import Heal
from tests.support.logits import logits_of, token_ids
from tests.support.repairs import methods_of, repaired_by
from tests.support.tiny import random_model, tiny_config, tiny_model

ORDER = (1, 2, 4)
HEAL = Heal(rank=3, alpha=5.0)
FAMILIES = sorted(ARCHITECTURES)
NO_REPAIR = Repaired(Method.NONE, {})


def keep_after(number: int) -> tuple[int, ...]:
    return kept(6, ORDER[:number])


def repairs_of(family: str) -> Mapping[int, Repaired]:
    """Another method at each depth, as far as the family allows: none, a scale, least squares."""
    model = tiny_model(family)
    wanted = {2: Method.SCALE, 3: Method.RIDGE}
    allowed = methods_of(model.config)
    return {
        number: repaired_by(method, model, keep_after(number))
        for number, method in wanted.items()
        if method in allowed
    }


def students_of(family: str) -> Students:
    return of_order(tiny_model(family), ORDER, repairs_of(family), HEAL)


def trained(adapter: Adapter) -> Adapter:
    """The adapter with random values in place of those that a training would give it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return adapter


@torch.inference_mode()
def student_logits(model: PreTrainedModel, students: Students) -> list[torch.Tensor]:
    _, found = last_hiddens(model, students, students.each, token_ids())
    return [final_logits(model, hidden) for hidden in found]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_depth_is_served_and_written_as_it_was_trained(family: str) -> None:
    """A new adapter changes nothing. Served, depths share one copy of the blocks."""
    model, ids, repairs = tiny_model(family), token_ids(), repairs_of(family)
    dense = logits_of(model, ids)
    students = of_order(model, ORDER, repairs, HEAL)
    with torch.inference_mode():
        whole, _ = last_hiddens(model, students, (), ids)
        torch.testing.assert_close(whole, last_hidden(model, ids))
    before = student_logits(model, students)
    adapter = trained(students.adapter).values()
    after, read = student_logits(model, students), reader_of(model)
    healed = view(model, range(6), dict(with_adapter(model, HEAL, adapter, NO_OWN, read)))
    for number, student in enumerate(students.each, start=1):
        keep, repaired = keep_after(number), repairs.get(number)
        pruned = logits_of(repaired_view(model, keep, repaired or NO_REPAIR), ids)
        torch.testing.assert_close(before[number - 1], pruned, rtol=1e-4, atol=1e-4)
        part = on_blocks(model, adapter, student.adapted)
        own = own_repair(model, HEAL, part, repaired, read)
        assert set(own.tensors) == set(repaired.tensors if repaired else ())
        whole_own = depth_tensors(model, keep, HEAL, part, repaired, read)
        blocks = with_blocks(model, healed, student.adapted)
        served = logits_of(repaired_view(blocks, keep, own), ids)
        plain = logits_of(view(model, keep, whole_own), ids)
        expected = after[number - 1]
        size = float(expected.abs().max())
        for found in (served, plain):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3 * size)
        assert (expected - pruned).abs().max() > 10 * (expected - served).abs().max()
    assert torch.equal(logits_of(model, ids), dense)
    assert not any("lora" in name for name, _ in model.named_modules())


def test_the_adapter_is_on_all_blocks_that_stay_somewhere() -> None:
    students = students_of("llama")
    prefix = f"{architecture(tiny_model('llama').config).blocks}."
    blocks = Counter(int(name.removeprefix(prefix)[0]) for name in students.adapter.parameters)
    assert blocks == dict.fromkeys([0, 2, 3, 4, 5], 2 * 7)  # 1 is removed at every depth
    ends = [len(block_list(student.model)) for student in students.each]
    assert ends == [5, 4, 3]


def test_each_depth_has_it_on_the_blocks_around_its_own_cuts() -> None:
    """Three blocks in front of what a repair may change, and two behind the last cut, or more."""
    config = tiny_config("llama")
    config.num_hidden_layers = 12
    model = random_model(config)
    students = of_order(model, (8, 5, 6), {}, HEAL)
    assert students.num_shared == 1
    reaches = [(4, 5, 6, 7, 9, 10), (1, 2, 3, 4, 6, 7, 9, 10, 11), (1, 2, 3, 4, 7, 9, 10, 11)]
    assert [student.adapted for student in students.each] == reaches
    for student in students.each:
        each = zip(student.keep, block_list(student.model), strict=True)
        found = [block for block, module in each if "lora" in str(module)]
        assert tuple(found) == student.adapted
    blocks = {int(name.split(".")[2]) for name in students.adapter.parameters}
    assert blocks == set().union(*reaches)
    deepest = alone(model, students.each[-1].keep, NO_OWN, HEAL)
    assert deepest.each[0].adapted == reaches[-1]
    places = {int(name.split(".")[2]) for name in deepest.adapter.parameters}
    assert places == set(range(1, 9))
    dense = alone(model, tuple(range(12)), NO_OWN, HEAL)
    assert dense.each[0].adapted == tuple(range(12))


def test_repairs_and_what_the_adapter_changes_take_no_more_than_one_copy_of_the_blocks() -> None:
    """Blocks without an adapter make room for the repairs. They run once, as in the dense model."""
    model, ids = tiny_model("llama"), token_ids()
    every = dict(model.named_parameters())
    changed = {
        name: 1.1 * every[name] for name in every if ".layers.3." in name and "norm" not in name
    }
    repairs = {depth: Repaired(Method.RIDGE, {}, changed) for depth in (1, 2)}
    students = of_order(model, (4, 5), repairs, HEAL)
    assert students.num_shared == 1
    shared = with_adapter(model, HEAL, trained(students.adapter).values(), NO_OWN, reader_of(model))
    taken = sum(every[name].numel() for name in (*shared, *changed, *changed))
    assert taken <= sum(each.numel() for each in block_list(model).parameters())
    with torch.inference_mode():
        _, hiddens = last_hiddens(model, students, students.each, ids)
        for hidden, student in zip(hiddens, students.each, strict=True):
            torch.testing.assert_close(hidden, last_hidden(student.model, ids))


def test_every_step_has_the_deepest_and_all_others_in_turn() -> None:
    students = students_of("llama")
    *others, deepest = students.each
    pairs = [students.of_step(step, seed=4) for step in range(40)]
    assert all(pair[1] is deepest for pair in pairs)
    for turn in range(0, 40, 2):
        drawn = [id(pair[0]) for pair in pairs[turn : turn + 2]]
        assert sorted(drawn) == sorted(map(id, others))
    firsts = [pair[0] is others[0] for pair in pairs]
    assert 0 < sum(firsts[::2]) < 20, "the order of a turn is drawn"
    again = [students.of_step(step, seed=4)[0] is others[0] for step in range(40)]
    other_seed = [students.of_step(step, seed=5)[0] is others[0] for step in range(40)]
    assert firsts == again != other_seed


def test_one_depth_is_trained_alone() -> None:
    model = tiny_model("llama")
    students = of_order(model, ORDER[:1], {}, HEAL)
    assert students.of_step(3, seed=0) == students.each
    assert num_blocks(students.each[0].model) == 5
