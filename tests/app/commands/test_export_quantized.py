"""``sleb export --quantize`` writes what was measured, and plain transformers loads it as that."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from app.cli.main import app as command_line
from app.commands.subject import NotEvaluable
from pruning.checkpoints.llama_cpp import GgufUnsupported
from pruning.checkpoints.quantized import load_quantized, save_quantized
from pruning.checkpoints.store import Manifest, repair_of
from pruning.checkpoints.verify import CheckpointNotPortable
from pruning.extras import ExtraMissing
from pruning.models.architectures import ARCHITECTURES, CannotQuantize
from pruning.models.blocks import view
from pruning.models.quantize import quantized
from pruning.models.store import LoadedModel
from pruning.repair.folding import folded
from pruning.repair.record import Method
from pruning.spec.prune import Quantize
from tests.support.api_fixtures import publish_pruned
from tests.support.logits import logits_of, token_ids
from tests.support.quick import slow_but
from tests.support.repairs import repair_checkpoint
from tests.support.tiny import tiny_model
from tests.support.tiny_checkpoints import write_checkpoint

LOADED = sorted(
    name for name, row in ARCHITECTURES.items() if row.is_linear and row.loads_quantized
)


@pytest.fixture
def manifest(data_dir: Path, tiny_loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """Of a repaired checkpoint in the data directory of the command."""
    monkeypatch.setenv("SLEB_DATA_DIR", str(data_dir))
    monkeypatch.setenv("SLEB_DEVICE", "cpu")
    monkeypatch.setenv("SLEB_VERIFY", "inline")
    publish_pruned(data_dir, 2)
    return repair_checkpoint(
        data_dir / "checkpoints" / "tiny@prn-1", tiny_loaded.model, [Method.RIDGE] * 2
    )


def run(*words: str) -> Any:
    result = CliRunner().invoke(command_line, ["export", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize("weights", slow_but(Quantize, Quantize.INT4))
def test_it_writes_the_repaired_and_rounded_model_with_its_perplexities(
    manifest: Manifest, data_dir: Path, tiny_loaded: LoadedModel, tmp_path: Path, weights: Quantize
) -> None:
    out = tmp_path / "out"
    printed = run("tiny@-2", str(out), "--quantize", weights, "--json")
    found = json.loads(printed.stdout)
    assert printed.stderr.strip() == "", "no bars of libraries"
    repaired = repair_of(data_dir / "checkpoints" / "tiny@prn-1", 2)
    assert repaired is not None
    own = folded(tiny_loaded.model, manifest.keep, repaired)
    expected = quantized(view(tiny_loaded.model, manifest.keep, own), weights)
    model = AutoModelForCausalLM.from_pretrained(out)
    logits = logits_of(model, token_ids())
    torch.testing.assert_close(logits, logits_of(expected, token_ids()), rtol=1e-4, atol=1e-4)
    assert found["quantized"] == weights
    assert found["verified"] is True
    assert [one["text"].split(",")[0] for one in found["perplexities"]] == [
        "packaged prose",
        "packaged code",
        "packaged documentation",
    ]
    card = (out / "README.md").read_text()
    assert f"rounded to {weights}" in card
    for one in found["perplexities"]:
        assert f"| {one['plain']:.3f} | {one['quantized']:.3f} |" in card
        assert one["plain"] != one["quantized"]


@pytest.mark.usefixtures("manifest")
def test_the_int8_form_of_a_name_is_exported_with_int8_weights(tmp_path: Path) -> None:
    run("tiny@-2+raw+int8", str(tmp_path / "out"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    [group] = config["quantization_config"]["config_groups"].values()
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert (group["weights"]["num_bits"], group["weights"]["strategy"]) == (8, "channel")
    with pytest.raises(NotEvaluable, match=r"name the model without \+int8"):
        run("tiny+int8", str(tmp_path / "other"), "--quantize", "int4")


@pytest.mark.parametrize("weights", Quantize)
@pytest.mark.parametrize("family", LOADED)
def test_every_family_is_loaded_as_it_was_written(
    family: str, weights: Quantize, tmp_path: Path
) -> None:
    made = quantized(tiny_model(family), weights)
    save_quantized(made, tmp_path, 20_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = load_quantized(tmp_path, "cpu")
    torch.testing.assert_close(
        logits_of(loaded, token_ids()), logits_of(made, token_ids()), rtol=1e-4, atol=1e-4
    )


@pytest.mark.usefixtures("manifest")
def test_a_file_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = save_quantized

    def damaged(*given: Any) -> None:
        saved(*given)
        file = given[1] / "model.safetensors"
        tensors = load_file(file)
        name = next(name for name in tensors if name.endswith("weight_packed"))
        tensors[name][0, 0] ^= 1
        save_file(tensors, file, metadata={"format": "pt"})

    monkeypatch.setattr("app.commands.export.save_quantized", damaged)
    with pytest.raises(CheckpointNotPortable, match="1 weight not as expected"):
        run("tiny", str(tmp_path / "out"), "--quantize", "int8")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("manifest")
def test_what_cannot_be_written_is_refused_before_weights_are_read(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(data_dir / "models" / "experts", "mixtral")
    out = str(tmp_path / "out")
    with pytest.raises(CannotQuantize, match="looks for the plain weights of a mixtral"):
        run("experts", out, "--quantize", "int4")
    write_checkpoint(data_dir / "models" / "other", "gpt2")
    with pytest.raises(CannotQuantize, match="'gpt2' cannot be quantized"):
        run("other", out, "--quantize", "int4")
    write_checkpoint(data_dir / "models" / "falcon", "falcon")
    with pytest.raises(CannotQuantize, match="looks for the plain weights of a falcon"):
        run("falcon", out, "--quantize", "int4")
    with pytest.raises(GgufUnsupported, match="llama-quantize"):
        run("tiny", out, "--quantize", "int4", "--gguf", str(tmp_path / "file.gguf"))
    monkeypatch.setattr("pruning.extras.find_spec", lambda _name: None)
    with pytest.raises(ExtraMissing, match=r"pip install 'sleb-serve\[quantize\]'"):
        run("tiny", out, "--quantize", "int8")
    assert not (tmp_path / "out").exists()
