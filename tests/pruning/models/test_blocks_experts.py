"""Families with experts: their names on disk, and rows that do not affect each other."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from pruning.checkpoints.store import CheckpointStore, open_checkpoint
from pruning.models.blocks import view
from pruning.models.save_streamed import save_streamed
from pruning.models.store import ModelStore, NotAModel, load
from pruning.models.streaming import StreamedModel
from pruning.pipeline import prune
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec, Repair, Resident
from tests.support.logits import logits_of, streamed_logits, token_ids
from tests.support.quick import slow_but
from tests.support.recorder import Recorder
from tests.support.tiny import NUM_BLOCKS, VOCAB_SIZE, tiny_model
from tests.support.tiny_checkpoints import write_checkpoint
from tests.support.tiny_directory import tiny_tokenizer

KEEP = (0, 1, 3, 5)
# Names of a block's experts in checkpoints of the hub, which other servers expect.
OF_EXPERT = {
    "mixtral": "block_sparse_moe.experts.{}.w{}.weight",
    "olmoe": "mlp.experts.{}.{}_proj.weight",
    "qwen2_moe": "mlp.experts.{}.{}_proj.weight",
    "qwen3_moe": "mlp.experts.{}.{}_proj.weight",
}


FAMILIES = sorted(OF_EXPERT)
every_family = pytest.mark.parametrize("family", slow_but(FAMILIES, "mixtral", "qwen2_moe"))


def expected_names(family: str, num_blocks: int) -> set[str]:
    parts = (1, 2, 3) if family == "mixtral" else ("gate", "up", "down")
    config = tiny_model(family).config
    num_experts = config.num_local_experts if family == "mixtral" else config.num_experts
    return {
        f"model.layers.{block}.{OF_EXPERT[family].format(expert, part)}"
        for block in range(num_blocks)
        for expert in range(num_experts)
        for part in parts
    }


def stored(directory: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in directory.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def write_fused(path: Path, family: str) -> None:
    """The experts of a block in one tensor, as in memory."""
    write_checkpoint(path, family)
    weights = {name: weight.clone() for name, weight in tiny_model(family).state_dict().items()}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def write_model(path: Path, family: str) -> None:
    """With a vocabulary that contains every token of the tokenizer."""
    tokenizer = tiny_tokenizer()
    config = copy.deepcopy(tiny_model(family).config)
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)


@pytest.mark.parametrize("resident", Resident)
@every_family
def test_what_is_published_has_the_names_of_the_hub_and_loads_as_what_was_measured(
    family: str, resident: Resident, tmp_path: Path
) -> None:
    """Names as other programs read them; ``prune`` itself compares the values."""
    write_model(tmp_path / "models" / "tiny", family)
    (tmp_path / "text.txt").write_text("the lazy fox sleeps on and on, over the dog; " * 40)
    text = CalibrationSpec(Dataset.FILE, num_samples=3, seqlen=12, path=str(tmp_path / "text.txt"))
    target = CheckpointStore(tmp_path / "checkpoints").path("tiny@prn-1")
    manifest = prune(
        PruneSpec(
            "tiny", 2, calibration=text, resident=resident, evaluate=False, repair=Repair.NONE
        ),
        name="tiny@prn-1",
        target=target,
        models=ModelStore(tmp_path / "models"),
        observer=Recorder(),
    )
    names = set(stored(target))
    assert {name for name in names if "experts." in name} == expected_names(family, NUM_BLOCKS - 2)
    expected = view(load(tmp_path / "models" / "tiny").model, manifest.keep)
    found = open_checkpoint(target).model
    assert found.config.num_hidden_layers == NUM_BLOCKS - 2
    torch.testing.assert_close(logits_of(found, token_ids()), logits_of(expected, token_ids()))


@pytest.mark.parametrize("layout", ["whole", "shards", "fused"])
@every_family
def test_experts_are_streamed_from_any_layout_and_exported_in_shards(
    family: str, layout: str, tmp_path: Path
) -> None:
    if layout == "fused":
        write_fused(tmp_path / "dense", family)
    else:
        write_checkpoint(tmp_path / "dense", family, layout=layout)
    whole, streamed = load(tmp_path / "dense").model, StreamedModel(tmp_path / "dense")
    # Weights have another alignment in memory, with which some products round differently.
    torch.testing.assert_close(streamed_logits(streamed), logits_of(whole, token_ids()))
    save_streamed(streamed, KEEP, tmp_path / "exported", shard_bytes=20_000)
    view(whole, KEEP).save_pretrained(tmp_path / "saved", max_shard_size=20_000)
    found, expected = stored(tmp_path / "exported"), stored(tmp_path / "saved")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    index = json.loads((tmp_path / "exported" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == found.keys()
    tiny_tokenizer().save_pretrained(tmp_path / "exported")
    loaded = load(tmp_path / "exported").model
    torch.testing.assert_close(
        logits_of(loaded, token_ids()), logits_of(view(whole, KEEP), token_ids())
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_is_routed_as_if_it_were_alone(family: str) -> None:
    """With any other rows in the batch, and any amount of padding."""
    model: PreTrainedModel = tiny_model(family)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(3, VOCAB_SIZE, (5, 11), generator=generator)
    padded = torch.cat([rows, torch.zeros(5, 6, dtype=torch.long)], dim=1)
    with torch.inference_mode():
        together = model(padded, use_cache=False).logits[:, : rows.shape[1]]
        for row, found in zip(rows, together, strict=True):
            alone = model(row.unsqueeze(0), use_cache=False).logits[0]
            torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tensor_of_one_expert_that_is_missing_is_enough_to_refuse(
    family: str, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path, family)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    lost = next(name for name in sorted(weights) if "experts.2." in name)
    del weights[lost]
    save_file(weights, file, metadata={"format": "pt"})
    for look in (load, StreamedModel):
        with pytest.raises(NotAModel):
            look(tmp_path)
