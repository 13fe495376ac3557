"""``sleb export`` writes the model that is served, or says why it does not."""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from app.cli.main import app as command_line
from app.commands.export import EXPORT_FILE, Export
from app.models.measured_speedups import Measurand, MeasuredSpeedup, MeasuredSpeedups
from pruning.checkpoints.domain_tables import with_interval
from pruning.checkpoints.gguf import FAMILIES
from pruning.checkpoints.llama_cpp import GgufUnsupported
from pruning.checkpoints.publish import CheckpointExists, DiskFull, place
from pruning.checkpoints.store import MANIFEST, Manifest, repair_of
from pruning.checkpoints.trajectory import short
from pruning.checkpoints.verify import TOLERANCES, CheckpointNotPortable
from pruning.models.blocks import num_blocks, view
from pruning.models.save_streamed import SHARD_BYTES
from pruning.models.store import COMPANION_FILES, LoadedModel, load
from pruning.repair.folding import folded
from pruning.repair.record import Method
from pruning.sleb import Blocks
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec, Repair
from tests.support.api_fixtures import publish_pruned
from tests.support.logits import logits_of, token_ids
from tests.support.pruning_runs import domain_of
from tests.support.quick import slow_but
from tests.support.repairs import repair_checkpoint
from tests.support.tiny_checkpoints import write_checkpoint

ROOT = Path(__file__).parents[3]
SPEC = PruneSpec(
    "tiny",
    2,
    calibration=CalibrationSpec(Dataset.SELF, num_samples=1, seqlen=8),
    evaluate=False,
    repair=Repair.NONE,
)


@pytest.fixture
def manifest(
    tiny_models_dir: Path, tiny_loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> Manifest:
    """The manifest of a repaired checkpoint in the data directory of the command."""
    monkeypatch.setenv("SLEB_DATA_DIR", str(tiny_models_dir.parent))
    monkeypatch.setenv("SLEB_DEVICE", "cpu")
    published = publish_pruned(tiny_models_dir.parent, spec=SPEC)
    checkpoint = tiny_models_dir.parent / "checkpoints" / published.name
    return repair_checkpoint(checkpoint, tiny_loaded.model, [Method.RIDGE] * 2)


def run(*words: str) -> Any:
    result = CliRunner().invoke(command_line, ["export", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_every_line_of_the_documentation_can_be_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Export] = []
    monkeypatch.setattr(
        "app.commands.export.run_export", lambda wanted, *_, **__: asked.append(wanted)
    )
    pages = (ROOT / "docs" / "guides" / "vllm.md", ROOT / "docs" / "portability.md")
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    lines = re.findall(r"^\.venv/bin/sleb export (.*)$", text, re.MULTILINE)
    for line in lines:
        assert run(*shlex.split(line, comments=True)).exit_code == 0
    assert len(asked) == len(lines) >= 5
    assert {wanted.dtype for wanted in asked} == {"auto", "float16"}
    assert {wanted.shard_bytes for wanted in asked} == {SHARD_BYTES, 2 * 10**9}
    assert any(wanted.gguf for wanted in asked)


def test_the_page_names_what_gguf_is_written_for_and_every_tolerance() -> None:
    page = (ROOT / "docs" / "portability.md").read_text(encoding="utf-8")
    listed = page.partition("GGUF is supported for ")[2].partition(", with")[0]
    assert re.findall(r"`(\w+)`", listed) == list(FAMILIES)
    for dtype, share in TOLERANCES.items():
        assert re.search(f"{share:.0e}".replace("e-0", "e-") + rf"\s+in\s+{dtype}", page)


def pruned_logits(models_dir: Path, keep: Blocks, dtype: str = "auto") -> torch.Tensor:
    """Of the model on dense weights of that dtype, with the repair of the checkpoint."""
    dense = load(models_dir / "tiny", dtype=dtype).model
    checkpoint = models_dir.parent / "checkpoints" / "tiny@prn-1"
    repaired = repair_of(checkpoint, num_blocks(dense) - len(keep))
    assert repaired is not None
    return logits_of(view(dense, keep, folded(dense, keep, repaired)), token_ids())


def test_the_card_of_an_export_has_the_quality_that_its_job_has_measured(
    manifest: Manifest, tiny_models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLEB_VERIFY", "off")
    prose = domain_of("prose", ((4.0, 4.5, 5.0), (4.0, 5.1, 6.0)), (None, (3.6, 4.6, 5.6)))
    quality = replace(manifest.quality, domains=(prose,))
    file = tiny_models_dir.parent / "checkpoints" / manifest.name / MANIFEST
    file.write_text(replace(manifest, quality=quality).to_json())
    cards = {}
    for name in ("tiny@-2", "tiny@-2+raw", manifest.name, "tiny"):
        said = json.loads(run(name, str(tmp_path / name), "--json").stdout)
        cards[name] = (tmp_path / name / "README.md").read_text(encoding="utf-8")
        assert [domain["domain"] for domain in said["domains"]] == ["prose"] * (name != "tiny")
        record = json.loads((tmp_path / name / EXPORT_FILE).read_text(encoding="utf-8"))
        assert record["domains"] == said["domains"]
        assert record["removed_blocks"] == said["removed_blocks"]
    found = prose.at_depth(2)
    assert found.repaired is not None
    for name in ("tiny@-2", manifest.name):
        assert f"|   repaired | {short(found.repaired.perplexity)} |" in cards[name]
        assert with_interval(found.repaired.ratio) in cards[name]
        assert "prose: some prose, 6 windows of 8 tokens (sha256" in cards[name]
    assert with_interval(found.raw.ratio) in cards["tiny@-2+raw"]
    assert "repaired |" not in cards["tiny@-2+raw"]
    assert "Quality" not in cards["tiny"]


def test_the_card_of_an_export_has_the_speed_that_is_known(
    manifest: Manifest, tiny_models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLEB_VERIFY", "off")
    measured = MeasuredSpeedup(1.25, 1.1, 1.4, "mixed", 1.8e9)
    MeasuredSpeedups(tiny_models_dir.parent).record("tiny", {Measurand(1): measured})
    cards = []
    for name in ("tiny@-1", "tiny@-2", "tiny"):
        run(name, str(tmp_path / name))
        cards.append((tmp_path / name / "README.md").read_text(encoding="utf-8"))
    record = json.loads((tmp_path / "tiny@-1" / EXPORT_FILE).read_text(encoding="utf-8"))
    speed = record["speedup"]["measured"]
    assert (speed["value"], speed["low"]) == (1.25, 1.1)
    assert speed["source"].startswith("sleb bench")
    predicted = [f"{manifest.predicted_speedup(depth):.2f}" for depth in (1, 2)]
    remaining = manifest.num_blocks
    assert f"| {remaining - 1} | {predicted[0]} | 1.25 (1.10 to 1.40) |" in cards[0]
    assert f"| {remaining - 2} | {predicted[1]} | not measured |" in cards[1]
    assert "predicted" not in cards[2]


@pytest.mark.parametrize("dtype", slow_but(("float32", "bfloat16", "float16"), "bfloat16"))
def test_a_prefix_becomes_a_plain_directory_in_that_dtype(
    manifest: Manifest, tiny_models_dir: Path, tmp_path: Path, dtype: str
) -> None:
    out = tmp_path / "out"
    ran = run("tiny@-1", str(out), "--merge-dtype", dtype)
    assert ran.stdout.endswith(f"Next: serve it: vllm serve {out}\n")
    model = AutoModelForCausalLM.from_pretrained(out)
    assert str(model.dtype) == f"torch.{dtype}"
    expected = pruned_logits(tiny_models_dir, manifest.keep_after(1), dtype)
    assert torch.equal(logits_of(model, token_ids()), expected)
    for name in COMPANION_FILES:
        parents = tiny_models_dir / "tiny" / name
        assert not parents.is_file() or (out / name).read_bytes() == parents.read_bytes()
    assert AutoTokenizer.from_pretrained(out)("a fox").input_ids
    card = (out / "README.md").read_text()
    assert (
        f"tiny without 1 of its 6 transformer blocks, repaired by least squares, in {dtype}" in card
    )
    assert f"in order of removal: {manifest.removed_blocks[0]}.\n" in card
    assert not (out / "manifest.json").exists()


@pytest.mark.parametrize("name", slow_but(("tiny@-1+raw", "tiny@prn-1-1+raw"), "tiny@-1+raw"))
def test_a_raw_name_means_the_blocks_without_their_repair(
    manifest: Manifest, tiny_models_dir: Path, tmp_path: Path, name: str
) -> None:
    out, file = tmp_path / "out", tmp_path / "gguf" / "tiny.gguf"
    said = json.loads(run(name, str(out), "--gguf", str(file), "--json").stdout)
    assert (said["name"], said["repair"], said["verified"]) == (name, "none", True)
    keep = manifest.keep_after(1)
    expected = logits_of(view(load(tiny_models_dir / "tiny").model, keep), token_ids())
    assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(out), token_ids()), expected)
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    assert torch.equal(logits_of(read, token_ids()), expected)
    assert not torch.equal(expected, pruned_logits(tiny_models_dir, keep))
    card = (out / "README.md").read_text()
    assert "tiny without 1 of its 6 transformer blocks, in float32" in card
    assert "all weights have the parent's values" in card


def test_a_checkpoint_is_split_into_shards_without_its_parent(
    manifest: Manifest, tiny_models_dir: Path, tmp_path: Path
) -> None:
    expected = pruned_logits(tiny_models_dir, manifest.keep)
    (tiny_models_dir / "tiny").rename(tmp_path / "away")
    checkpoint = tiny_models_dir.parent / "checkpoints" / manifest.name
    for model, place_ in (("tiny@prn-1", "by name"), (str(checkpoint), "by path")):
        out = tmp_path / place_
        run(model, str(out), "--max-shard-size", "50KB")
        index = json.loads((out / "model.safetensors.index.json").read_text())
        files = sorted(set(index["weight_map"].values()))
        assert files == sorted(file.name for file in out.glob("*.safetensors"))
        assert len(files) > 1
        assert all((out / name).stat().st_size < 60_000 for name in files)
        loaded = AutoModelForCausalLM.from_pretrained(out)
        assert torch.equal(logits_of(loaded, token_ids()), expected)
        assert "tiny without 2 of its 6 transformer blocks" in (out / "README.md").read_text()


def test_a_dense_directory_is_written_whole(
    manifest: Manifest, tiny_models_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run(str(tiny_models_dir / "tiny"), str(out), "--json")
    said = json.loads(result.stdout)
    assert said["path"] == str(out)
    assert said["verified"] is True
    assert (said["num_blocks"], said["removed_blocks"]) == (manifest.num_blocks, [])
    assert "tiny with all of its 6 transformer blocks" in (out / "README.md").read_text()


def test_a_gguf_file_alone(manifest: Manifest, tiny_models_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "tiny.gguf"
    ran = run("tiny@prn-1", "--gguf", str(file))
    assert ran.stdout.endswith(f"Next: serve it: llama-server -m {file}\n")
    assert "Converting" not in ran.stderr  # the bar of transformers, which breaks its lines
    said = ran.stdout
    assert f"tiny@prn-1, 4 blocks in float32, is in\n{file}\n" in said
    assert [path.name for path in file.parent.iterdir()] == ["tiny.gguf"]
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    expected = pruned_logits(tiny_models_dir, manifest.keep)
    assert torch.equal(logits_of(read, token_ids()), expected)
    with pytest.raises(CheckpointExists, match="--overwrite"):
        run("tiny", "--gguf", str(file))
    before = file.read_bytes()
    run("tiny", "--gguf", str(file), "--overwrite")
    assert file.read_bytes() != before


def test_a_gguf_file_that_differs_is_not_left(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(*_: object) -> None:
        raise CheckpointNotPortable("differs")

    monkeypatch.setattr("app.commands.export.compare_gguf", differs)
    file = tmp_path / "new" / f"{manifest.parent}.gguf"
    with pytest.raises(CheckpointNotPortable):
        run("tiny", "--gguf", str(file))
    assert list(file.parent.iterdir()) == []


def test_a_family_without_gguf_is_refused_before_anything_is_written(
    manifest: Manifest, tiny_models_dir: Path, tmp_path: Path
) -> None:
    write_checkpoint(tiny_models_dir / "gemma", "gemma")
    with pytest.raises(GgufUnsupported, match="llama, mistral, qwen2, qwen3, not gemma"):
        run("gemma", str(tmp_path / "out"), "--gguf", str(tmp_path / f"{manifest.parent}.gguf"))
    assert not (tmp_path / "out").exists()


def test_what_is_there_stays_unless_told(manifest: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("tiny", str(out))
    before = (out / "config.json").read_bytes()
    with pytest.raises(CheckpointExists, match="already exists"):
        run("tiny@-1", str(out))
    assert (out / "config.json").read_bytes() == before
    run("tiny@-1", str(out), "--overwrite")
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 5
    assert manifest.num_blocks == 6
    assert sorted(path.name for path in tmp_path.iterdir() if "out" in path.name) == ["out"]


@pytest.mark.parametrize("name", ["notes.txt", "manifest.json"])
def test_what_is_no_exported_model_is_never_overwritten(
    manifest: Manifest, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text(manifest.name)
    if name == "manifest.json":
        (out / "config.json").write_text("{}")
    with pytest.raises(CheckpointExists, match="is not overwritten"):
        run("tiny", str(out), "--overwrite")
    assert (out / name).read_text() == manifest.name


def test_what_differs_leaves_what_was_there(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run("tiny", str(out))
    monkeypatch.setattr(
        "app.commands.export.copy_companions", lambda *_: None
    )  # a tokenizer made anew
    with pytest.raises(CheckpointNotPortable, match="tokenizer differs from the parent's"):
        run("tiny@-1", str(out), "--overwrite")
    depth = json.loads((out / "config.json").read_text())["num_hidden_layers"]
    assert depth == manifest.num_blocks
    assert not (tmp_path / ".staging").exists()


@pytest.mark.parametrize("words", [(), ("--max-shard-size", "big"), ("--max-shard-size", "0")])
def test_wrong_use_is_told(tmp_path: Path, words: tuple[str, ...]) -> None:
    out = [str(tmp_path / "out")] if words else []
    assert run("tiny", *out, *words).exit_code == 2


def test_a_failed_rename_gives_back_what_was_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "config.json").write_text("old")
    rename: Callable[[Path, Path], Path] = Path.rename

    def failing(path: Path, to: Path) -> Path:
        if to == target and ".staging" in path.parts:
            raise OSError(28, "full")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(DiskFull):
        place(target, 1, lambda path: (path / "config.json").touch(), overwrite=True)
    assert (target / "config.json").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".staging", "out"]
