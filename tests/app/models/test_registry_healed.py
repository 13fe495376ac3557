"""Healed checkpoints: what their names mean, and what they share with the dense model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from app.api.formats.models import domain_views
from app.commands.models import print_models
from app.config import ServeSettings
from app.models.catalog import Catalog, UnknownModel
from app.models.registry import ModelRegistry
from pruning.checkpoints.store import CheckpointCorrupt, CheckpointStore
from pruning.models.store import ModelStore
from tests.support.healing import NAME, Healed
from tests.support.logits import logits_of

IDS = torch.arange(5, 17).unsqueeze(0)
HEALED = f"{NAME}+healed"


def registry_of(data_dir: Path) -> ModelRegistry:
    models, checkpoints = ModelStore(data_dir / "models"), CheckpointStore(data_dir / "checkpoints")
    return ModelRegistry(Catalog(models, checkpoints), models, checkpoints, device="cpu")


def test_it_is_served_on_the_dense_weights_with_its_changed_tensors(healed: Healed) -> None:
    registry = registry_of(healed.data_dir)
    names = ("tiny", NAME, HEALED)
    dense, repaired, variant = (registry.get(name).variant for name in names)
    plain = AutoModelForCausalLM.from_pretrained(healed.target)
    torch.testing.assert_close(logits_of(variant.model, IDS), logits_of(plain, IDS))
    assert healed.manifest.healing is not None
    assert variant.own_bytes == healed.manifest.healing.num_bytes
    assert repaired.own_bytes < variant.own_bytes
    shared = {parameter.data_ptr() for parameter in dense.model.parameters()}
    own = [each for each in variant.model.parameters() if each.data_ptr() not in shared]
    assert sum(each.nbytes for each in own) == variant.own_bytes


def test_names_of_a_healed_checkpoint(healed: Healed) -> None:
    catalog = registry_of(healed.data_dir).catalog
    entry = catalog.resolve(HEALED)
    assert (entry.base, entry.num_removed, entry.pinned_name) == ("tiny", 2, HEALED)
    assert entry.repair is not None
    assert entry.repair.is_healed
    assert entry.order is not None
    assert entry.order.job_id == "prn-1"
    assert entry.key != catalog.resolve(NAME).key != catalog.resolve(f"{NAME}+raw").key
    assert entry.perplexity == healed.manifest.quality.perplexities[-1]
    with pytest.raises(UnknownModel, match="only the deepest model of this checkpoint is healed"):
        catalog.resolve(f"{HEALED}-1")
    with pytest.raises(UnknownModel, match=r"remove \+int8"):
        catalog.resolve(f"{HEALED}+int8")
    assert [each.name for each in catalog.prefixes(entry.order)] == [HEALED]


def test_the_api_tells_the_perplexity_of_the_control_beside_its_own(healed: Healed) -> None:
    catalog = registry_of(healed.data_dir).catalog
    found = domain_views(catalog.resolve(HEALED))
    for view, domain in zip(found, healed.manifest.quality.domains, strict=True):
        assert domain.control is not None
        assert view.control_perplexity is not None
        assert view.control_perplexity == pytest.approx(domain.control.perplexity)
        assert view.control_ratio == pytest.approx(view.control_perplexity / view.dense_perplexity)
        assert view.control_ratio is not None
        assert view.control_ratio_low is not None
        assert view.control_ratio_high is not None
        assert view.control_ratio_low <= view.control_ratio <= view.control_ratio_high
    for other in (NAME, f"{NAME}+raw", "tiny"):
        assert {view.control_ratio for view in domain_views(catalog.resolve(other))} == {None}


def test_a_list_of_models_shows_the_control(
    healed: Healed, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ServeSettings(data_dir=healed.data_dir)
    print_models(settings, as_json=False)
    shown = capsys.readouterr().out
    assert shown.count(", control ") == len(healed.manifest.quality.domains)
    assert "control: the dense model after the same training" in shown
    print_models(settings, as_json=True)
    listed = {entry["id"]: entry["domains"] for entry in json.loads(capsys.readouterr().out)}
    for domain in listed[HEALED]:
        assert domain["control_ratio"]["value"] == pytest.approx(
            domain["control_perplexity"] / domain["dense_perplexity"]
        )
    assert {domain["control_ratio"] for domain in listed[NAME]} == {None}


def test_it_is_no_removal_order_of_its_own(healed: Healed) -> None:
    catalog = registry_of(healed.data_dir).catalog
    newest = catalog.resolve("tiny@-2")
    assert newest.order is not None
    assert newest.order.name == NAME
    assert [entry.name for entry in catalog.entries()].count(HEALED) == 1


def test_without_the_dense_model_its_own_weights_are_served(healed: Healed, tmp_path: Path) -> None:
    shutil.copytree(healed.data_dir, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "models" / "tiny")
    variant = registry_of(tmp_path / "data").get(HEALED).variant
    plain = AutoModelForCausalLM.from_pretrained(healed.target)
    assert torch.equal(logits_of(variant.model, IDS), logits_of(plain, IDS))


def test_damaged_weights_are_not_served(healed: Healed, tmp_path: Path) -> None:
    shutil.copytree(healed.data_dir, tmp_path / "data")
    file = tmp_path / "data" / "checkpoints" / HEALED / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointCorrupt, match="changed after it was published"):
        registry_of(tmp_path / "data").get(HEALED)
