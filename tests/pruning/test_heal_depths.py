"""A healing of all depths: what is published, measured and resumed."""

import json
import shutil
from dataclasses import replace
from math import exp
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pruning.checkpoints.card_sections import points_of
from pruning.checkpoints.domain_panels import curves
from pruning.checkpoints.healed import healed_tensors
from pruning.checkpoints.store import Manifest, verify
from pruning.heal_checkpoint import healing_digest
from pruning.healing.places import ADAPTER_FILE
from pruning.models.blocks import view
from pruning.search.dense_model import Resources, load_dense_model
from pruning.spec.heal import Depths, Heal
from pruning.spec.prune import PruneSpec, Resident
from tests.support.healing import ELASTIC, HEAL, NAME, Healed, heal_tiny
from tests.support.logits import logits_of
from tests.support.recorder import Recorder, Stop

IDS = torch.arange(5, 17).unsqueeze(0)


@pytest.fixture
def data_dir(elastic: Healed, tmp_path: Path) -> Path:
    """The models and the pruned checkpoint, for other healings."""
    for part in ("models", f"checkpoints/{NAME}"):
        target = tmp_path / "data" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(elastic.data_dir / part)
    return tmp_path / "data"


def test_every_depth_is_measured_and_recorded(elastic: Healed) -> None:
    manifest = verify(elastic.target)
    assert manifest == elastic.manifest == Manifest.from_json(manifest.to_json())
    assert manifest.healing is not None
    assert manifest.healing.is_elastic
    assert manifest.repair == elastic.pruned.repair
    run = manifest.healing.run
    assert all(len(check.by_depth) == 2 for check in run.checks)
    assert run.best.loss < run.checks[0].loss
    assert run.best.loss == pytest.approx(sum(run.best.by_depth) / 2)
    for before, domain in zip(
        elastic.pruned.quality.domains, manifest.quality.domains, strict=True
    ):
        assert domain.digest == before.digest
        assert all(domain.healed)
        assert domain.control is not None
        assert [domain.served_after(depth) for depth in (1, 2)] == [*domain.healed]
        assert [domain.unhealed_after(depth) for depth in (1, 2)] == [
            before.served_after(depth) for depth in (1, 2)
        ]
    assert manifest.quality.perplexities[0] == elastic.pruned.quality.perplexities[0]
    assert manifest.quality.perplexities[1] != elastic.pruned.quality.perplexities[1]


def test_card_advice_and_plot_have_it_at_every_depth(elastic: Healed) -> None:
    card = (elastic.target / "README.md").read_text()
    assert "with one adapter for every depth" in card
    assert "healed: recovered" in card
    names = [point.name for point in points_of(elastic.manifest)]
    assert names == [f"{NAME}-1", NAME, f"{NAME}+healed-1", f"{NAME}+healed"]
    for domain in elastic.manifest.quality.domains:
        [healed] = [curve for curve in curves(domain) if curve.label == "healed"]
        assert (len(healed.points), healed.first) == (3, 0)


def test_the_adapter_is_for_the_dense_model(elastic: Healed) -> None:
    config = json.loads((elastic.target / "adapter" / "adapter_config.json").read_text())
    removed = elastic.manifest.removed_blocks
    assert config["base_model_name_or_path"] == "tiny"
    assert config["layers_pattern"] == "layers"
    assert elastic.manifest.healing is not None
    adapted = elastic.manifest.healing.adapted
    assert config["layers_to_transform"] == sorted({block for of in adapted for block in of})
    assert removed[0] not in config["layers_to_transform"]
    for depth, blocks in enumerate(adapted, start=1):
        assert set(blocks) <= set(elastic.manifest.keep_after(depth))


@pytest.mark.slow
@pytest.mark.parametrize("number", [13, pytest.param(21, marks=pytest.mark.slow)])
def test_a_healing_that_was_stopped_ends_with_the_same_adapter(
    number: int, elastic: Healed, data_dir: Path
) -> None:
    with pytest.raises(Stop):
        heal_tiny(data_dir, ELASTIC, "again", Recorder(stop_after_healing=number))
    rest = Recorder()
    heal_tiny(data_dir, ELASTIC, "again", rest)
    assert len(rest.healing_steps) < len(elastic.recorder.healing_steps)
    found, whole = (
        load_file(path / ADAPTER_FILE)
        for path in (data_dir / "checkpoints" / "again", elastic.target)
    )
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_state_of_other_blocks_is_begun_again(elastic: Healed, data_dir: Path) -> None:
    """As of an earlier release, whose states did not say on which blocks the adapter is."""
    with pytest.raises(Stop):
        heal_tiny(data_dir, ELASTIC, "older", Recorder(stop_after_healing=13))
    [file] = (data_dir / "searches" / "older").rglob("*.safetensors")
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    progress = json.loads(metadata["state"])
    progress["digest"] = healing_digest(ELASTIC, elastic.pruned)
    save_file(load_file(file), file, {"state": json.dumps(progress)})
    rest = Recorder()
    heal_tiny(data_dir, ELASTIC, "older", rest)
    assert len(rest.healing_steps) == len(elastic.recorder.healing_steps)


def test_a_gate_publishes_the_deepest_healed_model_that_keeps_its_limits(
    elastic: Healed, data_dir: Path
) -> None:
    """The dense model of the manifest is made better by a nat, as that of these tests is random."""
    path = data_dir / "checkpoints" / NAME
    path.unlink()
    shutil.copytree(elastic.source, path)
    data = json.loads((path / "manifest.json").read_text())
    for domain in data["quality"]["domains"]:
        domain["dense"]["loss"] -= 1
    of_code = next(each for each in elastic.manifest.quality.domains if each.domain == "code")
    first = of_code.ratio(of_code.served_after(1)).high
    assert first is not None
    limits = {"code": 1.01 * exp(1) * first}  # of the second, this is inside of the interval
    data["spec"]["gate"] = {"max_perplexity_ratio_of": limits, "action": "deepest"}
    (path / "manifest.json").write_text(json.dumps(data))

    manifest = heal_tiny(data_dir, replace(ELASTIC, control=False), "taken", Recorder())

    target = data_dir / "checkpoints" / "taken"
    assert verify(target) == manifest
    assert manifest.removed_blocks == elastic.pruned.removed_blocks[:1]
    assert manifest.num_parameters > elastic.pruned.num_parameters
    assert len(json.loads((target / "removal.json").read_text())) == 1
    assert manifest.quality.warnings[0].startswith("not deeper: without 2 blocks, perplexity on")
    assert manifest.healing is not None
    assert elastic.manifest.healing is not None
    assert manifest.healing.adapted == elastic.manifest.healing.adapted[:1] == ((0, 2, 3),)
    assert len(manifest.healing.changed) == 7 * 3
    assert {int(name.split(".")[4]) for name in load_file(target / ADAPTER_FILE)} == {0, 2, 3}
    config = json.loads((target / "adapter" / "adapter_config.json").read_text())
    assert config["layers_to_transform"] == [0, 2, 3]
    dense = load_dense_model(data_dir / "models" / "tiny", Resident.MODEL, Resources(device="cpu"))
    own = healed_tensors(elastic.target, 1, dense.model, dense.read)
    expected = logits_of(view(dense.model, manifest.keep, own), IDS)
    found = logits_of(AutoModelForCausalLM.from_pretrained(target), IDS)
    assert torch.equal(found, expected)


def test_older_settings_mean_the_deepest_alone(healed: Healed) -> None:
    older = {name: value for name, value in HEAL.to_dict().items() if name != "depths"}
    assert Heal().depths is Depths.ALL
    assert Heal.from_dict(json.loads(json.dumps(older))) == HEAL
    assert HEAL.digested() == older
    assert ELASTIC.digested() == ELASTIC.to_dict()
    record = json.loads(healed.manifest.to_json())
    del record["healing"]["settings"]["depths"]
    assert Manifest.from_json(json.dumps(record)) == healed.manifest


def test_a_spec_has_the_digest_that_it_had_before_there_were_depths() -> None:
    spec = PruneSpec("tiny", 2, heal=Heal(rank=4, patience=3, depths=Depths.DEEPEST))
    assert spec.digest().startswith("6fdadc6f3cb6d233")
    assert replace(spec, heal=Heal(rank=4)).digest() != spec.digest()
