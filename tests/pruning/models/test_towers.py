"""Of a model with a tower for images, the language tower is pruned and the rest stays as it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, PreTrainedModel

from app.engine.engine import Engine
from app.engine.variant import Variant, make_variant
from pruning.checkpoints.store import CheckpointStore, Manifest
from pruning.checkpoints.verify import CheckpointNotPortable, compare
from pruning.checkpoints.verify_expected import expectation
from pruning.data.calibration import calibrate
from pruning.models.architectures import ARCHITECTURES
from pruning.models.safetensors_headers import weight_sizes
from pruning.models.store import ModelStore, copy_companions, load
from pruning.models.streaming import StreamedModel
from pruning.models.towers import TOWERS
from pruning.pipeline import prune
from pruning.search.dense_model import DenseModel, Resources, load_dense_model
from pruning.search.scoring import PlainScorer
from pruning.sleb import sleb
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec, Repair, Resident
from tests.support.engine_requests import prompt, request, run
from tests.support.logits import logits_of, token_ids
from tests.support.quick import slow_but
from tests.support.recorder import Recorder
from tests.support.tiny import NUM_BLOCKS, VOCAB_SIZE, generated
from tests.support.towers import CONFIGS, write_tower

# They differ in their layouts; the others are slow tests.
every_tower = pytest.mark.parametrize("tower", slow_but(CONFIGS, "gemma3", "qwen3_vl"))
TEXT = CalibrationSpec(Dataset.SELF, num_samples=2, seqlen=12)
KEEP = (0, 2, 3, 5)


def pruned(folder: Path, tower: str, repair: Repair = Repair.NONE) -> tuple[Path, Manifest]:
    """The model in ``folder/models`` without two blocks."""
    write_tower(folder / "models" / tower, tower)
    store = CheckpointStore(folder / "checkpoints")
    manifest = prune(
        PruneSpec(tower, 2, calibration=TEXT, evaluate=False, repair=repair),
        name="pruned",
        target=store.path("pruned"),
        models=ModelStore(folder / "models"),
        observer=Recorder(),
    )
    return store.path("pruned"), manifest


def saved(folder: Path, tower: str, dtype: str = "auto") -> DenseModel:
    """The model in ``folder/dense``, written without two blocks into ``folder/saved``."""
    write_tower(folder / "dense", tower)
    dense = load_dense_model(folder / "dense", Resident.MODEL, Resources(), dtype=dtype)
    dense.save(KEEP, folder / "saved")
    return dense


def load_whole(path: Path) -> PreTrainedModel:
    loaded: Any = AutoModelForImageTextToText.from_pretrained(path, output_loading_info=True)
    model, report = loaded
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert isinstance(model, PreTrainedModel)
    return model


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return {
        name: values
        for file in path.glob("*.safetensors")
        for name, values in load_file(file).items()
    }


def serve(*variants: Variant) -> None:
    """All of them give what ``generate`` does with the first one."""
    asked = [request(prompt(9), each, max_new_tokens=8) for each in variants]
    outcome = run(Engine(), *asked)
    for each in asked:
        assert outcome.of(each) == generated(variants[0].model, each.prompt_ids, 8)


def number_of_block(name: str) -> int | None:
    """The block of the language tower that a stored tensor belongs to."""
    if any(word in name for word in ("vision", "visual")) or ".layers." not in name:
        return None
    return int(name.partition(".layers.")[2].partition(".")[0])


@every_tower
def test_a_pruned_tower_is_whole_to_transformers_and_a_language_model_here(
    tower: str, tmp_path: Path
) -> None:
    path, manifest = pruned(tmp_path, tower)
    source = tmp_path / "models" / tower
    dense, ids = load(source), token_ids()
    windows = calibrate(TEXT, dense.model, dense.tokenizer).token_ids
    plain = sleb(PlainScorer(dense.model, windows), NUM_BLOCKS, 2)
    assert manifest.removed_blocks == tuple(removal.block for removal in plain)
    torch.testing.assert_close(logits_of(load_whole(source), ids), logits_of(dense.model, ids))

    served = make_variant("tower@-2", "tower", dense.model, manifest.keep)
    torch.testing.assert_close(logits_of(load_whole(path), ids), logits_of(served.model, ids))
    own = make_variant("own", "own", load(path).model)
    if not ARCHITECTURES[dense.model.config.model_type].is_served:
        assert generated(own.model, prompt(9), 8) == generated(served.model, prompt(9), 8)
    else:
        serve(served, own)

    card = (path / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: image-text-to-text" in card
    assert f"The language tower of this {tower} alone has lost blocks" in card

    before, after = tensors(source), tensors(path)
    blocks = dict(enumerate(manifest.keep))
    for name, values in after.items():
        number = number_of_block(name)
        kept = name if number is None else name.replace(f".{number}.", f".{blocks[number]}.", 1)
        assert torch.equal(values, before[kept]), name
    elsewhere = {name for name in before if number_of_block(name) is None}
    assert elsewhere == {name for name in after if number_of_block(name) is None}


def test_settings_of_single_blocks_are_renumbered_in_either_form(tmp_path: Path) -> None:
    """The hub has the size of all global heads; transformers writes one for each block."""
    saved(tmp_path, "gemma4")
    path = tmp_path / "saved" / "config.json"
    numbered = json.loads(path.read_text())
    assert set(numbered["text_config"]["per_layer_config"]) == {"2", "3"}
    dense = json.loads((tmp_path / "dense" / "config.json").read_text())
    del dense["text_config"]["per_layer_config"]
    dense["text_config"]["global_head_dim"] = 16
    (tmp_path / "dense" / "config.json").write_text(json.dumps(dense))
    source = load_dense_model(tmp_path / "dense", Resident.MODEL, Resources())
    source.save(KEEP, tmp_path / "again")
    again, ids = load_whole(tmp_path / "again"), token_ids()
    assert torch.equal(logits_of(again, ids), logits_of(load_whole(tmp_path / "saved"), ids))


@pytest.mark.parametrize("tower", ["gemma3", "qwen3_vl"])
def test_the_config_changes_in_the_part_about_the_language_tower(
    tower: str, tmp_path: Path
) -> None:
    saved(tmp_path, tower)
    old, new = (
        json.loads((tmp_path / each / "config.json").read_text()) for each in ("dense", "saved")
    )
    old_text, text = old.pop("text_config"), new.pop("text_config")
    assert new == old
    assert text.pop("num_hidden_layers") == len(KEEP)
    assert old_text.pop("num_hidden_layers") == NUM_BLOCKS
    if "layer_types" in old_text:
        types = old_text.pop("layer_types")
        assert text.pop("layer_types") == [types[block] for block in KEEP]
    old_text.pop("_sliding_window_pattern", None)
    assert text == old_text


@pytest.mark.parametrize("resident", Resident)
def test_a_repaired_tower_is_published_with_its_repair(resident: Resident, tmp_path: Path) -> None:
    write_tower(tmp_path / "dense", "smolvlm")
    dense = load_dense_model(tmp_path / "dense", resident, Resources())
    name = "model.layers.2.mlp.down_proj.weight"
    [(_, old)] = dense.read([name])
    own = {name: old + 1}
    dense.save(KEEP, tmp_path / "saved", 30_000, own)
    copy_companions(tmp_path / "dense", tmp_path / "saved")
    compare(tmp_path / "saved", expectation(dense, KEEP, own=own))
    with pytest.raises(CheckpointNotPortable, match="1 weight not as expected"):
        compare(tmp_path / "saved", expectation(dense, KEEP))


def test_another_type_is_written_everywhere(tmp_path: Path) -> None:
    saved(tmp_path, "gemma3", "bfloat16")
    assert {values.dtype for values in tensors(tmp_path / "saved").values()} == {torch.bfloat16}
    assert load_whole(tmp_path / "saved").dtype == torch.bfloat16


def test_a_changed_tower_for_images_is_not_published(tmp_path: Path) -> None:
    write_tower(tmp_path / "dense", "llava")
    dense = load_dense_model(tmp_path / "dense", Resident.MODEL, Resources())
    whole = load_whole(tmp_path / "dense")
    with torch.no_grad():
        whole.get_parameter("model.multi_modal_projector.linear_1.bias").add_(1)
    whole.save_pretrained(tmp_path / "changed")
    copy_companions(tmp_path / "dense", tmp_path / "changed")
    with pytest.raises(CheckpointNotPortable, match="other towers"):
        compare(tmp_path / "changed", expectation(dense, tuple(range(NUM_BLOCKS))))


def test_images_pass_the_kept_blocks(tmp_path: Path) -> None:
    saved(tmp_path, "llava")
    whole, published = load_whole(tmp_path / "dense"), load_whole(tmp_path / "saved")
    blocks = whole.get_decoder().layers
    whole.get_decoder().layers = torch.nn.ModuleList(blocks[block] for block in KEEP)
    image = VOCAB_SIZE - 1
    whole.config.image_token_index = published.config.image_token_index = image
    asked: dict[str, Any] = {
        "input_ids": torch.tensor([[5, *[image] * 4, 7, 8]]),
        "pixel_values": torch.randn(1, 3, 28, 28),
        "use_cache": False,
    }
    with torch.inference_mode():
        expected, found = whole(**asked).logits, published(**asked).logits
        other = published(**{**asked, "pixel_values": -asked["pixel_values"]}).logits
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(other, expected)


def test_blocks_of_other_towers_are_not_counted_as_blocks(tmp_path: Path) -> None:
    write_tower(tmp_path / "gemma3", "gemma3")
    streamed = StreamedModel(tmp_path / "gemma3")
    of_blocks = [
        parameter.numel()
        for name, parameter in streamed.model.named_parameters()
        if name.startswith(ARCHITECTURES["gemma3_text"].blocks)
    ]
    assert weight_sizes(tmp_path / "gemma3").num_in_blocks == sum(of_blocks)


def test_every_type_of_the_table_is_tried() -> None:
    assert CONFIGS.keys() == TOWERS
