"""What the doctor says of one model, by its config alone."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig
from typer.testing import CliRunner

from app.cli.main import app
from app.doctor.finding import Level
from app.doctor.models import family
from pruning.models.architectures import ARCHITECTURES
from tests.support.tiny import SERVED, tiny_model
from tests.support.towers import whole_model


def config_of(path: Path, name: str) -> Path:
    tiny_model(name).config.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("name", "served", "repair"),
    [
        ("llama", "runs the blocks itself", "ridge is available"),
        ("gpt2", "calls the model's own forward", "ridge is available"),
        ("mixtral", "calls the model's own forward", "ridge is available; ridge fits"),
        ("olmo2", "runs the blocks itself", "ridge is available"),
    ],
)
def test_a_supported_model_is_described(
    name: str, served: str, repair: str, tmp_path: Path
) -> None:
    described = {each.check: each for each in family(config_of(tmp_path, name))}
    assert f"{name} is supported; the model has 6 blocks" in described["family"].said
    assert served in described["served"].said
    assert repair in described["repair"].said


def test_a_config_may_rule_repairs_out(tmp_path: Path) -> None:
    name = "opt.do_layer_norm_before"
    described = {each.check: each for each in family(config_of(tmp_path, name))}
    assert described["repair"].level is Level.NOTE
    assert "ridge is not supported for this opt: it needs" in described["repair"].said


@pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - set(SERVED)))
def test_what_the_own_engine_has_no_room_for_is_for_vllm(name: str, tmp_path: Path) -> None:
    described = {each.check: each for each in family(config_of(tmp_path, name))}
    assert described["served"].level is Level.NOTE
    assert f"{name} blocks have" in described["served"].said


def test_a_hybrid_is_repaired_here_and_served_by_vllm(tmp_path: Path) -> None:
    described = {each.check: each for each in family(config_of(tmp_path, "lfm2"))}
    assert described["served"].advice == "serve the checkpoint with vLLM"
    assert "ridge is available" in described["repair"].said


def test_of_a_tower_for_images_the_language_tower_is_described(tmp_path: Path) -> None:
    whole_model("smolvlm").config.save_pretrained(tmp_path)
    described = {each.check: each for each in family(tmp_path)}
    assert "its language model, a llama with 6 blocks" in described["family"].said
    assert "runs the blocks itself" in described["served"].said


def test_a_kind_of_attention_without_a_mask_is_for_vllm(tmp_path: Path) -> None:
    path = config_of(tmp_path, "qwen2") / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "layer_types": ["chunked_attention"] * 6}))
    [_, served, _] = family(tmp_path)
    assert (served.level, served.advice) == (Level.NOTE, "serve the checkpoint with vLLM")


def test_other_models_are_wrong_and_the_command_fails(tmp_path: Path) -> None:
    AutoConfig.for_model("mamba").save_pretrained(tmp_path)
    result = CliRunner().invoke(app, ["doctor", str(tmp_path), "--json"])
    assert result.exit_code == 1
    [found] = json.loads(result.output)["findings"]
    assert "'mamba' are not supported" in found["said"]
    [absent] = family(tmp_path / "absent")
    assert absent.level is Level.WRONG
