"""Checkpoints whose every depth is healed: names, shared blocks, memory, and what is exported."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from app.api.formats.models import repair_view
from app.commands.export import Export, run_export
from app.models.advice import advice_on
from app.models.catalog import Catalog, UnknownModel
from app.models.registry import ModelRegistry
from pruning.checkpoints.store import CheckpointCorrupt, CheckpointStore, repair_of
from pruning.config import WorkerSettings
from pruning.evaluation.limits import Limits
from pruning.healing.places import ADAPTER_FILE
from pruning.models.store import ModelStore
from tests.support.healing import NAME, Healed
from tests.support.logits import logits_of

IDS = torch.arange(5, 17).unsqueeze(0)
HEALED = f"{NAME}+healed"
DEPTHS = {1: f"{HEALED}-1", 2: HEALED}


def registry_of(data_dir: Path) -> ModelRegistry:
    models, checkpoints = ModelStore(data_dir / "models"), CheckpointStore(data_dir / "checkpoints")
    return ModelRegistry(Catalog(models, checkpoints), models, checkpoints, device="cpu")


def test_every_depth_has_names(elastic: Healed) -> None:
    catalog = registry_of(elastic.data_dir).catalog
    quality = elastic.manifest.quality
    for depth, name in DEPTHS.items():
        for alias in (name, f"{HEALED}-{depth}", f"tiny@-{depth}+healed"):
            entry = catalog.resolve(alias)
            assert (entry.base, entry.num_removed, entry.pinned_name) == ("tiny", depth, name)
            assert entry.perplexity == quality.perplexities[depth]
            assert entry.repair is not None
            assert entry.repair.is_healed
            assert entry.key == catalog.resolve(name).key
        others = [catalog.resolve(f"tiny@-{depth}{end}").key for end in ("", "+raw")]
        assert catalog.resolve(name).key not in others
        assert catalog.resolve(f"{HEALED}-{depth}+raw").key == others[1]
    with pytest.raises(UnknownModel, match="deepest model of this removal order has 2"):
        catalog.resolve(f"{HEALED}-3")
    with pytest.raises(UnknownModel, match=r"remove \+int8"):
        catalog.resolve(f"{HEALED}-1+int8")
    order = catalog.resolve(HEALED).order
    assert order is not None
    assert [each.name for each in catalog.prefixes(order)] == [f"{HEALED}-1", f"{HEALED}-2"]
    listed = [entry.name for entry in catalog.entries()]
    assert listed == [
        *("tiny", "tiny@-1", "tiny@-2", "tiny@-1+healed", "tiny@-2+healed", NAME, HEALED)
    ]


@pytest.mark.slow
def test_a_checkpoint_healed_at_its_full_depth_has_no_such_name(healed: Healed) -> None:
    with pytest.raises(UnknownModel):
        registry_of(healed.data_dir).catalog.resolve("tiny@-1+healed")


def test_all_depths_share_one_copy_of_the_blocks(elastic: Healed) -> None:
    registry = registry_of(elastic.data_dir)
    for name in DEPTHS.values():
        registry.get(name)
    dense = registry.get("tiny").variant.model
    found = {depth: registry.get(name).variant for depth, name in DEPTHS.items()}
    of_dense = {each.untyped_storage().data_ptr() for each in dense.parameters()}
    others = {
        each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
        for variant in found.values()
        for each in variant.model.parameters()
    }
    above = sum(num for place, num in others.items() if place not in of_dense)
    own = sum(variant.own_bytes for variant in found.values())
    healing = elastic.manifest.healing
    assert healing is not None
    assert above <= healing.num_bytes + own
    blocks = sum(each.nbytes for each in dense.model.layers.parameters())
    assert healing.num_bytes < blocks
    sizes = registry.weight_bytes()
    whole = sum(each.nbytes for each in dense.parameters())
    assert sum(sizes.values()) == whole + healing.num_bytes + own
    entries = {depth: registry.catalog.resolve(name) for depth, name in DEPTHS.items()}
    assert registry.bytes_of(entries[1]) == found[1].own_bytes
    assert registry.bytes_of(entries[2]) == healing.num_bytes + found[2].own_bytes
    for depth, entry in entries.items():
        view = repair_view(entry)
        assert view is not None
        assert (view.bytes, view.shared_bytes) == (found[depth].own_bytes, healing.num_bytes)
    registry.drop(registry.catalog.resolve("tiny"))
    assert sum(registry.weight_bytes().values()) == whole + healing.num_bytes + own, "still there"


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2])
def test_what_is_exported_is_what_is_served(depth: int, elastic: Healed, tmp_path: Path) -> None:
    variant = registry_of(elastic.data_dir).get(f"{HEALED}-{depth}").variant
    settings = WorkerSettings(data_dir=elastic.data_dir, device="cpu")
    for name in (f"{HEALED}-{depth}", f"tiny@-{depth}+healed"):
        out = tmp_path / name
        export = Export(name, out, None, "auto", 2**30, overwrite=False)
        run_export(export, settings, as_json=True)
        plain = AutoModelForCausalLM.from_pretrained(out)
        assert plain.config.num_hidden_layers == 6 - depth
        torch.testing.assert_close(logits_of(plain, IDS), logits_of(variant.model, IDS))
        card = (out / "README.md").read_text()
        assert f"Healed from {NAME}" in card
        assert "No training" not in card
    if depth == 2:
        published = AutoModelForCausalLM.from_pretrained(elastic.target)
        assert torch.equal(logits_of(published, IDS), logits_of(plain, IDS))


def test_depths_are_loaded_and_unloaded_alone_or_together(elastic: Healed) -> None:
    registry = registry_of(elastic.data_dir)
    entries = {depth: registry.catalog.resolve(name) for depth, name in DEPTHS.items()}
    registry.get(DEPTHS[1])
    assert registry.is_loaded(entries[1])
    assert not registry.is_loaded(entries[2])
    registry.get(DEPTHS[2])
    registry.drop(entries[1])
    assert [registry.is_loaded(entries[depth]) for depth in DEPTHS] == [False, True]
    assert len(registry.variants(entries[2])) == 1
    registry.drop(entries[2])
    assert not registry.is_loaded(entries[2])
    assert list(registry.weight_bytes()) == ["tiny"]


def test_digests_differ_by_depth_and_from_the_repaired_ones(elastic: Healed) -> None:
    registry = registry_of(elastic.data_dir)
    names = [*DEPTHS.values(), "tiny@-1", "tiny@-2", "tiny"]
    assert len({registry.get(name).digest for name in names}) == len(names)


def test_without_the_dense_model_the_deepest_is_served_as_published(
    elastic: Healed, tmp_path: Path
) -> None:
    shutil.copytree(elastic.data_dir, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "models" / "tiny")
    registry = registry_of(tmp_path / "data")
    plain = AutoModelForCausalLM.from_pretrained(elastic.target)
    assert torch.equal(logits_of(registry.get(HEALED).variant.model, IDS), logits_of(plain, IDS))
    with pytest.raises(UnknownModel, match="needs its dense model"):
        registry.get(DEPTHS[1])


def test_a_damaged_adapter_is_not_served(elastic: Healed, tmp_path: Path) -> None:
    shutil.copytree(elastic.data_dir, tmp_path / "data")
    file = tmp_path / "data" / "checkpoints" / HEALED / ADAPTER_FILE
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    registry = registry_of(tmp_path / "data")
    with pytest.raises(CheckpointCorrupt, match="changed after it was published"):
        registry.get(DEPTHS[1])
    assert registry.get("tiny@-1").entry.num_removed == 1


def test_the_advice_has_each_depth_once(elastic: Healed) -> None:
    catalog = registry_of(elastic.data_dir).catalog
    found = advice_on("tiny", catalog, Limits())
    names = sorted(one.point.name for one in found.candidates)
    healed = ["tiny@-1", "tiny@-1+healed", "tiny@-2", "tiny@-2+healed"]
    assert names == ["tiny", "tiny+int8", *healed]


def test_another_adapter_is_another_variant(elastic: Healed) -> None:
    entry = registry_of(elastic.data_dir).catalog.resolve(DEPTHS[1])
    assert entry.repair is not None
    assert entry.order is not None
    other = replace(entry.repair, sha256=f"other {entry.repair.sha256}")
    order = replace(entry.order, repairs={1: other})
    assert replace(entry, order=order).key != entry.key


def with_reach(elastic: Healed, data_dir: Path, adapted: object) -> ModelRegistry:
    """The same checkpoint, with other blocks in its record, or with none, as older ones."""
    shutil.copytree(elastic.data_dir, data_dir)
    file = data_dir / "checkpoints" / HEALED / "manifest.json"
    record = json.loads(file.read_text())
    del record["healing"]["adapted"]
    if adapted is not None:
        record["healing"]["adapted"] = adapted
    file.write_text(json.dumps(record))
    return registry_of(data_dir)


def test_a_depth_has_blocks_of_the_dense_model_where_it_is_not_healed(
    elastic: Healed, tmp_path: Path
) -> None:
    manifest = elastic.manifest
    first, second = (manifest.keep_after(depth) for depth in DEPTHS)
    registry = with_reach(elastic, tmp_path / "data", [first[:2], second])
    dense, variant = registry.get("tiny").variant.model, registry.get(DEPTHS[1]).variant
    of_dense = {each.data_ptr() for each in dense.parameters()}
    shared = [
        block
        for block, module in zip(first, variant.model.model.layers, strict=True)
        if module.mlp.down_proj.weight.data_ptr() in of_dense
    ]
    repaired = repair_of(elastic.source, 1)
    own = {int(name.split(".")[2]) for name in repaired.tensors} if repaired else set()
    assert shared == [block for block in first[2:] if block not in own]
    registry.drop(registry.catalog.resolve("tiny"))
    assert registry.get(DEPTHS[2]).variant.keep == second
    out = tmp_path / "out"
    settings = WorkerSettings(data_dir=tmp_path / "data", device="cpu")
    run_export(Export(DEPTHS[1], out, None, "auto", 2**30, overwrite=False), settings, as_json=True)
    plain = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits_of(plain, IDS), logits_of(variant.model, IDS))


def test_a_record_without_blocks_means_all(elastic: Healed, tmp_path: Path) -> None:
    registry = with_reach(elastic, tmp_path / "data", None)
    every = with_reach(
        elastic, tmp_path / "every", [elastic.manifest.keep_after(depth) for depth in DEPTHS]
    )
    for name in DEPTHS.values():
        found, expected = (each.get(name).variant.model for each in (registry, every))
        assert torch.equal(logits_of(found, IDS), logits_of(expected, IDS))


@pytest.mark.parametrize("adapted", [[[99], [0]], [[0]]])
def test_blocks_that_a_depth_does_not_have_are_refused(
    adapted: object, elastic: Healed, tmp_path: Path
) -> None:
    registry = with_reach(elastic, tmp_path / "data", adapted)
    name = DEPTHS[1 if adapted == [[99], [0]] else 2]
    with pytest.raises(CheckpointCorrupt, match="do not match the model"):
        registry.get(name)
