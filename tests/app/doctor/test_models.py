"""The doctor's checks of models and checkpoints that are complete, truncated or invalid."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from app.doctor.finding import Level
from app.doctor.models import checkpoints, external, models, weights
from pruning.models.safetensors_headers import NotAModel, check_weights
from tests.support.api_fixtures import publish_pruned
from tests.support.tiny_checkpoints import write_checkpoint
from tests.support.unsupported import quantize_config, write_unsupported


def cut(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def cut_to_its_header(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:20])


def lose_config(path: Path) -> None:
    (path / "config.json").unlink()


def spoil_config(path: Path) -> None:
    (path / "config.json").write_text("{")


def lose_weights(path: Path) -> None:
    (path / "model.safetensors").unlink()


def lose_tokenizer(path: Path) -> None:
    (path / "tokenizer.json").unlink()


def quantize(path: Path) -> None:
    quantize_config(path, "gptq")


def test_a_whole_model_is_well(tiny_models_dir: Path) -> None:
    (tiny_models_dir / ".staging").mkdir()
    [found] = models(tiny_models_dir)
    assert (found.check, found.level) == ("model tiny", Level.OK)
    assert "6 blocks" in found.said


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (cut, "its header says"),
        (cut_to_its_header, "not a safetensors file"),
        (lose_config, "no config.json"),
        (spoil_config, "cannot read"),
        (lose_weights, "no .safetensors file"),
        (lose_tokenizer, "has no tokenizer"),
        (quantize, "unquantized"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_told(
    tiny_models_dir: Path, spoil: Callable[[Path], None], word: str
) -> None:
    spoil(tiny_models_dir / "tiny")
    [found] = models(tiny_models_dir)
    assert (found.check, found.level) == ("model tiny", Level.WRONG)
    assert word in found.said
    assert found.advice


def test_a_tokenizer_that_goes_after_an_inspection_is_missed(tiny_models_dir: Path) -> None:
    assert models(tiny_models_dir)[0].level is Level.OK
    lose_tokenizer(tiny_models_dir / "tiny")
    [found] = models(tiny_models_dir)
    assert (found.level, "has no tokenizer" in found.said) == (Level.WRONG, True)


def test_each_model_is_looked_at(tiny_models_dir: Path) -> None:
    write_unsupported(tiny_models_dir / "encoder", "t5")
    shutil.copytree(tiny_models_dir / "tiny", tiny_models_dir / "no name")
    found = {each.check: each.level for each in models(tiny_models_dir)}
    assert found == {
        "model encoder": Level.WRONG,
        "model no name": Level.WRONG,
        "model tiny": Level.OK,
    }


def test_a_shard_that_is_missing_is_told(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m", "llama", layout="shards")
    check_weights(tmp_path / "m")
    shard = sorted((tmp_path / "m").glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(NotAModel, match=shard.name):
        check_weights(tmp_path / "m")


def test_no_models_are_a_note(tmp_path: Path) -> None:
    [found] = models(tmp_path / "models")
    assert found.level is Level.NOTE
    assert "sleb models add" in found.advice


def test_the_size_of_weights_is_that_of_their_files(tiny_models_dir: Path) -> None:
    num_bytes = (tiny_models_dir / "tiny" / "model.safetensors").stat().st_size
    assert weights(tiny_models_dir) == {"tiny": num_bytes}


def test_checkpoints_are_compared_with_their_manifests(tiny_models_dir: Path) -> None:
    data_dir = tiny_models_dir.parent
    assert checkpoints(data_dir / "checkpoints") == []
    publish_pruned(data_dir)
    [found] = checkpoints(data_dir / "checkpoints")
    assert (found.check, found.level) == ("checkpoint tiny@prn-1", Level.OK)
    path = data_dir / "checkpoints" / "tiny@prn-1"
    manifest = path / "manifest.json"
    fields = json.loads(manifest.read_text())
    for text in ("{", "{}", json.dumps({**fields, "format": 99})):
        manifest.write_text(text)
        assert checkpoints(path.parent)[0].level is Level.WRONG
    manifest.unlink()
    assert "no manifest" in checkpoints(path.parent)[0].said


def test_a_checkpoint_that_is_cut_short_is_told(tiny_models_dir: Path) -> None:
    publish_pruned(tiny_models_dir.parent)
    directory = tiny_models_dir.parent / "checkpoints"
    cut(directory / "tiny@prn-1")
    [found] = checkpoints(directory)
    assert found.level is Level.WRONG
    assert "model.safetensors changed after it was published" in found.said


def test_a_file_of_external_models_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    assert external(None).level is Level.OK
    assert external(tmp_path / "none.toml").level is Level.WRONG
