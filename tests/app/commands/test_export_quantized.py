"""``sleb export --quantize`` writes what was measured, and plain transformers loads it as that."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from app.cli.main import app as command_line
from app.commands.export_cost import QuantizationCostly, cost_of, is_costly, refusal
from app.commands.subject import NotEvaluable
from pruning.checkpoints.card import QuantizedText
from pruning.checkpoints.llama_cpp import GgufUnsupported
from pruning.checkpoints.quantized import load_quantized, save_quantized
from pruning.checkpoints.store import Manifest, repair_of
from pruning.checkpoints.verify import CheckpointNotPortable
from pruning.evaluation.quality import Interval
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

WRITTEN = (Quantize.INT8, Quantize.INT4)
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


@pytest.mark.parametrize("weights", slow_but(WRITTEN, Quantize.INT4))
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
    with pytest.raises(NotEvaluable, match=r"use the model without \+int8"):
        run("tiny+int8", str(tmp_path / "other"), "--quantize", "int4")


@pytest.mark.parametrize("weights", WRITTEN)
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
    with pytest.raises(CannotQuantize, match=r"mixtral\b.*: leave int8 or int4 out"):
        run("experts", out, "--quantize", "int4")
    write_checkpoint(data_dir / "models" / "other", "gpt2")
    with pytest.raises(CannotQuantize, match="'gpt2' cannot be quantized"):
        run("other", out, "--quantize", "int4")
    write_checkpoint(data_dir / "models" / "falcon", "falcon")
    with pytest.raises(CannotQuantize, match=r"falcon\b.*: leave int8 or int4 out"):
        run("falcon", out, "--quantize", "int4")
    with pytest.raises(CannotQuantize, match="w8a8 cannot be exported yet"):
        run("tiny", out, "--quantize", "w8a8")
    with pytest.raises(GgufUnsupported, match="llama-quantize"):
        run("tiny", out, "--quantize", "int4", "--gguf", str(tmp_path / "file.gguf"))
    monkeypatch.setattr("pruning.extras.find_spec", lambda _name: None)
    with pytest.raises(ExtraMissing, match=r"pip install 'sleb-serve\[quantize\]'"):
        run("tiny", out, "--quantize", "int8")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("manifest")
def test_weights_that_cost_too_much_are_written_only_if_that_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "parent" / "out"
    words = ("tiny@-2", str(out), "--quantize", "int4")
    monkeypatch.setattr("app.commands.export_cost.MAX_RATIO", 0.5)
    monkeypatch.setenv("SLEB_VERIFY", "off")  # which spares no measurement of what it decides
    with pytest.raises(QuantizationCostly, match=r"int4 weights .*; int8 weights .* --accept"):
        run(*words)
    assert [*out.parent.iterdir()] == []
    assert "| text |" not in written(run(*words, "--accept"), out)
    monkeypatch.setenv("SLEB_VERIFY", "inline")
    accepted = run(*words, "--accept", "--overwrite")
    assert "int4 weights" in accepted.stdout.splitlines()[-2]
    assert "| text |" in written(accepted, out)


def written(printed: Any, out: Path) -> str:
    """The card of an export that has succeeded."""
    assert printed.exit_code == 0
    return (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("ratios", "says", "costs"),
    [
        ((1.0033, 1.001), "raise perplexity by up to 0.3 % (on prose)", False),
        ((1.48, 1.41), "raise perplexity by up to 48 % (on prose)", True),
        ((1.01, 1.051), "raise perplexity by up to 5.1 % (on code)", True),
        ((1.0, 0.99), "do not raise perplexity on any text", False),
        ((math.nan, 1.0), "", True),
    ],
)
def test_a_cost_is_said_as_a_share(ratios: tuple[float, ...], says: str, costs: bool) -> None:
    texts = [
        QuantizedText(domain, domain, 20.0, 20.0 * ratio, Interval(ratio, None, None))
        for domain, ratio in zip(("prose", "code"), ratios, strict=True)
    ]
    assert is_costly(texts) is costs
    assert says in cost_of(Quantize.INT4, texts)


def test_a_refusal_names_the_weights_that_would_do() -> None:
    def texts(ratio: float) -> list[QuantizedText]:
        return [QuantizedText("prose", "prose", 20.0, 20 * ratio, Interval(ratio, None, None))]

    both = str(refusal(Quantize.INT4, texts(1.48), texts(1.003)))
    assert both.startswith(
        "int4 weights raise perplexity by up to 48 % (on prose); int8 weights raise perplexity by "
        "up to 0.3 % (on prose). The limit is 5 %, so nothing was written: use --quantize int8, or"
    )
    for refused in (
        refusal(Quantize.INT8, texts(1.1), []),
        refusal(Quantize.INT4, *[texts(2)] * 2),
    ):
        assert "export plain weights, or write the int" in str(refused)
