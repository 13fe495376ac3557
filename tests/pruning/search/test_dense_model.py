"""A repaired model in memory and on disk: the same files, weights and logits, for every family."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from pruning.models.architectures import ARCHITECTURES
from pruning.models.blocks import Own, view
from pruning.models.forward import Forward
from pruning.models.save_streamed import kept_weights
from pruning.models.store import load
from pruning.repair.folding import folded
from pruning.repair.record import Method
from pruning.repair.repair import Repaired, repair_depths
from pruning.search.dense_model import DenseModel, Resources, load_dense_model
from pruning.spec.prune import Resident
from tests.support.repairs import windows_of
from tests.support.tiny import VOCAB_SIZE
from tests.support.tiny_checkpoints import write_checkpoint

KEEP = (0, 2, 4, 5)


def windows(number: int) -> Mapping[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {"prose": torch.randint(3, VOCAB_SIZE, (number, 12), generator=generator)}


def repaired(dense: DenseModel) -> Mapping[Method, Repaired]:
    text = windows_of(windows(4), windows(2))
    [depth] = repair_depths(dense.visited(), [KEEP], text, batch_tokens=24)
    return depth.tried


def dense_models(path: Path) -> list[DenseModel]:
    resources = Resources("cpu", state_budget=1_000_000, batch_tokens=24)
    return [load_dense_model(path, resident, resources) for resident in Resident]


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def hidden(forward: Forward, token_ids: torch.Tensor) -> torch.Tensor:
    [found] = [states.clone() for _, states in forward.hidden([token_ids])]
    return found


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_a_repaired_model_is_the_same_in_memory_and_on_disk(family: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "dense", family)
    model = load(tmp_path / "dense").model
    in_memory, on_disk = dense_models(tmp_path / "dense")
    tried = repaired(in_memory)
    assert tried.keys() == {Method.NONE, Method.RIDGE}
    for method, found in tried.items():
        own: Own = folded(in_memory.model, KEEP, found, in_memory.read)
        expected = view(model, KEEP, own)
        saved = tmp_path / method
        expected.save_pretrained(saved / "expected")
        token_ids = windows(3)["prose"]
        states = hidden(in_memory.forward(KEEP, own=own), token_ids)
        for dense in (in_memory, on_disk):
            its_own = folded(dense.model, KEEP, found, dense.read)
            dense.save(KEEP, saved / str(type(dense)), own=its_own)
            assert contents(saved / str(type(dense))) == contents(saved / "expected")
            weights = dict(kept_weights(dense, KEEP, its_own))
            assert weights.keys() == dict(expected.named_parameters()).keys()
            for name, values in expected.named_parameters():
                assert torch.equal(weights[name], values)
            found_states = hidden(dense.forward(KEEP, own=its_own), token_ids)
            torch.testing.assert_close(found_states, states)
