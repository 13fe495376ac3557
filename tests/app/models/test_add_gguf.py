"""A GGUF file is added as a directory with the same model, or not at all."""

import json
import shutil
from pathlib import Path

import gguf
import pytest
import torch

from app.config import ServeSettings
from app.models.add import ModelNotAdded, add_model
from pruning.checkpoints.gguf import FAMILIES, write_gguf
from pruning.models.dequantize import _read_once, inspect_gguf
from pruning.models.lineage import ORIGIN_FILE
from pruning.models.store import ModelStore
from pruning.search.dense_model import Resources, load_dense_model
from pruning.spec.prune import Resident
from tests.support.command_line import sleb
from tests.support.logits import logits_of, token_ids
from tests.support.tiny import NUM_BLOCKS
from tests.support.tiny_directory import edit_config, write_tiny_model


def written(directory: Path, family: str) -> Path:
    """The file ``small.gguf`` of a tiny model in ``directory/dense``, with weights in bfloat16."""
    write_tiny_model(directory / "dense", family=family)
    if family == "mistral":  # the later ones
        edit_config(directory / "dense", sliding_window=None)
    dense = load_dense_model(directory / "dense", Resident.MODEL, Resources(), dtype="bfloat16")
    write_gguf(directory / "small.gguf", dense, tuple(range(NUM_BLOCKS)), "small")
    return directory / "small.gguf"


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_model_that_was_written(
    tmp_path: Path, family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, family)
    settings = ServeSettings(data_dir=tmp_path / "data")
    path = add_model(str(file), settings)
    assert path.name == "small"
    assert f"{file} are BF16: they are written as bfloat16" in capsys.readouterr().err
    origin = json.loads((path / ORIGIN_FILE).read_text())
    assert origin["conversion"] == "converted from GGUF (BF16) to bfloat16"
    added = ModelStore(settings.models_dir).load("small")
    expected = ModelStore(tmp_path).load("dense", dtype="bfloat16")
    assert torch.equal(logits_of(added.model, token_ids()), logits_of(expected.model, token_ids()))
    text = "7 lazy dogs"
    assert added.tokenizer(text).input_ids == expected.tokenizer(text).input_ids


def test_the_file_is_read_once_for_a_check_and_once_for_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []

    class CountedReader(gguf.GGUFReader):
        def __init__(self, path: Path) -> None:
            read.append(path)
            super().__init__(path)

    monkeypatch.setattr("gguf.gguf_reader.GGUFReader", CountedReader)
    theirs = {**vars(gguf)}
    file = written(tmp_path, "llama")
    add_model(str(file), ServeSettings(data_dir=tmp_path / "data"))
    assert len(read) == 2
    assert vars(gguf) == theirs
    with _read_once():  # in another thread
        assert inspect_gguf(file).kind == "BF16"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("broken.gguf", b"GGUF\x03", "cannot be read as a model"),
        ("model-00001-of-00003.gguf", b"GGUF", "llama-gguf-split --merge"),
    ],
)
def test_a_file_that_is_no_whole_model_is_refused_and_leaves_nothing(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    settings = ServeSettings(data_dir=tmp_path / "data")
    with pytest.raises(ModelNotAdded, match=says):
        add_model(str(tmp_path / name), settings)
    with pytest.raises(ModelNotAdded, match="leave out --revision"):
        add_model(str(tmp_path / name), settings, revision="main")
    assert list(settings.models_dir.glob("[!.]*")) == []


def test_a_disk_without_room_for_plain_weights_is_told_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, settings = written(tmp_path, "llama"), ServeSettings(data_dir=tmp_path / "data")
    usage = shutil.disk_usage(tmp_path)._replace(free=99)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(ModelNotAdded, match=r"needs \d+ bytes, and 99 are free"):
        add_model(str(file), settings)
    assert list(settings.models_dir.glob("[!.]*")) == []


def test_a_file_that_is_not_there_is_no_model(tmp_path: Path) -> None:
    ran = sleb(tmp_path, "models", "add", "none.gguf")
    assert ran.returncode == 1
    assert "a GGUF file" in ran.stderr
