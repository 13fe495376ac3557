"""The file of a repair: what is read is what was written, and anything else is refused."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pruning.repair.folding import folded
from pruning.repair.plan import Cut
from pruning.repair.record import Method, repair_file
from pruning.repair.repair import Repaired
from pruning.repair.stored import RepairUnreadable, read_repair, write_repair
from tests.support.tiny import tiny_model

NAME = "model.layers.0.mlp.down_proj.weight"
KEEP = (0, 2, 5)
NONE = Repaired(Method.NONE, {})
SCALE = Repaired(Method.SCALE, {}, scales={Cut(0, 2): 1.0 / 3.0, Cut(2, 5): 1.25})
RIDGE = Repaired(Method.RIDGE, {}, {NAME: torch.randn(48, 32).T.to(torch.bfloat16)})
BOTH = Repaired(Method.RIDGE, {}, {NAME: torch.randn(32, 48)}, SCALE.scales)


@pytest.mark.parametrize("repaired", [NONE, SCALE, RIDGE, BOTH])
def test_what_is_read_is_what_was_written(repaired: Repaired, tmp_path: Path) -> None:
    write_repair(tmp_path, 3, repaired)
    found = read_repair(tmp_path, 3)
    assert (found.method, found.scales) == (repaired.method, repaired.scales)
    assert found.tensors.keys() == repaired.tensors.keys()
    for name, values in repaired.tensors.items():
        assert found.tensors[name].dtype == values.dtype
        assert torch.equal(found.tensors[name], values)
    model = tiny_model("llama")
    before, after = folded(model, KEEP, repaired), folded(model, KEEP, found)
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_tensors_are_only_those_of_the_kept_blocks_behind_a_cut() -> None:
    model = tiny_model("llama")
    names = {f"model.layers.{block}.{name}.weight" for block in (2, 5)
             for name in ("self_attn.o_proj", "mlp.down_proj")}  # fmt: skip
    own = folded(model, KEEP, BOTH)
    assert set(own) == {NAME, *names}
    assert len(own) == len(set(own))
    assert "model.layers.0.self_attn.o_proj.weight" not in own
    with pytest.raises(KeyError):
        own["model.layers.0.self_attn.o_proj.weight"]
    assert torch.equal(own[NAME], BOTH.tensors[NAME])
    name = "model.layers.5.mlp.down_proj.weight"
    torch.testing.assert_close(own[name], model.get_parameter(name) * 3.0 / 1.25)


def test_own_tensors_have_the_dtype_that_the_dense_model_is_loaded_in() -> None:
    half = copy.deepcopy(tiny_model("llama")).bfloat16()
    own = folded(half, KEEP, BOTH)
    assert {values.dtype for values in own.values()} == {torch.bfloat16}


@pytest.mark.parametrize("damage", ["missing", "cut", "foreign"])
def test_anything_else_is_refused(damage: str, tmp_path: Path) -> None:
    write_repair(tmp_path, 1, RIDGE)
    file = tmp_path / repair_file(1)
    if damage == "missing":
        shutil.rmtree(file.parent)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    else:
        save_file({NAME: torch.zeros(2)}, file, metadata={"format": "pt"})
    with pytest.raises(RepairUnreadable, match=r"depth-1.safetensors has no readable repair"):
        read_repair(tmp_path, 1)
