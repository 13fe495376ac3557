"""Whole runs with a repair: what is published of it, when there is none, and how they resume."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from pruning.checkpoints.store import Manifest, repair_of, verify
from pruning.data.calibration import RepairWindows
from pruning.data.corpora import CalibrationError
from pruning.data.windows import Windows
from pruning.models.blocks import view
from pruning.models.memory import BATCH_TOKENS, StateBudgetTooSmall
from pruning.models.store import load
from pruning.repair.folding import folded
from pruning.repair.order import OrderRepair, repair_order, windows_for
from pruning.repair.record import DepthRepair, Method
from pruning.repair.states import SpillFailed
from pruning.repair.walk import LocalWalk
from pruning.spec import InvalidSpec
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec, Repair, Resident
from tests.support.logits import logits_of, token_ids
from tests.support.pruning_runs import prune_tiny
from tests.support.quick import slow_but
from tests.support.recorder import Recorder, Stop
from tests.support.tiny import every_family, tiny_model
from tests.support.tiny_checkpoints import write_checkpoint

NUM_REMOVE = 2
SELF = CalibrationSpec(Dataset.SELF, num_samples=2, seqlen=8)


@pytest.fixture
def spec(tmp_path: Path) -> PruneSpec:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{number} lazy dogs, {7 * number} foxes" for number in range(900)))
    calibration = CalibrationSpec(Dataset.FILE, num_samples=4, seqlen=8, path=str(text))
    return PruneSpec("tiny", NUM_REMOVE, calibration=calibration, evaluate=False)


def expected(dense: PreTrainedModel, manifest: Manifest, path: Path, depth: int) -> PreTrainedModel:
    keep, repaired = manifest.keep_after(depth), repair_of(path, depth)
    assert repaired is not None
    return view(dense, keep, folded(dense, keep, repaired))


def weights(path: Path) -> Mapping[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


@every_family
def test_what_plain_transformers_load_is_the_repaired_model(family: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "models" / family, family)
    dense = load(tmp_path / "models" / family).model
    spec = PruneSpec(family, NUM_REMOVE, calibration=SELF, evaluate=False, repair=Repair.NONE)
    raw, raw_path = prune_tiny(tmp_path / "models", spec, "raw")
    asked = replace(spec, repair=Repair.RIDGE)
    manifest, path = prune_tiny(tmp_path / "models", asked, "ridge")
    assert manifest.removed_blocks == raw.removed_blocks
    reloaded = AutoModelForCausalLM.from_pretrained(path)
    repaired = expected(dense, manifest, path, NUM_REMOVE)
    assert torch.equal(logits_of(reloaded, token_ids()), logits_of(repaired, token_ids()))
    found, unrepaired = weights(path), weights(raw_path)
    assert found.keys() == unrepaired.keys()
    assert any(not torch.equal(found[name], unrepaired[name]) for name in found)


def test_the_manifest_has_the_repair_of_every_depth(tiny_models_dir: Path, spec: PruneSpec) -> None:
    recorder = Recorder()
    manifest, path = prune_tiny(tiny_models_dir, spec, "tiny@prn-1", recorder)
    assert manifest.repair is not None
    assert recorder.repair_steps[-1][0] == recorder.repair_steps[-1][1] > 0
    assert [depth.num_removed for depth in manifest.repair] == [1, 2]
    assert verify(path).repair == manifest.repair
    for depth in manifest.repair:
        assert set(depth.gains) == {Method.RIDGE}
        assert all(of.keys() == {"text", "prose", "code"} for of in depth.gains.values())
        repaired = repair_of(path, depth.num_removed)
        assert repaired is not None
        assert repaired.method is depth.method
        assert sum(values.nbytes for values in repaired.tensors.values()) == depth.num_bytes
        worst = min(gain.mean for gain in depth.gains[Method.RIDGE].values())
        assert depth.method is (Method.RIDGE if worst > 0 else Method.NONE)
    text = json.loads((path / "repair.json").read_text())
    used = {window["digest"] for window in text["train"]["text"]["windows"]}
    assert len(used) == 128
    assert not used & {window["digest"] for window in text["selection"]["text"]["windows"]}


def test_a_job_of_an_earlier_release_is_not_repaired(
    tiny_models_dir: Path, spec: PruneSpec
) -> None:
    record = spec.to_dict()
    del record["repair"]
    recorder = Recorder()
    manifest, path = prune_tiny(tiny_models_dir, PruneSpec.from_dict(record), "old", recorder)
    assert manifest.repair is None
    assert repair_of(path, 1) is None
    assert "repair" not in recorder.phases
    assert not any("repair" in file.name for file in path.iterdir())
    dense = load(tiny_models_dir / "tiny").model
    raw = view(dense, manifest.keep)
    assert all(torch.equal(values, weights(path)[name]) for name, values in raw.named_parameters())


@pytest.mark.slow
def test_a_streamed_model_is_repaired_like_one_in_memory(
    tiny_models_dir: Path, spec: PruneSpec
) -> None:
    spec = replace(spec, repair=Repair.RIDGE, evaluate=True)
    (one, one_path), (other, other_path) = (
        prune_tiny(tiny_models_dir, replace(spec, resident=resident), resident.value)
        for resident in Resident
    )
    assert one.repair is not None
    assert one.files.keys() == other.files.keys()
    assert {"repair/depth-1.safetensors", "repair/depth-2.safetensors"} < one.files.keys()
    assert one.quality.perplexities == pytest.approx(other.quality.perplexities, rel=1e-4)
    for name, values in weights(one_path).items():
        torch.testing.assert_close(values, weights(other_path)[name], atol=1e-5, rtol=1e-5)


def test_a_family_without_a_sound_method_is_published_with_a_warning(
    tmp_path: Path, spec: PruneSpec
) -> None:
    write_checkpoint(tmp_path / "models" / "opt", "opt.do_layer_norm_before")
    spec, recorder = replace(spec, model="opt", calibration=SELF), Recorder()
    manifest, path = prune_tiny(tmp_path / "models", spec, "opt@x", recorder)
    reason = "it needs do_layer_norm_before=true, but the config has false"
    against = f"ridge is not supported for this opt: {reason}"
    assert recorder.warnings == [f"the model is not repaired: {against}"]
    assert manifest.repair_notes == tuple(recorder.warnings)
    assert (manifest.repair, recorder.repair_steps) == (None, [])
    assert not (path / "repair").exists()


def test_the_result_says_what_its_repair_leaves(tmp_path: Path, spec: PruneSpec) -> None:
    family = "mixtral"
    left = "ridge fits self_attn.o_proj of this mixtral, but not its experts"
    write_checkpoint(tmp_path / "models" / family, family)
    asked = replace(spec, model=family, num_remove=1)
    manifest, path = prune_tiny(tmp_path / "models", asked, f"{family}@x")
    [note] = manifest.repair_notes
    assert note.startswith(left)
    assert f"- {note}." in (path / "README.md").read_text()
    assert verify(path).repair_notes == (note,)
    unrepaired = replace(asked, repair=Repair.NONE)
    manifest, _ = prune_tiny(tmp_path / "models", unrepaired, f"{family}@none")
    assert manifest.repair_notes == ()


SHORTAGES: dict[str, Exception] = {
    "memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "main memory": MemoryError(),
    "budget": StateBudgetTooSmall("the state budget of 3 bytes"),
    "disk": SpillFailed("9 bytes of hidden states fit neither"),
}


def short(monkeypatch: pytest.MonkeyPatch, error: Exception, num_times: int) -> list[int]:
    """Memory runs out in each of so many walks; returns the batches that were tried."""
    run, tried = LocalWalk.run, list[int]()

    def fails(walk: LocalWalk, stream: int) -> None:
        if len(tried) <= num_times:
            raise error
        run(walk, stream)

    def repair(*args: Any, batch_tokens: int, **named: Any) -> OrderRepair:
        tried.append(batch_tokens)
        return repair_order(*args, batch_tokens=batch_tokens, **named)

    monkeypatch.setattr(LocalWalk, "run", fails)
    monkeypatch.setattr("pruning.pipeline.repair_order", repair)
    return tried


@pytest.mark.parametrize("kind", slow_but(SHORTAGES, "memory", "disk"))
def test_auto_warns_and_repairs_nothing_where_memory_does_not_suffice(
    tiny_models_dir: Path, spec: PruneSpec, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    tried, recorder = short(monkeypatch, SHORTAGES[kind], 2), Recorder()
    manifest, path = prune_tiny(tiny_models_dir, spec, "tiny@prn-1", recorder)
    assert tried == [BATCH_TOKENS, BATCH_TOKENS // 2]
    assert (manifest.repair, repair_of(path, 1)) == (None, None)
    [warning] = recorder.warnings
    assert warning.startswith("the model is not repaired: ")
    assert "memory" in warning or str(SHORTAGES[kind]) in warning


@pytest.mark.slow
def test_auto_repairs_with_half_the_batch_if_that_fits(
    tiny_models_dir: Path, spec: PruneSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = prune_tiny(tiny_models_dir, spec, "whole")
    tried, recorder = short(monkeypatch, MemoryError(), 1), Recorder()
    manifest, _ = prune_tiny(tiny_models_dir, spec, "tiny@prn-1", recorder)
    assert (len(tried), recorder.warnings) == (2, [])
    assert manifest.repair is not None
    assert whole.repair is not None
    assert [each.method for each in manifest.repair] == [each.method for each in whole.repair]


@pytest.mark.parametrize("error", [MemoryError(), SpillFailed("full"), RuntimeError("a defect")])
def test_a_repair_that_is_asked_for_is_no_matter_of_luck(
    tiny_models_dir: Path, spec: PruneSpec, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    short(monkeypatch, error, 9)
    is_defect = type(error) is RuntimeError
    asked = replace(spec, repair=Repair.AUTO if is_defect else Repair.RIDGE)
    with pytest.raises(type(error)):
        prune_tiny(tiny_models_dir, asked, "tiny@prn-1")


def test_a_method_that_is_not_sound_is_refused_before_weights_are_read(
    tmp_path: Path, spec: PruneSpec
) -> None:
    write_checkpoint(tmp_path / "models" / "opt", "opt.do_layer_norm_before")
    recorder = Recorder()
    for repair, instead in ((Repair.RIDGE, "auto or none"), (Repair.SCALE, "ridge or auto")):
        asked = replace(spec, model="opt", repair=repair)
        with pytest.raises(InvalidSpec, match=f": use {instead}") as refused:
            prune_tiny(tmp_path / "models", asked, "opt@x", recorder)
        assert refused.value.param == "repair"
    assert recorder.phases == []


def test_text_that_leaves_no_windows_of_its_own_to_choose_by(
    tiny_models_dir: Path, spec: PruneSpec, tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("one lazy dog, seven foxes and no more text than four windows need here")
    calibration = CalibrationSpec(Dataset.FILE, num_samples=4, seqlen=8, path=str(short))
    spec = replace(spec, calibration=calibration)
    recorder = Recorder()
    manifest, _ = prune_tiny(tiny_models_dir, spec, "tiny@auto", recorder)
    assert manifest.repair is not None
    assert recorder.warnings[0].startswith("the repair is chosen without short")
    for depth in manifest.repair:
        assert all(of.keys() == {"prose", "code"} for of in depth.gains.values())


def test_a_repair_without_any_text_to_choose_by() -> None:
    windows = RepairWindows({"text": Windows(torch.zeros((1, 8), dtype=torch.int64), "text")}, {})
    config, warnings = tiny_model("llama").config, list[str]()
    assert windows_for(Repair.AUTO, config, lambda: windows, warnings.append) is None
    assert "too short" in warnings[0]
    with pytest.raises(CalibrationError, match="repair=ridge: the calibration text is too short"):
        windows_for(Repair.RIDGE, config, lambda: windows, warnings.append)


@pytest.mark.slow
def test_a_run_that_is_stopped_in_the_repair_repeats_the_repair_alone(
    tiny_models_dir: Path, spec: PruneSpec
) -> None:
    whole, path = prune_tiny(tiny_models_dir, spec, "tiny@whole")
    stopped, resumed = Recorder(stop_after_repair=3), Recorder()
    with pytest.raises(Stop):
        prune_tiny(tiny_models_dir, spec, "tiny@cut", stopped)
    assert not (path.parent / "tiny@cut").exists()
    found, again = prune_tiny(tiny_models_dir, spec, "tiny@cut", resumed, stopped.state)
    assert (resumed.scored, resumed.removals) == ([], [])
    assert resumed.repair_steps[0][0] == 1
    assert found.repair == whole.repair
    assert all(torch.equal(weights(path)[name], weights(again)[name]) for name in weights(path))


def test_the_perplexities_are_those_of_the_repaired_model(
    tiny_models_dir: Path, spec: PruneSpec
) -> None:
    spec = replace(spec, evaluate=True)
    raw, _ = prune_tiny(tiny_models_dir, replace(spec, repair=Repair.NONE), "raw")
    ridge, _ = prune_tiny(tiny_models_dir, replace(spec, repair=Repair.RIDGE), "ridge")
    assert ridge.quality.losses == raw.quality.losses
    unrepaired = {each.digest: each for each in raw.quality.domains}
    same = [domain for domain in ridge.quality.domains if domain.digest in unrepaired]
    assert same, "packaged text that took no part in either"
    for domain in same:
        other = unrepaired[domain.digest]
        assert domain.dense.loss == pytest.approx(other.dense.loss)
        for depth in (1, 2):
            served = domain.served_after(depth)
            assert served.loss != pytest.approx(other.served_after(depth).loss)


def test_a_record_survives_json(tiny_models_dir: Path, spec: PruneSpec) -> None:
    manifest, _ = prune_tiny(tiny_models_dir, spec, "tiny@prn-1")
    again = Manifest.from_json(manifest.to_json())
    assert again == manifest
    assert again.repair is not None
    assert all(isinstance(depth, DepthRepair) for depth in again.repair)
    assert again.disk_bytes == again.weight_bytes + sum(d.num_bytes for d in again.repair)
    old = json.loads(manifest.to_json())
    del old["repair"]
    assert Manifest.from_json(json.dumps(old)) == replace(manifest, repair=None)


@pytest.mark.parametrize("save_dtype", slow_but(("auto", None), "auto"))
def test_weights_are_published_in_the_type_of_the_model(
    tiny_models_dir: Path, save_dtype: str | None
) -> None:
    """A run in another type computes with rounded weights, and publishes those of the files."""
    text = CalibrationSpec(Dataset.SELF, num_samples=4, seqlen=12)
    spec = PruneSpec("tiny", 2, calibration=text, dtype="bfloat16", repair=Repair.RIDGE)
    manifest, _ = prune_tiny(tiny_models_dir, replace(spec, save_dtype=save_dtype), "tiny@prn-1")
    path = tiny_models_dir.parent / "checkpoints" / "tiny@prn-1"
    expected = torch.float32 if save_dtype == "auto" else torch.bfloat16
    assert (manifest.dtype, manifest.parent_dtype) == (
        str(expected).removeprefix("torch."),
        "float32",
    )
    published = load(path).model
    assert published.dtype == expected
    card = (path / "README.md").read_text(encoding="utf-8")
    if save_dtype is None:
        assert "The weights are in bfloat16, where those of the parent are in float32." in card
        return
    assert "Computed in bfloat16, and published in the parent's float32." in card
    dense = load(tiny_models_dir / "tiny").model
    name = "model.embed_tokens.weight"
    assert torch.equal(published.get_parameter(name), dense.get_parameter(name))
