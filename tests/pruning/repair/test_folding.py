"""For every family, a repaired view computes what the folded model does, and shares the rest."""

import copy

import pytest
import torch

from pruning.models.architectures import ARCHITECTURES
from pruning.models.blocks import view
from pruning.repair.folding import folded, repaired_view
from pruning.repair.record import Method
from tests.support.logits import logits_of, token_ids
from tests.support.repairs import methods_of, repaired_by
from tests.support.tiny import SWITCHED, tiny_config, tiny_model

KEEP = (0, 2, 5)
every_family = pytest.mark.parametrize("family", [*sorted(ARCHITECTURES), *SWITCHED])


@every_family
@pytest.mark.contract
def test_it_computes_what_the_folded_model_computes(family: str) -> None:
    model, ids = tiny_model(family), token_ids()
    raw = logits_of(view(model, KEEP), ids)
    for method in methods_of(model.config):
        repaired = repaired_by(method, model, KEEP)
        found = logits_of(repaired_view(model, KEEP, repaired), ids)
        expected = logits_of(view(model, KEEP, folded(model, KEEP, repaired)), ids)
        largest = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * largest)
        assert (expected - raw).abs().max() > 10 * (expected - found).abs().max()


def test_most_families_can_be_repaired() -> None:
    """Or the tests of every family would find nothing to compare."""
    without = [family for family in ARCHITECTURES if not methods_of(tiny_config(family))]
    assert len(without) < len(ARCHITECTURES) / 10, without


@every_family
def test_it_owns_what_was_refitted_and_no_more(family: str) -> None:
    for method in methods_of(tiny_config(family)):
        check_own(family, method)


def check_own(family: str, method: Method) -> None:
    model = tiny_model(family)
    repaired = repaired_by(method, model, KEEP)
    shared = {parameter.data_ptr() for parameter in model.parameters()}
    pruned = repaired_view(model, KEEP, repaired)
    own = [each for each in pruned.parameters() if each.data_ptr() not in shared]
    assert sum(each.nbytes for each in own) == sum(t.nbytes for t in repaired.tensors.values())
    if method is Method.RIDGE:  # in front of each cut, and behind the last
        assert list(repaired.penalties) == [0, 2, 5]
    assert len(own) == len(repaired.tensors)
    assert bool(own) == any(penalty is not None for penalty in repaired.penalties.values())


def test_it_has_the_dtype_of_the_model() -> None:
    model = tiny_model("llama")
    repaired = repaired_by(Method.RIDGE, model, KEEP)
    half = repaired_view(copy.deepcopy(model).bfloat16(), KEEP, repaired)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_the_last_blocks_may_be_missing() -> None:
    model, keep, ids = tiny_model("llama"), (0, 1, 3), token_ids()
    repaired = repaired_by(Method.SCALE, model, keep)
    found = logits_of(repaired_view(model, keep, repaired), ids)
    expected = logits_of(view(model, keep, folded(model, keep, repaired)), ids)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-2)
