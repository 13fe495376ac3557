"""Repaired variants: which weights a name means, what they share, and the memory that they take."""

import gc
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from app.engine.engine import Engine
from app.engine.scheduling.sequence import Request, SamplingParams
from app.engine.variant import Variant
from app.models.catalog import Catalog, UnknownModel
from app.models.registry import ModelRegistry
from app.models.weights import NoRoomForWeights
from pruning.checkpoints.store import (
    MANIFEST,
    CheckpointCorrupt,
    CheckpointStore,
    Manifest,
    read_manifest,
)
from pruning.models.blocks import view
from pruning.models.store import LoadedModel, ModelStore
from pruning.repair.folding import folded
from pruning.repair.record import Method, repair_file
from pruning.repair.repair import Repaired
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import Metric, PruneSpec, Repair
from tests.support.api_fixtures import publish_pruned
from tests.support.repairs import repair_checkpoint, repaired_by
from tests.support.tiny import generated
from tests.support.tiny_directory import write_tiny_model

METHODS = (Method.NONE, Method.SCALE, Method.RIDGE)


@pytest.fixture
def manifest(data_dir: Path, tiny_loaded: LoadedModel) -> Manifest:
    """Of a job that repaired all depths but the first, each in its own way."""
    publish_pruned(data_dir, len(METHODS))
    return repair_checkpoint(data_dir / "checkpoints" / "tiny@prn-1", tiny_loaded.model, METHODS)


@pytest.fixture
def registry(data_dir: Path, manifest: Manifest) -> ModelRegistry:
    assert manifest.name == "tiny@prn-1"
    return registry_of(data_dir)


def registry_of(data_dir: Path, max_weight_bytes: int | None = None) -> ModelRegistry:
    models, checkpoints = ModelStore(data_dir / "models"), CheckpointStore(data_dir / "checkpoints")
    catalog = Catalog(models, checkpoints)
    return ModelRegistry(
        catalog, models, checkpoints, device="cpu", max_weight_bytes=max_weight_bytes
    )


PROMPT = (5, 6, 7, 9, 11, 30)


def tokens_of(*variants: Variant) -> list[list[int]]:
    """What each generates, all in one engine at once."""
    engine, params = Engine(), SamplingParams(max_new_tokens=12, ignore_eos=True)
    for index, variant in enumerate(variants):
        engine.add(Request(str(index), variant, PROMPT, params))
    tokens: list[list[int]] = [[] for _ in variants]
    while engine.has_work:
        for event in engine.step():
            if event.token_id is not None:
                tokens[int(event.request_id)].append(event.token_id)
    return tokens


def expected(manifest: Manifest, dense: LoadedModel, num_removed: int, *, raw: bool) -> list[int]:
    """What ``generate`` gives for the checkpoint of this depth."""
    keep = manifest.keep_after(num_removed)
    method = Method.NONE if raw else METHODS[num_removed - 1]
    repaired = repaired_by(method, dense.model, keep)
    model = view(dense.model, keep, folded(dense.model, keep, repaired))
    model.generation_config.eos_token_id = None
    return generated(model, PROMPT, 12)


def test_names_mean_the_repaired_blocks_and_raw_the_others(
    registry: ModelRegistry, manifest: Manifest, tiny_loaded: LoadedModel
) -> None:
    """All in one engine at once: no name gets what belongs to another."""
    found = {
        (depth, raw): registry.get(f"tiny@-{depth}{'+raw' if raw else ''}").variant
        for depth in (1, 2, 3)
        for raw in (False, True)
    }
    assert found[1, True] is found[1, False]  # is better without repair
    assert found[2, True] is not found[2, False]
    for key, tokens in zip(found, tokens_of(*found.values()), strict=True):
        depth, raw = key
        assert tokens == expected(manifest, tiny_loaded, depth, raw=raw), key
    for suffix, key in (("", (3, False)), ("-3", (3, False)), ("-2", (2, False))):
        name = f"tiny@prn-1{suffix}"
        assert registry.get(name).variant is found[key]
        assert registry.get(f"{name}+raw").variant is found[key[0], True]
        assert registry.get(f"{name}+raw").entry.name == f"{name}+raw"


def test_a_checkpoint_whose_name_has_no_at_sign_has_raw_forms_too(
    registry: ModelRegistry, data_dir: Path
) -> None:
    checkpoints = data_dir / "checkpoints"
    file = (checkpoints / "tiny@prn-1").rename(checkpoints / "short") / MANIFEST
    file.write_text(file.read_text().replace('"tiny@prn-1"', '"short"'))
    for name in ("short", "short-2"):
        assert registry.get(name).entry.repair is not None
        raw = registry.get(f"{name}+raw")
        assert raw.entry.repair is None
        assert raw.variant is registry.get(f"tiny@-{raw.entry.num_removed}+raw").variant


@pytest.mark.parametrize("name", ["tiny+raw", "none+raw", "tiny@-4+raw", "tiny@-2+raw+raw"])
def test_a_name_without_a_raw_form_is_unknown(registry: ModelRegistry, name: str) -> None:
    with pytest.raises(UnknownModel, match="a dense model" if name == "tiny+raw" else None):
        registry.get(name)


@pytest.mark.parametrize("is_replaced", [False, True])
def test_without_its_parent_a_checkpoint_has_its_own_repaired_weights(
    registry: ModelRegistry,
    data_dir: Path,
    manifest: Manifest,
    tiny_loaded: LoadedModel,
    is_replaced: bool,
) -> None:
    shutil.rmtree(data_dir / "models" / "tiny")
    if is_replaced:
        write_tiny_model(data_dir / "models" / "tiny", seed=1)
    served = registry.get("tiny@prn-1")
    assert tokens_of(served.variant) == [expected(manifest, tiny_loaded, 3, raw=False)]
    assert served.variant.own_bytes == 0
    assert served.entry.repair is not None
    for name in ("tiny@prn-1+raw", "tiny@prn-1-2", "tiny@prn-1-2+raw"):
        with pytest.raises(UnknownModel, match="needs its dense model 'tiny'"):
            registry.get(name)


def test_an_unrepaired_checkpoint_without_its_parent_is_its_raw_form(
    data_dir: Path, tiny_loaded: LoadedModel
) -> None:
    manifest = publish_pruned(data_dir, 2)
    methods = [Method.RIDGE, Method.NONE]
    repair_checkpoint(data_dir / "checkpoints" / manifest.name, tiny_loaded.model, methods)
    shutil.rmtree(data_dir / "models" / "tiny")
    registry = registry_of(data_dir)
    assert registry.get("tiny@prn-1").variant is registry.get("tiny@prn-1+raw").variant


def test_a_repair_that_has_changed_is_not_served(registry: ModelRegistry, data_dir: Path) -> None:
    checkpoint = data_dir / "checkpoints" / "tiny@prn-1"
    file = checkpoint / repair_file(3)
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)
    with pytest.raises(CheckpointCorrupt, match=r"depth-3.safetensors changed after"):
        registry.get("tiny@-3")
    file.unlink()
    with pytest.raises(CheckpointCorrupt, match=r"depth-3.safetensors is missing"):
        registry.get("tiny@-3")
    assert registry.get("tiny@-2").entry.repair is not None
    assert registry.get("tiny@-3+raw").entry.repair is None


def test_changing_a_file_changes_no_loaded_repair(registry: ModelRegistry, data_dir: Path) -> None:
    variant = registry.get("tiny@-3").variant
    [before] = tokens_of(variant)
    file = data_dir / "checkpoints" / "tiny@prn-1" / repair_file(3)
    with file.open("r+b") as written:
        written.write(bytes(file.stat().st_size))
    assert tokens_of(variant) == [before]


def test_own_tensors_are_counted_and_freed(registry: ModelRegistry, manifest: Manifest) -> None:
    assert manifest.repair is not None
    num_bytes = manifest.repair[2].num_bytes
    assert num_bytes > 0
    registry.get("tiny")
    dense = registry.weight_bytes()
    entry = registry.get("tiny@-3").entry
    assert registry.bytes_of(entry) == num_bytes
    assert registry.weight_bytes()["tiny@-3"] == num_bytes
    assert registry.bytes_of(registry.get("tiny@-3+raw").entry) == 0
    assert registry.bytes_of(registry.get("tiny@-2").entry) == 0  # a scale is one number
    assert registry.weight_bytes().keys() == {*dense, "tiny@-3"}
    watched = weakref.ref(registry.get("tiny@-3").variant)
    registry.drop(registry.find("tiny@-3+raw"))
    assert registry.is_loaded(entry)
    registry.drop(entry)
    assert not registry.is_loaded(entry)
    assert registry.is_loaded(registry.find("tiny"))
    assert registry.weight_bytes().keys() == dense.keys()
    gc.collect()
    assert watched() is None


def test_a_repair_has_to_fit_beside_the_dense_weights(data_dir: Path, manifest: Manifest) -> None:
    assert manifest.repair is not None
    dense_bytes, own_bytes = 4 * manifest.dense_num_parameters, manifest.repair[2].num_bytes
    registry = registry_of(data_dir, dense_bytes + own_bytes - 1)
    for name in ("tiny", "tiny@-2", "tiny@-3+raw"):
        registry.get(name)
    with pytest.raises(
        NoRoomForWeights, match=f"repaired tensors of 'tiny@-3' need {own_bytes} bytes, but"
    ):
        registry.get("tiny@-3")
    registry = registry_of(data_dir, dense_bytes + own_bytes)
    registry.get("tiny@-3")
    registry.get("tiny@prn-1")  # the same variant


def test_a_repair_counts_when_another_model_is_to_be_loaded(
    data_dir: Path, manifest: Manifest
) -> None:
    assert manifest.repair is not None
    write_tiny_model(data_dir / "models" / "other")
    dense_bytes, own_bytes = 4 * manifest.dense_num_parameters, manifest.repair[2].num_bytes
    registry = registry_of(data_dir, 2 * dense_bytes)
    registry.get("tiny@-3")
    with pytest.raises(NoRoomForWeights, match=rf"tiny \({dense_bytes + own_bytes} bytes\)"):
        registry.get("other")
    registry.drop(registry.find("tiny@-3"))
    registry.get("other")


def test_many_who_want_one_repair_at_once_read_it_once(
    registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.get("tiny")
    reads: list[int] = []
    read = CheckpointStore.repair

    def noted(store: CheckpointStore, name: str, num_removed: int) -> Repaired | None:
        reads.append(num_removed)
        return read(store, name, num_removed)

    monkeypatch.setattr(CheckpointStore, "repair", noted)
    names = ["tiny@-3", "tiny@prn-1", "tiny@prn-1-3"] * 4
    with ThreadPoolExecutor(len(names)) as pool:
        found = {served.variant for served in pool.map(registry.get, names)}
    assert (len(found), reads) == (1, [3])


# the order of the demo model, of which a matrix of a block is the same share as of the tiny one
DEMO_ORDER = (17, 16, 18, 14, 13, 15, 12, 4, 5, 26)


@pytest.mark.slow
def test_ten_repaired_depths_take_at_most_0_4_of_the_dense_weights(data_dir: Path) -> None:
    shutil.rmtree(data_dir / "models" / "tiny")
    write_tiny_model(data_dir / "models" / "tiny", num_blocks=30)
    calibration = CalibrationSpec(Dataset.SELF, num_samples=1, seqlen=8)
    spec = PruneSpec(
        "tiny",
        10,
        metric=Metric.COSINE,
        calibration=calibration,
        repair=Repair.NONE,
        evaluate=False,
    )
    checkpoint = data_dir / "checkpoints" / publish_pruned(data_dir, spec=spec).name
    manifest = replace(read_manifest(checkpoint), removed_blocks=DEMO_ORDER)
    (checkpoint / MANIFEST).write_text(manifest.to_json())
    dense = ModelStore(data_dir / "models").load("tiny").model
    repair_checkpoint(checkpoint, dense, [Method.RIDGE] * 10)
    registry = registry_of(data_dir)
    names = ["tiny", *(f"tiny@-{depth}{raw}" for depth in range(1, 11) for raw in ("", "+raw"))]
    tensors = {
        parameter.data_ptr(): parameter.nbytes
        for name in names
        for parameter in registry.get(name).variant.model.parameters()
    }
    weight_bytes = registry.weight_bytes()
    assert sum(tensors.values()) == sum(weight_bytes.values()) <= 1.4 * weight_bytes["tiny"]
    own = [registry.get(f"tiny@-{depth}").variant.own_bytes for depth in range(1, 11)]
    block_bytes = own[0] // 2  # two matrices each of a block in front of a cut and of one behind it
    assert [num_bytes // block_bytes for num_bytes in own] == [2, 3, 2, 4, 4, 2, 3, 5, 4, 5]
