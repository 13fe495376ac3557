"""The weights that a name is served from, and the memory that many names take."""

import gc
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.engine.engine import Engine
from app.engine.scheduling.sequence import Request, SamplingParams
from app.engine.variant import Variant
from app.models.catalog import Catalog, UnknownModel
from app.models.registry import ModelRegistry, ModelReplaced
from pruning.checkpoints.store import MANIFEST, CheckpointStore, Manifest
from pruning.models.blocks import view
from pruning.models.safetensors_headers import fingerprint
from pruning.models.store import LoadedModel, ModelStore, NotAModel, load
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import Metric, PruneSpec, Repair
from tests.support.api_fixtures import publish_pruned
from tests.support.tiny import generated
from tests.support.tiny_checkpoints import write_checkpoint
from tests.support.tiny_directory import spoil_weights, write_tiny_model

NUM_BLOCKS = 14
NUM_REMOVED = 10


def registry_of(data_dir: Path) -> ModelRegistry:
    models, checkpoints = ModelStore(data_dir / "models"), CheckpointStore(data_dir / "checkpoints")
    return ModelRegistry(Catalog(models, checkpoints), models, checkpoints, device="cpu")


def test_a_hybrid_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "models" / "hybrid", "lfm2")
    spoil_weights(tmp_path / "models" / "hybrid")
    with pytest.raises(
        NotAModel, match=r"lfm2 blocks have recurrent states .* vLLM may be able to serve the model"
    ):
        registry_of(tmp_path).get("hybrid")


def addresses(variant: Variant) -> dict[int, int]:
    """The bytes of all tensors of a variant, by address."""
    tensors = [*variant.model.parameters(), *variant.model.buffers()]
    return {tensor.data_ptr(): tensor.nbytes for tensor in tensors}


def live_bytes() -> int:
    """The bytes of all tensors of this process; a shared storage counts once."""
    gc.collect()
    # by type, as isinstance would ask every deprecated thing of every library
    tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    storages = [tensor.untyped_storage() for tensor in tensors if not tensor.is_meta]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def run(engine: Engine, variant: Variant) -> list[int]:
    engine.add(Request(variant.name, variant, (5, 6, 7), SamplingParams(max_new_tokens=4)))
    events = []
    while engine.has_work:
        events += engine.step()
    return [event.token_id for event in events if event.token_id is not None]


def test_ten_variants_take_no_more_memory_than_the_dense_model_alone(tmp_path: Path) -> None:
    """At most 1.05 times as much, after each has generated."""
    write_tiny_model(tmp_path / "models" / "tiny", num_blocks=NUM_BLOCKS)
    calibration = CalibrationSpec(Dataset.SELF, num_samples=1, seqlen=8)
    spec = PruneSpec(
        "tiny",
        NUM_REMOVED,
        metric=Metric.COSINE,
        calibration=calibration,
        repair=Repair.NONE,
        evaluate=False,
    )
    publish_pruned(tmp_path, spec=spec)
    registry, engine = registry_of(tmp_path), Engine()
    dense = registry.get("tiny").variant
    run(engine, dense)
    before, dense_bytes = live_bytes(), sum(addresses(dense).values())
    variants = [registry.get(f"tiny@-{k}").variant for k in range(1, NUM_REMOVED + 1)]
    answers = {tuple(run(engine, variant)) for variant in variants}
    assert len(answers) > 1
    together: dict[int, int] = {}
    for variant in (dense, *variants):
        together |= addresses(variant)
    assert len(set(variants)) == NUM_REMOVED
    assert sum(together.values()) <= 1.05 * dense_bytes
    assert live_bytes() - before <= 0.05 * dense_bytes
    assert list(registry.weight_bytes()) == ["tiny"]


@pytest.fixture
def manifest(tiny_models_dir: Path) -> Manifest:
    return publish_pruned(tiny_models_dir.parent, 2)


def replace(data_dir: Path, *, num_blocks: int = 6, seed: int = 1) -> None:
    """Replace the directory of tiny by another model."""
    shutil.rmtree(data_dir / "models" / "tiny")
    write_tiny_model(data_dir / "models" / "tiny", num_blocks=num_blocks, seed=seed)


def pruned_tokens(dense: LoadedModel, manifest: Manifest, num_removed: int = 2) -> list[int]:
    return generated(view(dense.model, manifest.keep_after(num_removed)), (5, 6, 7), 4)


def test_a_checkpoint_whose_name_has_no_at_sign_has_prefixes_too(
    tiny_models_dir: Path, manifest: Manifest
) -> None:
    """As ``sleb prune --out DATA/checkpoints/short`` writes it."""
    checkpoints = tiny_models_dir.parent / "checkpoints"
    (checkpoints / manifest.name).rename(checkpoints / "short")
    file = checkpoints / "short" / MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text()), "name": "short"}))
    registry = registry_of(tiny_models_dir.parent)
    assert registry.get("short").entry.num_removed == 2
    assert registry.get("short-1").variant.keep == manifest.keep_after(1)
    assert registry.get("short-1").variant is registry.get("tiny@-1").variant
    with pytest.raises(UnknownModel, match="removal order has 2"):
        registry.get("short-3")
    with pytest.raises(UnknownModel, match="no model named"):
        registry.get("none-1")


@pytest.mark.parametrize("num_blocks", [4, 6, 8, None], ids=["less", "same", "more", "none"])
def test_a_checkpoint_whose_parent_is_another_now_is_served_from_its_own_weights(
    tiny_models_dir: Path, manifest: Manifest, tiny_loaded: LoadedModel, num_blocks: int | None
) -> None:
    data_dir = tiny_models_dir.parent
    if num_blocks is None:
        shutil.rmtree(data_dir / "models" / "tiny")
    else:
        replace(data_dir, num_blocks=num_blocks)
    registry = registry_of(data_dir)
    served = registry.get(manifest.name)
    assert run(Engine(), served.variant) == pruned_tokens(tiny_loaded, manifest)
    assert registry.weight_bytes() == {manifest.name: 4 * manifest.num_parameters}
    with pytest.raises(UnknownModel, match="needs its dense model 'tiny'"):
        registry.get(f"{manifest.name}-1")
    with pytest.raises(UnknownModel):
        registry.get("tiny@-1")
    names = [entry.name for entry in registry.catalog.entries()]
    assert names == [*(["tiny"] if num_blocks else []), manifest.name]
    if num_blocks:
        assert registry.get("tiny").variant.keep == tuple(range(num_blocks))


def test_a_replaced_parent_is_told_once(
    tiny_models_dir: Path, manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    replace(tiny_models_dir.parent)
    registry = registry_of(tiny_models_dir.parent)
    for _ in range(3):
        registry.catalog.entries()
    [record] = [each for each in caplog.records if each.name == "app.models.dense"]
    assert manifest.name in record.getMessage()


def test_a_parent_that_was_written_anew_is_still_the_same(
    tiny_models_dir: Path, manifest: Manifest, tiny_loaded: LoadedModel
) -> None:
    registry = registry_of(tiny_models_dir.parent)
    assert registry.catalog.resolve(manifest.name).is_view
    tiny_loaded.model.save_pretrained(tiny_models_dir / "tiny")
    config = tiny_models_dir / "tiny" / "config.json"
    told = {**json.loads(config.read_text()), "transformers_version": "4.0.0"}
    config.write_text(json.dumps(told))
    assert registry.catalog.resolve(manifest.name).is_view
    config.write_text(json.dumps({**told, "rms_norm_eps": 0.5}))
    assert not registry.catalog.resolve(manifest.name).is_view


@pytest.mark.parametrize("num_blocks", [4, 6, 8])
def test_a_manifest_without_a_fingerprint_is_of_any_parent_of_that_depth(
    tiny_models_dir: Path, manifest: Manifest, num_blocks: int
) -> None:
    file = tiny_models_dir.parent / "checkpoints" / manifest.name / MANIFEST
    data = json.loads(file.read_text())
    assert data.pop("parent_fingerprint") == fingerprint(tiny_models_dir / "tiny")
    file.write_text(json.dumps(data))
    replace(tiny_models_dir.parent, num_blocks=num_blocks)
    catalog = registry_of(tiny_models_dir.parent).catalog
    assert catalog.resolve(manifest.name).is_view == (num_blocks == 6)
    assert (catalog.resolve("tiny").order is not None) == (num_blocks == 6)


def test_one_tensor_is_enough_to_be_another_model(tiny_models_dir: Path) -> None:
    before, file = fingerprint(tiny_models_dir / "tiny"), tiny_models_dir / "tiny"
    file /= "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        changed = {**tensors, name: tensor + 1}
        save_file(changed, file, metadata={"format": "pt"})
        assert fingerprint(tiny_models_dir / "tiny") != before, name
    save_file(tensors, file, metadata={"format": "pt"})
    assert fingerprint(tiny_models_dir / "tiny") == before


def test_weights_that_are_loaded_are_never_taken_for_those_that_replaced_them(
    tiny_models_dir: Path, manifest: Manifest
) -> None:
    data_dir = tiny_models_dir.parent
    registry = registry_of(data_dir)
    registry.get("tiny")
    replace(data_dir)
    second = publish_pruned(data_dir, 2, "prn-2")
    with pytest.raises(ModelReplaced, match="POST /models/tiny/unload"):
        registry.get(second.name)
    registry.get("tiny")
    registry.drop(registry.find("tiny"))
    expected = pruned_tokens(load(tiny_models_dir / "tiny"), second)
    assert run(Engine(), registry.get(second.name).variant) == expected
    assert registry.get(manifest.name).variant.keep == (0, 1, 2, 3)  # all of its own
